"""Reference files are told apart by what they hold, and run nothing."""

import os
import pickle

import numpy as np
import pytest

from pipeline.errors import UsageError
from stages.data import references


def moments(size, dtype=np.float64, seed=0):
    values = np.random.RandomState(seed)
    return values.randn(size).astype(dtype), np.diag(values.rand(size)).astype(dtype)


def test_adms_file_with_float32_and_images(tmp_path):
    (mu, sigma), (mu_s, sigma_s) = moments(2048, np.float32), moments(2023, np.float32, 1)
    images = np.random.RandomState(0).randint(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    path = tmp_path / "any-name.npz"
    np.savez(path, arr_0=images, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    found = references.read(path)
    assert (found.kind, found.resizer) == ("adm", "tf")
    assert np.array_equal(found.images.array, images)
    assert found.inception.mean.dtype == found.spatial.cov.dtype == np.float64
    assert np.array_equal(found.spatial.mean, mu_s.astype(np.float64))


def test_statistics_alone_do_not_say_their_resizer(tmp_path):
    for size, name in ((2048, "inception"), (1024, "dinov2")):
        mu, sigma = moments(size)
        np.savez(tmp_path / f"{size}.npz", mu=mu, sigma=sigma)
        found = references.read(tmp_path / f"{size}.npz")
        assert (found.kind, found.resizer) == ("unknown", "")
        assert np.array_equal(getattr(found, name).cov, sigma)


def test_edm2s_pickle(tmp_path):
    (mu, sigma), (dino, cov) = moments(2048), moments(1024)
    held = {
        "num_images": 1281167,
        "fid": {"mu": mu, "sigma": sigma},
        "fd_dinov2": {"mu": dino, "sigma": cov},
    }
    for protocol in range(2, 6):
        if protocol == 5:
            continue  # out-of-band buffers are no file's
        (tmp_path / "ref.pkl").write_bytes(pickle.dumps(held, protocol=protocol))
        found = references.read(tmp_path / "ref.pkl")
        assert (found.kind, found.num_images) == ("edm2", 1281167)
        assert np.array_equal(found.inception.mean, mu)
        assert np.array_equal(found.dinov2.cov, cov)


class Runs:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_a_pickle_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"fid": Runs()}))
    with pytest.raises(UsageError, match=r"asks for (posix|nt)\.mkdir, which is not allowed"):
        references.read("bad.pkl")
    assert not (tmp_path / "made-by-a-pickle").exists()


def test_what_is_no_reference_is_named(tmp_path):
    def refused(match, **arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(UsageError, match=match):
            references.read(tmp_path / "x.npz")

    mu, sigma = moments(2048)
    refused("images alone .*pipeline reference", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    refused(r"features \(reps\)", reps=np.zeros((3, 1024)))
    refused("mu has 64 numbers", mu=np.zeros(64), sigma=np.eye(64))
    refused("not \\(d,\\) and \\(d, d\\)", mu=mu, sigma=sigma[:5])
    refused("NaN", mu=mu * np.nan, sigma=sigma)
    refused("mu_s has 10 numbers", mu=mu, sigma=sigma, mu_s=np.zeros(10), sigma_s=np.eye(10))
    refused("Python objects", mu=np.array([{}], dtype=object), sigma=sigma)
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"evaluate\.reference=.* neither an \.npz nor a pickle"):
        references.read(tmp_path / "x.txt")
    with pytest.raises(UsageError, match="does not exist"):
        references.read(tmp_path / "none.npz")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UsageError, match="without fid and fd_dinov2"):
        references.read(tmp_path / "x.pkl")
