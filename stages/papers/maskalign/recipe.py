"""The nodes that compare MaskAlign with its ancestors: teacher, trainings, scores, diagnostics.

Trainings are made from the recipe's own one by changing method, seed and length; their samples and
scores from that one's last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from pipeline.errors import UsageError
from pipeline.graph import Node
from stages.papers.maskalign import diagnose
from stages.papers.maskalign.diagnose import DiagnoseSettings
from stages.papers.maskalign.options import ComparisonOptions
from stages.recipes.nodes import (
    TEACH,
    checkpoint_nodes,
    extractor_nodes,
    needs_teacher,
    prepare_nodes,
    seed_suffix,
    settings_of,
    train_nodes,
)
from stages.sampling import sample
from stages.scoring import evaluate

if TYPE_CHECKING:
    from stages.bench import Bench


def recipe(bench: Bench) -> list[Node]:
    """Training in depth: every method from several seeds, MaskAlign's parts taken away."""
    # Latents would have to be decoded before they could be scored.
    scorers = [] if bench.data.latent else extractor_nodes(bench)
    templates = [*train_nodes(bench), *checkpoint_nodes(bench, bench.train.method)]
    compared = compared_nodes(bench, templates, with_scores=bool(scorers))
    return [*prepare_nodes(bench), *scorers, *compared]


@dataclass(frozen=True)
class Templates:
    """Nodes of a recipe from which others follow by changing settings and inputs.

    train, sample, evaluate: the training, samples of its last checkpoint, scores over steps.
    """

    bench: Bench
    train: Node
    sample: Node
    evaluate: Node

    @classmethod
    def of(cls, bench: Bench, nodes: Sequence[Node]) -> Templates:
        """Those of the recipe's own training method."""
        method, last = bench.train.method, bench.train.kept_steps[-1]
        names = {node.name: node for node in nodes}
        of = (f"train/{method}", f"sample/{method}-step{last}", f"evaluate/{method}")
        return cls(bench, *(names[name] for name in of))

    def training(
        self,
        name: str,
        method: str,
        seed: int,
        scored: Sequence[int] | None = None,
        **changes: object,
    ) -> Node:
        """`train/NAME`: the method, with changes of its own settings.

        scored: the steps it keeps, ascending, and its length the last; None for the compared ones.

        Raises UsageError for settings that contradict each other.
        """
        options = self.bench.maskalign
        revised = {
            "method": method,
            "seed": seed,
            "steps": options.steps,
            "checkpoint_steps": (),
            "num_checkpoints": options.num_checkpoints,
        }
        if scored is not None:
            *before, last = scored
            revised |= {"steps": last, "checkpoint_steps": tuple(before), "num_checkpoints": 1}
        if changes:
            revised[method] = getattr(self.train.settings, method).model_dump() | changes
        try:
            settings = self.train.settings.revised(**revised)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]
            words = str(reason.get("ctx", {}).get("error", reason["msg"]))
            raise UsageError(f"train, for maskalign.methods {method}: {words}") from error
        inputs = {k: v for k, v in self.train.inputs.items() if k != "teacher"}
        return replace(
            self.train,
            name=f"train/{name}{seed_suffix(self.bench, seed)}",
            settings=settings,
            inputs=inputs | needs_teacher(method),
            tags={**self.train.tags, "method": method, "seed": str(seed)},
        )

    def curve(
        self,
        name: str,
        method: str,
        steps: Sequence[int],
        seeds: Sequence[int],
        trained: int | None = None,
    ) -> list[Node]:
        """Samples of `train/NAME` at steps from several seeds, and their scores.

        trained: the seed of the training that all sample; None lets every seed sample its own.
        """
        tags = {**self.sample.tags, "method": method}

        def model(seed: int) -> str:
            return f"train/{name}{seed_suffix(self.bench, seed if trained is None else trained)}"

        nodes = [
            replace(
                self.sample,
                name=f"sample/{name}-step{step}{seed_suffix(self.bench, seed)}",
                settings=self.sample.settings.revised(step=step, seed=seed),
                inputs={**self.sample.inputs, "model": model(seed)},
                tags={**tags, "seed": str(seed)},
            )
            for step in steps
            for seed in seeds
        ]
        scores = replace(
            self.evaluate,
            name=f"evaluate/{name}",
            inputs={**self.evaluate.inputs, "samples": [node.name for node in nodes]},
            tags={**self.evaluate.tags, "method": method},
        )
        return [*nodes, scores]

    def diagnosis(self, name: str, method: str, seed: int) -> Node:
        """Heatmaps and gap of `train/NAME`. Raises UsageError where an image is one patch."""
        size, patch = self.bench.data.image_size, self.bench.train.network.patch
        if size is not None and size // patch < 2:
            raise UsageError(
                f"train.network.patch={patch} makes an image of {size} pixels a side one patch, "
                f"and diagnostics of {method} compare patches; lower train.network.patch"
            )
        end = seed_suffix(self.bench, seed)
        settings = settings_of(DiagnoseSettings, self.bench.diagnose, seed=self.bench.seed)
        return Node(
            f"diagnose/{name}{end}",
            diagnose.STAGE,
            settings,
            {"model": f"train/{name}{end}", "data": "prepare", "teacher": TEACH},
            self.bench.resources.diagnose,
            tags={"method": method, "seed": str(seed)},
        )


def common_steps(own: Sequence[int], options: ComparisonOptions) -> tuple[int, ...]:
    """The steps at which other methods are scored beside a training that is scored at `own`.

    Those of `own` up to `options.steps`, its first at the least, and `options.num_checkpoints` of
    them at the most, at equal distances.
    """
    within = [step for step in own if step <= options.steps] or list(own[:1])
    count = min(options.num_checkpoints, len(within))
    return tuple(within[len(within) * i // count - 1] for i in range(1, count + 1))


def full_nodes(bench: Bench, nodes: Sequence[Node]) -> list[Node]:
    """Beside the recipe's own training: the other methods, their scores, and diagnostics."""
    made, own, seed = Templates.of(bench, nodes), bench.train.method, bench.seed
    options, found = bench.maskalign, []
    for method in options.methods:
        if method != own:
            node = made.training(method, method, seed)
            if not {*node.settings.kept_steps} <= {*bench.train.kept_steps}:
                scored = common_steps(bench.train.kept_steps, options)
                node = made.training(method, method, seed, scored)
            steps, seeds = node.settings.kept_steps, range(seed, seed + bench.sample.num_seeds)
            found += [node, *made.curve(method, method, steps, seeds, trained=seed)]
        if needs_teacher(method):
            found.append(made.diagnosis(method, method, seed))
    return found


def compared_nodes(bench: Bench, nodes: Sequence[Node], with_scores: bool) -> list[Node]:
    """The recipe train: every method from several seeds, then MaskAlign's parts taken away.

    with_scores: without them nothing is sampled but the last checkpoints.
    """
    made, options = Templates.of(bench, nodes), bench.maskalign
    seeds = range(bench.seed, bench.seed + options.num_seeds)
    found: list[Node] = []
    for seed in seeds:
        for method in options.methods:
            found.append(made.training(method, method, seed))
            if needs_teacher(method):
                found.append(made.diagnosis(method, method, seed))
    for method in options.methods:
        steps = made.training(method, method, bench.seed).settings.kept_steps
        found += made.curve(method, method, steps, seeds)
    seeds = range(bench.seed, bench.seed + options.ablation_seeds)
    steps = options.ablation_steps or options.steps
    kept = made.training("sit", "sit", bench.seed).settings.kept_steps
    if seeds and steps not in kept:
        raise UsageError(
            f"maskalign.ablation_steps={steps} is not a step that every method is scored at "
            f"({', '.join(map(str, kept))}); choose one of these"
        )
    for name, changes in ablations(bench) if seeds else ():
        found += [made.training(name, "maskalign", seed, [steps], **changes) for seed in seeds]
        found += made.curve(name, "maskalign", [steps], seeds)
    return found if with_scores else [node for node in found if _is_unscored(node, options.steps)]


def _is_unscored(node: Node, last_step: int) -> bool:
    """Whether a node stays where nothing is scored."""
    if node.stage is sample.STAGE:
        return node.settings.step == last_step
    return node.stage is not evaluate.STAGE


def ablations(bench: Bench) -> Iterator[tuple[str, dict[str, float]]]:
    """Name and changed settings of every training that takes parts of MaskAlign away.

    The training that all settings name is none of them; without mask and mixing it is REG.
    """
    own, options = bench.train.maskalign, bench.maskalign
    for ratio in options.mask_ratios:
        if ratio != own.mask_ratio:
            yield f"maskalign-ratio{ratio:g}", {"mask_ratio": ratio}
    for layers in options.mix_layers:
        if layers != own.mix_layers:
            yield f"maskalign-mix{layers}", {"mix_layers": layers}
