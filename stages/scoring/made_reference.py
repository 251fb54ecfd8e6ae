"""`python -m pipeline reference DATA`: a file for published protocols, from a user's images."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError, raised_as
from stages.encoders.weights import MissingWeightsError

if TYPE_CHECKING:
    import numpy as np

    from stages.data.readers.source import Listing
    from stages.encoders.embedded import Features
    from stages.methods.suite import Sums

KEPT = 10_000  # images for precision and recall, as in ADM's files
BATCH = 50
FEWEST = 10


def command(options: Namespace) -> None:
    """Make the file that the command line asks for, and say what it holds."""
    to = Path(options.to or "reference.npz").expanduser()
    if to.suffix != ".npz":
        raise UsageError(f"--to {to}: a reference is an .npz file; end its name so")
    if to.exists():
        raise UsageError(f"--to {to} is there already; choose another name, or remove it")
    if options.size is not None and options.size < 1:
        raise UsageError(f"--size {options.size}: give at least 1 pixel")
    path = Path(options.data).expanduser()
    if not path.exists():
        raise UsageError(f"{path} does not exist; give a folder of images, or an archive of them")
    with raised_as(UsageError, MissingWeightsError, ValueError, OSError):
        how = options.weights, options.size, options.crop, options.device, print
        if options.protocol == "adm":
            count = make(path, to, *how)
            held = (
                f"mu, sigma, mu_s, sigma_s of {count} images, {min(count, KEPT)} of them in arr_0"
            )
        else:
            held = f"mu, sigma of DINOv2-L of {make_dinov2(path, to, *how)} images"
    print(
        f"{to}: {held}; score against it with evaluate.protocol={options.protocol} "
        f"evaluate.reference={to}"
    )


def make(
    path: Path,
    to: Path,
    weights: str | None = None,
    size: int | None = None,
    crop: str = "adm",
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Write mu, sigma, mu_s, sigma_s over all images of a place, and arr_0 of the first 10,000 in
    mixed order; the number of images.

    size: pixels of a side that images are brought to by `crop` (of `stages.data.fitted.CROPS`);
    None takes them as they are, which must then be of one size. Raises ValueError, UsageError and
    MissingWeightsError with what is wrong.
    """
    import numpy as np

    from stages.methods import suite as scores

    pools, spatial, kept = scores.Sums(), scores.Sums(), []
    for found, pixels in _seen("inception", path, weights, size, crop, device, say):
        pools.add(found.features)
        spatial.add(scores.flattened(found.spatial))
        missing = KEPT - sum(map(len, kept))
        if missing > 0:
            kept.append(pixels[:missing].transpose(0, 2, 3, 1))
    arrays = {"arr_0": np.concatenate(kept)}
    for sums, end in ((pools, ""), (spatial, "_s")):
        arrays |= _moments(sums, end)
    _write(to, arrays, pools.count, crop if size else "none")
    return pools.count


def make_dinov2(
    path: Path,
    to: Path,
    weights: str | None = None,
    size: int | None = None,
    crop: str = "adm",
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Write mu and sigma of DINOv2-L over all images of a place, as `make` does those of
    Inception."""
    from stages.methods import suite as scores

    sums = scores.Sums()
    for found, _ in _seen("dinov2-large", path, weights, size, crop, device, say):
        sums.add(found.features)
    _write(to, _moments(sums), sums.count, crop if size else "none")
    return sums.count


def _moments(sums: Sums, end: str = "") -> dict[str, np.ndarray]:
    mean, cov = sums.moments()
    return {f"mu{end}": mean.numpy(), f"sigma{end}": cov.numpy()}


def _write(to: Path, arrays: dict[str, np.ndarray], count: int, crop: str) -> None:
    import numpy as np

    np.savez(to, **arrays, crop=np.array(crop), num_images=np.array(count))


def _seen(
    kind: str,
    path: Path,
    weights: str | None,
    size: int | None,
    crop: str,
    device: str,
    say: Callable[[str], None],
) -> Iterator[tuple[Features, np.ndarray]]:
    """Features of all images of a place in batches, in mixed order, and their pixels."""
    import torch

    from stages.data.image_files import listed
    from stages.data.readers.order import mixed_order
    from stages.encoders import suites

    suite = suites.load(kind, weights, device, "--weights")
    with listed(path, (3, 0, 0)) as listing:
        order = mixed_order(len(listing.images))
        if len(order) < FEWEST:
            raise ValueError(f"{path} holds {len(order)} images; a reference takes {FEWEST}")
        for done, pixels in _batches(listing, order, size, crop):
            yield suite(torch.from_numpy(pixels)), pixels
            if done % (BATCH * 100) == 0:
                say(f"{done} of {len(order)} images")


def _batches(
    listing: Listing, order: np.ndarray, size: int | None, crop: str
) -> Iterator[tuple[int, np.ndarray]]:
    """uint8 (b, C, H, W) of the images in an order, and how many have been read."""
    import numpy as np

    from stages.data import fitted
    from stages.data.image_files import look, taken, with_channels
    from stages.data.readers.source import Pixels
    from stages.shards import blocks

    files = not isinstance(listing.images, Pixels)
    first = None if size is not None and files else look(listing, 3)
    for begin, end in blocks(len(order), BATCH):
        which = order[begin:end]
        if files and size is not None:
            pictures = [
                fitted.decoded(listing.images.read(i), listing.names[i], size, crop) for i in which
            ]
            planes = [p[None] if p.ndim == 2 else p.transpose(2, 0, 1) for p in pictures]
            pixels = np.stack([with_channels(plane[None], 3)[0] for plane in planes])
        else:
            pixels, _ = taken(listing, which, 3, first)
            if size is not None:
                pixels = fitted.resized(pixels, size, 255, crop)
        if pixels.dtype != np.uint8:
            raise ValueError("the images are not of 8 bits, which published references are of")
        yield end, pixels
