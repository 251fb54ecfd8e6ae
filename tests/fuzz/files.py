"""What reads data and networks of others: a `ValueError` is the sentence that a stage says."""

import contextlib
import gzip
import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.fuzz.making import as_json, atom, changed, flipped

Target = Callable[[random.Random], None]
SIZES = (0, 1, 2, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def targets(folder: Path) -> dict[str, Target]:
    """Targets by name; they work below `folder`."""
    folder.mkdir()
    return {
        "npz": _npz(folder / "x.npz"),
        "npy": _npy(folder / "x.npy"),
        "PNG": _png(),
        "IDX": _idx(folder),
        "pickle": _pickle(folder / "x.pkl"),
        "safetensors": _safetensors(folder / "x.safetensors"),
        "checkpoint": _checkpoint(folder / "x.pt"),
    }


def _header(draws: random.Random) -> bytes:
    """An .npy file whose header says what it likes."""
    shape = tuple(draws.choice((*SIZES, -1, 3)) for _ in range(draws.randrange(4)))
    fields = {
        "descr": draws.choice(("|u1", "<f4", "|O", "V8", ">i8", "<U9999999", [("a", "<f4")], "x")),
        "fortran_order": draws.choice((True, False, 7)),
        "shape": draws.choice((shape, shape, shape, 3, "x")),
    }
    text = repr(fields) if draws.random() < 0.8 else "[" * draws.choice((3, 5000)) + str(fields)
    data = text.encode() + b"\n"
    length = draws.choice((len(data), len(data), len(data), 0, 2**16 - 1))
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + data + bytes(48)


def _npz(path: Path) -> Target:
    from stages.data.readers.mapped import open_npz

    def whole(compression: int) -> bytes:
        stream = io.BytesIO()
        save = np.savez_compressed if compression else np.savez
        save(stream, x_train=np.arange(48, dtype=np.uint8).reshape(3, 4, 4), y_train=np.arange(3))
        return stream.getvalue()

    both = whole(0), whole(1)

    def read(draws: random.Random) -> None:
        if draws.random() < 0.5:
            path.write_bytes(flipped(draws, draws.choice(both)))
        else:
            with zipfile.ZipFile(path, "w", draws.choice((0, zipfile.ZIP_DEFLATED))) as archive:
                for _ in range(draws.randrange(3)):
                    name = str(atom(draws)).encode(errors="replace").decode()[:1000]
                    archive.writestr(f"{name}.npy", _header(draws))
        with contextlib.suppress(ValueError):
            for array in open_npz(path).values():
                array.array.reshape(-1)[:1]

    return read


def _npy(path: Path) -> Target:
    from stages.data.readers.mapped import open_npy

    stream = io.BytesIO()
    np.save(stream, np.arange(48.0))
    whole = stream.getvalue()

    def read(draws: random.Random) -> None:
        path.write_bytes(_header(draws) if draws.random() < 0.5 else flipped(draws, whole))
        with contextlib.suppress(ValueError):
            open_npy(path).array.reshape(-1)[:1]

    return read


def _png() -> Target:
    from PIL import Image

    from stages.data.fitted import decode

    def whole(form: str, mode: str) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).convert(mode).save(
            stream, form
        )
        return stream.getvalue()

    forms = (("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("JPEG", "RGB"), ("GIF", "P"))
    images = [whole(*form) for form in (*forms, ("BMP", "RGB"), ("TIFF", "RGB"))]

    def read(draws: random.Random) -> None:
        data = flipped(draws, draws.choice(images))
        if draws.random() < 0.2:  # as wide and high as it likes
            data = bytearray(images[0])
            data[16:24] = b"".join(
                min(draws.choice(SIZES), 2**32 - 1).to_bytes(4, "big") for _ in range(2)
            )
        with contextlib.suppress(ValueError):
            decode(bytes(data), "x", draws.choice((None, 8)))

    return read


def _idx(folder: Path) -> Target:
    from stages.data.readers.mnist import read_idx

    whole = bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 3)) + bytes(range(18))
    packed = gzip.compress(whole, mtime=0)

    def read(draws: random.Random) -> None:
        path = folder / draws.choice(("x", "x.gz"))
        if draws.random() < 0.3:
            sizes = b"".join(
                min(draws.choice(SIZES), 2**32 - 1).to_bytes(4, "big") for _ in range(3)
            )
            data = whole[:4] + sizes + bytes(draws.randrange(40))
            path.write_bytes(gzip.compress(data, mtime=0) if path.suffix else data)
        else:
            path.write_bytes(flipped(draws, packed if path.suffix else whole))
        with contextlib.suppress(ValueError):
            read_idx(path, 3)

    return read


class _Asks:
    """Pickled, a call of whatever is named."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple:
        return _resolved(self.name), ("touch escaped",)


def _resolved(name: str) -> Callable:
    module, _, member = name.partition(".")
    return getattr(__import__(module), member)


def _pickle(path: Path) -> Target:
    from pipeline.errors import UsageError
    from stages.data import references
    from stages.networks import pickled

    held = {"fid": {"mu": np.zeros(3), "sigma": np.eye(3)}, "n": np.float32(2), "x": b"\xff"}
    plain = [pickle.dumps(held, protocol) for protocol in range(6)]
    calls = [
        pickle.dumps([_Asks(name), held])
        for name in ("os.system", "builtins.exec", "subprocess.call", "os.remove")
    ]
    places = (b"Nr\xff\xff\xff\x7f.", b"Np999999999999\n.", b"\x8c\xff", b"\x8e" + b"\xff" * 8)

    def read(draws: random.Random) -> None:
        how = draws.random()
        data = draws.choice(calls if how < 0.2 else plain)
        data = flipped(draws, data) if how > 0.1 else data
        if 0.2 < how < 0.3:
            data = b"\x80\x04" + draws.choice(places) + data
        path.write_bytes(data)
        with contextlib.suppress(ValueError):
            pickled.read(path)
        with contextlib.suppress(UsageError):
            references.read(path)

    return read


def _safetensors(path: Path) -> Target:
    import torch
    from safetensors.torch import save

    from stages.networks.torch_files import read as read_file

    whole = save({"w": torch.arange(12.0).reshape(3, 4), "n": torch.tensor(3)})
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])

    def read(draws: random.Random) -> None:
        if draws.random() < 0.5:
            path.write_bytes(flipped(draws, whole))
        else:
            text = as_json(changed(draws, header))
            size = draws.choice((len(text), len(text), *SIZES))
            path.write_bytes(size.to_bytes(8, "little") + text + whole[8 + length :])
        with contextlib.suppress(ValueError):
            read_file(path)

    return read


def _checkpoint(path: Path) -> Target:
    import torch

    from stages.networks.torch_files import read as read_file

    def whole(**options: bool) -> bytes:
        stream = io.BytesIO()
        torch.save({"w": torch.arange(12.0), "n": torch.tensor(3)}, stream, **options)
        return stream.getvalue()

    files = whole(), whole(_use_new_zipfile_serialization=False)

    def read(draws: random.Random) -> None:
        path.write_bytes(flipped(draws, draws.choice(files)))
        with contextlib.suppress(ValueError):
            read_file(path)

    return read
