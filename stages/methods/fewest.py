"""How few images scores can be taken of: what settings are checked against before any work."""

FEWEST_IMAGES = 4  # of each set of a Fréchet distance
FEWEST_SCORED = 40  # of each set of an evaluation: errors from fewer say nothing


def most_neighbours(count: int) -> int:
    """The largest k of k-th neighbours among `count` images, any one of them left out; below 1
    where there are too few for any."""
    return count - 2
