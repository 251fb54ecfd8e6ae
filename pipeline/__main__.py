"""Command line. The composition root: the only place of the engine that knows the stages."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pipeline import apart, cache, environment
from pipeline.errors import BAD_USAGE, DONE, INTERRUPTED, PipelineError, UsageError, printable
from pipeline.provenance import installed

NAME = "diffusion-bench"  # of the distribution
DESCRIPTION = """Five diffusion papers on one bench.

first steps:
  python -m pipeline run full                     real results on a laptop, in minutes
  python -m pipeline run full --preset smoke      every node at a tiny size
  python -m pipeline plan full train.lr=0.002     what a change would run again, and why
  python -m pipeline config full                  every setting and where it came from
  python -m pipeline fetch mnist                  data of the papers, only when asked
  python -m pipeline compare RUN RUN              two runs side by side
  python -m pipeline sweep train                  try many settings and rank them
  python -m pipeline ui                           compare runs in MLflow
"""


class _NoNameError(Exception):
    """A command that runs something was not told what; holds the command."""


class _Parser(argparse.ArgumentParser):
    """Of a recipe or sweep that is missing, argparse could not say which there are."""

    def error(self, message: str) -> NoReturn:
        if any(f"required: {name}" in message for name in ("RECIPE", "NAME", "DATA")):
            raise _NoNameError(self.prog)
        super().error(message)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m pipeline",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", metavar="URI", help="where artifacts are kept (default: store)")
    common.add_argument(
        "--cache",
        metavar="FOLDER",
        help="where files of an object store are kept on each machine (or PIPELINE_CACHE)",
    )
    common.add_argument(
        "--cache-gib", metavar="N", help="what the cache may hold (default: half of its disk)"
    )
    common.add_argument("--debug", action="store_true", help="show tracebacks of mistakes")
    parser.add_argument("--version", action="version", version=f"{NAME} {installed(NAME)}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common, *parents])

    recipe = _recipe_options()
    run = add("run", "run a recipe; what is cached is not run again", recipe)
    run.add_argument("--dry-run", action="store_true", help="only say what would run")
    run.add_argument("--jobs", type=int, metavar="N", help="CPU cores to use (default: all)")
    run.add_argument("--address", metavar="ADDR", help="a Ray cluster to join (or RAY_ADDRESS)")
    _add_cluster(run)
    run.add_argument("--tracking-uri", metavar="URI", help="MLflow server or database")
    plan = add("plan", "each node's state (cached, partial, to do) and why", recipe)
    form = plan.add_mutually_exclusive_group()
    form.add_argument("--mermaid", action="store_true", help="the graph as a Mermaid chart")
    form.add_argument("--json", action="store_true", help="as JSON")
    config = add("config", "the resolved settings, each with where it came from", recipe)
    config.add_argument("--schema", action="store_true", help="JSON schema of all settings")
    _add_sweep(add("sweep", "try many settings of a recipe and rank them"))
    add("runs", "all runs, the newest first")
    show = add("show", "one run: nodes by stage, states, scores")
    show.add_argument("run", nargs="?", default="latest", metavar="RUN")
    show.add_argument("--node", metavar="NODE", help="this node alone")
    show.add_argument("--json", action="store_true", help="as JSON, with every metric")
    claims = add("claims", "what a run says of the papers' claims")
    claims.add_argument("run", nargs="?", default="latest", metavar="RUN")
    claims.add_argument("--markdown", action="store_true", help="a table a paper")
    logs = add("logs", "what a node printed")
    logs.add_argument("run", metavar="RUN", help="a run's id, a part of it, or 'latest'")
    logs.add_argument("node", metavar="NODE")
    report = add("report", "write a run's HTML report and say where it is")
    report.add_argument("run", nargs="?", default="latest", metavar="RUN")
    report.add_argument("--open", action="store_true", help="open it in the browser")
    compare = add("compare", "runs side by side: settings, scores, curves, samples")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="ids, parts of them, or 'latest'")
    compare.add_argument(
        "--html", metavar="FILE", help="the page (default: in the first run's folder)"
    )
    compare.add_argument("--no-html", action="store_true", help="only the terminal's tables")
    export = add("export", "write a node's samples as files for other codes")
    export.add_argument("run", metavar="RUN", help="a run's id, a part of it, or 'latest'")
    export.add_argument("node", metavar="NODE", help="such as sample/sit-step18")
    export.add_argument(
        "--form",
        choices=("adm", "png", "grid"),
        default="adm",
        help="adm: .npz with arr_0 and arr_1 (default); a folder of PNG; one picture",
    )
    export.add_argument("--to", metavar="PATH", help="where to (default: the node's name, here)")
    export.add_argument(
        "--rounding",
        choices=("nearest", "down"),
        default="nearest",
        help="to 8 bits: nearest as SiT, DiT, EDM, JiT; down as REPA, REG, ADM",
    )
    reference = add("reference", "make a reference .npz for published protocols of your own images")
    reference.add_argument("data", metavar="IMAGES", help="a folder of images, or an archive")
    reference.add_argument("--to", metavar="FILE", help="where to (default: reference.npz)")
    reference.add_argument(
        "--protocol",
        choices=("adm", "fd-dinov2"),
        default="adm",
        help="adm: of Inception, in ADM's layout, for edm too (default); fd-dinov2: of DINOv2-L",
    )
    reference.add_argument("--weights", metavar="FILE", help="the network's file, or its folder")
    reference.add_argument("--size", type=int, metavar="N", help="bring images to N pixels a side")
    reference.add_argument(
        "--crop", choices=("adm", "lanczos", "resize"), default="adm", help="how (default: adm)"
    )
    reference.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    ui = add("ui", "MLflow's comparison view of this store, on 127.0.0.1")
    ui.add_argument("--port", type=int, default=5000, metavar="N")
    ui.add_argument("--tracking-uri", metavar="URI", help="MLflow server or database")
    add("send", "send to MLflow what runs could not, while it was away")
    gc = add("gc", "remove artifacts that no kept run uses, and other leftovers")
    gc.add_argument(
        "--keep", type=int, default=3, metavar="N", help="runs kept per recipe and preset"
    )
    gc.add_argument("--dry-run", action="store_true", help="only say what would go")
    fetch = add("fetch", "get a data set into data/NAME, or check the one that is there")
    fetch.add_argument("name", metavar="DATA", help="such as mnist, cifar10")
    fetch.add_argument("--to", metavar="FOLDER", help="where to (default: data/DATA)")
    convert = add("convert", "write EDM's or EDM2's .pkl as safetensors and JSON, running no code")
    convert.add_argument("file", metavar="FILE", help="such as edm-cifar10-32x32-cond-vp.pkl")
    convert.add_argument("--to", metavar="FOLDER", help="where to (default: FILE without .pkl)")
    shell = add("completion", "a script that completes commands and options in a shell")
    shell.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    shell.set_defaults(parser=parser, parsers=commands.choices)
    doctor = add("doctor", "environment, devices, versions, store, missing weights")
    doctor.add_argument("--verify", action="store_true", help="check every stored file's SHA-256")
    return parser


def _add_sweep(sweep: argparse.ArgumentParser) -> None:
    sweep.add_argument("name", metavar="NAME", help="a named space, or a name for that of --space")
    sweep.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of all trials")
    sweep.add_argument("--space", metavar="FILE", help="a search space of your own (YAML)")
    sweep.add_argument("--preset", metavar="NAME|FILE", help="settings to start from")
    sweep.add_argument("--trials", type=int, metavar="N", help="trials, at most")
    sweep.add_argument("--seeds", type=int, metavar="N", help="run each trial with N seeds")
    sweep.add_argument("--objective", metavar="METRIC", help="which of the metrics decides")
    sweep.add_argument(
        "--search", choices=("grid", "random", "optuna"), help="how to choose values"
    )
    sweep.add_argument(
        "--scheduler", choices=("none", "asha"), help="asha stops trials that lag behind"
    )
    sweep.add_argument("--resume", action="store_true", help="go on with the last such sweep")
    sweep.add_argument("--dry-run", action="store_true", help="only say what would run")
    sweep.add_argument("--jobs", type=int, metavar="N", help="CPU cores to use (default: all)")
    sweep.add_argument("--address", metavar="ADDR", help="a Ray cluster to join (or RAY_ADDRESS)")
    _add_cluster(sweep)
    sweep.add_argument("--tracking-uri", metavar="URI", help="MLflow server or database")


def _add_cluster(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--up-to", metavar="WHAT", help="what the cluster may grow to, as cpus=64,gpus=8"
    )
    command.add_argument(
        "--ship", action="store_true", help="send this code to the cluster's machines"
    )


def _recipe_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("recipe", metavar="RECIPE", help="such as full, train")
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings to change")
    options.add_argument("--preset", metavar="NAME|FILE", help="settings to start from")
    options.add_argument(
        "--only", action="append", default=[], metavar="NODE", help="this node and what it needs"
    )
    options.add_argument(
        "--from",
        dest="start",
        action="append",
        default=[],
        metavar="NODE",
        help="this node, what reads it, and what these need",
    )
    options.add_argument(
        "--to", dest="end", action="append", default=[], metavar="NODE", help="up to this node"
    )
    options.add_argument(
        "--force", action="append", default=[], metavar="NODE", help="make it again though cached"
    )
    return options


def command() -> NoReturn:
    """`diffusion-bench ...`, the same as `python -m pipeline ...`."""
    sys.exit(main())


def main(arguments: Sequence[str] | None = None, root: Callable[[], Any] | None = None) -> int:
    """Parse the command line, run the command, and return its exit code.

    Args:
        root: gives the catalog of stages and recipes; the project's own by default.
    """
    if arguments is None:
        environment.speak_utf8()
    environment.prepare()
    try:
        code = _run(arguments, root)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has had enough.
        environment.drop_output()
        return DONE
    return code


def _run(arguments: Sequence[str] | None, root: Callable[[], Any] | None) -> int:
    try:
        options = _parse(arguments)
    except _NoNameError as missing:
        print(f"error: {_names_wanted(str(missing), root or _catalog)}", file=sys.stderr)
        return BAD_USAGE
    # Looking for plugins, of which there are none, reads the metadata of every installed package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        environment.check()
        cache.choose(options.cache, options.cache_gib)
        if apart.is_wanted(options.command):
            if root is None:
                return apart.run(sys.argv[1:] if arguments is None else arguments)
            raise UsageError(
                "Ray is running in this process already; call ray.shutdown() first, or run the "
                "command in a process of its own"
            )
        from pipeline import commands

        command = _sweep() if options.command == "sweep" else commands.COMMANDS[options.command]
        return command(root or _catalog, options)
    except PipelineError as error:
        if options.debug:
            raise
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        text = environment.sentence(error)
        if text is None or options.debug:
            raise
        print(f"error: {text}", file=sys.stderr)
        return BAD_USAGE


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Settings (`key=value`) may stand before, between and behind the options."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    strange = [word for word in rest if word.startswith("-") or "=" not in word]
    if strange or (rest and not hasattr(options, "overrides")):
        parser.error(f"unknown argument '{(strange or rest)[0]}'; see --help")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _names_wanted(program: str, root: Callable[[], Any]) -> str:
    """What to say where a recipe or a sweep's space was not named."""
    if program.endswith(" sweep"):
        from sweeps.space import names

        known = names()
        return f"name a sweep, such as: {program} {known[0]} (known: {', '.join(known)})"
    if program.endswith(" fetch"):
        known = list(root().fetches)
        such = f", such as: {program} {known[0]}" if known else ""
        return f"name the data{such} (known: {', '.join(known) or 'none'})"
    known = sorted(root().recipes)
    first = "full" if "full" in known else known[0]
    return f"name a recipe, such as: {program} {first} (known: {', '.join(known)})"


def _sweep() -> Callable[[Callable[[], Any], argparse.Namespace], int]:
    from sweeps.command import sweep

    return sweep


def _catalog() -> Any:
    from stages.catalog import CATALOG

    return CATALOG


if __name__ == "__main__":
    sys.exit(main())
