"""Pickles of others: what is named is made, everything else is refused by its name."""

import collections
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest

from stages.networks import unpickling


def load(data):
    return unpickling.load(io.BytesIO(data), unpickling.arrays())


class Calls:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_back_from_every_protocol(protocol):
    held = {"mu": np.arange(6.0).reshape(2, 3), "n": np.float32(3), "labels": [1, 2], "x": b"\xff"}
    found = load(pickle.dumps(held, protocol))
    assert np.array_equal(found["mu"], held["mu"])
    assert (found["n"], found["labels"], found["x"]) == (3, [1, 2], b"\xff")


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (Calls(input, "x"), "asks for builtins.input,"),
        (Calls(eval, "1"), "asks for builtins.eval,"),
        (collections.OrderedDict(a=1), "asks for collections.OrderedDict,"),
        (np.random.default_rng(0), "asks for numpy.random._pickle."),
    ],
)
def test_whatever_is_not_named_is_refused_by_its_name(held, said):
    with pytest.raises(unpickling.RefusedError, match=said):
        load(pickle.dumps(held))


def test_what_lies_outside_the_file_and_other_codecs_are_refused():
    class Pickler(pickle.Pickler):
        def persistent_id(self, held):
            return "elsewhere" if held == 7 else None

    stream = io.BytesIO()
    Pickler(stream).dump([7])
    with pytest.raises(unpickling.RefusedError, match="outside the file"):
        load(stream.getvalue())
    assert load(b"c_codecs\nencode\n(Vab\nVlatin1\ntR.") == b"ab"
    with pytest.raises(unpickling.RefusedError, match="codec rot13"):
        load(b"c_codecs\nencode\n(Vab\nVrot13\ntR.")


@pytest.mark.parametrize("data", [b"", b"\x80", b"no pickle", b".", b"\x80\x04K\x01", b"(" * 9])
def test_what_is_no_pickle_is_one_sentence(data):
    with pytest.raises(ValueError, match="no readable pickle"):
        load(data)


@pytest.mark.parametrize("data", [rb"\x80\x02Nr\xff\xff\xff\x0f.", rb"Np268435455\n."])
def test_nine_bytes_take_no_gigabytes(data):
    """Python makes room up to the place that a pickle names: 4 GiB for this one."""
    script = (
        "import io; from stages.networks import unpickling\n"
        f"try:\n unpickling.load(io.BytesIO(b'{data.decode()}'), {{}})\n"
        "except unpickling.RefusedError as error: print(error)\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "print(*(line.split()[1] for line in lines if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, kib = done.stdout.splitlines()
    assert said == "it keeps an object at place 268435455 though it has few"
    assert int(kib) < 2**20
