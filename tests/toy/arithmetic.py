"""Mathematics that the toy stages name in their settings."""


def double(value):
    return 2 * value


def square(value):
    return value * value
