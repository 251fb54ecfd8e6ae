"""Trained networks as MLflow's models: signature, what they were trained on, and where they are.

A model is logged by reference. MLflow has a few kilobytes: the code in `answering.py`, the store's
address and the artifact's key. The weights, which may be gigabytes, stay in the store.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedArtifactError, UsageError
from pipeline.stage import resolve
from pipeline.store import Store

CODE = Path(__file__).with_name("answering.py")
TYPES = {int: "long", float: "double", str: "string"}


def opened(config: Mapping[str, Any]) -> Callable[[Any, Mapping[str, Any]], Any]:
    """The model that MLflow's entry refers to, as a function of rows and params.

    Raises:
        UsageError: the store does not hold it any more.
    """
    uri, stage, key = (config[name] for name in ("store", "stage", "key"))
    try:
        store = Store(uri)
        store.check_readable()
        found = store.manifest(stage, key)
        artifact = store.open(stage, key) if found is not None else None
    except (UsageError, DamagedArtifactError, OSError) as error:
        raise _gone(config, str(error)) from error
    if artifact is None:
        raise _gone(config, "it has no such artifact")
    answer, settings = resolve(config["answer"]), config["settings"]
    return lambda rows, params: answer(artifact, settings, rows, params)


def _gone(config: Mapping[str, Any], why: str) -> UsageError:
    return UsageError(
        f"the weights of this model, {config['stage']}/{config['key']}, cannot be read in store "
        f"{config['store']} ({why}); where the store was moved, say so: "
        "mlflow.pyfunc.load_model(URI, model_config={'store': FOLDER})"
    )


def save(client: Any, experiment: str, run: str, name: str, config: Mapping[str, Any]) -> str:
    """Log a model of a run, unless it is there; return its id.

    config: a `pipeline.shown.Model` as plain data, with `store`, `stage`, `key` and `tags`.
    """
    import mlflow.pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model as Entry

    asked = f"name = '{name}' AND source_run_id = '{run}'"
    made = next(iter(client.search_logged_models([experiment], filter_string=asked)), None)
    if made is not None and made.status == "READY":
        return made.model_id
    kept = {k: config[k] for k in ("answer", "settings", "store", "stage", "key")}
    made = made or client.create_logged_model(  # a sender that was killed has left one
        experiment,
        name,
        source_run_id=run,
        tags={k: str(v) for k, v in config["tags"].items()},
        params={k: str(v) for k, v in config["params"].items()},
        model_type="sampler",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        mlflow.pyfunc.save_model(
            path,
            python_model=str(CODE),
            model_config=kept,
            signature=_signature(config),
            pip_requirements=["diffusion-bench"],
            mlflow_model=Entry(
                artifact_path=made.artifact_location,
                run_id=run,
                model_uuid=made.model_id,
                model_id=made.model_id,
            ),
        )
        client.log_model_artifacts(made.model_id, str(path))
    client.finalize_logged_model(made.model_id, "READY")
    client.log_outputs(run, [LoggedModelOutput(made.model_id, 0)])
    return made.model_id


def _signature(config: Mapping[str, Any]) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array

    def column(of: Mapping[str, Any]) -> ColSpec:
        kind = DataType[of["type"]]
        return ColSpec(Array(kind) if of["many"] else kind, of["name"], of["required"])

    params = [ParamSpec(k, TYPES[type(v)], v) for k, v in config["params"].items()]
    return ModelSignature(
        Schema([column(of) for of in config["columns"]]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, *config["shape"]))]),
        ParamSchema(params),
    )
