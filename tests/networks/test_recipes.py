"""Recipes on networks from elsewhere: every format end to end, on the fixtures."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline import config
from pipeline.__main__ import main
from pipeline.errors import StageError, UsageError
from pipeline.fingerprint import fingerprint
from pipeline.graph import Graph
from pipeline.plan import Request
from pipeline.store import Store
from stages.catalog import CATALOG, RECIPES
from stages.nets.edm.preconditioning import song
from stages.networks import load
from stages.sampling import problem as sampling_problem
from tests.inline import run_all
from tests.nets.published import CLOSE, FIXTURES, apart, arguments, tensors
from tests.networks.stand_ins import edm_pickle
from tests.stages.context import make

SMALL = [
    *("data.dataset=npz", "data.limit=60", "data.limit_held_out=40", "data.held_out=40"),
    *("stein.solvers=[dpmpp2m]", "stein.corrections=[none,calibrated]", "stein.nfes=[3]"),
    *("stein.num_seeds=1", "stein.more_lipschitz_nfes=[]", "stein.lipschitz_nfe=3"),
    *("stein.iterations=2", "stein.num_trajectories=2", "stein.num_images=20"),
    *("sample.num_samples=40", "sample.sweep_samples=40", "sample.block_size=40"),
    *("sample.reference_nfe=6", "evaluate.num_samples=40", "extractor.epochs=1"),
    *("extractor.min_accuracy=0", "stein.fitted=[]", "stein.more_fitted=[]"),
]


def data(folder, channels, side, classes):
    """Images of these classes, and the settings that read them; of four channels, pixels whose
    latents have as many."""
    latent = [f"latents.autoencoder={FIXTURES / 'diffusers/dit/vae'}"] if channels == 4 else []
    channels, side = (3, 16) if latent else (channels, side)
    rng, labels = np.random.default_rng(0), np.arange(100) % classes
    shade = (labels / classes)[:, None, None, None] - 0.4
    images = np.clip(rng.normal(0, 0.3, (100, channels, side, side)) + shade, -1, 1)
    folder.mkdir(exist_ok=True)
    np.savez(folder / "data.npz", x=images.astype(np.float32), y=labels)
    return [f"data.path={folder / 'data.npz'}", *latent]


def edm(folder, which, label_dim=3):
    """A converted folder of a fixture of EDM or EDM2."""
    facts = arguments(f"{which}/init_kwargs.json")
    facts = facts[f"label{label_dim}" if which == "edm2" else f"EDMPrecond_label{label_dim}"]
    stored = tensors(f"{which}/weights.safetensors")
    classes = ("map_label", "emb_label")
    kept = {k: v for k, v in stored.items() if label_dim or not any(c in k for c in classes)}
    folder.mkdir()
    save_file(kept, folder / "weights.safetensors")
    named = {name: facts[name] for name in ("class_name", "init_kwargs")}
    (folder / "network.json").write_text(json.dumps(named))
    return folder


PYTHON = """
import torch

def half():
    network = torch.nn.Conv2d(3, 3, 3, padding=1)
    torch.nn.init.dirac_(network.weight)

    class Denoiser(torch.nn.Module):
        shape, num_classes = (3, 8, 8), 3

        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, y, sigma, labels=None):
            return self.network(y) / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    return Denoiser()
"""

# (channels, side, classes) of the data, where the network lies, and what is to be said of it.
GIVEN = {
    "sit": ((4, 8, 5), "sit/sigma_true/SiT-tiny.pt", ["format=sit", "num_heads=3"]),
    "cosine": (
        (4, 8, 5),
        "sit/sigma_true/SiT-tiny.pt",
        ["format=sit", "num_heads=3", "path_type=cosine"],
    ),
    "repa": ((4, 8, 5), "repa/0000010.pt", ["num_heads=3"]),
    "reg": ((4, 8, 5), "reg/0000010.pt", ["num_heads=3"]),
    "dit": ((4, 8, 5), "dit/DiT-tiny.pt", ["format=dit", "num_heads=3"]),
    "jit": ((3, 16, 5), "jit/JiT-tiny.pt", ["in_context_start=1"]),
    "ddpm": ((3, 8, 3), "diffusers/ddpm_epsilon", []),
    "ddpm-v": ((3, 8, 3), "diffusers/ddpm_v", []),
    "diffusers-dit": ((4, 8, 5), "diffusers/dit", []),
    "edm": ((3, 8, 3), "edm/ddpmpp", []),
    "edm-pickle": ((3, 8, 3), "edm/ddpmpp", ["format=edm"]),
    "edm2": ((4, 8, 3), "edm2", []),
    "python": ((3, 8, 3), "half_denoiser:half", []),
}


def given(folder, which, monkeypatch):
    """The overrides of a run on the fixture of a format."""
    shape, path, said = GIVEN[which]
    if which in ("edm", "edm2"):
        path = edm(folder / "converted", path)
    elif which == "edm-pickle":
        facts = arguments(f"{path}/init_kwargs.json")["EDMPrecond_label3"]["init_kwargs"]
        network = song(**{k: v for k, v in facts.items() if k != "model_type"})
        network.load_state_dict(tensors(f"{path}/weights.safetensors"))
        edm_pickle(folder / "published.pkl", network, "EDMPrecond", facts)
        path = folder / "published.pkl"
    elif which == "python":
        (folder / "half_denoiser.py").write_text(PYTHON)
        monkeypatch.syspath_prepend(folder)
    else:
        path = FIXTURES / path
    own = [f"networks.path={path}", *(f"networks.{words}" for words in said)]
    return [*data(folder, *shape), *own]


def graph(recipe, *overrides, preset="smoke") -> Graph:
    settings = config.resolve(CATALOG, preset, overrides).settings
    return Graph(RECIPES[recipe](settings), CATALOG.exclude_sources)


@pytest.mark.parametrize("which", GIVEN)
def test_every_format_is_sampled(tmp_path, monkeypatch, which):
    """The stage, one set of samples, and what the artifact says of the network."""
    overrides = [*SMALL, *given(tmp_path, which, monkeypatch)]
    request = Request("stein", "smoke", overrides, only=["sample/given-dpmpp2m-nfe3"])
    if which == "reg":
        request = Request("stein", "smoke", [*overrides, "stein.target=trajectory"], request.only)
    made = run_all(CATALOG, Store(tmp_path / "store"), request)
    images = made["sample/given-dpmpp2m-nfe3"].load().images.numpy()
    assert images.shape == (40, *GIVEN[which][0][:1], *GIVEN[which][0][1:2] * 2)
    assert np.isfinite(images).all()
    assert images.std() > 1e-3
    facts = made["checkpoint/given"].description
    assert len(facts["digest"]) == 64
    assert facts["guided_channels"] == (3 if which in ("sit", "cosine", "dit") else None)


@pytest.mark.slow
@pytest.mark.parametrize("which", GIVEN)
def test_stein_end_to_end(tmp_path, monkeypatch, which):
    more = ["stein.target=trajectory"] if which == "reg" else []
    overrides = [*SMALL, *given(tmp_path, which, monkeypatch), *more]
    made = run_all(CATALOG, Store(tmp_path / "store"), Request("stein", "smoke", overrides))
    text = (made["report"].path / "report.html").read_text()
    facts = made["checkpoint/given"].description
    assert "Networks from elsewhere" in text
    for words in (facts["format"], facts["digest"], *facts["conventions"]):
        assert words in text
    rows = made["evaluate/given-dpmpp2m-calibrated"].load()
    assert all(np.isfinite(row.score.value) for row in rows)
    assert {"lipschitz/given-dpmpp2m-nfe3", "calibrate/given-dpmpp2m-nfe3"} <= made.keys()
    assert not [name for name in made if name.startswith("train/")]


OTHERS = [
    *("csflow.num_seeds=1", "sample.nfes=[3]", "sample.nfe=4", "csflow.more_mixes=[]"),
    *("csflow.baselines=[]", "icr.num_samples=40", "scan.num_images=40", "icr.components=2"),
    *("wavelet.with_photographs=false", "wavelet.all_models=[independent-d3]"),
    *("wavelet.drawn=[]", "wavelet.risk.num_images=20", "scan.num_views=8"),
    *("sample.solvers=[dpmpp2m]", "wavelet.models=[independent-d3]"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "which"),
    [
        *(("icr", which) for which in ("cosine", "ddpm", "edm", "edm2")),
        *(("wavelet", which) for which in ("edm", "ddpm-v")),
        *(("evaluate", which) for which in ("reg", "dit")),
        *(("full", which) for which in ("jit", "reg")),
        ("csflow", "edm"),
    ],
)
def test_other_recipes_run_them_too(tmp_path, monkeypatch, recipe, which):
    overrides = [*SMALL, *OTHERS, *given(tmp_path, which, monkeypatch)]
    if which == "reg":  # latents, and clean class tokens are not known
        overrides += ["csflow.in_full=false", "stein.target=trajectory"]
    made = run_all(CATALOG, Store(tmp_path / "store"), Request(recipe, "smoke", overrides))
    assert "Networks from elsewhere" in (made["report"].path / "report.html").read_text()
    assert not [name for name in made if name.startswith("train/")]
    curve = {"sample/given-dpmpp2m-uniform_t-nfe3", "evaluate/given-dpmpp2m-uniform_t"}
    expected = {
        "icr": {"scan/given", "scan/given-sigma", "evaluate/given"},
        "wavelet": {"risk/given-labelled"},
        "evaluate": {"evaluate/given"},
        "csflow": curve,
        "full": {"evaluate/given", "evaluate/given-dpmpp2m", "evaluate/given-dpmpp2m-calibrated"},
    }[recipe]
    if (recipe, which) == ("full", "jit"):
        grid = {"evaluate/given-dpmpp2m-csflow-a0.4"}
        expected |= {"scan/given", "scan/given-sigma", "risk/given", "risk/given-labelled"} | grid
    assert expected <= made.keys()
    # Without a null class there is nothing to ask without labels.
    assert ("risk/given" in made) == ((recipe, which) == ("full", "jit"))


@pytest.mark.slow
@pytest.mark.parametrize(("which", "method"), [("jit", "jit"), ("edm2", "edm"), ("edm", "edm")])
def test_published_networks_are_trained_on(tmp_path, monkeypatch, which, method):
    """As their files describe them; a few small steps from their weights, by their own loss."""
    kind = {"edm": "song"}.get(which, which)
    overrides = [
        *(*SMALL, *given(tmp_path, which, monkeypatch)),
        *("train.steps=2", "train.num_checkpoints=1", "train.warmup_steps=0", "train.log_every=1"),
        *(f"maskalign.methods=[{method}]", "maskalign.steps=2", "maskalign.num_seeds=1"),
        *("maskalign.num_checkpoints=1", f"train.network.kind={kind}", "train.batch_size=8"),
        *("train.lr=1e-4", "train.network.width=32", f"train.method={method}"),
        *([] if kind == "jit" else ["train.network.depth=4"]),  # the default: unread
    ]
    name = f"train/{method}"
    only = [] if which == "jit" else [f"evaluate/{method}"]  # one with its report
    request = Request("train", "smoke", overrides, only=only)
    made = run_all(CATALOG, Store(tmp_path / "store"), request)
    start, trained = made["checkpoint/given"], made[name]
    assert trained.description["config"] == start.description["config"]
    before, after = (a.load().network().state_dict() for a in (start, trained))
    assert before.keys() == after.keys()
    moved = [(after[k] - before[k]).abs().max() for k in before if "proj1" in k or "conv" in k]
    assert all(0 <= step < 0.02 for step in moved if which != "edm2")
    assert max(moved) > 0
    wrong = ("maskalign.methods=[sit]", "train.method=sit", "train.network.kind=sit")
    with pytest.raises(UsageError, match=rf"set maskalign.methods=\[{method}\]"):
        graph("train", *overrides, *wrong)
    noisy = f"train.{method}." + ("noise_scale=3" if method == "jit" else "sigma_data=0.3")
    plan = Request("train", "smoke", [*overrides, noisy], only=[name])
    with pytest.raises(AssertionError, match="the network to go on from was trained with"):
        run_all(CATALOG, Store(tmp_path / "store"), plan)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["sit", "repa", "reg"])
def test_trainings_go_on_from_files(tmp_path, monkeypatch, which):
    """REPA's fine-tuning of SiT and REPA files, MaskAlign's continuation of all three."""
    width = 48 if which == "sit" else 24
    overrides = [
        *(*SMALL, *given(tmp_path, which, monkeypatch)),
        *("train.steps=4", "train.num_checkpoints=1", "train.warmup_steps=0", "train.log_every=2"),
        *(f"train.network.width={width}", "train.network.heads=3", "train.network.depth=2"),
        "maskalign.methods=[maskalign]" if which == "reg" else "maskalign.methods=[sit,maskalign]",
        *("maskalign.steps=4", "maskalign.num_checkpoints=1", "maskalign.num_seeds=1"),
        *("maskalign.ablation_seeds=0", "train.batch_size=8", "teach.steps=2"),
        "diagnose.num_images=10",
        *(f"train.{method}.alignment_depth=1" for method in ("repa", "reg", "maskalign")),
        *(f"train.{method}.projector_width=28" for method in ("repa", "reg", "maskalign")),
        *("teach.width=20", "teach.heads=2", "diagnose.batch_size=10"),
    ]
    made = run_all(CATALOG, Store(tmp_path / "store"), Request("train", "smoke", overrides))
    start = made["checkpoint/given"].load().network().state_dict()
    ours = made["train/maskalign"].load().network().state_dict()
    theirs = start["blocks.0.qkv.weight"]
    # Four small steps from it, not from fresh weights.
    moved = (ours["blocks.0.qkv.weight"] - theirs).abs().max() / theirs.abs().max()
    assert 0 < moved < 0.2
    assert made["train/maskalign"].description["steps_before"] == 0
    wrong = [*overrides, "train.network.width=72"]
    with pytest.raises(UsageError, match=f"has width {width}, .* set train.network.width={width}"):
        graph("train", *wrong)


PRESETS = {
    "edm-cifar10": ("stein", "edm-cifar10-32x32-cond-vp.pkl", "56 M parameters"),
    "edm2-imagenet64": ("stein", "edm2-img64-s-1073741-0.075.pkl", "280 M parameters"),
    "sit-imagenet256": ("stein", "SiT-XL-2-256.pt", "675 M parameters"),
    "jit-imagenet256": ("csflow", "checkpoint-last.pth", "131 M parameters"),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_planned_without_files(tmp_path, monkeypatch, capsys, preset):
    monkeypatch.chdir(tmp_path)
    recipe, file, parameters = PRESETS[preset]
    assert main(["plan", recipe, "--preset", preset, "--store", str(tmp_path / "store")]) == 2
    out = capsys.readouterr().out
    assert "GPU-hours" in out
    assert parameters in out
    placed = out.partition("to be placed before it runs:")[2]
    assert f"there is no network at {tmp_path / 'networks'}" in placed
    assert file in placed
    assert "inception-2015-12-05.pt" in placed


# What makes a preset small; the network is a fixture.
MINIATURE = [
    *(word for word in SMALL if not word.startswith("stein.solvers")),
    *("extractor.kind=embedded", "extractor.device=cpu", "sample.device=cpu", "scan.device=cpu"),
    *(
        "sample.batch_size=40",
        "sample.compile=false",
        "sample.nfe=3",
        "sample.nfes=[3]",
        "sample.reference_nfe=7",
    ),
    *("csflow.num_seeds=1", "csflow.more_mixes=[]", "csflow.baselines=[]", "data.crop=null"),
    *("icr.num_samples=40", "scan.num_images=40", "icr.components=2", "icr.nfe=3"),
    *("data.size=null", "networks.format=null", "scan.num_views=8", "scan.view_seeds=[0,1]"),
    *(f"resources.{s}.gpus=0" for s in ("extractor", "features", "sample", "calibrate", "scan")),
    *("resources.lipschitz.gpus=0", "stein.num_states=4", "stein.substeps=2"),
    *(f"resources.{name}.gpus=0" for name in ("trajectory", "follow", "grids")),
    *("stein.teacher_states=4", "stein.teacher_steps=4", "stein.tries=2"),
]
LATENT = [
    *("latents.device=cpu", "resources.encode.gpus=0", "resources.decode.gpus=0"),
    *("teach.device=cpu", "resources.teach.gpus=0", "train.device=cpu", "train.num_workers=0"),
    *("diagnose.device=cpu", "resources.diagnose.gpus=0"),
    *("evaluate.device=cpu", "resources.evaluate.gpus=0"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "recipe", "which"),
    [
        ("edm-cifar10", "stein", "edm"),
        ("edm-cifar10", "icr", "edm"),
        ("edm2-imagenet64", "icr", "edm2"),
        ("sit-imagenet256", "stein", "sit"),
        ("jit-imagenet256", "csflow", "jit"),
    ],
)
def test_presets_in_miniature(tmp_path, monkeypatch, preset, recipe, which):
    own = given(tmp_path, which, monkeypatch)
    latent = LATENT if preset == "sit-imagenet256" else []
    overrides = [*MINIATURE, *latent, *own]
    made = run_all(CATALOG, Store(tmp_path / "store"), Request(recipe, preset, overrides))
    text = (made["report"].path / "report.html").read_text()
    assert "Networks from elsewhere" in text
    solvers = {name for name in made if name.startswith("evaluate/given-")}
    if recipe == "stein":
        both = {
            f"evaluate/given-{s}{end}" for s in ("dpmpp2m", "unipc") for end in ("", "-calibrated")
        }
        assert both <= solvers
        assert "lipschitz/given-dpmpp2m-nfe3" in made
    if recipe == "icr":
        assert len(made["scan/given-sigma"].load()) > 5
    if recipe == "csflow":
        assert any("csflow" in name for name in solvers)
        settings = made["sample/given-heun-uniform_t-nfe3"].settings
        assert settings["guidance"] == 3.0


def refused(*overrides, recipe="stein"):
    with pytest.raises(UsageError) as error:
        graph(recipe, *overrides)
    return str(error.value)


def test_files_are_asked_about_before_any_work(tmp_path):
    here = ["data.dataset=npz", *data(tmp_path, 4, 8, 5)]
    file = FIXTURES / "sit/sigma_true/SiT-tiny.pt"
    said = refused(*here, f"networks.path={file}")
    assert "say networks.format=sit or networks.format=dit" in said
    assert said.count(str(file)) == 1
    said = refused(*here, f"networks.path={file}", "networks.format=sit")
    assert "is in no tensor; say networks.num_heads=N" in said
    said = refused(*here, f"networks.path={FIXTURES / 'jit/JiT-tiny.pt'}")
    assert "say networks.in_context_start=N" in said
    own = [f"networks.path={file}", "networks.format=sit", "networks.num_heads=3"]
    assert "has no convention clip_sample" in refused(*here, *own, "networks.clip_sample=true")
    said = refused(*here, "networks.path=nosuchmodule:function")
    assert "nosuchmodule" in said
    said = refused(*here, *own, "data.size=8")
    assert "is a network of 4 x 8 x 8 (channels, height, width), and the data are 4 x 4 x 4" in said
    plain = ["data.dataset=npz", *data(tmp_path, 3, 8, 3)]
    path = f"networks.path={FIXTURES / 'diffusers/ddpm_v'}"
    assert "trainings go on from files of sit, repa, reg" in refused(*plain, path, recipe="train")
    with pytest.raises(UsageError, match=r"networks\.format='sitt': input should be 'bench'"):
        graph("stein", "networks.path=x", "networks.format=sitt")


def test_keys_depend_on_contents_and_what_is_said_not_on_places(tmp_path):
    here = data(tmp_path, 3, 16, 5)
    file, copy = FIXTURES / "jit/JiT-tiny.pt", tmp_path / "copy.pt"
    copy.write_bytes(file.read_bytes())

    def key(path, start):
        more = (f"networks.path={path}", f"networks.in_context_start={start}")
        return graph("csflow", *SMALL, *here, *more).keys["checkpoint/given"]

    assert key(file, 1) == key(copy, 1) != key(file, 2)


def test_a_function_is_differentiated_in_the_samplings_precision(tmp_path, monkeypatch):
    from stages.networks.python_functions import Called

    (tmp_path / "smooth_denoiser.py").write_text(PYTHON)
    monkeypatch.syspath_prepend(tmp_path)
    y = torch.zeros(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    answer = Called("smooth_denoiser:half")(y, 1.0)
    assert answer.dtype == torch.float64
    answer.sum().backward()
    torch.testing.assert_close(y.grad, torch.full_like(y, 0.5))


@pytest.mark.parametrize(
    ("denoiser", "words"),
    [
        ("lambda y, sigma, labels: y * float('nan')", "gave NaN or infinity for noise of level 1"),
        ("lambda y, sigma, labels: y[:, :1]", r"gave \(2, 1, 8, 8\) for y \(2, 3, 8, 8\)"),
        ("lambda y: y", r"cannot be called as denoiser\(y, sigma, labels\) .*TypeError"),
        ("lambda y, sigma, labels: y / labels[5]", "cannot be called as .*IndexError"),
        ("lambda y, sigma, labels: int('y')", "cannot be called as .*ValueError"),
    ],
)
def test_a_function_that_does_not_answer_is_one_failure(tmp_path, monkeypatch, denoiser, words):
    from stages.training import checkpoint

    name = f"denoiser_{abs(hash(denoiser))}"
    (tmp_path / f"{name}.py").write_text(f"def mine():\n    return {denoiser}\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = checkpoint.CheckpointSettings(path=f"{name}:mine", shape=(3, 8, 8), num_classes=2)
    with pytest.raises(StageError, match=rf"networks\.path={name}:mine: the denoiser {words}"):
        make(tmp_path / "made", checkpoint.STAGE, settings)


def test_a_function_that_wants_a_gpu_is_tried_on_one_where_there_is_one(tmp_path, monkeypatch):
    from stages.networks.python_functions import Called

    (tmp_path / "gpu_denoiser.py").write_text(
        "def mine():\n"
        "    def denoiser(y, sigma, labels):\n"
        "        if y.abs().sum() > 0:\n"
        "            raise RuntimeError('tensors on two devices')\n"
        "        return y\n"
        "    return denoiser\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    called = Called("gpu_denoiser:mine")
    with pytest.raises(
        ValueError, match=r"cannot be called .*RuntimeError: tensors on two devices"
    ):
        called.try_out((3, 8, 8), 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda y: torch.zeros_like(y))  # it is another
    called.try_out((3, 8, 8), 2)


def test_two_functions_of_one_file_are_two_networks(tmp_path, monkeypatch):
    (tmp_path / "two_denoisers.py").write_text(PYTHON + "\ndef other():\n    return half()\n")
    monkeypatch.syspath_prepend(tmp_path)
    here = [*SMALL, *data(tmp_path, 3, 8, 3)]
    keys = {
        graph("stein", *here, f"networks.path=two_denoisers:{name}").keys["checkpoint/given"]
        for name in ("half", "other")
    }
    assert len(keys) == 2


def test_a_function_s_key_covers_what_its_module_imports_from_its_folder(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    text = PYTHON.replace("def half():", "def half():\n    from helping import scale\n")
    (tmp_path / "with_helper.py").write_text(text)
    (tmp_path / "helping.py").write_text("import inner.deep\n\nscale = 1\n")
    (tmp_path / "inner/__init__.py").write_text("from . import deep\n")
    (tmp_path / "inner/deep.py").write_text("value = 1\n")
    (tmp_path / "unread.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    here = [*SMALL, *data(tmp_path, 3, 8, 3), "networks.path=with_helper:half"]

    def key():
        fingerprint.cache_clear()  # a command's own
        return graph("stein", *here).keys["checkpoint/given"]

    before = key()
    (tmp_path / "unread.py").write_text("value = 2\n")
    assert key() == before
    seen = {before}
    for name in ("helping", "inner/deep", "inner/__init__"):
        file = tmp_path / f"{name}.py"
        file.write_text(file.read_text() + "more = 1\n")
        assert key() not in seen
        seen.add(key())


def test_guidance_away_from_another_network(tmp_path):
    """EDM2's, by the stage: D_u + w (D_c - D_u); refused without, before any work."""
    ours, guide = edm(tmp_path / "ours", "edm2"), edm(tmp_path / "guide", "edm2", 0)
    here = [*SMALL, *data(tmp_path, 4, 8, 3), f"networks.path={ours}", "sample.guidance=1.7"]
    assert "knows no input without a class; set networks.guide" in refused(*here)
    request = Request("evaluate", "smoke", [*here, f"networks.guide={guide}"], ["sample/given"])
    made = run_all(CATALOG, Store(tmp_path / "store"), request)
    artifact = made["checkpoint/given"]
    assert artifact.description["guide"]["num_classes"] == 0
    settings = config.resolve(CATALOG, "smoke", here).settings.sample.options(seed=0)
    problem, _ = sampling_problem.problem(artifact, settings, None)
    io = tensors("edm2/io.safetensors")
    given = problem.denoiser(io["labels"].argmax(1))(io["x"][2].double(), 1.0)
    low, high = io["D_label0"][2], io["D_label3"][2]
    assert apart(given, low + 1.7 * (high - low)) < CLOSE


def test_guided_channels_are_the_formats_unless_others_are_asked_for(tmp_path, monkeypatch):
    here = [*SMALL, *given(tmp_path, "sit", monkeypatch)]
    request = Request("evaluate", "smoke", here, ["checkpoint/given"])
    artifact = run_all(CATALOG, Store(tmp_path / "store"), request)["checkpoint/given"]
    y, labels = torch.randn(2, 4, 8, 8).double(), torch.tensor([0, 3])

    def guided(*more):
        options = config.resolve(CATALOG, "smoke", [*here, *more]).settings.sample.options(seed=0)
        return sampling_problem.problem(artifact, options, None)[0].denoiser(labels)(y, 1.0)

    plain, three = guided(), guided("sample.guidance=3")
    every = guided("sample.guidance=3", "sample.guidance_channels=4")
    # Rows of twice the samples may be summed in another order.
    assert apart(three[:, 3], plain[:, 3]) < CLOSE
    assert torch.equal(three[:, :3], every[:, :3])
    assert apart(every[:, 3], plain[:, 3]) > 100 * CLOSE


def test_convert_is_a_command(tmp_path, capsys):
    facts = arguments("edm/ddpmpp/init_kwargs.json")["EDMPrecond_label3"]["init_kwargs"]
    network = song(**{k: v for k, v in facts.items() if k != "model_type"})
    edm_pickle(tmp_path / "net-1.5.pkl", network, "EDMPrecond", facts)
    assert main(["convert", str(tmp_path / "net-1.5.pkl")]) == 0
    folder = tmp_path / "net-1.5"
    assert str(folder) in capsys.readouterr().out
    one, other = load(folder), load(tmp_path / "net-1.5.pkl")
    for ours, theirs in zip(one.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert main(["convert", str(tmp_path / "net-1.5.pkl")]) == 2
    assert "is there already; choose another with --to" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none.pkl")]) == 2
    assert "there is no file" in capsys.readouterr().err
