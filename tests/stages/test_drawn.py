"""Trained networks as MLflow's models: they sample what the stage samples, or say why not."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.track import models
from stages.sampling import drawn, sample
from tests.stages.context import make

SETTINGS = sample.SampleSettings(solver="euler", nfe=3, num_samples=13, block_size=8, seed=5)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, model):
    """The network, logged to a database of its own and loaded from there."""
    import mlflow

    from pipeline.track.database import create_database

    folder = tmp_path_factory.mktemp("logged")
    place = folder / "store" / "artifacts" / "train" / model.manifest.key
    place.parent.mkdir(parents=True)
    place.symlink_to(model.path)
    create_database(folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("full/tiny", artifact_location=f"file://{folder}/kept")
    run = client.create_run(experiment).info.run_id
    reader = SimpleNamespace(settings=SETTINGS, inputs={"model": "train/sit"})
    config = asdict(drawn.described(model, [reader])) | {"stage": "train", "tags": {"node": "n"}}
    config |= {"store": str(folder / "store"), "key": model.manifest.key}
    config = json.loads(json.dumps(config))  # as the spool has it
    made = models.save(client, experiment, run, "sit b6b0", config)
    assert models.save(client, experiment, run, "sit b6b0", config) == made, "logged once"
    mlflow.set_tracking_uri(uri)
    yield SimpleNamespace(client=client, id=made, run=run, config=config, folder=folder)
    mlflow.set_tracking_uri(None)


def asked(**columns):
    import pandas

    return pandas.DataFrame(columns)


def test_a_loaded_model_samples_what_the_stage_samples(tmp_path, model, loaded):
    import mlflow

    network = mlflow.pyfunc.load_model(f"models:/{loaded.id}")
    images = network.predict(asked(seed=[5, 6], count=[13, 2]))
    expected = make(tmp_path / "5", sample.STAGE, SETTINGS, model=model).load()
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images[:13], expected.images.numpy())
    other = SETTINGS.revised(seed=6, num_samples=2, solver="dpmpp2m", nfe=4)
    expected_other = make(tmp_path / "6", sample.STAGE, other, model=model).load().images.numpy()
    again = network.predict(asked(seed=[6], count=[2]), params={"solver": "dpmpp2m", "nfe": 4})
    np.testing.assert_array_equal(again, expected_other)
    labels = expected.labels.numpy()
    same = network.predict(asked(seed=[5], count=[13], labels=[labels]))
    np.testing.assert_array_equal(same, images[:13])
    changed = network.predict(asked(seed=[5], count=[13], labels=[(labels + 1) % 10]))
    assert not np.array_equal(changed, same), "classes count"


def test_a_row_without_labels_may_say_so_in_any_way(model):
    """A data frame's NaN need not be the object np.nan."""
    import pandas

    settings = drawn.described(model, []).settings
    params = {"solver": "euler", "nfe": 2}
    plain = drawn.answer(model, settings, asked(seed=[1], count=[2]), params)
    for none in (None, float("nan"), np.float64("nan"), pandas.NA):
        rows = asked(seed=[1], count=[2], labels=pandas.Series([none], dtype=object))
        np.testing.assert_array_equal(drawn.answer(model, settings, rows, params), plain)


def test_products_have_the_precision_that_was_kept(tmp_path, model):
    settings = SETTINGS.revised(precision="bfloat16")
    expected = make(tmp_path, sample.STAGE, settings, model=model).load().images.numpy()
    np.testing.assert_array_equal(drawn.draw(model, settings), expected)
    assert not np.array_equal(drawn.draw(model, SETTINGS), expected)


def test_what_mlflow_keeps_is_small_linked_and_has_a_signature(loaded):
    import mlflow

    kept = [path for path in (loaded.folder / "kept").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) < 20_000
    assert not [path for path in kept if path.suffix in (".pkl", ".safetensors", ".pt")]
    entry = loaded.client.get_logged_model(loaded.id)
    assert entry.source_run_id == loaded.run
    outputs = loaded.client.get_run(loaded.run).outputs.model_outputs
    assert [output.model_id for output in outputs] == [loaded.id]
    signature = mlflow.models.get_model_info(f"models:/{loaded.id}").signature
    assert signature.inputs.input_names() == ["seed", "count", "labels"]
    assert [p.name for p in signature.params] == ["solver", "nfe", "guidance"]


@pytest.mark.parametrize(
    ("row", "params", "words"),
    [
        ({"seed": [1], "count": [2], "labels": [[0]]}, {}, "holds 1 classes for count=2"),
        ({"seed": [1], "count": [1], "labels": [[10]]}, {}, "labels must be from 0 to 9"),
        ({"seed": [1], "count": [0]}, {}, "^count=0: input should be greater than or equal to 1$"),
        (
            {"seed": [1], "count": [1]},
            {"solver": "eular"},
            r"^solver: .*'eular'; did you mean '\w+'\? .*$",
        ),
        ({"seed": [1], "count": [1]}, {"solver": "whole"}, "needs the input schedule"),
    ],
)
def test_what_cannot_be_sampled_is_said(model, row, params, words):
    settings = drawn.described(model, []).settings
    with pytest.raises(UsageError, match=words):
        drawn.answer(model, settings, asked(**row), params)


def test_a_store_that_moved_is_said_in_a_sentence_and_may_be_named(loaded):
    import mlflow

    moved = loaded.folder / "moved"
    (loaded.folder / "store").rename(moved)
    try:
        with pytest.raises(UsageError, match=r"cannot be read in store .*model_config=\{'store'"):
            mlflow.pyfunc.load_model(f"models:/{loaded.id}")
        config = {"store": str(moved)}
        network = mlflow.pyfunc.load_model(f"models:/{loaded.id}", model_config=config)
        assert len(network.predict(asked(seed=[5], count=[1]))) == 1
    finally:
        moved.rename(loaded.folder / "store")
