"""Precision and compilation of networks that are sampled: of their products alone."""

import os
import threading
from types import SimpleNamespace

import pytest
import torch
from torch._functorch import config as functorch

from pipeline import fanout
from pipeline.errors import StageError
from pipeline.fanout import CUBLAS
from stages.methods import suite
from stages.nets import compiled, precision
from stages.sampling import problem as sampling_problem
from stages.sampling import sample
from stages.settings.teachers import TeachSettings
from stages.training import run as train_run
from stages.training import teach, train, worker
from stages.training.repeated import repeating
from tests.stages.context import make

SETTINGS = sample.SampleSettings(nfe=5, num_samples=8, block_size=4)


def images(folder, model, **changes):
    settings = SETTINGS.revised(**changes)
    return make(folder, sample.STAGE, settings, model=model).load().images


@pytest.fixture(scope="module")
def plain(tmp_path_factory, model):
    return images(tmp_path_factory.mktemp("plain"), model)


@pytest.fixture
def traced(monkeypatch):
    """Compilation without a compiler: graphs are traced and run as they are; the networks that
    were compiled."""
    networks, compile_network = [], compiled.compile_network

    def trace(network, **how):
        networks.append(network)
        return compile_network(network, "aot_eager", **how)

    monkeypatch.setattr(compiled, "compile_network", trace)
    yield networks
    sampling_problem.warm_network.cache_clear()
    torch.compiler.reset()


def test_bfloat16_is_of_the_products_alone(tmp_path, model, plain):
    low = images(tmp_path / "low", model, precision="bfloat16")
    apart = (low - plain).square().mean().sqrt() / plain.square().mean().sqrt()
    assert 0 < apart < 0.02
    assert low.dtype == torch.float32
    # On a CPU there is no tf32.
    assert torch.equal(images(tmp_path / "tf32", model, precision="tf32"), plain)


def test_the_solver_keeps_its_precision(model):
    settings = SETTINGS.revised(precision="bfloat16")
    calls = sampling_problem.Calls("bfloat16")
    problem, _ = sampling_problem.problem(model, settings, None, calls)
    seen, network = [], problem.network

    def spied(x, t, labels):
        out = network(x, t, labels)
        seen.append((x.dtype, out.dtype))
        return out

    problem.network = spied
    labels, state = problem.labels(torch.arange(4)), problem.noise(0, torch.arange(4))
    assert problem.denoiser(labels)(state, 1.0).dtype == state.dtype == torch.float64
    assert seen == [(torch.float32, torch.bfloat16)]


def test_compiled_samples_are_the_same(tmp_path, model, plain, traced):
    assert torch.equal(images(tmp_path, model, compile=True), plain)
    assert len(traced) == 1


def test_compiled_networks_are_gone_back_through_once_for_every_probe(tmp_path, model, traced):
    common = {"correction": "literal", "num_probes": 2, "num_samples": 4}
    found = images(tmp_path / "compiled", model, compile=True, **common)
    torch.testing.assert_close(found, images(tmp_path / "plain", model, **common))
    assert len(traced) == 1
    assert not functorch.donated_buffer
    images(tmp_path / "warm", model, compile=True)
    assert len(traced) == 1
    assert functorch.donated_buffer, "no other network is kept from giving memory back"


def test_products_come_back_to_what_the_process_had():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    for name, allowed in (("float32", False), ("tf32", True), ("bfloat16", False)):
        with precision.products_in(name, "cpu"):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if name == "bfloat16" else torch.float32)
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before


class Event:
    """A GPU's, of a device on which every recording is a second after the last."""

    now, waits = 0, 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.now += 1
        self.at = Event.now

    def synchronize(self):
        Event.waits += 1

    def elapsed_time(self, end):
        return 1000.0 * (end.at - self.at)


def test_a_gpus_clock_is_read_without_a_wait_between(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(sampling_problem, "MOST_SPANS", 4)
    clock = sampling_problem.Clock("cuda")
    for _ in range(6):
        with clock.running():
            pass
    assert Event.waits == 1  # four are added up
    assert [clock.seconds(), clock.seconds()] == [6.0, 6.0]
    assert Event.waits == 2


@pytest.mark.parametrize("kept", ["nearest", "down"])
def test_pictures_are_kept_as_the_protocol_rounds_them(tmp_path, model, plain, kept):
    settings = SETTINGS.revised(kept=kept, shard_size=4)
    made = make(tmp_path, sample.STAGE, settings, model=model)
    assert made.is_rounded
    assert torch.equal(torch.from_numpy(made.stored().copy()), suite.rounded(plain, kept))
    assert made.description["rounding"] == kept
    assert made.manifest.timings["images_per_second"][0][0] == settings.nfe
    some = torch.tensor([5, 1])
    images, labels = made.chosen(some)
    assert torch.equal(images, made.load().images[some])
    assert torch.equal(labels, made.load().labels[some])


def test_what_is_not_finite_has_no_pixels():
    with pytest.raises(ValueError, match="NaN or infinity"):
        sample.as_kept(torch.tensor([[0.0, torch.nan]]), "nearest")


def test_samples_are_keyed_by_both():
    keyed = {"precision": "float32", "compile": False, "kept": "float32"}
    assert keyed.items() <= SETTINGS.keyed().items()


def test_kernels_that_repeat_are_taken_within_alone():
    from torch._inductor import config as inductor

    unordered = torch.zeros(2).put_, torch.tensor([0, 0]), torch.tensor([1.0, 2.0])
    with precision.repeatable(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert inductor.deterministic
        with pytest.raises(RuntimeError, match="put_ does not have a deterministic"):
            unordered[0](*unordered[1:])
    assert not torch.are_deterministic_algorithms_enabled()
    assert not inductor.deterministic
    assert torch.utils.deterministic.fill_uninitialized_memory
    with precision.repeatable(False):
        unordered[0](*unordered[1:])


@pytest.mark.filterwarnings("ignore:put_ does not have")
def test_what_the_process_chose_comes_back():
    from torch._inductor import config as inductor

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with inductor.patch(deterministic=False):
            with precision.repeatable(True):
                assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled()
            assert not inductor.deterministic
    finally:
        torch.use_deterministic_algorithms(False)


def test_backward_passes_are_compiled_to_repeat_wherever_they_run():
    """On a GPU that is a thread of torch's own, which has settings of the compiler of its own."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor import config as inductor

    seen = {}

    def compiler(way):
        def keep(graph, inputs):
            seen[way] = inductor.deterministic
            return graph

        return keep

    backend = aot_autograd(fw_compiler=compiler("forward"), bw_compiler=compiler("backward"))
    x = torch.randn(3, requires_grad=True)
    with precision.repeatable(True):
        y = torch.compile(lambda x: (x.sin() ** 2).sum(), backend=backend)(x)
        thread = threading.Thread(target=y.backward)
        thread.start()
        thread.join()
    torch.compiler.reset()
    assert x.grad is not None
    assert seen == {"forward": True, "backward": True}


@pytest.mark.parametrize(
    "usual",
    [
        train.TrainSettings(device="cuda"),
        TeachSettings(device="cuda", student_patch=2),
        TeachSettings(device="cuda", student_patch=2, kind="dinov2-base"),
    ],
)
def test_what_repeats_on_a_gpu_has_a_key_of_its_own(usual):
    asked, on_cpu = usual.revised(deterministic=True), usual.revised(device="cpu")
    assert asked.keyed() == usual.keyed() | {"deterministic": True}
    assert on_cpu.revised(deterministic=True).keyed() == on_cpu.keyed()
    assert asked.repeats_on_gpu
    assert not on_cpu.revised(deterministic=True).repeats_on_gpu


def test_kernels_that_repeat_are_asked_for_in_the_name_of_the_setting(monkeypatch):
    with repeating("train", False):
        assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv(*CUBLAS)
    said = "teach.deterministic=true: put_ does not have a deterministic implementation; set it"
    with pytest.raises(StageError, match=said), repeating("teach", True):
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    with pytest.raises(RuntimeError, match="out of memory"), repeating("train", True):
        raise RuntimeError("CUDA out of memory")
    for other in (":0:0", None):
        monkeypatch.setenv(CUBLAS[0], other) if other else monkeypatch.delenv(CUBLAS[0])
        said = (
            f"train.deterministic=true needs CUBLAS_WORKSPACE_CONFIG=:4096:8 .* has {other or 'n'}"
        )
        with pytest.raises(StageError, match=said), repeating("train", True):
            pass


@pytest.mark.parametrize("asked", [True, False])
def test_trainings_and_teachers_ask_for_them(asked, monkeypatch):
    seen = []

    def note(context):
        seen.append(torch.are_deterministic_algorithms_enabled())

    monkeypatch.setattr(worker, "_train", note)
    monkeypatch.setattr(teach, "_run", note)
    monkeypatch.setenv(*CUBLAS)
    for settings, run in (
        (train.TrainSettings(device="cuda", deterministic=asked), worker.train_worker),
        (TeachSettings(device="cuda", deterministic=asked, student_patch=2), teach.run),
    ):
        run(SimpleNamespace(settings=settings))
    assert seen == [asked, asked]


def test_what_workers_begin_with_lets_products_repeat(monkeypatch):
    """Processes of nodes and of Ray Train's groups; what a person has set stays."""
    assert CUBLAS[0] == precision.CUBLAS
    assert CUBLAS[1] in precision.REPEATS
    monkeypatch.setattr(fanout.worker, "watch_parent", lambda: None)
    monkeypatch.setattr(train_run.worker, "train_worker", lambda context: None)
    work = SimpleNamespace(told=lambda word: "")
    group = SimpleNamespace(settings=SimpleNamespace(num_workers=2), work=work)
    for begin in (fanout.prepare_process, lambda: train_run._guarded(group)):
        for before, expected in ((None, CUBLAS[1]), (":0:0", ":0:0")):
            monkeypatch.setattr(fanout, "_prepared", False)
            monkeypatch.setenv(CUBLAS[0], before or "")
            if before is None:
                monkeypatch.delenv(CUBLAS[0])
            begin()
            assert os.environ[CUBLAS[0]] == expected
