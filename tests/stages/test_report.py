"""The report of a run that has next to nothing, and what belongs to the run itself."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

from pipeline import drawing, publish
from pipeline.store import Store
from stages.catalog import PAPERS
from stages.pages.made import Made
from stages.report import claims, report, timed
from tests.stages.context import make
from tests.stages.test_figures import luminance

PLACES = [paper.claims for paper in PAPERS]

EMPTY = {name: {} for name, slot in report.STAGE.inputs.items() if slot.many}


def test_a_report_of_the_data_alone(tmp_path, few):
    artifact = make(tmp_path, report.STAGE, report.ReportSettings(claims=PLACES), data=few, **EMPTY)
    page = (artifact.path / "report.html").read_text()
    assert publish.MARKER in page
    assert "96 training images and 48 held-out images of 1 x 8 x 8" in page
    found = json.loads((artifact.path / "claims.json").read_text())
    assert {one["claim"]["method"] for one in found} == {
        *("MaskAlign", "CSFlow", "SteinDiff", "ICR", "Wavelet score", "Together", "Ours")
    }
    assert {one["verdict"] for one in found} == {"not measured in this run"}
    assert artifact.metrics["claims/not_measured_in_this_run"] == len(found)
    (table,) = artifact.table_files()
    assert len(json.loads(table.read_text())["data"]) == len(found)
    # Self-contained: nothing is fetched from anywhere.
    assert not re.search(r"(src|href)='?\"?(https?:)?//", page)
    assert "<script" not in page


def test_every_figure_is_a_file_too_also_those_side_by_side(tmp_path, few, monkeypatch):
    from stages.pages.figures import Figure
    from stages.pages.page import Section

    def drawn(name):
        return Figure(name, "caption", f"<svg id='{name}' fill='currentColor'></svg>")

    section = Section("S", figures=[drawn("whole")], panels=[drawn("left"), drawn("right")])
    monkeypatch.setattr(report, "_sections", lambda made, papers: [section])
    artifact = make(tmp_path, report.STAGE, report.ReportSettings(), data=few, **EMPTY)
    page = (artifact.path / "report.html").read_text()
    in_page = re.findall(r"<figure><svg id='(.+?)'", page)
    files = {path.stem for path in artifact.tracked_files() if path.suffix == ".svg"}
    assert files == set(in_page) == {"whole", "left", "right"}
    assert artifact.metrics["figures"] == 3
    assert "#444444" in (artifact.path / "figures" / "left.svg").read_text()


def test_the_claims_table_says_where_the_claim_about_time_stands():
    training = {
        f"train/{name}": SimpleNamespace(manifest=SimpleNamespace(key=name))
        for name in ("maskalign", "reg")
    }
    found = claims.findings(Made({"training": training}), PLACES)
    (cost,) = (one for one in found if one.claim.text == "A step is cheaper than REG's")
    assert (cost.verdict, cost.effect) == ("stands with the run", None)
    section = claims.section(found)
    shown = section.tables[0]
    assert "A step is cheaper than REG&#x27;s" in shown
    assert "<a href='#run'>stands with the run</a>" in shown
    assert "1 stands with the run" in section.text
    (absent,) = (one for one in claims.findings(Made({}), PLACES) if one.claim == cost.claim)
    assert absent.verdict == "not measured in this run"


class Node:
    """A node that was made in the given hours of a day."""

    def __init__(self, method="", hours=(0, 1), host="a", **timings):
        started, finished = (f"2026-06-01T{hour:02}:00:00.000+00:00" for hour in hours)
        facts = {"timings": timings, "started": started, "finished": finished}
        self.manifest = type("Manifest", (), facts | {"host": {"name": host}})
        self.artifact = self
        self.description = {"method": method, "network": "sit"}


def test_claims_about_time_read_what_nodes_measured():
    run = {
        "train/reg": Node("reg", step_seconds=[[10, 0.10], [20, 0.10], [30, 0.101]]),
        "train/maskalign": Node(
            "maskalign", (1, 3), step_seconds=[[10, 0.09], [20, 0.09], [30, 0.091]]
        ),
        "evaluate/x": Node(hours=(3, 4)),
        "evaluate/y": Node(hours=(1, 2), host="b"),
        "teach": Node(hours=(4, 5), step_seconds=0.5),
    }
    found = timed.section(run, PAPERS)
    page = found.text
    assert "a ratio of 0.900" in page
    assert "<b class='good'>holds" in page
    assert "no other node of the run shared the machine" in page
    run["evaluate/x"] = Node(hours=(2, 4))
    page = timed.section(run, PAPERS).text
    assert "shared the machine meanwhile (1)" in page
    assert "<b class='note'>inconclusive" in page
    assert "not measured in this run" in timed.section({"train/reg": run["train/reg"]}, PAPERS).text
    assert "milliseconds a step" in found.figures["step-time"]


def test_the_runs_own_part_stands_beside_times(tmp_path):
    data = {
        "id": "r",
        "state": "finished",
        "recipe": "full",
        "preset": "smoke",
        "created": "2026-06-01T00:00:00",
        "command": "python -m pipeline run full x=<1>",
        "git": {"revision": "abc", "dirty": True},
        "nodes": {},
    }
    html = publish.section(Store(tmp_path), data, "<h3>Claims about time</h3>")
    assert "abc with uncommitted changes" in html
    assert "x=&lt;1&gt;" in html
    assert "--preset" in html
    assert (
        html.index("<svg") < html.index("<details class='rest'>") < html.index("Claims about time")
    )


def test_it_begins_with_a_card_a_paper_its_figure_and_the_last_samples(tmp_path):
    from stages.pages.figures import Figure
    from stages.pages.findings import ABSENT, HOLDS, OPEN, Claim, Effect, Finding
    from stages.pages.page import Section, page
    from stages.report import overview

    def claim(method, text):
        return Claim(method, text, "no number", ("stein", "train"))

    effect = Effect(-30, 4, "paired", unit="%", scope="this network")
    found = [
        Finding(claim("A", "first"), "", None, ABSENT),
        Finding(claim("A", "second"), "", effect, HOLDS),
        Finding(claim("A", "third"), "", Effect(1, 4, "paired"), OPEN),
        Finding(claim("B", "only"), "", None, ABSENT),
    ]
    svg = '<svg role="img" id="k" fill="url(#k)"></svg>'
    sections = [Section("S", figures=[Figure("other", "o", svg), Figure("key-0", "the key", svg)])]
    samples = {}
    for model, step in (("sit", 10), ("sit", 40), ("repa", 20)):
        name = f"sample/{model}-step{step}"
        samples[name] = SimpleNamespace(path=tmp_path / name, description={"training_step": step})
        samples[name].path.mkdir(parents=True)
        (samples[name].path / "grid.png").write_bytes(b"png")
    first = overview.section(found, {"A": "key-*"}, sections, samples)
    (card,) = re.findall(r"<article.*?</article>", first.text)
    assert "<span class='chip good'>1 holds</span><span class='chip '>1 open</span>" in card
    assert "<p>second: <b>holds</b>, -30.0\u00a0±\u00a04.0\u00a0%.</p>" in card
    assert "<a href='#s2'" in card
    assert 'aria-label="the key" id="card-k" fill="url(#card-k)"' in card
    assert "<p class='note'>Not measured in this run: B (recipe stein or train).</p>" in first.text
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", first.text)
    assert captions == ["SiT after 40 steps", "REPA after 20 steps"]
    text = page("T", "", [first, *sections], "marker")
    ids = re.findall(r"<h[12] id='(.+?)'", text)
    assert ids == ["s0", "s1", "run"]
    assert all(text.count(f"href='#{name}'") >= 2 for name in ids)  # at the side, and in the menu


def test_a_run_without_samples_along_its_trainings_shows_those_with_the_most_evaluations(tmp_path):
    from stages.report import overview

    (tmp_path / "grid.png").write_bytes(b"png")
    facts = {"training_step": 900, "time_density": "uniform", "method": "sit"}
    told = {
        "sample/sit-nfe5": facts | {"nfe": 5},
        "sample/sit-nfe10": facts | {"nfe": 10},
        "sample/csflow-nfe5": facts | {"nfe": 5, "time_density": "csflow a=0.4"},
        "sample/elsewhere": facts | {"nfe": 3, "method": "reg", "training_step": 0},
        "external": facts | {"nfe": 0},
    }
    samples = {name: SimpleNamespace(path=tmp_path, description=one) for name, one in told.items()}
    assert [picture.caption for picture in overview.latest(samples)] == [
        "SiT, step 900, 10 evaluations",
        "SiT, trained with t csflow a=0.4, step 900, 5 evaluations",
        "REG, 3 evaluations",  # of no step that anybody knows
    ]


def test_sections_show_two_sentences_and_two_figures_and_fold_the_rest():
    from stages.pages.figures import Figure
    from stages.pages.page import Section, first_sentences, page

    text = "<p>One <b>bold. Word</b> here. Two i.e. this. Three. Four.</p><p>Last.</p>"
    short, rest = first_sentences(text)
    assert short == "<p>One <b>bold. Word</b> here. Two i.e. this.</p>"
    assert rest == "<p>Three. Four.</p><p>Last.</p>"
    assert first_sentences("<p>Short. Whole.</p>") == ("<p>Short. Whole.</p>", "")
    assert first_sentences("<ul></ul>") == ("", "<ul></ul>")
    figures = [Figure(f"f{n}", f"caption {n}", '<svg role="img"></svg>') for n in range(3)]
    shown = page("T", "", [Section("S", text, ["<table></table>"], figures)])
    before, folded = shown.split("<details class='rest'>")
    assert [f"<figcaption>caption {n}" in before for n in range(3)] == [True, True, False]
    assert "Three. Four." in folded
    assert "<table>" in folded
    assert "<details class='rest'>" not in page("T", "", [Section("S", "<p>A.</p>")])


def test_long_words_in_a_table_get_room():
    from stages.pages.page import table

    shown = table([("set", "caution"), ("a", "few images " * 9), ("b", "")])
    assert "<td>a</td><td class=long>few images" in shown
    assert shown.count("long") == 1


def test_what_is_folded_is_said():
    from stages.pages.figures import Figure
    from stages.pages.page import Section, page

    figures = [Figure(f"f{n}", "c", '<svg role="img"></svg>') for n in range(4)]
    text = "<p>One. Two. Three.</p>"
    section = Section("S", text, ["<table></table>"], figures, first="<b>seen</b>")
    shown, folded = page("T", "", [section]).split("<details class='rest'>")
    assert "<b>seen</b>" in shown
    assert folded.startswith("<summary>more: text, 1 table, 2 figures</summary>")


MEASURE = """<body><script>
const text = %s, found = {};
for (const width of [1400, 420]) {
  const frame = document.createElement("iframe");
  frame.style = `border: 0; width: ${width}px; height: 900px`;
  frame.srcdoc = text;
  frame.onload = () => {
    const root = frame.contentDocument.documentElement;
    found[width] = [root.scrollWidth - root.clientWidth, root.scrollHeight];
    document.body.dataset.found = JSON.stringify(found);
  };
  document.body.append(frame);
}</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_full_report_opens_on_less_than_twelve_screens(tmp_path):
    """As many sections, cards and nodes as `full` has on digits, their words and figures as long;
    nothing is wider than a screen, nor than a phone."""
    from stages.pages.figures import Axes, Curve, plot
    from stages.pages.page import Section, page

    def figure(number):
        lines = [Curve(name, (3, 5, 10), (3, 2, number)) for name in ("sit", "maskalign", "other")]
        caption = "FID over network evaluations, bars: one standard error of the samples. " * 2
        return plot(f"figure-{number}", caption, lines, Axes("evaluations (NFE)", "fid"))

    words = "<p>" + "A sentence of some twenty words tells what is seen here and how it was. " * 9
    figures = [figure(number) for number in (1, 2)]
    card = "<article class='card'><h3>A</h3><span class='chip good'>1 hold</span><p>Says: <b>holds"
    card += f"</b>, -5.5 % here and there, as it is.</p>{figures[0].small()}</article>"
    table = (
        "<div class='wide'><table>" + "<tr>" + "<td>a long cell</td>" * 30 + "</tr></table></div>"
    )
    sections = [Section("Overview", f"<div class='cards'>{card * 7}</div>", whole=True)]
    for number in range(18):
        seen = figures[: (2, 2, 1, 0)[number % 4]]
        sections.append(Section(f"Section {number}", f"{words}</p>", [table], [*seen, *figures]))
        sections[-1] = replace(sections[-1], figures=[*seen, *figures] if seen else ())
    nodes = {
        f"{stage}/{n}": {
            "stage": stage,
            "upstream": [f"{before}/{n}"] if before else [],
            "state": "done",
            "seconds": 3.0,
        }
        for n in range(9)
        for before, stage in pairwise(["", *(f"stage{at}" for at in range(10))])
    }
    run = drawing.graph({"nodes": nodes})
    text = page("Title", "lead", sections, "marker").replace("marker", run)
    script = json.dumps(text).replace("</", "<\\/")
    (tmp_path / "measure.html").write_text(MEASURE.replace("%s", script), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    command = ["chromium", *flags, "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "measure.html").as_uri()], capture_output=True, timeout=120
    )
    found = re.search(r'data-found="(.*?)"', done.stdout.decode())[1].replace("&quot;", '"')
    sizes = json.loads(found)
    assert sizes["1400"][0] == sizes["420"][0] == 0  # wider than the window
    assert 4 * 900 < sizes["1400"][1] < 12 * 900


def test_words_can_be_read_in_light_and_dark():
    """WCAG's contrast of 4.5 for text, of every colour that words have on both grounds."""
    from stages.pages.page import STYLE

    themes = [
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in STYLE.split("prefers-color", 1)
    ]
    for theme in themes:
        for ink in ("ink", "soft", "good", "bad"):
            light, dark = sorted((luminance(theme[ink]), luminance(theme["paper"])))[::-1]
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, theme)
