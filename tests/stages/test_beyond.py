"""Beyond the papers: grids compared, and what the page and the claims say of what was measured."""

import math

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.graph import Graph
from stages.artifacts.compared_grids import ComparedGrids
from stages.artifacts.schedule import Schedule
from stages.catalog import CATALOG, RECIPES
from stages.data import spectrum
from stages.pages.findings import ABSENT, FAILS, HOLDS, ONE_NETWORK, OPEN
from stages.papers.beyond import claims, compared, section
from stages.papers.stein import gains, trajectory
from tests.stages.context import make


@pytest.fixture(scope="module")
def grids(tmp_path_factory, few, model):
    folder = tmp_path_factory.mktemp("grids")
    fine = trajectory.TrajectorySettings(teacher_states=24, teacher_steps=12, block_size=8)
    trajectories = make(folder / "fine", trajectory.STAGE, fine, model=model)
    seen = make(folder / "spectrum", spectrum.STAGE, spectrum.SpectrumSettings(), data=few)
    settings = compared.GridSettings(
        nfe=3, block_size=8, grid_mixes=(0.4, 1.0), grid_displays=(64, 256), grid_rounds=3
    )
    inputs = {"model": model, "trajectories": trajectories, "spectrum": seen}
    return make(folder / "grids", compared.STAGE, settings, **inputs)


def test_grids_are_compared_on_states_that_the_best_was_not_searched_on(grids):
    rows = grids.description["grids"]
    kinds = [row["kind"] for row in rows]
    assert kinds == ["uniform", *["csflow"] * 4, "best", "best"]
    assert grids.description["num_states"] == 12
    best = claims.least(rows, "best")
    assert best["log"] == 0
    assert best["log_error"] == 0
    for row in rows:
        assert len(row["levels"]) == 4
        assert row["levels"][0] == pytest.approx(rows[0]["levels"][0])
        assert row["log"] == pytest.approx(math.log(row["rms"] / best["rms"]))
        uniform = math.log(row["rms"] / rows[0]["rms"])
        assert row["log_to_uniform"] == pytest.approx(uniform)


def fact(tmp_path, kind, name, **facts):
    (tmp_path / name).mkdir(parents=True)
    kind.describe(tmp_path / name, facts)
    return kind(tmp_path / name, None)


def columns(plain, predicted, measured):
    rho = [1 - b / a for a, b in zip(plain, predicted, strict=True)]
    return {"rho": rho, "plain": plain, "predicted": predicted, "measured": measured}


def schedules(tmp_path, noise=0.1, differ=False):
    """Of two solvers at two NFE; a third repeats the first's numbers. noise: of what each of 400
    images contributes; the images differ by NFE or not."""
    made, of = (
        [],
        {"targets": ["matched", "literal"], "columns": ["plain", "predicted", "measured"]},
    )
    random = np.random.default_rng(0)
    for solver, low in (("dpmpp2m", 0.5), ("euler", 0.4), ("unipc", 0.5)):
        for nfe, share in ((5, low), (20, low / 100)):
            plain = [1.0] * nfe
            left = [1 - share] * nfe
            gains = {
                "matched": columns(plain, left, [1 - 0.9 * share] * nfe),
                "literal": columns(plain, [0.5 - 0.01 * nfe] * nfe, [0.5] * nfe),
            }
            facts = {"method": "sit", "solver": solver, "grid": "uniform_t", "nfe": nfe}
            facts |= {"model": "weights", "contributions": of | {"images": f"images{differ * nfe}"}}
            made.append(fact(tmp_path, Schedule, f"{solver}{nfe}", gains=gains, **facts))
            psi = random.normal(0, noise, (2, 3, 400)).astype(np.float32)
            np.save(made[-1].path / Schedule.contributed, psi)
    return made


def test_what_gammas_gain_is_told_for_each_target(tmp_path):
    found = {f.claim: f for f in gains.findings(schedules(tmp_path))}
    gained = found[gains.GAINED]
    assert len(gained.details) == 5  # UniPC repeats DPM-Solver++ 2M
    logs = [math.log(1 - 0.9 * share) for share in (0.5, 0.005, 0.4, 0.004)]
    assert gained.effect.log[0] == pytest.approx(sum(logs) / 4)
    assert gained.verdict == HOLDS  # of these solvers, on other images
    assert gained.effect.error_kind == "paired"
    assert gained.effect.scope == ONE_NETWORK
    parts = [one.contributions()["matched"] for one in schedules(tmp_path / "again")[:4]]
    left = [1 - 0.9 * share for share in (0.5, 0.005, 0.4, 0.004)]
    sums = zip(parts, (5, 20, 5, 20), left, strict=True)
    psi = [of["measured"].psi / (n * w) - of["plain"].psi / n for of, n, w in sums]
    expected = np.mean(psi, axis=0).std(ddof=1) / 20
    assert gained.effect.log[1] == pytest.approx(expected, rel=1e-4)
    assert found[gains.LIMIT["matched"]].verdict == HOLDS
    assert found[gains.LIMIT["matched"]].effect.log[0] == pytest.approx(-math.log(100))
    assert "mean over dpmpp2m, euler" in found[gains.LIMIT["matched"]].what
    assert found[gains.LIMIT["literal"]].verdict == FAILS
    loud = {f.claim: f for f in gains.findings(schedules(tmp_path / "loud", 200.0))}
    assert {one.verdict for one in loud.values()} == {OPEN}
    others = {f.claim: f for f in gains.findings(schedules(tmp_path / "other", differ=True))}
    assert others[gains.GAINED].effect.error_kind == "independent"
    assert {f.verdict for f in claims.findings({}, [])} == {ABSENT}
    assert {f.verdict for f in gains.findings([])} == {ABSENT}


def test_claims_on_grids_follow_from_what_they_leave(tmp_path, grids):
    found = {f.claim: f for f in claims.findings({}, [grids])}
    rows = grids.description["grids"]
    ours = claims.least(rows, "csflow")
    assert found[claims.GRIDS].effect.log == (-ours["log"], ours["log_error"])
    facts = grids.description
    changed = [row | {"log": 0.5, "log_error": 0.1, "log_to_uniform": 0.4} for row in rows]
    changed = [row | {"log_to_uniform_error": 0.1} for row in changed]
    other = fact(tmp_path, ComparedGrids, "other", **facts | {"grids": changed})
    found = {f.claim: f for f in claims.findings({}, [other])}
    assert found[claims.GRIDS].verdict == HOLDS
    assert found[claims.PERCEPTUAL].verdict == FAILS


def test_the_page_shows_what_there_is(tmp_path, grids):
    left = [{"name": "csflow a=1, 1 pixels", "reason": "not < seen"}]
    more = fact(tmp_path, ComparedGrids, "more", **grids.description | {"left_out": left})
    (part,) = section.sections({}, [], [more])
    assert "Left out: csflow a=1, 1 pixels, not &lt; seen." in part.text
    (part,) = section.sections({}, [], [grids])
    assert "Left out" not in part.text
    assert part.title == "Beyond the papers: CSFlow's grids and the best one, 3 evaluations"
    assert "csflow a=0.4" in "".join(part.tables)
    assert not list(section.sections({}, [], []))
    gained = gains.section(schedules(tmp_path))
    assert [figure.name for figure in gained.panels] == [
        "gained-dpmpp2m-uniform-t",
        "gained-euler-uniform-t",
    ]


def test_what_fits_took_is_told_beside_the_training():
    def took(seconds):
        return type("Manifest", (), {"seconds": seconds})()

    made = {"train/sit": took(100.0), "trajectory/sit": took(10.0)}
    made |= {"follow/sit-whole-nfe3": took(5.0), "follow/sit-whole-nfe5": took(10.0)}
    (finding,) = claims.timed({}, made)
    assert finding.effect.value == pytest.approx(25)
    assert finding.verdict == HOLDS
    assert claims.timed({}, {"train/sit": took(100.0)}) == []


@pytest.mark.parametrize(
    ("solvers", "wanted"),
    [("[heun, unipc, dpmpp2m]", "unipc"), ("[heun]", "dpmpp2m")],
)
def test_grids_are_compared_at_equal_evaluations(solvers, wanted):
    overrides = [f"beyond.solvers={solvers}", "sample.solver=heun"]
    overrides += ["sample.nfe=5", "csflow.display.distance=2"]
    nodes = {
        n.name: n for n in RECIPES["beyond"](config.resolve(CATALOG, "smoke", overrides).settings)
    }
    settings = nodes["grids/sit-nfe3"].settings
    assert (settings.solver, settings.screen.distance) == (wanted, 2)
    with pytest.raises(ValueError, match=r"two evaluations a step.*set solver=dpmpp2m"):
        compared.GridSettings(nfe=3, solver="heun")


def test_grids_are_seen_on_the_screen_that_samples_are():
    overrides = ["sample.grid=csflow", "sample.density.display.pixel_size=0.0002"]
    bench = config.resolve(CATALOG, "smoke", overrides).settings
    nodes = {node.name: node for node in RECIPES["beyond"](bench)}
    assert nodes["grids/sit-nfe3"].settings.screen.pixel_size == 0.0002


class Waves:
    """A spectrum that falls with the square of the frequency, of images 8 pixels wide."""

    frequency = torch.tensor([0.1, 0.3, 0.5, 0.7])
    power, image_pixels = 4 * frequency**-2.0, 8


def test_what_cannot_be_compared_is_left_out_with_its_reason():
    far = {"distance": 100}
    settings = compared.GridSettings(nfe=3, grid_mixes=(1.0,), grid_displays=(1, 256), screen=far)
    unseen, seen = compared.perceptual(settings, Waves(), 999.0)
    assert unseen.name == "csflow a=1, 1 pixels"
    assert "sees none of the images' frequencies" in unseen.reason
    assert seen.levels[0] == 999.0
    nearer = settings.revised(screen={"distance": 50})
    other = list(compared.perceptual(nearer, Waves(), 999.0))[-1]
    assert other.levels[1:-1] != pytest.approx(seen.levels[1:-1])
    _, low = compared.perceptual(settings, Waves(), seen.levels[1])
    assert "its second level is" in low.reason

    class Wrong(Waves):
        power = -Waves.power

    with pytest.raises(ValueError, match="power must be finite, not negative"):
        list(compared.perceptual(settings, Wrong(), 999.0))


def test_the_recipe_measures_all_of_it():
    nodes = RECIPES["beyond"](config.resolve(CATALOG, "smoke", []).settings)
    Graph(list(nodes), CATALOG.exclude_sources)
    names = {node.name for node in nodes}
    assert {"trajectory/sit", "follow/sit-whole-nfe5", "grids/sit-nfe3"} <= names
    assert {"evaluate/sit-whole", "evaluate/sit-whole-calibrated-seed1"} <= names
