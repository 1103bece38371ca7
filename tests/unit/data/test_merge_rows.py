"""Merging rows of one article: no pair is lost or changed, and off-policy summaries are marked."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.judging import Pairs
from pipeline.data.merge_rows import mark_writer, merge_rows
from pipeline.judging.preference import accuracy_then_length, higher_score
from pipeline.stages.pairs import _hash_share, merge_rounds, pair_article_with_base
from tests.helpers.tables import row_with_pairs


@st.composite
def rows_of(draw, writer, article="a"):
    """A row with scores and pairs. Each summary's text is its writer and its index."""
    count = draw(st.integers(2, 5))
    index = st.integers(0, count - 1)
    pairs = draw(st.lists(st.tuples(index, index).filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=4))
    return row_with_pairs(writer, count, pairs, article)


def count_pairs(row):
    """Counts the row's pairs by their texts, scores and reasons, which do not depend on a summary's index."""
    texts = [
        (summary["text"], score["correct"]) for summary, score in zip(row["summaries"], row["scores"], strict=True)
    ]
    return Counter((texts[p["chosen"]], texts[p["rejected"]], p["reason"]) for p in row["pairs"])


@given(rows_of("now"), st.lists(rows_of("r1"), max_size=1), st.lists(rows_of("r2"), max_size=1))
def test_every_pair_is_still_between_the_same_two_summaries(own, first, second):
    earlier = first + second
    merged, counts = merge_rounds([own], earlier)
    assert count_pairs(merged) == sum((count_pairs(source) for source in [own, *earlier]), Counter())
    assert merged["summaries"][: len(own["summaries"])] == own["summaries"], "this round's own summaries are unchanged"
    assert len(merged["summaries"]) == len(merged["scores"]) == sum(len(row["summaries"]) for row in [own, *earlier])
    assert merged["writer"] == "now"
    assert counts["pairs"] == len(merged["pairs"])
    assert counts["replayed pairs"] == sum(len(row["pairs"]) for row in earlier)
    assert counts["merged"] == len(earlier)


@given(rows_of("now"), rows_of("r1"))
def test_summaries_by_another_policy_name_it_and_have_no_log_probability(own, other):
    for merged in (merge_rows(own, other), merge_rounds([], [other])[0]):
        for summary in merged["summaries"]:
            writer = summary["text"].split()[0]
            assert (summary.get("writer"), summary["logp"]) == ((None, -1.0) if writer == "now" else (writer, None))


def test_a_summary_keeps_the_writer_that_it_names():
    twice = merge_rows(
        row_with_pairs("now", 2, [(0, 1)]),
        merge_rows(row_with_pairs("r1", 2, [(0, 1)]), row_with_pairs("base", 2, [(0, 1)])),
    )
    assert [summary.get("writer") for summary in twice["summaries"]] == [None, None, "r1", "r1", "base", "base"]
    assert mark_writer(twice)["summaries"][0]["writer"] == "now"


@pytest.mark.parametrize("changed", [{"article_id": "b"}, {"prompt_ids": [1, 2]}])
def test_rows_of_different_articles_or_prompts_are_not_merged(changed):
    with pytest.raises(ValueError, match="differs from that of the row to merge"):
        merge_rows(row_with_pairs("now", 2, []), row_with_pairs("r1", 2, []) | changed)


def with_base(own, base):
    return own | {"base_writer": "base", "base_summaries": base["summaries"], "base_scores": base["scores"]}


def test_rejected_summaries_are_the_bases_and_chosen_summaries_are_better():
    own, base = row_with_pairs("now", 5, []), row_with_pairs("base", 3, [])
    settings = Pairs(threshold=5, max_per_article=99)
    paired = pair_article_with_base(accuracy_then_length, settings, 0, with_base(own, base))
    both = own | paired
    assert count_pairs(both).keys() == {
        ((f"now {a}", a), (f"base {b}", b), f"{a} against {b} right, 9 against 9 words")
        for a in range(5)
        for b in range(3)
        if a > b
    }
    assert [summary.get("writer") for summary in both["summaries"]] == [None] * 5 + ["base"] * 3
    assert paired["tally"]["pairs against the base"] == paired["tally"]["pairs"] == len(paired["pairs"]) == 9


def test_an_article_on_which_the_base_is_as_good_gives_no_pair():
    own, base = row_with_pairs("now", 2, []), row_with_pairs("base", 5, [])
    own["scores"] = [score | {"correct": 0} for score in own["scores"]]
    rule, settings = accuracy_then_length, Pairs(threshold=5)
    skipped = pair_article_with_base(rule, settings, 0, with_base(own, base))
    assert skipped == {"skipped": "none better than the base's", "tally": {"summaries to pair": 7}}
    better = {"scores": [score | {"items": [1.0, i], "value": 1.0 + i} for i, score in enumerate(own["scores"])]}
    worse = {"scores": [score | {"items": [0.0, 1.0], "value": 1.0, "correct": 0} for score in base["scores"]]}
    for least, pairs in ((1.0, 5), (1.1, 0)):
        margin = Pairs(preference="higher_score", max_per_article=99, min_standard_errors=least)
        outcome = pair_article_with_base(higher_score, margin, 0, with_base(own | better, base | worse))
        if pairs:
            assert len(outcome["pairs"]) == pairs
        else:
            assert outcome["skipped"] == "difference within the score's noise", (
                "the items differ by 1 and 0: one standard error"
            )
    cut = [summary | {"finish_reason": "length"} for summary in base["summaries"]]
    skipped = pair_article_with_base(rule, settings, 0, with_base(own, base | {"summaries": cut}))
    assert skipped["skipped"] == "no usable summary of the base"
    assert skipped["tally"] == {"summaries to pair": 7, "unusable: cut off": 5}


def test_replayed_articles_are_drawn_by_id_and_not_by_position():
    shares = [_hash_share("0/1", 0, f"a{i}") for i in range(4000)]
    assert 900 < sum(share < 0.25 for share in shares) < 1100  # 1000 expected, four deviations either way
    assert shares != [_hash_share("0/2", 0, f"a{i}") for i in range(4000)], "another round draws others"
