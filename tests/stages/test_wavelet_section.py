"""The report's wavelet section: every number it says is one that was measured."""

from types import SimpleNamespace

import pytest
import torch

from stages.artifacts.risks import Response, Risk
from stages.papers.wavelet import denoisers
from stages.papers.wavelet import section as wavelet_section

SIGMAS = (0.5, 1.0, 2.0)
BANDS = {"A1": (0.5, 0.6, 0.7), "H1": (0.1, 0.2, 0.3), "V1": (0.3, 0.4, 0.5), "D1": (0.2, 0.3, 0.4)}


def per_image(name, mse, count=100):
    """Errors of images whose common part cancels in differences; each denoiser's own is small."""
    common, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(len(name))
    spread = torch.randn(3, count, generator=common) + 0.01 * torch.randn(3, count, generator=own)
    spread = 0.01 * (spread - spread.mean(1, keepdim=True))
    return torch.tensor(mse, dtype=torch.float64)[:, None] + spread


def risk(name, mse, kind="score", dataset="digits", **more):
    w = torch.linspace(-3, 3, 5)
    curved = [Response(w, -w / 2, -w / 3)] * 3
    return Risk(
        name=name,
        kind=kind,
        dataset=dataset,
        exact=kind != "network",
        std=0.75,
        sigmas=SIGMAS,
        mse=mse,
        standard_error=(0.01,) * 3 if kind == "network" else (None,) * 3,
        train_mse=(None,) * 3,
        bands=BANDS,
        maps=torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        per_image=per_image(name, mse),
        filters=torch.ones(3, 1, 8, 8) if kind == "score" else None,
        responses={"A1": curved, "H1": curved} if kind == "score" else {},
        family=name.partition("-d")[0] if kind == "score" else None,
        degree=int(name.partition("-d")[2][0]) if kind == "score" else None,
        folds=name.endswith("-folds"),
        **more,
    )


RISKS = [
    risk("independent-d1", (0.07, 0.16, 0.28)),
    risk("local-d2", (0.05, 0.13, 0.29)),
    risk("full-d1", (0.042, 0.11, 0.21)),
    risk("identity", (0.25, 1.0, 4.0), "identity"),
    risk("wiener", (0.041, 0.12, 0.22), "wiener"),
    risk("sit", (0.03, 0.135, 0.3), "network"),
]


def section(risks, **drawn):
    inputs = {"risks": {r.name: SimpleNamespace(load=lambda r=r: r) for r in risks}}
    (found,) = wavelet_section.sections(inputs | {"drawn": drawn})
    return found


@pytest.fixture(scope="module")
def made():
    return section(RISKS)


def test_nothing_for_runs_without_risks():
    assert wavelet_section.sections({}) == []
    two = [risk("mean", (1, 1, 1), "mean", dataset) for dataset in ("digits", "photographs")]
    inputs = {"risks": {str(i): SimpleNamespace(load=lambda r=r: r) for i, r in enumerate(two)}}
    found = wavelet_section.sections(inputs)
    assert [s.title for s in found] == ["Wavelet score: digits", "Wavelet score: photographs"]
    names = [figure.name for s in found for figure in s.figures]
    assert len(set(names)) == len(names)


def test_what_is_seen_is_said(made):
    assert "above full-d1, wiener at every sigma here" in made.text
    assert "lower than identity at every sigma here" in made.text
    assert "above sit at sigma 0.5" in made.text
    assert "lower than sit at sigma 1, 2" in made.text
    # 0.05 / 0.03, 0.13 / 0.135, 0.29 / 0.3
    assert "nearest to 1 at sigma 2 (0.967) and farthest from it at sigma 0.5 (1.67)" in made.text
    assert "0.75 of the images" in made.text


def test_tables(made):
    every, lowest, differences = made.tables
    assert "0.050000" in every
    assert "0.135\u00a0±\u00a0" in every
    assert "full-d1: 0.04200" in lowest
    assert "wiener: 0.22000" in lowest
    assert "sit: 0.03000" in lowest
    assert "local-d2 against independent-d1" in differences
    assert "local-d2 against wiener" in differences
    assert "local-d2 against sit" in differences
    assert len(section(RISKS[2:5]).tables) == 2  # nothing to compare


def test_differences_are_taken_image_by_image():
    ours = risk("local-d2", (0.05, 0.13, 0.29))
    theirs = risk("sit", (0.03, 0.13001, 0.3), "network")
    value, error = denoisers.risk_difference(ours, theirs, 0)
    gaps = ours.per_image[0] - theirs.per_image[0]
    assert value == pytest.approx(0.02)
    assert error == pytest.approx(gaps.std().item() / 10)
    assert error < 0.1 * ours.per_image[0].std().item() / 10  # the images' own spread cancels
    rows = denoisers.differences([ours], [theirs], SIGMAS)
    assert rows[1][0] == "local-d2 against sit"
    high, same, low = rows[1][1:]
    assert high.startswith("+66.7\u00a0±\u00a0")  # 0.05 / 0.03
    assert low.startswith("-3.3")  # 0.29 / 0.3
    assert [cell.endswith("within noise") for cell in (high, same, low)] == [False, True, False]
    one = risk("sit", (0.1, 0.1, 0.1), "network")
    one.__dict__["per_image"] = one.per_image[:, :1]
    assert denoisers.risk_difference(one, one, 0) == (0, None)


def test_ratios_have_the_error_of_repeated_samples():
    generator = torch.Generator().manual_seed(0)
    found, errors = [], []
    for _ in range(400):
        a, b = 1 + 0.3 * torch.randn(2, 50, generator=generator, dtype=torch.float64)
        ours, theirs = (
            SimpleNamespace(mse=(v.mean().item(),), per_image=v[None]) for v in (2 * a + b, b)
        )
        value, error = denoisers.risk_ratio(ours, theirs, 0)
        found.append(value)
        errors.append(error)
    spread = torch.tensor(found).std().item()
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.15)


def test_the_highest_degree_stands_for_a_family():
    names = ("local-d1", "local-d3", "local-d2-folds", "independent-d2", "full-d1", "parent-d3")
    scores = [risk(name, (1.0, 1.0, 1.0)) for name in names]
    others = [risk("wiener", (1, 1, 1), "wiener"), risk("mean", (1, 1, 1), "mean")]
    assert [(a.name, b.name) for a, b in denoisers.pairs(scores, others)] == [
        ("local-d3", "independent-d2"),
        ("local-d3", "wiener"),
        ("parent-d3", "wiener"),
    ]


def test_curves_hold_the_numbers(made):
    figures = {figure.name.removeprefix("wavelet-digits-"): figure for figure in made.figures}
    assert set(figures) == {
        *("risk", "relative", "scales", "maps", "filters", "responses", "families")
    }
    rows = {(row[0], row[1]): row[2] for row in figures["risk"].rows[1:]}
    assert rows["wiener", 2.0] == 0.22
    assert rows["local-d2", 0.5] == 0.05  # lowest of the local ones there
    relative = {(row[0], row[1]): row[2] for row in figures["relative"].rows[1:]}
    assert relative["local-d2", 1.0] == pytest.approx(0.13 / 0.12)
    scales = {(row[0], row[1]): row[2] for row in figures["scales"].rows[1:]}
    assert scales["wiener, details 1", 2.0] == pytest.approx(0.4 / 4)
    maps = {row[:2]: row[2:] for row in figures["maps"].rows[1:]}
    assert maps["sit", "H1"] == (0.1, 0.2, 0.3)
    curves = {row[0]: row for row in figures["responses"].rows[1:]}
    assert set(curves) == {"local-d2 A1", "local-d2 H1", "linear A1", "linear H1"}
    assert "stroke-dasharray" in figures["responses"].svg
    assert curves["local-d2 H1"][1:3] == (3.0, -1.5)
    assert "sigma 1" in figures["responses"].caption


def test_many_scores_are_split_by_degree():
    many = [risk(f"local-d{n % 3 + 1}-{n}", (1.0, 1.0, 1.0)) for n in range(9)]
    found = wavelet_section._relative(wavelet_section.Compared("digits", [*RISKS[4:], *many]))
    assert [f.name for f in found] == [f"wavelet-digits-relative-d{n}" for n in (1, 2, 3)]


def test_samples_of_the_data_set_only(tmp_path):
    (tmp_path / "grid.png").write_bytes(b"png")
    facts = {"solver": "heun", "nfe": 19, "grid": "edm", "seed": 0}
    drawn = {
        f"draw/{name}": SimpleNamespace(path=tmp_path, description=facts | {"dataset": name})
        for name in ("digits", "photographs")
    }
    pictures = section(RISKS[4:5], **drawn).pictures
    assert [picture.caption.partition(":")[0] for picture in pictures] == ["digits"]
    assert "heun, 19 evaluations" in pictures[0].caption
