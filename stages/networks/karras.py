"""EDM and EDM2 networks (NVlabs/edm, NVlabs/edm2): the published .pkl, or the folder that
`convert` makes of one, network.json beside weights.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.networks import pickled
from stages.networks.formats import CONVERTED_FACTS as FACTS
from stages.networks.formats import CONVERTED_WEIGHTS as WEIGHTS
from stages.networks.found import Conventions, Found

PRECONDITIONINGS = {
    "EDMPrecond": "edm",
    "VPPrecond": "vp",
    "VEPrecond": "ve",
    "iDDPMPrecond": "iddpm",
}
IN_ORDER = ("img_resolution", "img_channels", "label_dim")  # the first arguments of all of them
UNETS = {"SongUNet": "song", "DhariwalUNet": "dhariwal"}
# Of the published classes; limits of the level, half precision and what training leaves out are not
# those of a network.
UNUSED = {"use_fp16", "sigma_min", "sigma_max", "force_fp32", "model_type", "epsilon_t"}
UNUSED |= {"label_dropout"}
# Of VPPrecond and iDDPMPrecond: Karras et al. 2022, table 1.
CONSTANTS = {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "C_1": 0.001, "C_2": 0.008}


def read_pickle(path: Path, said: Conventions) -> Found:
    """The averaged network, `ema`, of a published pickle."""
    ema = _averaged(path)
    arguments = _arguments(path, ema)
    stored = {name: value.float() for name, value in pickled.tensors(ema)}
    return of(ema.class_name, arguments, stored, said)


def _arguments(path: Path, ema: pickled.Holder) -> dict[str, Any]:
    """How a network was built, arguments without names under theirs. Raises ValueError where a file
    does not say it."""
    given, named = ema.attribute("_init_args") or (), ema.attribute("_init_kwargs")
    if not isinstance(named, Mapping):
        raise ValueError(f"{path} does not say how its network was built (_init_kwargs)")
    if len(given) > len(IN_ORDER):
        raise ValueError(f"{path} was built with {len(given)} arguments without names")
    return _plain(dict(zip(IN_ORDER, given, strict=False)) | dict(named))


def _averaged(path: Path) -> pickled.Holder:
    content = pickled.read(path)
    ema = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(ema, pickled.Holder):
        raise ValueError(f"{path} holds no network under 'ema'; give a pickle of EDM or EDM2")
    return ema


def read_folder(folder: Path, said: Conventions) -> Found:
    """A converted network."""
    from stages.networks import torch_files

    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        name, arguments = facts["class_name"], facts["init_kwargs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / FACTS} is no description of a network; it holds class_name and init_kwargs"
        ) from error
    stored, _ = torch_files.read(folder / WEIGHTS)
    stored = {key: value.float() for key, value in stored.items()}
    return of(str(name), dict(arguments), stored, said)


def converted(file: str, to: str | None) -> Path:
    """Convert a published pickle, by default into a folder beside it; the folder.

    Raises ValueError where there is no file, where the folder is there, and as `read_pickle` does.
    """
    path = Path(file).expanduser()
    folder = path.with_suffix("") if to is None else Path(to).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if folder.exists():
        raise ValueError(f"{folder} is there already; choose another with --to")
    convert(path, folder)
    return folder


def convert(path: Path, folder: Path) -> None:
    """Write a published pickle as network.json and weights.safetensors, the weights as they are.

    Raises ValueError as `read_pickle` does.
    """
    from safetensors.torch import save_file

    read_pickle(path, Conventions({}))
    ema = _averaged(path)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in pickled.tensors(ema)}, folder / WEIGHTS)
    facts = {"class_name": ema.class_name, "init_kwargs": _arguments(path, ema)}
    (folder / FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")


def of(
    class_name: str, arguments: dict[str, Any], stored: dict[str, Tensor], said: Conventions
) -> Found:
    """A network of a published class, by its arguments.

    Raises ValueError for a class that is not known here, and for conventions it does not have.
    """
    side, channels = arguments.get("img_resolution"), arguments.get("img_channels")
    if class_name not in (*PRECONDITIONINGS, "Precond"):
        known = ", ".join((*PRECONDITIONINGS, "Precond"))
        raise ValueError(f"the network is a {class_name or 'class without name'}, not of {known}")
    if not isinstance(side, int) or not isinstance(channels, int):
        raise ValueError(f"{class_name} was built without img_resolution and img_channels")
    for name, value in CONSTANTS.items():
        if arguments.get(name, value) != value:
            raise ValueError(
                f"{class_name} was built with {name}={arguments[name]}; the published networks "
                f"have {value}, and no other is known here"
            )
    given = {k: v for k, v in arguments.items() if k not in UNUSED | CONSTANTS.keys()}
    num_classes = given.get("label_dim") or 0
    said.check_empty("edm2" if class_name == "Precond" else "edm")
    words = {"class": class_name, "prediction": "denoised image", "path": "x0 + sigma eps"}
    if class_name == "Precond":
        given.pop("dropout", None)
        return Found(
            format="edm2",
            kind="edm2",
            config=given | {"label_dim": num_classes},
            state=stored,
            shape=(channels, side, side),
            num_classes=num_classes,
            method="edm",
            null_class=not num_classes,
            conventions=words | {"labels": "one-hot times sqrt(K); no null class"},
        )
    model = arguments.get("model_type", "DhariwalUNet")
    if model not in UNETS:
        raise ValueError(f"the network's model_type is {model}, not of {', '.join(UNETS)}")
    return Found(
        format="edm",
        kind=UNETS[model],
        config=given | {"preconditioning": PRECONDITIONINGS[class_name], "label_dim": num_classes},
        state=stored,
        shape=(channels, side, side),
        num_classes=num_classes,
        method="edm",
        # Only with labels dropped in training is a row of zeros the network without a class.
        null_class=not num_classes or bool(arguments.get("label_dropout")),
        conventions=words | {"labels": "one-hot; a row of zeros without"},
    )


def _plain(value: Any) -> Any:
    """Arguments as JSON keeps them."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, Tensor):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"an argument of the network is a {type(value).__name__}, which is not read")
