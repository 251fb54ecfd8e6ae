"""Small files that announce or unpack to large ones are refused in a sentence, and no more of them
is taken than fits."""

import gzip
import io
import resource
import zipfile

import numpy as np
import pytest

from stages.data.readers.mapped import open_npy, open_npz
from stages.data.readers.mnist import read_idx


@pytest.fixture(autouse=True)
def _little_memory():
    """An eighth of a gigabyte more than is in use."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        pages = int(stream.read().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + 2**27
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def idx(shape, count):
    head = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in shape)
    return head + bytes(count)


@pytest.mark.parametrize(
    ("shape", "count", "said"),
    [
        ((2, 4, 4), 2**28, "holds more than 32 bytes of data where its header says 32"),
        ((2**32 - 1,) * 3, 0, "announces .* bytes, more than"),
        ((2, 4, 4), 31, "holds 31 bytes of data where its header says 32"),
    ],
)
def test_idx_files_take_no_more_than_they_announce(tmp_path, shape, count, said):
    file = tmp_path / "images.gz"
    with gzip.open(file, "wb", compresslevel=1) as stream:
        stream.write(idx(shape, 0))
        for _ in range(count // 2**24):
            stream.write(bytes(2**24))
        stream.write(bytes(count % 2**24))
    with pytest.raises(ValueError, match=said):
        read_idx(file, 3)


def test_idx_files_that_are_whole_are_read(tmp_path):
    (tmp_path / "x").write_bytes(idx((2, 4, 4), 0) + bytes(range(32)))
    assert np.array_equal(read_idx(tmp_path / "x", 3), np.arange(32).reshape(2, 4, 4))
    damaged = bytearray(gzip.compress(idx((2, 4, 4), 32)))
    damaged[len(damaged) // 2] ^= 255
    (tmp_path / "x.gz").write_bytes(damaged)
    with pytest.raises(ValueError, match="cannot be read"):
        read_idx(tmp_path / "x.gz", 3)


def header(shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


@pytest.mark.parametrize(
    ("shape", "count", "said"),
    [
        ((4, 4, 4), 2**25, "holds more than the 64 bytes that it announces"),
        ((2**50, 4, 4), 64, "for which there is no room"),
    ],
)
def test_compressed_arrays_take_no_more_than_they_announce(tmp_path, shape, count, said):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", header(shape) + bytes(count), compresslevel=1)
    array = open_npz(tmp_path / "x.npz")["x_train"]
    with pytest.raises(ValueError, match=said):
        array.array  # noqa: B018


@pytest.mark.parametrize("text", ["(", "{'descr': [", "7", "{}"])
def test_headers_that_are_none(tmp_path, text):
    data = text.encode() + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data)
    with pytest.raises(ValueError, match=r"not a readable \.npy"):
        open_npy(tmp_path / "x.npy")
