"""A count of samples, cut into blocks and into shards of whole blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator


def blocks(count: int, block_size: int) -> Iterator[tuple[int, int]]:
    """`(first, last)` of blocks of samples; the last one may be shorter."""
    return ((i, min(i + block_size, count)) for i in range(0, count, block_size))


def shards(num_samples: int, block_size: int, shard_size: int) -> list[tuple[int, int]]:
    """`(first, last)` of shards of whole blocks; the last one may be shorter."""
    return list(blocks(num_samples, math.ceil(shard_size / block_size) * block_size))
