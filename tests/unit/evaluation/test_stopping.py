"""Tests of each stopping rule on figures with a known answer, and of settings that are refused."""

import pytest

from pipeline.config import UserError
from pipeline.config.loader import parse_config
from pipeline.config.stopping import Stop
from pipeline.evaluation.stopping.rules import RoundFigures, bounds_exceeded, stop_reasons
from pipeline.evaluation.win_rate import WinRate

HEALTHY = {"pair_yield": 0.6, "kl": 5.0, "words": 30.0, "base_words": 28.0, "invalid_chars": 0.0}
HEALTHY |= {"repeated": 0.0, "copied": 0.3, "base_copied": 0.25, "lead_copied": 0.1}
HEALTHY |= {"off_topic_end": 0.0, "other_language": 0.0}


def rate(low: float, high: float) -> WinRate:
    return WinRate((low + high) / 2, low, high, 100, 50, 0, 50, better=low > 0.5)


GAIN, EVEN, LOSS = rate(0.52, 0.7), rate(0.45, 0.55), rate(0.2, 0.4)


def history(*gained: WinRate | None, **last: float | None) -> list[RoundFigures]:
    rounds = [RoundFigures(number, gain, **HEALTHY) for number, gain in enumerate(gained, 1)]
    return [*rounds[:-1], RoundFigures(len(gained), gained[-1], **(HEALTHY | last))]


def test_without_settings_no_rule_stops():
    bad = {"pair_yield": 0.0, "kl": 1e9, "words": 0.0, "invalid_chars": 1.0}
    bad |= dict.fromkeys(("repeated", "copied", "lead_copied", "off_topic_end", "other_language"), 1.0)
    assert stop_reasons(Stop(), history(LOSS, LOSS, None, **bad)) == []


@pytest.mark.parametrize(
    ("patience", "gained", "stops"),
    [
        (1, [GAIN], False),
        (1, [EVEN], True),
        (1, [LOSS], True),
        (1, [rate(0.5, 0.6)], True),  # 50 % is inside the interval
        (1, [rate(0.501, 0.6)], False),
        (1, [None], True),  # a round that cannot be compared shows no gain
        (1, [EVEN, GAIN], False),
        (2, [EVEN], False),
        (2, [EVEN, LOSS], True),
        (2, [LOSS, GAIN, EVEN], False),
        (2, [GAIN, EVEN, EVEN], True),
        (3, [EVEN, EVEN], False),
    ],
)
def test_patience_counts_rounds_in_a_row_without_a_gain(patience, gained, stops):
    assert bool(stop_reasons(Stop(patience=patience), history(*gained))) == stops


@pytest.mark.parametrize(
    ("stop", "name", "goes_on", "stops"),
    [
        (Stop(min_yield=0.2), "pair_yield", 0.2, 0.19),
        (Stop(max_kl=20.0), "kl", 20.0, 20.5),
        (Stop(min_words=10), "words", 10.0, 9.0),
        (Stop(max_words=60), "words", 60.0, 61.0),
        (Stop(max_words_ratio=2.0), "words", 56.0, 57.0),
        (Stop(max_invalid_chars=0.02), "invalid_chars", 0.02, 0.03),
        (Stop(max_repeated=0.05), "repeated", 0.05, 0.06),
        (Stop(max_copied=0.5), "copied", 0.5, 0.51),
        (Stop(max_copied_rise=0.25), "copied", 0.5, 0.51),
        (Stop(max_lead_copied=0.2), "lead_copied", 0.2, 0.21),
        (Stop(max_off_topic=0.1), "off_topic_end", 0.1, 0.11),
        (Stop(max_other_language=0.0), "other_language", 0.0, 0.01),
    ],
)
def test_each_bound_allows_its_own_value_and_stops_beyond(stop, name, goes_on, stops):
    assert stop_reasons(stop, history(GAIN, **{name: goes_on})) == []
    (reason,) = stop_reasons(stop, history(GAIN, **{name: stops}))
    ((setting, value),) = stop.model_dump(exclude_none=True).items()
    assert reason.startswith(f"stop.{setting}={value}: ")
    assert stop_reasons(stop, history(GAIN, **{name: None})) == [], "a figure that was not measured stops nothing"


def test_reasons_contain_the_figures():
    assert stop_reasons(Stop(patience=2, min_yield=0.5), history(EVEN, None, pair_yield=0.125)) == [
        "stop.patience=2: no shown gain over the starting policy (round 1 50.0% [45.0%, 55.0%], round 2 not "
        "comparable)",
        "stop.min_yield=0.5: only 12.5% of the judged articles gave a pair",
    ]


def test_reasons_about_faults_contain_the_figures():
    stop = Stop(max_repeated=0.1, max_copied=0.5, max_copied_rise=0.05, max_off_topic=0.1, max_other_language=0.01)
    bad = {"repeated": 0.2, "copied": 0.75, "base_copied": 0.5, "off_topic_end": 0.25, "other_language": 0.5}
    (last,) = history(GAIN, **bad)
    assert stop_reasons(stop, [last]) == bounds_exceeded(stop, last), "a policy beyond a bound is no champion"
    assert bounds_exceeded(stop, last) == [
        "stop.max_copied_rise=0.05: on average, 75.0% of a summary's 8-grams are copied from its article, and 50.0% of "
        "the base's",
        "stop.max_repeated=0.1: on average, a summary said 20.0% of its words before",
        "stop.max_copied=0.5: on average, 75.0% of a summary's 8-grams are copied from its article",
        "stop.max_off_topic=0.1: 25.0% of the summaries end off topic",
        "stop.max_other_language=0.01: 50.0% of the summaries are in another language than their article",
    ]
    (unknown,) = history(GAIN, **bad | {"base_copied": None})
    assert len(bounds_exceeded(stop, unknown)) == 4, "without the base's figure there is no rise"


def test_bounds_look_at_the_summaries_of_the_policy_alone():
    stop = Stop(patience=1, min_yield=0.9, max_kl=1.0, min_words=40, max_invalid_chars=0.1)
    (last,) = history(LOSS)
    assert len(stop_reasons(stop, [last])) == 4
    assert bounds_exceeded(stop, last) == ["stop.min_words=40: the median summary has 30 words"]


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"stop": {"patience": 0}}, "stop.patience is 0"),
        ({"stop": {"min_yield": 2}}, "stop.min_yield is 2"),
        ({"stop": {"patients": 2}}, "stop has no 'patients' (did you mean patience?)"),
        ({"stop": {"min_words": 50, "max_words": 20}}, "stop.min_words is 50 and stop.max_words is 20"),
        ({"start_from": "best"}, "start_from is 'best'"),
        ({"references": {"policy": "base", "source": "none"}, "training": {"loss_type": "sft"}}, "references.policy"),
        (
            {"references": {"policy": "base", "source": "sampler"}, "summaries": {"logprobs": True}},
            "references.policy is base and references.source is sampler",
        ),
        (
            {"pairs": {"replay": 0.5}, "references": {"source": "sampler"}, "summaries": {"logprobs": True}},
            "references.source is sampler, but with pairs.replay",
        ),
    ],
)
def test_impossible_settings_are_refused_in_one_line(setting, line):
    valid = {"run": "r", "articles": {"path": "a.jsonl"}, "policy": {"model": "m"}, "judge": {"kind": "cloze"}}
    with pytest.raises(UserError) as caught:
        parse_config(valid | setting)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
