"""ICR's claims, from scans over checkpoints and noise levels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stages.pages.findings import (
    FAILS,
    HIGHER,
    HOLDS,
    LOWER,
    ONE_NETWORK,
    OPEN,
    TRAININGS,
    Claim,
    Effect,
    Finding,
    over_seeds,
    side,
    verdict,
)
from stages.settings.sigmas import ABSCISSA

if TYPE_CHECKING:
    from stages.artifacts.network import TrainedNetwork
    from stages.artifacts.scan import Scan, ScanRow
    from stages.pages.made import Made

METHOD, NO_NUMBER = "ICR", "no number stated here"
RECIPES = ("full", "icr")
WARNS = Claim(
    METHOD, "Few data: its minimum comes before memorisation", NO_NUMBER, RECIPES, "few data"
)
FALLS = Claim(METHOD, "Rich data: it falls together with FD", NO_NUMBER, RECIPES, "rich data")
TOLERANCE = 2.0  # points of probe accuracy that count as none: ours
WINDOW = Claim(
    METHOD,
    f"Over sigma its minimum is where the probe peaks, within {TOLERANCE:g} points of accuracy",
    NO_NUMBER,
    RECIPES,
    "over sigma",
)


def findings(
    scans: Mapping[str, Scan], trainings: Mapping[str, TrainedNetwork]
) -> Iterator[Finding]:
    """What scans of a run's own trainings say; every claim once. Networks given by path differ in
    more than their seed, and nobody knows how many images they saw: they are no repetition.

    scans: by node. trainings: the run's nodes `train/...`.
    """
    trained = {training.manifest.key for training in trainings.values()}
    own = [scan for scan in scans.values() if scan.manifest.inputs["model"] in trained]
    over_steps = [scan for scan in own if scan.description["abscissa"] != ABSCISSA]
    over_sigma = [scan for scan in own if scan.description["abscissa"] == ABSCISSA]
    sizes = {_size(scan) for scan in over_steps}
    several = len(sizes) > 1
    few = [scan for scan in over_steps if several and _size(scan) == min(sizes)]
    rich = [scan for scan in over_steps if several and _size(scan) == max(sizes)]
    yield _warns(few)
    yield _falls(rich)
    # Seeds repeat one training: of trainings on more and on fewer images the former stand.
    most = max((_size(scan) for scan in over_sigma), default=0)
    yield _window([scan for scan in over_sigma if _size(scan) == most])


def _size(scan: Scan) -> int:
    """Images trained on."""
    return scan.description["model"]["num_images"]


def _warns(scans: Sequence[Scan]) -> Finding:
    """The rise of ICR after its minimum, which must be beyond its 95 % interval, confirmed by every
    alarm, and come before copies do."""
    effects, verdicts, parts, orders = [], [], [], []
    rows: list[tuple[Any, ...]] = [
        ("seed", "lowest at step", "ICR there", "rise to the last step", "memorisation from step")
    ]
    for scan in scans:
        facts, alarm = scan.description, scan.description["alarm"]
        copies = facts["memorization_step"]
        error = alarm["standard_error"]
        kind = "none" if error is None else "view seeds"
        effects.append(Effect(alarm["rise"], error, kind, scope=ONE_NETWORK))
        verdicts.append(_before(facts))
        rows.append(
            (facts["model"]["seed"], alarm["step"], alarm["minimum"], alarm["rise"], copies)
        )
        parts.append(f"lowest at step {alarm['step']}, copies {_from(copies)}")
        orders.append(_order(facts))
    effect = over_seeds(effects, TRAININGS)
    if effect is None:
        return Finding(WARNS)
    said, instead = verdicts[0] if len(set(verdicts)) == 1 else OPEN, _counted(orders)
    if said == HOLDS:
        said, instead = verdict(effect, HIGHER), ""
    share = scans[0].description["memorized"]
    errors = "/".join(dict.fromkeys(f"{scan.settings['alarm_errors']:g}" for scan in scans))
    note = (
        f"{'; '.join(parts)}; copies: memorisation ratio above {share:g}; of one training the rise "
        f"must be beyond {errors} errors, since the minimum is chosen, and what is shown beyond "
        "its 95 % interval"
    )
    what = "rise of ICR after its minimum"
    return Finding(WARNS, what, effect, said, note, tuple(rows), instead)


def _counted(texts: Sequence[str]) -> str:
    """What was seen of each training, every text once and of how many it was."""
    counts = Counter(texts)
    if len(counts) == 1:
        return texts[0]
    return "; ".join(f"{text} ({n} of {len(texts)})" for text, n in counts.items())


def warned_before(facts: Mapping[str, Any]) -> bool | None:
    """Whether ICR was lowest before memorisation began; None where nothing was memorised."""
    copies = facts["memorization_step"]
    return None if copies is None else facts["alarm"]["step"] < copies


def _before(facts: Mapping[str, Any]) -> str:
    before = warned_before(facts)
    if before is False:
        return FAILS
    return HOLDS if before and facts["alarm"]["confirmed_step"] is not None else OPEN


def _order(facts: Mapping[str, Any]) -> str:
    """What came first, and whether no alarm told of it, as `_before` decides."""
    unconfirmed = warned_before(facts) and facts["alarm"]["confirmed_step"] is None
    told = ", no alarm confirmed it" if unconfirmed else ""
    return f"copies {_from(facts['memorization_step'])}, minimum at {facts['alarm']['step']}{told}"


def _from(step: int | None) -> str:
    return "not seen" if step is None else f"from step {step}"


def _falls(scans: Sequence[Scan]) -> Finding:
    """ICR at the last checkpoint minus at the first; FD must have fallen too."""
    effects, parts = [], []
    rows: list[tuple[Any, ...]] = [("seed", "step", "ICR", "FD")]
    for scan in scans:
        along = scan.load()
        if len(along) < 2 or along[0].fid is None or along[-1].fid is None:
            continue
        error = scan.description["icr_error"]
        kind = "none" if error is None else "view seeds"
        both = None if error is None else math.sqrt(2) * error
        effects.append(Effect(-fall(along), both, kind, scope=ONE_NETWORK))
        parts.append((along[0], along[-1]))
        rows += [(scan.description["model"]["seed"], r.step, r.icr, r.fid) for r in along]
    effect = over_seeds(effects, TRAININGS)
    if effect is None:
        return Finding(FALLS)
    listed = "; ".join(f"FD {a.fid:.3g} to {b.fid:.3g}" for a, b in parts)
    note = f"{listed}; rank correlation of ICR and FD {_rank_correlation(rows[1:]):.2f}"
    said = verdict(effect, LOWER)
    if said == HOLDS and not all(_fell(a, b) for a, b in parts):
        said, note = OPEN, f"{note}; FD did not fall beyond its 95 % interval"
    what = f"ICR at step {parts[0][1].step} minus that at step {parts[0][0].step}"
    return Finding(FALLS, what, effect, said, note, tuple(rows))


def fall(rows: Sequence[ScanRow]) -> float:
    """By how much ICR is lower at the last checkpoint than at the first."""
    return rows[0].icr - rows[-1].icr


def _fell(first: ScanRow, last: ScanRow) -> bool:
    error = math.hypot(first.fid_error or 0.0, last.fid_error or 0.0)
    return side(last.fid - first.fid, error) == LOWER


def _rank_correlation(rows: Sequence[tuple[Any, ...]]) -> float:
    """Spearman's, over all checkpoints."""
    from scipy.stats import spearmanr

    return float(spearmanr([row[2] for row in rows], [row[3] for row in rows]).statistic)


def _window(scans: Sequence[Scan]) -> Finding:
    """Probe accuracy at each training's sigma of the lowest ICR minus that at one sigma, the same
    for all trainings: the one that speaks most against the claim. Tested against a loss of
    `TOLERANCE`: the claim holds where the loss is less at every sigma and the minimum is inside the
    range, and fails where it is more at this one when all comparisons are looked at together."""
    from stages.methods.decisions import CONFIDENCE

    inside, parts, curves = [], [], []
    rows: list[tuple[Any, ...]] = [("sigma", "ICR", "probe accuracy")]
    for scan in scans:
        probes = [row for row in scan.load() if row.probe_accuracy is not None]
        if len(probes) < 3:
            continue
        curves.append(probes)
        lowest = _lowest(probes)
        inside.append(_inside(probes, lowest, scan.description["icr_error"]))
        best = max(probes, key=lambda row: row.probe_accuracy)
        parts.append(f"ICR lowest at sigma {lowest.sigma:g}, probe best at {best.sigma:g}")
        rows += [(row.sigma, row.icr, row.probe_accuracy) for row in probes]
    effects = _losses(curves)
    if not effects:
        return Finding(WINDOW)
    most = min(effects, key=lambda sigma: _ratio(effects[sigma]))
    effect = replace(effects[most], among=len(effects))
    said = FAILS if _ratio(effect) < 0 and effect.probability <= 1 - CONFIDENCE else OPEN
    less = all(verdict(one, HIGHER) == HOLDS for one in effects.values())
    if less and all(inside):
        # What is shown at every sigma needs no correction.
        said, effect = HOLDS, effects[most]
    note = (
        f"{'; '.join(parts)}, most against it at {most:g}; tested against a loss of {TOLERANCE:g} "
        "points on the same held-out images; holds only beyond the 95 % interval at every sigma "
        "and with every minimum inside the range, and fails only beyond the interval of all "
        f"{len(effects)} comparisons together, which is shown unless it holds"
    )
    if less and said == OPEN:
        note = f"{note}; {inside.count(False)} of {len(inside)} minima are not inside"
    what = "probe accuracy where ICR is lowest minus that at any other sigma"
    return Finding(WINDOW, what, effect, said, note, tuple(rows))


def _lowest(probes: Sequence[ScanRow]) -> ScanRow:
    return min(probes, key=lambda row: row.icr)


def _losses(curves: Sequence[Sequence[ScanRow]]) -> dict[float, Effect]:
    """Probe accuracy at each training's lowest ICR minus that at a sigma, by every sigma that all
    trainings have and that is not the lowest of all."""
    from stages.methods.effects import PAIRED

    by_sigma = [{row.sigma: row for row in probes} for probes in curves]
    lowest = [_lowest(probes) for probes in curves]
    more = {"unit": "points", "against": -TOLERANCE, "scope": ONE_NETWORK}
    effects = {}
    for sigma in by_sigma[0] if by_sigma else ():
        if not all(sigma in rows for rows in by_sigma) or {row.sigma for row in lowest} == {sigma}:
            continue
        pairs = [(one, rows[sigma]) for one, rows in zip(lowest, by_sigma, strict=True)]
        each = [Effect(*_less(*pair), PAIRED, **more) for pair in pairs]
        effects[sigma] = over_seeds(each, TRAININGS)
    return effects


def _ratio(effect: Effect) -> float:
    """Of an effect to its error, signed; infinite where there is no spread."""
    value, error = effect.tested
    return value / error if error else math.copysign(math.inf, value) if value else 0.0


def _less(row: ScanRow, other: ScanRow) -> tuple[float, float]:
    """By how many points a row's probe is better than another's, and its error: of the images on
    which the two differ, at least one; none against itself."""
    if row is other:
        return 0.0, 0.0
    pairs = [int(a) - int(b) for a, b in zip(row.probe_right, other.probe_right, strict=True)]
    count, total = len(pairs), sum(pairs)
    squares = max(sum(pair * pair for pair in pairs) - total**2 / count, 1.0)
    return 100 * total / count, 100 * math.sqrt(squares) / count


def _inside(rows: Sequence[ScanRow], lowest: ScanRow, error: float | None) -> bool:
    """Whether a minimum is below both ends of the range beyond the 95 % interval. At an end nobody
    knows where it is."""
    if error is None:
        return False
    both = math.sqrt(2) * error
    return all(side(end.icr - lowest.icr, both) == HIGHER for end in (rows[0], rows[-1]))


def of_run(made: Made) -> Iterator[Finding]:
    """What a run says of ICR's claims."""
    yield from findings(made.of("scan"), made.trainings)
