"""What nodes measure of their own speed, in the run's record and its page."""

from pipeline import publish
from pipeline.record import brief, in_words


def test_a_record_holds_short_curves_and_the_median_of_long_ones():
    timings = {
        "short": [(3, 0.5), (5, 0.25)],
        "long": [[step, step] for step in range(101)],
        "number": 3.0,
        "none": [],
    }
    assert brief(timings) == {"short": [[3, 0.5], [5, 0.25]], "long": [[None, 50]]}


def test_curves_are_read_as_words():
    assert in_words([[3, 0.5], [5, 0.25]]) == "3: 0.5, 5: 0.25"
    assert in_words([[None, 123.456]]) == "median 123"


def test_the_page_shows_them():
    nodes = {
        "a": {"timings": {"seconds <wall>": [[3, 0.5], [5, 0.25]]}},
        "b": {"timings": {"step_seconds": [[None, 0.125]]}},
        "c": {},
    }
    page = publish.speeds({"nodes": nodes})
    assert "<td>a</td><td>seconds &lt;wall&gt;</td><td>3: 0.5, 5: 0.25</td>" in page
    assert "<td>b</td><td>step_seconds</td><td>median 0.125</td>" in page
    assert "<td>c</td>" not in page
    assert publish.speeds({"nodes": {"c": {}}}) == ""
