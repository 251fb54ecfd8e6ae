"""Small artifacts that several test files read, made once."""

import pytest
import torch

from stages.artifacts import data as artifacts_data
from stages.artifacts import extractor as artifacts_extractor
from stages.artifacts import features, teacher
from stages.data import prepare
from stages.scoring import extractor as scoring_extractor
from stages.scoring import features as scoring_features
from stages.settings import teachers
from stages.settings.networks import NetworkSettings
from stages.training import run, teach, train, worker
from tests.stages.context import Context, context, make, sealed

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> artifacts_data.Data:
    """All training digits."""
    return make(tmp_path_factory.mktemp("data"), prepare.STAGE, prepare.PrepareSettings())


@pytest.fixture(scope="session")
def few(tmp_path_factory) -> artifacts_data.Data:
    """96 training and 48 held-out digits."""
    settings = prepare.PrepareSettings(limit=96, limit_held_out=48)
    return make(tmp_path_factory.mktemp("few"), prepare.STAGE, settings)


@pytest.fixture(scope="session")
def extractor(tmp_path_factory, few) -> artifacts_extractor.Extractor:
    """A barely trained extractor."""
    settings = scoring_extractor.ExtractorSettings(epochs=1, min_accuracy=0)
    return make(tmp_path_factory.mktemp("extractor"), scoring_extractor.STAGE, settings, data=few)


@pytest.fixture(scope="session")
def references(tmp_path_factory, few, extractor) -> dict[str, features.FeatureSet]:
    """Features of the training and the held-out images."""
    return {
        slot: make(
            tmp_path_factory.mktemp(slot),
            scoring_features.STAGE,
            scoring_features.FeatureSettings(part=part),
            data=few,
            extractor=extractor,
        )
        for slot, part in (("train", "train"), ("held_out", "test"))
    }


TINY = train.TrainSettings(
    network=NetworkSettings(width=16, depth=1, heads=2, patch=4),
    batch_size=20,
    steps=18,
    warmup_steps=2,
    checkpoint_steps=(7, 14),
    log_every=4,
    save_every=5,
    ema=0.9,
)


TEACH = teachers.TeachSettings(
    student_patch=4,
    width=16,
    depth=1,
    heads=2,
    steps=6,
    train_batch_size=20,
    batch_size=32,
    min_probe=0,
    min_gain=-1,
)


@pytest.fixture(scope="session", name="teacher")
def _teacher(tmp_path_factory, few) -> teacher.Teacher:
    """A barely trained teacher of the few digits on TINY's patch grid."""
    return make(tmp_path_factory.mktemp("teacher"), teach.STAGE, TEACH, data=few)


def trained_in(at: Context) -> train.TrainedNetwork:
    """Train without Ray around it."""
    worker.train_worker(at)
    return sealed(at, train.STAGE, run.finish(at))


@pytest.fixture(scope="session")
def model(tmp_path_factory, few) -> train.TrainedNetwork:
    """A tiny network after 18 steps."""
    return trained_in(context(tmp_path_factory.mktemp("model"), TINY, data=few))


@pytest.fixture(scope="module")
def own_ray():
    """A cluster of a test file's own, wherever another was left, with workers that descend from
    this process."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
