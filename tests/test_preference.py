"""The preference function, its rules, and the pairs that come of it."""

from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.base import Skip
from pipeline.config import Pairs
from pipeline.pairs import _pair
from pipeline.preference import RULES, prefer, prefer_short

scores = st.fixed_dictionaries({"correct": st.integers(0, 5), "words": st.integers(0, 60)})
settings = st.builds(Pairs, threshold=st.integers(0, 5), min_word_gap=st.integers(1, 9))
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def score(correct, words):
    return {"correct": correct, "words": words}


@pytest.mark.parametrize(
    ("a", "b", "strict", "reference"),
    [
        ((5, 20), (3, 10), -1, -1),  # both good enough: the shorter
        ((3, 12), (5, 10), 0, -1),  # … but not by two words
        ((3, 13), (5, 10), -1, -1),  # three are enough
        ((3, 90), (2, 5), 1, 1),  # one below the threshold: more right
        ((1, 30), (0, 5), 1, 1),
        ((2, 30), (2, 5), 0, -1),  # equal below the threshold: a tie, but for the reference rule
        ((0, 9), (0, 8), 0, -1),
        ((4, 10), (4, 10), 0, 0),
    ],
)
def test_known_verdicts(a, b, strict, reference):
    assert prefer(score(*a), score(*b), Pairs()) == strict
    assert prefer_short(score(*a), score(*b), Pairs()) == reference


@rules
@given(a=scores, b=scores, pairs=settings)
def test_antisymmetric(rule, a, b, pairs):
    assert rule(a, b, pairs) == -rule(b, a, pairs)


@rules
@given(some=st.lists(scores, min_size=3, max_size=4), pairs=settings)
def test_no_cycles(rule, some, pairs):
    for order in permutations(some):
        wins = [rule(x, y, pairs) > 0 for x, y in zip(order, [*order[1:], order[0]], strict=True)]
        assert not all(wins)


def row(some, finish="stop", article_id="a"):
    return {
        "article_id": article_id,
        "summaries": [{"text": "", "token_ids": [1], "finish_reason": finish} for _ in some],
        "scores": [s | {"answers": [], "unread": 0, "invalid_chars": 0} | extra for s, extra in some],
    }


@given(st.lists(scores, min_size=2, max_size=8), st.integers(1, 5), st.integers())
def test_pairs_are_preferences_among_usable_summaries(some, most, seed):
    pairs = Pairs(max_per_article=most, min_words=5, max_words=40)
    outcome = _pair(pairs, seed, row([(s, {}) for s in some]))
    usable = [s for s in some if 5 <= s["words"] < 40]
    exist = sum(prefer(a, b, pairs) != 0 for a, b in combinations(usable, 2))
    if isinstance(outcome, Skip):
        assert exist == 0
        return
    assert len(outcome["pairs"]) == min(most, exist)
    assert len({(p["chosen"], p["rejected"]) for p in outcome["pairs"]}) == len(outcome["pairs"])
    for p in outcome["pairs"]:
        assert prefer(some[p["chosen"]], some[p["rejected"]], pairs) == 1
        assert all(5 <= some[i]["words"] < 40 for i in (p["chosen"], p["rejected"]))


def test_a_swapped_verdict_swaps_the_label():
    good, bad = score(5, 20), score(1, 20)
    one = _pair(Pairs(), 0, row([(good, {}), (bad, {})]))["pairs"][0]
    two = _pair(Pairs(), 0, row([(bad, {}), (good, {})]))["pairs"][0]
    assert (one["chosen"], one["rejected"]) == (0, 1)
    assert (two["chosen"], two["rejected"]) == (1, 0)


@pytest.mark.parametrize("fault", [{"unread": 1}, {"invalid_chars": 2}, {"words": 4}, {"words": 200}])
def test_what_is_never_paired(fault):
    assert _pair(Pairs(), 0, row([(score(5, 20), fault), (score(1, 20), {})])) == Skip("under two usable summaries")


def test_a_summary_cut_off_is_never_paired():
    assert _pair(Pairs(), 0, row([(score(5, 6), {}), (score(5, 30), {})], finish="length")) == Skip(
        "under two usable summaries"
    )


def test_the_draw_depends_on_the_article_not_on_its_place():
    many = [(score(i % 6, 10 + i), {}) for i in range(8)]
    assert _pair(Pairs(), 0, row(many)) == _pair(Pairs(), 0, row(many))
    drawn = {str(_pair(Pairs(), 0, row(many, article_id=str(i)))["pairs"]) for i in range(20)}
    assert len(drawn) > 5
