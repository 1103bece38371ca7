"""Rows of one article as one row: nothing is lost, nothing moves, and what is off-policy is marked."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.run import Pairs
from pipeline.data.merge_rows import mark_writer, merge_rows
from pipeline.judging.preference import accuracy_then_length
from pipeline.stages.pairs import _hash_share, _pair_article_with_base, merge_rounds


@st.composite
def rows_of(draw, writer, article="a"):
    """A scored and paired row; each summary's text says whose it is and which."""
    count = draw(st.integers(2, 5))
    index = st.integers(0, count - 1)
    pairs = draw(st.lists(st.tuples(index, index).filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=4))
    return row(writer, count, pairs, article)


def row(writer, count, pairs, article="a"):
    return {
        "article_id": article,
        "article": "Text.",
        "split": "train",
        "writer": writer,
        "prompt_ids": [1, 2, 3],
        "summaries": [
            {"text": f"{writer} {i}", "token_ids": [i + 1, 0], "finish_reason": "stop", "logp": -1.0}
            for i in range(count)
        ],
        "scores": [{"answers": [], "correct": i, "unread": 0, "words": 9, "invalid_chars": 0} for i in range(count)],
        "pairs": [{"chosen": c, "rejected": r, "reason": f"{writer}", "weight": 1.0} for c, r in pairs],
    }


def told(row):
    """The row's pairs in words: what does not depend on where a summary stands."""
    texts = [
        (summary["text"], score["correct"]) for summary, score in zip(row["summaries"], row["scores"], strict=True)
    ]
    return Counter((texts[p["chosen"]], texts[p["rejected"]], p["reason"]) for p in row["pairs"])


@given(rows_of("now"), st.lists(rows_of("r1"), max_size=1), st.lists(rows_of("r2"), max_size=1))
def test_every_pair_is_still_between_the_same_two_summaries(own, first, second):
    earlier = first + second
    made, counts = merge_rounds([own], earlier)
    assert told(made) == sum((told(one) for one in [own, *earlier]), Counter())
    assert made["summaries"][: len(own["summaries"])] == own["summaries"], "this round's own stay as they are"
    assert len(made["summaries"]) == len(made["scores"]) == sum(len(one["summaries"]) for one in [own, *earlier])
    assert made["writer"] == "now"
    assert counts["pairs"] == len(made["pairs"])
    assert counts["replayed pairs"] == sum(len(one["pairs"]) for one in earlier)
    assert counts["merged"] == len(earlier)


@given(rows_of("now"), rows_of("r1"))
def test_what_another_policy_wrote_names_it_and_has_no_log_probability_of_this_one(own, other):
    for made in (merge_rows(own, other), merge_rounds([], [other])[0]):
        for summary in made["summaries"]:
            writer = summary["text"].split()[0]
            assert (summary.get("writer"), summary["logp"]) == ((None, -1.0) if writer == "now" else (writer, None))


def test_a_mark_once_made_is_kept():
    twice = merge_rows(row("now", 2, [(0, 1)]), merge_rows(row("r1", 2, [(0, 1)]), row("base", 2, [(0, 1)])))
    assert [summary.get("writer") for summary in twice["summaries"]] == [None, None, "r1", "r1", "base", "base"]
    assert mark_writer(twice)["summaries"][0]["writer"] == "now"


@pytest.mark.parametrize("changed", [{"article_id": "b"}, {"prompt_ids": [1, 2]}])
def test_rows_that_do_not_belong_together_are_not_joined(changed):
    with pytest.raises(ValueError, match="differs from that of the row to merge"):
        merge_rows(row("now", 2, []), row("r1", 2, []) | changed)


def beside(own, base):
    return own | {"base_writer": "base", "base_summaries": base["summaries"], "base_scores": base["scores"]}


def test_the_rejected_are_the_bases_and_the_chosen_are_better():
    own, base = row("now", 5, []), row("base", 3, [])
    settings = Pairs(threshold=5, max_per_article=99)
    made = _pair_article_with_base(accuracy_then_length, settings, 0, beside(own, base))
    both = own | made
    assert told(both).keys() == {
        ((f"now {a}", a), (f"base {b}", b), f"{a} against {b} right, 9 against 9 words")
        for a in range(5)
        for b in range(3)
        if a > b
    }
    assert [summary.get("writer") for summary in both["summaries"]] == [None] * 5 + ["base"] * 3
    assert made["tally"]["pairs against the base"] == made["tally"]["pairs"] == len(made["pairs"]) == 9


def test_an_article_on_which_the_base_is_as_good_gives_no_pair():
    own, base = row("now", 2, []), row("base", 5, [])
    own["scores"] = [score | {"correct": 0} for score in own["scores"]]
    rule, settings = accuracy_then_length, Pairs(threshold=5)
    assert _pair_article_with_base(rule, settings, 0, beside(own, base)).reason == "none better than the base's"
    cut = [summary | {"finish_reason": "length"} for summary in base["summaries"]]
    said = _pair_article_with_base(rule, settings, 0, beside(own, base | {"summaries": cut}))
    assert said.reason == "no usable summary of the base"


def test_what_is_drawn_depends_on_the_article_and_not_on_its_place():
    lots = [_hash_share("0/1", 0, f"a{i}") for i in range(4000)]
    assert 900 < sum(lot < 0.25 for lot in lots) < 1100  # 1000 expected, four deviations either way
    assert lots != [_hash_share("0/2", 0, f"a{i}") for i in range(4000)], "another round draws others"
