"""Data sets from their own servers, when a person asks for them: torchvision's addresses and MD5.

What comes is written beside its place, checked, and moved there: a download that was cut off is
never taken for the data.
"""

from __future__ import annotations

import contextlib
import gzip
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pipeline.errors import UsageError
from pipeline.stage import Fetch

IDLE_SECONDS = 20.0  # without a byte, until a server is given up


@dataclass(frozen=True)
class Known:
    """A data set that torchvision knows.

    Args:
        kind: the class there.
        size: of the download.
        files: what comes, by name: one archive that is unpacked, or files that are read as they
            are.
        run: the arguments of a run of it, beside where it lies.
        preset_finds: whether that run's preset looks for it in its usual folder.
    """

    kind: str
    size: str
    files: tuple[str, ...]
    run: str
    preset_finds: bool = True


IDX = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
SETS = {
    "cifar10": Known("CIFAR10", "170 MB", ("cifar-10-python.tar.gz",), "icr --preset cifar10-4096"),
    "cifar100": Known(
        "CIFAR100",
        "169 MB",
        ("cifar-100-python.tar.gz",),
        "icr --preset cifar10-4096 data.dataset=cifar100",
        preset_finds=False,
    ),
    "mnist": Known("MNIST", "12 MB", IDX, "wavelet --preset mnist32"),
    "fashion-mnist": Known(
        "FashionMNIST", "31 MB", IDX, "wavelet --preset mnist32", preset_finds=False
    ),
}

FETCHES: Mapping[str, Fetch] = {
    name: Fetch("stages.data.fetch:fetch", known.files) for name, known in SETS.items()
}


def _failures() -> tuple[type[Exception], ...]:
    """What a server, a network or a disk may end a download with."""
    from http.client import HTTPException

    return (OSError, RuntimeError, HTTPException, EOFError, ValueError)


def fetch(name: str, folder: Path, usual: bool) -> None:
    """Bring a data set into a folder, or check the one that is there; print what was done and the
    run to make of it.

    usual: whether the folder is the one that presets look into.

    Raises UsageError where it cannot be had: what failed, and what to place by hand.
    """
    known, kind = SETS[name], _torchvision(SETS[name].kind)
    wanted = _wanted(kind)
    try:
        wrong = {file: state for file in wanted if (state := _state(folder, file, wanted[file]))}
        if not wrong:
            print(f"{name} is there: {len(wanted)} files in {folder}, checksums right")
        else:
            damaged = [file for file, state in wrong.items() if state == DAMAGED]
            if damaged:
                print(f"{', '.join(damaged)} in {folder}: another checksum, so made anew")
            with _beside(folder) as new:
                _get(kind, known, folder, new, list(wrong))
                for file in wrong:
                    if _state(new, file, wanted[file]):
                        raise ValueError(f"{file} has another checksum than torchvision's")
                for file in wrong:
                    (folder / file).parent.mkdir(exist_ok=True)
                    (new / file).replace(folder / file)
            print(f"{name}: {len(wanted)} files in {folder}, checksums right")
        _check_unpacked(folder, wanted)
    except _failures() as error:
        raise UsageError(_remedy(name, folder, error)) from error
    path = "" if usual and known.preset_finds else f" data.path={shlex.quote(str(folder))}"
    print(f"next: python -m pipeline run {known.run}{path}")


def _torchvision(kind: str) -> Any:
    from stages.methods.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    import torchvision

    return getattr(torchvision.datasets, kind)


def _wanted(kind: Any) -> dict[str, str]:
    """The files that have to be there in the end, with their MD5."""
    if hasattr(kind, "resources"):
        return dict(kind.resources)
    meta = (kind.meta["filename"], kind.meta["md5"])
    files = [*kind.train_list, *kind.test_list, meta]
    return {f"{kind.base_folder}/{file}": md5 for file, md5 in files}


MISSING, DAMAGED = "missing", "damaged"


def _state(folder: Path, file: str, md5: str) -> str:
    """What is wrong with a file; nothing where it is there with the right checksum."""
    from torchvision.datasets.utils import check_integrity

    if not (folder / file).is_file():
        return MISSING
    return "" if check_integrity(folder / file, md5) else DAMAGED


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A new hidden folder in one that is made if need be; both go again where nothing came."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written ({error.strerror}); choose another with --to"
        ) from error
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)
        with contextlib.suppress(OSError):
            for one in made:
                one.rmdir()


def _get(kind: Any, known: Known, folder: Path, new: Path, files: Sequence[str]) -> None:
    """Bring files into `new`, from the archive in `folder` if it is there."""
    if hasattr(kind, "resources"):
        for file in files:
            addresses = [f"{mirror}{file}" for mirror in kind.mirrors]
            _download(addresses, new, file, dict(kind.resources)[file], known.size)
        return
    from torchvision.datasets.utils import extract_archive

    place = folder
    if _state(folder, kind.filename, kind.tgz_md5):
        place = new
        _download([kind.url], new, kind.filename, kind.tgz_md5, known.size)
    print(f"unpacking {kind.filename}", flush=True)
    extract_archive(str(place / kind.filename), str(new))


def _download(addresses: Sequence[str], new: Path, file: str, md5: str, size: str) -> None:
    """Download a file into `new` from the first address that has it whole."""
    from torchvision.datasets.utils import download_url

    failed = []
    for number, address in enumerate(addresses):
        place = new / f"from-{number}"
        print(f"fetching {address} (of {size} in all)", flush=True)
        try:
            _awaited(lambda to=place, url=address: download_url(url, to, file, md5), place)
        except _failures() as error:
            failed.append(f"{urlparse(address).netloc}: {_words(error)}")
        else:
            (place / file).replace(new / file)
            return
    raise ConnectionError("; ".join(failed))


def _awaited(work: Callable[[], object], place: Path) -> None:
    """Do work that writes below `place`, in a thread: a name server or a server that says nothing
    may hold it for ever. Raises what it raises, and TimeoutError once nothing more is written."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    size, waited, step = -1, 0.0, 0.1
    while thread.is_alive():
        thread.join(step)
        now = sum(path.stat().st_size for path in place.glob("*"))
        size, waited = now, 0.0 if now != size else waited + step
        if waited > IDLE_SECONDS:
            raise TimeoutError(f"nothing came for {IDLE_SECONDS:g} seconds")
    if raised:
        raise raised[0]


def _check_unpacked(folder: Path, wanted: Mapping[str, str]) -> None:
    """Raise UsageError for a file beside its .gz that holds something else: it would be read."""
    for file in wanted:
        plain = folder / file.removesuffix(".gz")
        if file.endswith(".gz") and plain.is_file():
            with gzip.open(folder / file) as stream:
                if stream.read() != plain.read_bytes():
                    raise UsageError(
                        f"{plain} is not what {plain.name}.gz beside it holds; remove it"
                    )


def _words(error: BaseException) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason) or type(error).__name__


def _remedy(name: str, folder: Path, error: BaseException) -> str:
    files = ", ".join(SETS[name].files)
    return (
        f"{name} could not be fetched ({_words(error).rstrip('.')}); with a network try again, or "
        f"place {files} in {folder} and run this again, which checks"
        f"{' and unpacks it' if files.endswith('.tar.gz') else ' them'}"
    )
