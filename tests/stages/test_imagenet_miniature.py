"""The preset imagenet256 at tiny sizes, from pictures to scores of decoded samples."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline import results
from pipeline.__main__ import main
from tests.stages.autoencoders import save_autoencoder

# Whatever the preset says of sizes, of a machine with GPUs, and of weights to place.
TINY = """
extends: imagenet256
data: {dataset: auto, size: 64}
latents: {device: cpu, batch_size: 8, flips: true}
extractor: {kind: embedded, device: cpu, epochs: 1, min_accuracy: 0, nearest_among: 40}
teach:
  kind: embedded
  mode: online
  device: cpu
  precision: float32
  width: 16
  depth: 1
  heads: 2
  steps: 4
  train_batch_size: 8
  batch_size: 16
  probe_images: 50
  min_probe: 0
  min_gain: -1
train:
  network: {width: 16, depth: 3, heads: 2}
  steps: 4
  batch_size: 8
  num_checkpoints: 1
  log_every: 2
  precision: float32
  compile: false
  device: cpu
  num_workers: 0
  repa: &aligned {alignment_depth: 1, projector_width: 16}
  reg: *aligned
  maskalign: {<<: *aligned, mix_layers: 1}
maskalign: {steps: 4, num_checkpoints: 1, methods: [sit, maskalign]}
diagnose: {num_images: 16, batch_size: 8, device: cpu}
sample:
  num_samples: 40
  block_size: 20
  sweep_samples: 40
  solvers: [dpmpp2m]
  nfes: [3]
  reference_nfe: 6
  checkpoint_nfe: 4
  compile: false
  device: cpu
stein: {in_full: false}
combined: {in_full: false}
evaluate: {num_samples: 40, device: cpu}
resources:
  encode: &cpu {gpus: 0}
  decode: *cpu
  extractor: *cpu
  features: *cpu
  evaluate: *cpu
  teach: *cpu
  diagnose: *cpu
  sample: *cpu
  calibrate: *cpu
  lipschitz: *cpu
  trajectory: *cpu
  follow: *cpu
  grids: *cpu
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What a command is told: the preset, 64 pictures in four class folders, an autoencoder."""
    root = tmp_path_factory.mktemp("placed")
    (root / "tiny.yaml").write_text(TINY)
    draw = np.random.default_rng(0)
    for i in range(64):
        folder = root / "pictures" / f"n0000000{i % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((72, 64), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:02d}.jpeg", quality=95)
    save_autoencoder(root / "vae", levels=4)
    given = [f"data.path={root / 'pictures'}", f"latents.autoencoder={root / 'vae'}"]
    return ["--preset", str(root / "tiny.yaml"), *given]


@pytest.fixture(scope="module")
def done(tmp_path_factory, places):
    """The finished run."""
    store = tmp_path_factory.mktemp("store")
    command = [sys.executable, "-m", "pipeline", "run", "full", "--store", str(store)]
    command += ["--jobs", "2", *places]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return results.latest("full", results.opened(str(store)))


@pytest.mark.slow
@pytest.mark.xdist_group("imagenet256")
def test_the_preset_runs_from_pictures_to_scores_of_decoded_samples(done):
    assert done.state == "finished"
    latents, pixels = done["encode"].artifact.description, done["prepare"].artifact.description
    assert latents["shape"] == [4, 8, 8]
    assert pixels["shape"] == [3, 64, 64]
    assert latents["num_train"] == 2 * pixels["num_train"]
    for name in ("sit", "maskalign"):
        assert {"fid", "kid"} <= done[f"evaluate/{name}"].metrics.keys()
        assert done[f"features/{name}-step4"].load().neighbours.max() < 40
        samples = done[f"sample/{name}-step4"].artifact
        pictures = done[f"decode/{name}-step4"].artifact
        assert samples.shape == (4, 8, 8)
        assert pictures.shape == (3, 64, 64)
        assert pictures.description["num_training_images"] == pixels["num_train"]
        assert pictures.images(slice(8)).std() > 0.01
    report = (done.store.run_path(done.id) / "report.html").read_text()
    assert "Nearest training images" in report


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "latents.autoencoder=nowhere",
            "config.json and diffusion_pytorch_model.safetensors there",
        ),
        ("latents.autoencoder={vae}/..", "nothing is downloaded"),
        ("data.size=68", "does not divide 68 x 68"),
        ("train.network.patch=3", "patch=3 does not divide the images' side of 8 pixels"),
    ],
)
def test_what_cannot_work_is_one_sentence(places, tmp_path, capsys, override, words):
    store = tmp_path / "store"
    assert main(["run", "full", "--store", str(store), *places, override]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1
    assert not (store / "runs").exists()  # which is before any work
