"""What a set of samples scores against the training images, with what each sample contributes.

Every error is that of one set of samples, the reference being fixed; labels in fixed shares are
strata. Influence values and what the samples were made from are kept, so that an effect of two sets
from the same noise has the error of their paired difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stages.scoring.references import References, enough, labels_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from stages.artifacts.features import FeatureArrays, FeatureSet
    from stages.artifacts.samples import Samples
    from stages.methods.frechet import FrechetResult
    from stages.methods.gaussians import Dealt
    from stages.methods.influence import Principal
    from stages.methods.protocol import Influence, Protocol, Score
    from stages.scoring.evaluate import EvaluateSettings

BLOCK = 256  # samples compared at once with those of the reference

MANIFOLDS = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Scored:
    """`count` samples of a set from `first` on, as what a score says of them."""

    samples: Samples
    count: int
    first: int = 0

    @cached_property
    def labels(self) -> np.ndarray:
        """(count,) as the samples were asked for; all 0 where classes were drawn, which then stand
        in no fixed shares."""
        import numpy as np

        if self.samples.description.get("classes") == "random":
            return np.zeros(self.count, np.int64)
        return np.load(self.samples.path / "labels.npy")[self.first : self.first + self.count]

    def influence(self, psi: Tensor) -> Influence:
        """psi (n,) of the first n samples, and what those were made from."""
        from stages.methods.protocol import Influence

        n = len(psi)
        return Influence(
            psi=psi.float().numpy(),
            strata=self.labels[:n],
            samples=self._made_from(n),
            network=self.samples.description.get("network", ""),
        )

    def _made_from(self, n: int) -> str:
        """Noise and labels of the first n samples; of samples made elsewhere the set itself."""
        facts, since = self.samples.description, [self.first] if self.first else []
        if "labels" not in facts:
            return " of ".join(map(str, [n, *since, self.samples.manifest.key]))
        digest = hashlib.sha256(self.labels[:n].tobytes()).hexdigest()[:16]
        return json.dumps([n, facts["seed"], list(self.samples.shape), digest, *since])


@dataclass(frozen=True)
class Judge:
    """What every set is scored against, and the scores of real images.

    floors: by metric. protocol: without the details that single metrics add.
    """

    references: References
    protocol: Protocol
    floors: Mapping[str, float]
    settings: EvaluateSettings

    def generator(self) -> torch.Generator:
        import torch

        return torch.Generator().manual_seed(self.settings.seed)

    def score(
        self,
        metric: str,
        value: float,
        error: float | None,
        influence: Influence | None = None,
        caution: str = "",
        details: str = "",
        at_most: float | None = None,
    ) -> Score:
        """A score whose error is of its influence values, or else of blocks; None for no error."""
        from stages.methods.protocol import Score

        kind = "influence" if influence is not None else "jackknife"
        return Score(
            metric=metric,
            value=value,
            protocol=replace(self.protocol, details=details),
            error=error,
            error_kind=kind if error is not None else "none",
            floor=self.floors.get(metric),
            caution=caution,
            at_most=at_most,
            influence=influence,
        )


def floors_follow_from(
    train: FeatureSet, held_out: FeatureSet, settings: EvaluateSettings, in_shares: bool
) -> dict[str, Any]:
    """All that the floors of a `judge_of` depend on, for evaluations to have them from each other.

    A curve's abscissa is none of it.
    """
    payloads = [one.manifest.payload for one in (train, held_out)]
    chosen = settings.model_dump(mode="json", exclude={"abscissa"})
    return {"floors of": payloads, "settings": chosen, "in_shares": in_shares}


def judge_of(
    train: FeatureSet,
    held_out: FeatureSet,
    settings: EvaluateSettings,
    in_shares: bool = True,
    floors: Mapping[str, float] | None = None,
) -> Judge:
    """The judge of an evaluation. in_shares: whether all sets have labels in fixed shares; others
    are held against real images of random labels. floors: where they are known already."""
    from stages.methods.protocol import Protocol

    facts = train.description
    extractor, count = facts["extractor"], settings.num_samples
    protocol = Protocol(
        name=f"{facts['data']}-{extractor['name']}-{count}",
        extractor=extractor["name"],
        extractor_hash=extractor["weights_hash"],
        resize=extractor["resize"],
        # Other archives and folders have the same name.
        reference=f"{facts['data']} training images {facts['data_digest']}",
        num_reference=facts["num_images"],
        num_samples=count,
    )
    real = train.load(), held_out.load()
    floors = _floors(*real, settings, in_shares) if floors is None else floors
    return Judge(References.of(*real, settings), protocol, floors, settings)


def _floors(
    train: FeatureArrays, held_out: FeatureArrays, settings: EvaluateSettings, in_shares: bool
) -> dict[str, float]:
    """What real images score, at the same sizes where there are enough of them.

    Fréchet distances scale to these sizes, with labels in the shares that samples have them in, so
    that chance makes no more of them than it does for samples; precision, recall, density and
    coverage take two halves of all real images at most; the Inception score and the memorisation
    ratio the held-out images.
    """
    import torch

    from stages.methods import quality
    from stages.methods.frechet import real_floor
    from stages.methods.gaussians import Rows

    generator, device = torch.Generator().manual_seed(settings.seed), settings.device
    count, reference = settings.num_samples, len(train.features)
    real = Rows([train.features, held_out.features])
    repeats = 10 if real.shape[1] <= 512 else 3
    floors = {"fid_infinity": 0.0, "kid": 0.0, "trajectory_rms": 0.0}
    labels = labels_of(train, held_out) if in_shares else None
    taken = {"repeats": repeats, "generator": generator, "labels": labels, "device": device}
    floors["fid"] = real_floor(real, count, reference, **taken)
    if enough(held_out):
        rest = len(held_out.features)
        theirs = None if labels is None else held_out.labels.long()
        floors["fid_held_out"] = real_floor(real, count, rest, labels2=theirs, **taken)
        floors["fid_gap"] = 0.0
    if train.spatial is not None:
        maps = Rows([part.spatial.flatten(1) for part in (train, held_out)])
        floors["sfid"] = real_floor(maps, count, reference, **taken)
    half = min(count, len(real) // 2, quality.LARGEST_MATRIX)
    if 0 < settings.neighbours < half - 2:
        order = torch.randperm(len(real), generator=generator)
        halves = real[order[:half]], real[order[half : 2 * half]]
        manifolds = quality.precision_recall(
            *halves, settings.neighbours, errors=False, device=device
        )
        floors |= {name: getattr(manifolds, name).value for name in MANIFOLDS}
    if held_out.logits is not None:
        floors["inception_score"] = quality.inception_score(held_out.logits, blocks=0).value
    if _has_neighbours(held_out):
        floors["memorization_ratio"] = _memorised(held_out, settings).mean().item()
    return floors


def score_sets(
    shard: Sequence[tuple[Samples, FeatureSet]], judge: Judge, reference: Samples | None
) -> list[list[Score]]:
    """The scores of every set of a shard."""
    return [score_set(*pair, judge, reference) for pair in shard]


def score_set(
    samples: Samples, features: FeatureSet, judge: Judge, reference: Samples | None
) -> list[Score]:
    """All scores of one set of samples."""
    scored = Scored(samples, judge.settings.num_samples)
    arrays = features.load(scored.count)
    fd = Frechet.of(arrays.features, judge.references.features, scored, judge)
    scores = [*_feature_scores(arrays, fd, scored, judge), *_held_out(fd.principal, scored, judge)]
    scores += _memorization(arrays, scored, judge, features.description.get("nearest_among"))
    if reference is not None:
        scores += _trajectories(scored, reference, judge)
    return scores


@dataclass(frozen=True)
class Frechet:
    """A set's distance to the training images, and the decomposition that further ones take."""

    result: FrechetResult
    principal: Principal

    @classmethod
    def of(cls, found: Tensor, reference: Dealt, scored: Scored, judge: Judge) -> Frechet:
        """found: (n, d) of the samples."""
        import torch

        from stages.methods import frechet
        from stages.methods.influence import Principal

        labels, device = torch.from_numpy(scored.labels), judge.settings.device
        own = frechet.dealt(found, judge.generator(), labels, device)
        principal = Principal.of(found, own.moments(), device)
        _, psi = principal.distance_to(reference.moments())
        return cls(frechet.extrapolated(own, reference, psi, labels), principal)


def _feature_scores(
    found: FeatureArrays, fd: Frechet, scored: Scored, judge: Judge
) -> Iterator[Score]:
    """Scores from features (n, d) against the training images' (m, d)."""
    import torch

    from stages.methods import quality

    labels, against = torch.from_numpy(scored.labels), judge.references
    device, result = judge.settings.device, fd.result
    influence = scored.influence(result.psi)
    told = {"influence": influence, "caution": result.caution}
    yield judge.score("fid", result.distance, result.standard_error, **told)
    yield judge.score("fid_infinity", result.infinity, result.standard_error, **told)
    if found.spatial is not None:
        sfd = Frechet.of(found.spatial.flatten(1), against.spatial, scored, judge).result
        influence = scored.influence(sfd.psi)
        yield judge.score("sfid", sfd.distance, sfd.standard_error, influence, sfd.caution)
    few, many = found.features[: quality.LARGEST_MATRIX], against.many
    kid = quality.kernel_distance(few, many, labels[: len(few)], against.among_many, device)
    some = len(few) < len(found.features) or len(many) < against.count
    details = f"{len(few)} against {len(many)}" if some else ""
    influence = scored.influence(kid.psi)
    yield judge.score("kid", kid.value, kid.standard_error, influence, details=details)
    if against.drawn is not None:
        yield from _manifolds(few, labels, scored, judge)
    if found.logits is not None:
        inception = quality.inception_score(found.logits, generator=judge.generator())
        yield judge.score("inception_score", inception.value, inception.standard_error)


def _manifolds(few: Tensor, labels: Tensor, scored: Scored, judge: Judge) -> Iterator[Score]:
    """Scores of neighbours. Samples are in random order, with the noise of each; training images
    are in that of the data, and drawn at random from it."""
    from stages.methods import quality

    against, settings = judge.references, judge.settings
    fewest = min(len(few), len(against.drawn))
    manifolds = quality.precision_recall(
        few[:fewest],
        against.drawn,
        settings.neighbours,
        labels=labels[:fewest],
        reach=against.reach,
        device=settings.device,
    )
    details = f"k={settings.neighbours}, {fewest} of each"
    for name in MANIFOLDS:
        one = getattr(manifolds, name)
        influence = scored.influence(one.psi)
        yield judge.score(name, one.value, one.standard_error, influence, details=details)


def _held_out(principal: Principal, scored: Scored, judge: Judge) -> Iterator[Score]:
    """FD to the held-out images, and by how much it is above that to as many training images with
    the same labels: samples that are near their training images are farther from others.

    The gap's error holds what the held-out images' choice adds, seen between the subsets.
    """
    import numpy as np
    import torch

    from stages.methods import influence

    against = judge.references
    if against.held_out is None:
        return
    labels = torch.from_numpy(scored.labels)
    value, psi = principal.distance_to(against.held_out)
    details = f"against {against.num_held_out} held-out images"
    error = influence.standard_error(psi, labels)
    yield judge.score("fid_held_out", value, error, scored.influence(psi), details=details)
    if not against.subsets:
        return
    near, theirs = zip(*map(principal.distance_to, against.subsets), strict=True)
    gap = psi - sum(theirs) / len(near)
    chance = np.std(near, ddof=1) * (1 + 1 / len(near)) ** 0.5
    yield judge.score(
        "fid_gap",
        value - float(np.mean(near)),
        float(np.hypot(influence.standard_error(gap, labels), chance)),
        scored.influence(gap),
        details=f"{details}, over {len(near)} sets of as many training images",
    )


def _has_neighbours(found: FeatureArrays) -> bool:
    """Whether two training images are known for each image."""
    return found.neighbour_distances is not None and found.neighbour_distances.shape[1] > 1


def _memorised(found: FeatureArrays, settings: EvaluateSettings) -> Tensor:
    """(n,) 1.0 where the nearest training image is much nearer than the second nearest."""
    nearest, second = found.neighbour_distances[:, 0], found.neighbour_distances[:, 1]
    return (nearest < settings.memorization_threshold * second).double()


def _memorization(
    found: FeatureArrays, scored: Scored, judge: Judge, among: int | None = None
) -> Iterator[Score]:
    """The share of copies among the images that the samples' model was trained on, or the first of
    them."""
    import torch

    from stages.methods import influence, strata

    if not _has_neighbours(found):
        return
    values = _memorised(found, judge.settings)
    details = f"pixels, threshold {judge.settings.memorization_threshold:.4g}"
    seen = scored.samples.description.get("num_training_images")
    if among is not None:
        seen = min(among, seen or judge.protocol.num_reference)
    if seen not in (None, judge.protocol.num_reference):
        details += f", among {seen} training images"
    share = values.mean().item()
    psi = influence.of_mean(values)
    yield judge.score(
        "memorization_ratio",
        share,
        influence.standard_error(psi, torch.from_numpy(scored.labels)),
        scored.influence(psi),
        details=details,
        at_most=strata.at_most(len(values)) if share == 0 else None,
    )


def _trajectories(scored: Scored, reference: Samples, judge: Judge) -> Iterator[Score]:
    """Root mean square distance per pixel to the reference's samples from the same noise."""
    import torch

    from stages.methods import influence

    rms, psi, details = apart(scored, reference)
    error = influence.standard_error(psi, torch.from_numpy(scored.labels))
    yield judge.score("trajectory_rms", rms, error, scored.influence(psi), details=details)


def apart(scored: Scored, reference: Samples) -> tuple[float, Tensor, str]:
    """Root mean square distance per pixel of samples to the reference's from the same noise, psi
    (n,), and what the reference is in words."""
    import torch

    from stages.methods import influence

    parts = []
    for start in range(scored.first, scored.first + scored.count, BLOCK):
        which = slice(start, min(start + BLOCK, scored.first + scored.count))
        difference = scored.samples.images(which).double() - reference.images(which).double()
        parts.append(difference.square_().flatten(1).mean(1))
    squares = torch.cat(parts)
    facts = reference.description
    details = f"to {facts['solver']}, NFE {facts['nfe']}, grid {facts['grid']}"
    if facts["correction"] != "none":
        details += f", correction {facts['correction']}"
    return squares.mean().sqrt().item(), influence.of_root(squares), details
