"""Few-step sampling in the report: verdicts, error bars, grid names, gamma and contractivity."""

from types import SimpleNamespace

import pytest

from stages.artifacts.lipschitz import StepRow
from stages.artifacts.scores import Row
from stages.methods.protocol import Protocol, Score
from stages.papers.stein import section


def protocol(count: int) -> Protocol:
    return Protocol(
        name="p",
        extractor="e",
        extractor_hash="h",
        resize="none",
        reference="r",
        num_reference=100,
        num_samples=count,
    )


def rows(solver, correction, values, seed=0, grid="uniform_t", error=None, step=10, metric="fid"):
    kind = "none" if error is None else "jackknife"
    return [
        Row(
            node="n",
            method="sit",
            solver=solver,
            correction=correction,
            grid=grid,
            nfe=nfe,
            training_step=step,
            time_density="uniform",
            seed=seed,
            score=Score(
                metric=metric, value=value, protocol=protocol(50), error=error, error_kind=kind
            ),
        )
        for nfe, value in values.items()
    ]


def only(scores, **inputs):
    (found,) = section.sections(inputs, scores)
    return found


def test_verdicts_are_paired_over_seeds():
    scores = {}
    for seed, level in enumerate((1.0, 5.0, 9.0)):  # seeds differ much more than corrections
        wobble = (-0.05, 0.05, 0.0)[seed]
        scores[f"a{seed}"] = rows("dpmpp2m", "none", {5: level, 10: level, 20: level}, seed)
        better = {nfe: level * (1 + wobble) * k for nfe, k in ((5, 0.8), (10, 1), (20, 1.25))}
        scores[f"b{seed}"] = rows("dpmpp2m", "calibrated", better, seed)
    found = only(scores)
    assert (
        "<li>dpmpp2m, calibrated: fid better at 5; fid inconclusive at 10; fid worse at 20</li>"
        in found.text
    )
    assert "over 3 seeds of the noise" in found.text
    figure = next(f for f in found.figures if f.name == "few-steps-fid-dpmpp2m")
    assert "3 seeds" in figure.caption
    assert "grids: uniform_t" in figure.caption
    errors = [row[3] for row in figure.rows if row[0] == "dpmpp2m, calibrated"]
    values = [row[2] for row in figure.rows if row[0] == "dpmpp2m"]
    assert values == pytest.approx([5, 5, 5])
    assert errors[0] == pytest.approx(1.861, abs=0.001)  # of 0.76, 4.2 and 7.2


def test_one_seed_has_the_samples_error_and_says_so():
    scores = {
        "a": rows("euler", "none", {5: 3.0}, error=0.1, metric="trajectory_rms"),
        "b": rows("euler", "calibrated", {5: 3.25}, error=0.1, metric="trajectory_rms"),
    }
    found = only(scores)
    assert "trajectory_rms inconclusive at 5" in found.text
    assert "those of the samples of one set" in found.text
    assert all("of the samples, one seed" in figure.caption for figure in found.figures)


def test_a_fitted_solver_is_compared_on_its_own_grid():
    scores = {
        "2m": rows("dpmpp2m", "none", {5: 3.0}, error=0.1),
        "fitted": rows("fitted", "none", {5: 1.0}, error=0.1),
        "heun": rows("heun", "none", {5: 3.0}, grid="edm", error=0.1),
        "calibrated": rows("heun", "calibrated", {5: 2.0}, grid="edm", error=0.1),
    }
    found = only(scores)
    assert "<li>fitted against dpmpp2m: fid better at 5</li>" in found.text
    assert "edm: heun; uniform_t: dpmpp2m, fitted" in found.text
    by_name = {figure.name: figure for figure in found.figures}
    curves = {row[0] for row in by_name["few-steps-fid-heun"].rows[1:]}
    assert curves == {"heun", "heun, calibrated"}
    assert {row[0] for row in by_name["few-steps-fid-solvers"].rows[1:]} == {
        "dpmpp2m (uniform_t)",
        "fitted (uniform_t)",
        "heun (edm)",
    }


def test_models_are_never_on_one_figure():
    scores = {
        f"{solver}-{step}": rows(solver, "none", {5: 3.0}, error=0.1, step=step)
        for solver in ("euler", "unipc")
        for step in (10, 20)
    }
    names = [figure.name for figure in only(scores).figures]
    assert names == ["few-steps-fid-solvers", "few-steps-fid-solvers-1"]


def test_a_model_solved_in_one_way_has_nothing_to_be_compared():
    alone = {"a": rows("euler", "none", {5: 3.0}, error=0.1, step=10)}
    assert section.sections({}, alone) == []
    two = {s: rows(s, "none", {5: 3.0}, error=0.1, step=20) for s in ("euler", "unipc")}
    (figure,) = only(alone | two).figures
    assert "step 20" in figure.caption


def test_the_literal_correction_stands_on_a_figure_of_its_own():
    scores = {
        f"{solver}-{correction}": rows(solver, correction, {5: value}, error=0.1)
        for solver in ("euler", "dpmpp2m")
        for correction, value in (("none", 3.0), ("online", 2.0), ("literal", 900.0))
    }
    figures = {figure.name: figure for figure in only(scores).figures}
    lines = {name: {row[0] for row in figure.rows[1:]} for name, figure in figures.items()}
    assert lines == {
        "few-steps-fid-solvers": {"euler", "dpmpp2m"},
        "few-steps-fid-literal": {"euler, literal", "dpmpp2m, literal"},
        "few-steps-fid-euler": {"euler", "euler, online"},
        "few-steps-fid-dpmpp2m": {"dpmpp2m", "dpmpp2m, online"},
    }


def schedule(solver, values, nfe=2, clip=(0.9, 1.25)):
    facts = {
        "solver": solver,
        "grid": "uniform_t",
        "nfe": nfe,
        "levels": [999.0, 1.0, 0.0],
        "values": values,
        "clip": clip,
    }
    name = "calibrated" if clip else "calibrated on trajectories"
    return SimpleNamespace(description=facts, name=name)


def test_gamma_per_step_of_schedules_and_of_samples():
    online = SimpleNamespace(
        description={"solver": "euler", "correction": "online", "grid": "edm", "nfe": 2},
        steps={"level": [80.0, 1.0], "gamma": [0.9, 1.1]},
    )
    plain = SimpleNamespace(description={"correction": "none"})
    schedules = {
        "a": schedule("dpmpp2m", [1.1, 1.2]),
        "b": schedule("unipc", [1.1, 1.2]),
        "c": schedule("fitted", [[1.0], [2.0]]),
    }
    found = only({}, schedules=schedules, samples={"x": online, "y": plain})
    assert [figure.name for figure in found.figures] == [
        "gamma-dpmpp2m-calibrated-uniform-t",
        "gamma-euler-online-edm",
    ]
    assert found.figures[0].rows[1:] == [("NFE 2", 0.999, 1.1, None), ("NFE 2", 0.5, 1.2, None)]
    assert "UniPC's gammas are those of DPM-Solver++ 2M" in found.text
    other = {"a": schedules["a"], "b": schedule("unipc", [1.1, 1.3])}
    assert len(only({}, schedules=other).figures) == 2


def test_the_report_names_the_clips_that_were_used():
    schedules = {
        "a": schedule("dpmpp2m", [1.1, 1.2]),
        "b": schedule("heun", [1.1, 1.0], 3, (0.5, 2)),
    }
    text = only({}, schedules=schedules).text
    assert "clipped to [0.9, 1.25] (dpmpp2m), [0.5, 2] (heun). " in text
    assert "batch" not in text
    text = only({}, schedules={"a": schedule("dpmpp2m", [1.1, 1.2], clip=None)}).text
    assert "What was fitted to trajectories is not clipped" in text
    assert "Stored" not in text


def test_contractivity_per_step():
    steps = [StepRow(1, 999.0, 1.0, 0.999, 0.5, 0.75), StepRow(2, 1.0, 0.0, 0.5, 0.9, 1.25)]
    facts = {"solver": "euler", "grid": "edm", "nfe": 2, "iterations": 3, "num_trajectories": 4}
    measured = SimpleNamespace(description=facts, load=lambda: steps)
    found = only({}, lipschitz={"a": measured})
    (table,) = found.tables
    assert "<td class=number>1.25</td><td class=number>0.5</td><td>1 of 2</td>" in table
    (figure,) = found.figures
    assert ("maximum, NFE 2", 0.5, 1.25, None) in figure.rows
    assert "lower bound" in found.text


def test_nothing_is_said_where_nothing_was_measured():
    assert section.sections({}, {}) == []
