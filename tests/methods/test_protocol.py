"""A score carries its protocol and error, and refuses company of another kind."""

import dataclasses
import json
import math

import pytest

from stages.methods.effects import difference
from stages.methods.protocol import Protocol, ProtocolError, Score, over_seeds

PROTOCOL = Protocol(
    name="digits-embedded-1500",
    extractor="embedded",
    extractor_hash="ab12",
    resize="none",
    reference="digits/train",
    num_reference=1500,
    num_samples=1500,
)


def score(value=3.0, error=0.2, error_kind="jackknife", **changes):
    values = {"metric": "fid", "protocol": PROTOCOL, "value": value, "error": error}
    return Score(**{**values, "error_kind": error_kind, **changes})


REQUIRED = [f.name for f in dataclasses.fields(Protocol) if f.default is dataclasses.MISSING]


def test_only_details_and_the_rules_of_published_protocols_may_be_empty():
    rules = {"rounding", "crop", "classes", "best_of"}
    assert {f.name for f in dataclasses.fields(Protocol)} - set(REQUIRED) == {"details"} | rules
    assert PROTOCOL.rules == ""
    stated = dataclasses.replace(PROTOCOL, rounding="down", classes="balanced", best_of=3)
    assert stated.rules == "rounding down, classes balanced, the least of 3 sets"
    unknown = dataclasses.replace(PROTOCOL, num_reference=None)  # files need not say
    assert Score.from_dict(score(protocol=unknown).to_dict()).protocol == unknown
    with pytest.raises(ValueError, match="protocol best_of is 0"):
        dataclasses.replace(PROTOCOL, best_of=0)


@pytest.mark.parametrize("field", REQUIRED)
def test_no_part_of_a_protocol_can_be_left_out(field):
    values = dataclasses.asdict(PROTOCOL)
    for empty in ("", "  ", None) if isinstance(values[field], str) else (0, -1, None, True):
        if (field, empty) == ("num_reference", None):
            continue
        with pytest.raises(ValueError, match=f"protocol {field} is"):
            Protocol(**{**values, field: empty})
    del values[field]
    with pytest.raises(TypeError):
        Protocol(**values)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Protocol)])
def test_scores_of_different_protocols_are_not_compared(field):
    old = getattr(PROTOCOL, field)
    changed = dataclasses.replace(PROTOCOL, **{field: old + (1 if isinstance(old, int) else "x")})
    for combine in (difference, lambda a, b: over_seeds([a, b])):
        with pytest.raises(ProtocolError, match=f"cannot be compared: {field} .*; score both"):
            combine(score(), score(protocol=changed))


def test_a_score_needs_a_protocol_a_value_and_a_kind_of_error():
    with pytest.raises(ValueError, match="cannot exist without a Protocol"):
        score(protocol=None)
    with pytest.raises(ValueError, match="finite value"):
        score(value=math.nan)
    with pytest.raises(ValueError, match="choose one of seeds, influence, jackknife"):
        score(error_kind="bootstrap")
    with pytest.raises(ValueError, match="an error needs its kind"):
        score(error_kind="none")
    with pytest.raises(ValueError, match="an error needs its kind"):
        score(error=None)
    with pytest.raises(ValueError, match=">= 0"):
        score(error=-1.0)
    with pytest.raises(ValueError, match='several seeds need "seeds"'):
        score(num_seeds=3)
    with pytest.raises(ValueError, match='"seeds" needs several'):
        score(error_kind="seeds")


def test_difference_adds_errors_in_quadrature():
    found = difference(score(3.0, 0.3), score(1.0, 0.4))
    assert (found.value, found.error, found.error_kind) == (2.0, 0.5, "independent")
    bare = score(error=None, error_kind="none")
    assert difference(bare, bare).error is None


def test_kinds_of_error_and_metrics_do_not_mix():
    seeds = over_seeds([score(1.0), score(2.0)])
    with pytest.raises(ProtocolError, match="'jackknife' and 'seeds'"):
        difference(score(), seeds)
    with pytest.raises(ProtocolError, match="already means over seeds"):
        over_seeds([seeds, seeds])
    with pytest.raises(ProtocolError, match="fid and kid are different metrics"):
        difference(score(), score(metric="kid"))
    with pytest.raises(ValueError, match="at least two"):
        over_seeds([score()])


def test_error_over_seeds_is_that_of_their_mean():
    found = over_seeds([score(1.0, floor=0.5), score(2.0, floor=0.5), score(6.0, floor=0.5)])
    assert found.value == 3.0
    assert found.error == pytest.approx(math.sqrt(7 / 3))
    assert (found.error_kind, found.num_seeds, found.floor) == ("seeds", 3, 0.5)
    assert over_seeds([score(1.0, floor=0.5), score(2.0)]).floor is None
    assert over_seeds([score(), score(caution="few images")]).caution == "few images"


def test_storing_and_reading_back():
    stored = json.loads(json.dumps(score(floor=0.7, caution="few images").to_dict()))
    assert Score.from_dict(stored) == score(floor=0.7, caution="few images")
    for missing in ("protocol", "value", "error_kind"):
        with pytest.raises(ValueError, match="incomplete"):
            Score.from_dict({k: v for k, v in stored.items() if k != missing})
    del stored["protocol"]["num_samples"]
    with pytest.raises(ValueError, match="num_samples"):
        Score.from_dict(stored)


def test_in_words():
    assert str(score(3.14159)) == "fid 3.142 ± 0.2 (jackknife), digits-embedded-1500, N=1500"
    seeds = over_seeds([score(1.0, caution="few images"), score(2.0)])
    assert str(seeds).endswith("± 0.5 (2 seeds), digits-embedded-1500, N=1500 [few images]")
