import io
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from stages.artifacts import written
from stages.artifacts.data import Images
from stages.artifacts.storage import Latents, LatentScale, Mapped, Packed
from stages.methods.statistics import Moments, from_arrays


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(0) if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def labels(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.long)


@pytest.fixture
def packed(tmp_path):
    """Nine images in shards of four: pixels, and the storage. The fourth is grey."""
    pixels = np.random.RandomState(0).randint(0, 256, (9, 3, 6, 5), np.uint8)
    pixels[3] = pixels[3, :1]
    files = [png(image[:1] if i == 3 else image) for i, image in enumerate(pixels)]
    work, payload = tmp_path / "work", tmp_path / "payload"
    payload.mkdir()
    shards = [
        written.write_packed(work, f"part-{i}", iter(files[first : first + 4]))
        for i, first in enumerate((0, 4, 8))
    ]
    counts = written.place_packed(shards, payload, "train")
    return pixels, Packed(payload, "train", tuple(counts), (3, 6, 5))


@pytest.mark.parametrize("which", [slice(2, 9, 3), np.array([8, 0, 3, 3, 7]), slice(0, 0)])
def test_packed_images_are_those_that_were_packed(packed, which):
    pixels, stored = packed
    assert stored.counts == (4, 4, 1)
    np.testing.assert_array_equal(stored.take(which), pixels[which])


def test_storages_are_read_in_threads_after_pickling_and_hold_no_file(packed, tmp_path):
    pixels, stored = packed
    stored = pickle.loads(pickle.dumps(stored))
    before = len(os.listdir("/proc/self/fd"))
    wrong: list[int] = []

    def read(seed: int) -> None:
        for which in np.random.RandomState(seed).randint(0, 9, (40, 5)):
            if not (stored.take(which) == pixels[which]).all():
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(os.listdir("/proc/self/fd")) == before
    np.save(tmp_path / "x.npy", pixels)
    mapped = Mapped(tmp_path, "x.npy")
    mapped.take(slice(1))
    assert len(pickle.dumps(mapped)) < 1000
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(mapped)).take(np.array([2])), pixels[[2]]
    )


def test_images_outside_are_refused(packed):
    images = Images(packed[1], labels(9)).first(4)
    np.testing.assert_array_equal(images.raw([-1, 0]), packed[0][[3, 0]])
    for outside in (4, -5):
        with pytest.raises(IndexError, match="4 images"):
            images.raw([0, outside])


def latents(count: int, spread: float) -> np.ndarray:
    random = np.random.RandomState(1)
    mean = random.randn(count, 4, 3, 2) * 3
    return np.stack([mean, np.full_like(mean, spread)], 1).astype(np.float32)


def test_latents_are_float16_only_where_that_keeps_a_tenth_of_their_spread(tmp_path):
    """|mean| up to 16 has spacing 2^-7 and 2^-6 beyond."""
    scale = LatentScale(0.5, (1.0, 0.0, 0.0, -2.0))
    coarse, fine = latents(5, 0.2), latents(6, 0.01)
    shards = [
        written.write_latents(tmp_path / "work", "a", iter([coarse[:2], coarse[2:]]), scale),
        written.write_latents(tmp_path / "work", "b", iter([fine]), scale),
    ]
    assert [shard.facts["dtype"] for shard in shards] == ["float16", "float32"]
    (tmp_path / "payload").mkdir()
    counts = written.place(shards, tmp_path / "payload", "train", ".npy")
    stored = Latents(tmp_path / "payload", "train", tuple(counts), (2, 4, 3, 2), "float32")
    expected = np.concatenate([coarse.astype(np.float16), fine])
    for which in (slice(None), np.array([10, 1, 2, 3, 0, 6]), slice(4, 7)):
        np.testing.assert_array_equal(stored.take(which), expected[which])
    assert np.load(tmp_path / "payload" / "train-00000.npy").dtype == np.float16
    images = Images(stored, labels(11), latents=scale)
    shift = torch.tensor([1.0, 0, 0, -2])[:, None, None]
    assert images.shape == (4, 3, 2)
    torch.testing.assert_close(images[:], (torch.from_numpy(expected[:, 0]) - shift) * 0.5)
    total = written.sum_of([from_arrays(shard.arrays()) for shard in shards])
    assert isinstance(total, Moments)
    mean, std = expected.astype(np.float64).transpose(1, 0, 2, 3, 4)
    scaled = (mean - shift.numpy()) * 0.5
    np.testing.assert_allclose(total.summary().mu, scaled.mean(0), rtol=0, atol=1e-12)
    spread = (scaled.var(0) + np.square(std * 0.5).mean(0)).sum()
    np.testing.assert_allclose(total.summary().V, spread, rtol=1e-12)


class Fixed:
    """Posterior draws that are all one."""

    def posterior(self, shape):
        return torch.ones(shape)


def test_latents_are_drawn_from_their_posterior_where_draws_are_given(tmp_path):
    (shard,) = [written.write_latents(tmp_path, "a", iter([latents(3, 0.25)]), LatentScale(2.0, 1))]
    (tmp_path / "payload").mkdir()
    counts = written.place([shard], tmp_path / "payload", "test", ".npy")
    stored = Latents(tmp_path / "payload", "test", tuple(counts), (2, 4, 3, 2), "float16")
    images = Images(stored, labels(3), latents=LatentScale(2.0, 1))
    raw = images.raw([2, 0])
    assert raw.dtype == torch.float16
    torch.testing.assert_close(images.finish(raw, Fixed()), images.finish(raw) + 0.5)


def test_a_finished_shard_is_not_made_again(tmp_path):
    first = written.write_packed(tmp_path, "a", iter([b"12", b"345"]), lambda: ({"grey": 1}, {}))
    again = written.write_packed(tmp_path, "a", iter([b"other"]))
    assert again == first
    assert (again.count, again.size, again.facts) == (2, 5, {"grey": 1})
    assert again.arrays()["offsets"].tolist() == [0, 2, 5]


def test_a_shard_without_its_facts_is_made_again(tmp_path):
    def broken():
        yield b"12"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        written.write_packed(tmp_path, "a", broken())
    assert written.find(tmp_path, "a") is None
    assert written.write_packed(tmp_path, "a", iter([b"other"])).size == 5
    (tmp_path / "a").write_bytes(b"cut")
    assert written.find(tmp_path, "a") is None


def test_two_tasks_may_write_one_shard(tmp_path):
    """The first is thought to be lost and is not: both write the same, neither into the other's."""

    def again():
        yield b"12"
        written.write_packed(tmp_path, "a", iter([b"12", b"345"]))
        yield b"345"

    made = written.write_packed(tmp_path, "a", again())
    assert made.path.read_bytes() == b"12345"
    assert written.find(tmp_path, "a") == made
    block, scale = np.ones((2, 2, 4, 1, 1), np.float32), LatentScale()

    def latents():
        yield block
        written.write_latents(tmp_path, "b", iter([block, block]), scale)
        yield block

    made = written.write_latents(tmp_path, "b", latents(), scale)
    assert (np.load(made.path) == 1).all()
    assert written.find(tmp_path, "b") == made
    assert not [file for file in tmp_path.iterdir() if file.suffix in (".partial", ".float32")]


def test_what_was_begun_and_not_finished_is_swept_away(tmp_path):
    def killed():
        yield np.ones((2, 2, 4, 1, 1), np.float32)
        raise KeyboardInterrupt

    made = written.write_packed(tmp_path, "a", iter([b"12"]))
    kept = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        written.write_latents(tmp_path, "b", killed(), LatentScale())
    with pytest.raises(KeyboardInterrupt):
        written.write_packed(tmp_path, "c", (bytes(block) for block in killed()))
    assert len(set(tmp_path.iterdir()) - kept) == 2
    written.sweep(tmp_path)
    assert set(tmp_path.iterdir()) == kept
    assert written.find(tmp_path, "a") == made


def test_a_first_part_ends_where_it_says(packed):
    pixels, stored = packed
    images = Images(stored, labels(9), 255).first(4)
    assert len(images[:]) == len(images[-4:]) == 4
    np.testing.assert_array_equal(images.raw(slice(None, None, -1)), pixels[3::-1])
