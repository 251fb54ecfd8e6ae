"""How few images scores can be taken of: what settings are checked against before any work."""

FEWEST_IMAGES = 4  # of each set of a Fréchet distance
FEWEST_OF_SUBSETS = 40  # of each set of a kernel distance: two subsets of a tenth, two images each


def most_neighbours(count: int, blocks: int = 20) -> int:
    """The largest k of k-th neighbours among `count` images, one block of the jackknife left out
    (with blocks < 2 none); below 1 where there are too few for any."""
    blocks = min(blocks, count // 2)
    remaining = count - -(-count // blocks) if blocks >= 2 else count
    return remaining - 2
