"""Tests of the preference rules, shipped and user-defined, and of the pairs that each selection makes."""

import sys
import textwrap
from collections import Counter
from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import UserError
from pipeline.config.judging import PREFERENCES, Pairs
from pipeline.execution.recipe import fingerprint, fingerprint_user_code
from pipeline.judging.pair_selection import SELECTIONS, pair_weights, standard_errors
from pipeline.judging.preference import (
    RULES,
    accuracy_only,
    accuracy_then_any_length,
    accuracy_then_length,
    check_preference,
    evaluation_rules,
    higher_score,
    length_matched,
    load_preference,
    majority_vote,
    score_items,
    scores_to_compare,
    second_judge_rules,
)
from pipeline.judging.tallies import CIRCULAR_PAIRS
from pipeline.stages import pairs as stage

WEIGHTS = [2.0, 1.0, 1.0]
votes = st.lists(st.none() | st.integers(0, 3), min_size=3, max_size=3)
scores = st.fixed_dictionaries(
    {"correct": st.integers(0, 5), "words": st.integers(0, 60), "items": votes, "weights": st.just(WEIGHTS)}
)
settings = st.builds(
    Pairs, threshold=st.integers(0, 5), min_word_gap=st.integers(1, 9), max_length_ratio=st.floats(1, 3)
)
shipped = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def score(correct, words):
    return {"correct": correct, "words": words}


@pytest.mark.parametrize(
    ("a", "b", "strict", "reference"),
    [
        ((5, 20), (3, 10), -1, -1),  # both reach the threshold: the shorter wins
        ((3, 12), (5, 10), 0, -1),  # … but not if it is only two words shorter
        ((3, 13), (5, 10), -1, -1),  # three words are enough
        ((3, 90), (2, 5), 1, 1),  # one is below the threshold: more right answers win
        ((1, 30), (0, 5), 1, 1),
        ((2, 30), (2, 5), 0, -1),  # equally many below the threshold: a tie, except by the reference rule
        ((0, 9), (0, 8), 0, -1),
        ((4, 10), (4, 10), 0, 0),
    ],
)
def test_known_verdicts(a, b, strict, reference):
    assert accuracy_then_length(score(*a), score(*b), Pairs()) == strict
    assert accuracy_then_any_length(score(*a), score(*b), Pairs()) == reference
    assert evaluation_rules(Pairs()) == {"strict": accuracy_then_length, "reference": accuracy_then_any_length}


def test_every_preference_of_the_settings_exists():
    assert set(RULES) == set(PREFERENCES)


def test_a_preference_is_described_with_its_settings():
    said = Pairs(preference="accuracy_then_length", threshold=4).describe_preference()
    assert "If both have 4 or more, the one that is at least 3 words shorter wins." in said and "fault" not in said
    assert "beyond a limit" in Pairs(max_repeated=0.1).describe_preference()
    assert "mine:best" in Pairs(preference="mine:best").describe_preference()
    for preference in PREFERENCES:
        assert "{" not in Pairs(preference=preference).describe_preference()
    assert load_preference(Pairs(preference="length_matched")) is length_matched
    assert evaluation_rules(Pairs(preference="accuracy_only"))["strict"] is accuracy_only


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ((4, 24), (3, 20), 1),  # 1.2 times the words: similar enough
        ((4, 25), (3, 20), 0),  # more than 1.2 times
        ((4, 20), (3, 25), 0),  # … and being shorter does not help
        ((3, 20), (3, 20), 0),
        ((1, 0), (0, 1), 1),  # an empty summary counts as one word
    ],
)
def test_length_matched_compares_summaries_of_about_one_length(a, b, verdict):
    assert length_matched(score(*a), score(*b), Pairs(max_length_ratio=1.2)) == verdict


@given(a=scores, b=scores, pairs=settings)
def test_ties_are_exactly_those_that_each_rule_defines(a, b, pairs):
    equal = a["correct"] == b["correct"]
    assert (accuracy_only(a, b, pairs) == 0) == equal
    both_accurate = min(a["correct"], b["correct"]) >= pairs.threshold
    close = abs(a["words"] - b["words"]) < pairs.min_word_gap
    assert (accuracy_then_length(a, b, pairs) == 0) == (close if both_accurate else equal)
    assert (accuracy_then_any_length(a, b, pairs) == 0) == (a["words"] == b["words"] and (both_accurate or equal))
    short, long = sorted(max(1, s["words"]) for s in (a, b))
    assert (length_matched(a, b, pairs) == 0) == (equal or long > pairs.max_length_ratio * short)


@shipped
@given(a=scores, b=scores, pairs=settings)
def test_antisymmetric(rule, a, b, pairs):
    assert rule(a, b, pairs) == -rule(b, a, pairs)


@pytest.mark.parametrize("rule", [rule for name, rule in RULES.items() if name != "majority_vote"])
@given(score_rows=st.lists(scores, min_size=3, max_size=5), pairs=settings)
def test_no_cycles(rule, score_rows, pairs):
    for order in permutations(score_rows):
        wins = [rule(x, y, pairs) > 0 for x, y in zip(order, [*order[1:], order[0]], strict=True)]
        assert not all(wins)


def ballot(*items):
    return {"items": list(items), "weights": WEIGHTS}


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (ballot(1, 0, 0), ballot(0, 1, 0), 1),  # weight 2 against 1; the third finds both equal
        (ballot(1, 0, 0), ballot(0, 1, 1), 0),  # 2 against 1 + 1
        (ballot(1, 0, None), ballot(0, 1, 5), 1),  # a member that could not read one of them abstains
        (ballot(-0.5, 1e9, 0), ballot(-0.25, 0, 0), -1),  # scales are not compared
        (ballot(None, None, None), ballot(1, 1, 1), 0),
    ],
)
def test_a_jury_votes_by_weight(a, b, verdict):
    assert majority_vote(a, b, Pairs()) == verdict


def test_a_jurys_margin_is_a_share_of_the_weights_that_vote():
    a, b = ballot(1, 0, 0), ballot(0, 1, 0)  # 2 against 1: a lead of a third
    assert majority_vote(a, b, Pairs(min_margin=0.3)) == 1
    assert majority_vote(a, b, Pairs(min_margin=0.4)) == 0


def test_votes_in_a_circle_make_no_pairs():
    items = [(3, 1, 2), (2, 3, 1), (1, 2, 3), (0, 0, 0)]
    scores = [
        {"items": list(each), "weights": [1.0] * 3, "words": 9, "invalid_chars": 0, "unread": 0, "answers": []}
        | {"correct": 0, "value": 1.0}
        for each in items
    ]
    row = {
        "article_id": "a",
        "article": "text",
        "questions": [],
        "summaries": [{"text": f"s{i}", "finish_reason": "stop"} for i in range(4)],
        "scores": scores,
    }
    pairs = Pairs(preference="majority_vote", selection="all")
    outcome = stage.pair_article(majority_vote, pairs, 0, row)
    assert {(pair["chosen"], pair["rejected"]) for pair in outcome["pairs"]} == {(0, 3), (1, 3), (2, 3)}
    assert outcome["tally"][CIRCULAR_PAIRS] == 3
    # The mean of members' values, which need not be of one scale, decided nothing.
    assert {pair["reason"] for pair in outcome["pairs"]} == {"lead of 100% in the votes, 9 against 9 words"}
    circle = row | {"summaries": row["summaries"][:3], "scores": scores[:3]}
    assert stage.pair_article(majority_vote, pairs, 0, circle)["skipped"] == "verdicts in a circle"


@given(score_rows=st.lists(scores, min_size=2, max_size=6), pairs=settings)
def test_pairs_that_are_left_never_contradict_each_other(score_rows, pairs):
    indices = range(len(score_rows))
    decided = [(i, j) for i in indices for j in indices if majority_vote(score_rows[i], score_rows[j], pairs) > 0]
    left = set(stage.leave_out_circles(decided))
    assert left <= set(decided)
    while unbeaten := {i for i, _ in left} - {j for _, j in left}:
        left = {(i, j) for i, j in left if i not in unbeaten}
    assert not left, "a circle is left"


@pytest.mark.parametrize(
    ("preference", "first", "second", "strict"),
    [
        ("accuracy_then_length", "answers", "answers", accuracy_then_length),
        ("accuracy_then_length", "answers", "value", higher_score),
        ("accuracy_then_length", "answers", "votes", majority_vote),
        ("higher_score", "value", "answers", higher_score),
        ("higher_score", "value", "votes", majority_vote),
        ("majority_vote", "votes", "value", higher_score),
        ("majority_vote", "votes", "answers", higher_score),
    ],
)
def test_the_rule_fits_the_second_judge(preference, first, second, strict):
    rules = second_judge_rules(Pairs(preference=preference), first, second)
    assert rules["strict"] is strict
    assert ("reference" in rules) == (first == second == "answers"), "it counts right answers by both judges"


@pytest.fixture
def write_preference(tmp_path, monkeypatch):
    """Write a user's module into the working folder. Gives the settings that name its function."""
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    written = set()

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        written.add(name)
        return Pairs(preference=f"{name}:prefer")

    yield write
    sys.path[:] = path
    for name in written:
        sys.modules.pop(name, None)
    fingerprint.cache_clear()


def test_user_function_is_checked_and_used(write_preference):
    pairs = write_preference(
        "good_preference", "def prefer(a, b, settings): return (a['words'] > b['words']) - (a['words'] < b['words'])"
    )
    check_preference(pairs, 5, logprobs=False)
    assert evaluation_rules(pairs)["strict"](score(0, 9), score(5, 8), pairs) == 1


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("other = 1", "has no function prefer"),
        ("import no_such_module", "cannot be imported from .*ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "def prefer(a, b): return 0",
            "fails for 0 right in 0 words and .*TypeError: prefer.. takes 2 .* and must return 1, 0",
        ),
        ("def prefer(a, b, settings): return a['corect']", "fails for .*KeyError: 'corect'"),
        (
            "def prefer(a, b, settings): return 0.5",
            "returns 0.5 for 0 right in 0 words and 0 right in 0 words: it must",
        ),
        (
            "def prefer(a, b, settings): return 1",
            "returns 1 for 0 right in 0 words and .*, and 1 if the two are swapped",
        ),
        (
            "def prefer(a, b, settings): return (0, 1, -1)[(a['correct'] - b['correct']) % 3]",
            "has a cycle, for example among 0 right in 0 words and 0 right in 5 words",
        ),
    ],
)
def test_invalid_user_function_is_refused_before_the_run(write_preference, body, complaint):
    pairs = write_preference("bad_preference", body)
    with pytest.raises(UserError, match=complaint):
        check_preference(pairs, 5, logprobs=False)
    assert check_preference(Pairs(), 5, logprobs=False) is None


def test_user_function_of_the_soft_score_needs_log_probabilities(write_preference):
    pairs = write_preference(
        "soft_preference",
        """
        def prefer(a, b, settings):
            sure = [sum(logp > -0.1 for logp in score['answer_logps']) for score in (a, b)]
            return (a['soft'] > b['soft']) - (a['soft'] < b['soft']) if sure[0] == sure[1] else 0
        """,
    )
    check_preference(pairs, 5, logprobs=True)
    with pytest.raises(UserError, match="fails for 0 right in 0 words .*TypeError: 'NoneType' object is not iterable"):
        check_preference(pairs, 5, logprobs=False)


def test_changing_a_user_function_changes_the_recipe(write_preference):
    text = "FACTOR = 2\ndef prefer(a, b, settings): return 0"
    pairs = write_preference("changing_preference", text)
    before = fingerprint_user_code(pairs.preference)
    assert before is not None
    fingerprint.cache_clear()
    write_preference("changing_preference", text.replace("2", "3"))
    assert fingerprint_user_code(pairs.preference) not in (before, None)
    assert fingerprint_user_code("accuracy_only") is None
    assert "pairs.preference" in stage.make_pairs.contents


def row(score_rows, finish="stop", article_id="a"):
    return {
        "article_id": article_id,
        "article": "Text.",
        "summaries": [{"text": "", "token_ids": [1], "finish_reason": finish} for _ in score_rows],
        "scores": [s | {"answers": [], "unread": 0, "invalid_chars": 0} | extra for s, extra in score_rows],
    }


def _pair(settings, seed, article):
    return stage.pair_article(load_preference(settings), settings, seed, article)


@given(st.lists(scores, min_size=2, max_size=8), st.integers(1, 5), st.integers(), st.sampled_from(list(SELECTIONS)))
def test_pairs_are_preferences_among_usable_summaries(score_rows, most, seed, selection):
    pairs = Pairs(max_per_article=most, min_words=5, max_words=40, selection=selection)
    outcome = _pair(pairs, seed, row([(s, {}) for s in score_rows]))
    usable = [s for s in score_rows if 5 <= s["words"] < 40]
    exist = sum(accuracy_then_length(a, b, pairs) != 0 for a, b in combinations(usable, 2))
    assert outcome["tally"]["summaries to pair"] == len(score_rows)
    if "pairs" not in outcome:
        assert exist == 0 and outcome["skipped"] == ("all ties" if len(usable) > 1 else "under two usable summaries")
        return
    assert len(outcome["pairs"]) == min({"best_worst": 1, "all": exist}.get(selection, most), exist)
    weights = [p["weight"] for p in outcome["pairs"]]
    assert sum(weights) == pytest.approx(1) if selection == "all" else set(weights) == {1.0}
    assert len({(p["chosen"], p["rejected"]) for p in outcome["pairs"]}) == len(outcome["pairs"])
    for p in outcome["pairs"]:
        assert accuracy_then_length(score_rows[p["chosen"]], score_rows[p["rejected"]], pairs) == 1
        assert all(5 <= score_rows[i]["words"] < 40 for i in (p["chosen"], p["rejected"]))


def test_swapped_summaries_swap_chosen_and_rejected():
    good, bad = score(5, 20), score(1, 20)
    one = _pair(Pairs(), 0, row([(good, {}), (bad, {})]))["pairs"][0]
    two = _pair(Pairs(), 0, row([(bad, {}), (good, {})]))["pairs"][0]
    assert (one["chosen"], one["rejected"]) == (0, 1)
    assert (two["chosen"], two["rejected"]) == (1, 0)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"unread": 1}, "unread"),
        ({"invalid_chars": 2}, "gibberish"),
        ({"words": 4}, "too short"),
        ({"words": 200}, "too long"),
    ],
)
def test_unusable_summaries_are_never_paired(fault, reason):
    skipped = _pair(Pairs(), 0, row([(score(5, 20), fault), (score(1, 20), {})]))
    assert skipped["skipped"] == "under two usable summaries"
    assert skipped["tally"] == {"summaries to pair": 2, f"unusable: {reason}": 1}


def test_summary_that_was_cut_off_is_never_paired():
    skipped = _pair(Pairs(), 0, row([(score(5, 6), {}), (score(5, 30), {})], finish="length"))
    assert skipped["skipped"] == "under two usable summaries"
    assert skipped["tally"] == {"summaries to pair": 2, "unusable: cut off": 2}


SOUND = {"repeated": 0.0, "copied": 0.1, "lead_copied": 0.0, "off_topic_end": 0.2, "other_language": None}
REPEATS, FOREIGN = SOUND | {"repeated": 0.5}, SOUND | {"other_language": "de"}


def faulty_row(*correct_and_faults):
    return row([(score(correct, 20), {"faults": faults}) for correct, faults in correct_and_faults])


def pairs_of(outcome):
    return sorted((pair["chosen"], pair["rejected"]) for pair in outcome["pairs"])


def test_a_summary_with_a_fault_is_never_chosen():
    article = faulty_row((5, REPEATS), (2, SOUND), (1, SOUND), (0, FOREIGN))
    everything = Pairs(max_per_article=9)
    assert len(pairs_of(_pair(everything, 0, article))) == 6, "without a limit nothing is a fault"
    outcome = _pair(Pairs(max_per_article=9, max_repeated=0.2, same_language=True), 0, article)
    assert pairs_of(outcome) == [(1, 2)]
    assert outcome["tally"] == {
        "summaries to pair": 4,
        "unusable: repeats itself": 1,
        "unusable: is in another language": 1,
        "pairs": 1,
        "pairs found": 1,
    }


def test_a_summary_with_a_fault_may_be_rejected_even_if_the_scores_tie():
    article = faulty_row((5, REPEATS), (2, SOUND), (2, SOUND), (2, FOREIGN), (0, REPEATS))
    limits = Pairs(max_per_article=9, max_repeated=0.2, same_language=True, faulty="rejected")
    outcome = _pair(limits, 0, article)
    # Never against summary 0: the judge prefers it, so the pair would teach that fewer right answers are better.
    assert pairs_of(outcome) == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert {pair["reason"] for pair in outcome["pairs"]} == {
        "2 against 2 right, 20 against 20 words; the rejected is in another language",
        "2 against 0 right, 20 against 20 words; the rejected repeats itself",
    }
    assert outcome["tally"]["only rejected: repeats itself"] == 2 and not any(
        name.startswith("unusable") for name in outcome["tally"]
    )
    assert _pair(limits, 0, faulty_row((5, REPEATS), (0, FOREIGN)))["skipped"] == "no usable summary without a fault"
    assert _pair(limits, 0, faulty_row((5, REPEATS), (2, SOUND)))["skipped"] == "all ties"


def test_a_fault_does_not_save_a_summary_that_is_never_paired():
    article = faulty_row((2, REPEATS), (2, SOUND))
    article["summaries"][0]["finish_reason"] = "length"
    skipped = _pair(Pairs(max_repeated=0.2, faulty="rejected"), 0, article)
    assert skipped["tally"] == {"summaries to pair": 2, "unusable: cut off": 1}


def test_a_summary_that_was_cut_off_may_be_rejected():
    article = row([(score(correct, 20), {}) for correct in (3, 2, 2, 1)])
    for i in (0, 2, 3):
        article["summaries"][i]["finish_reason"] = "length"
    article["scores"][3]["words"] = 900  # the token limit has measured its length already
    outcome = _pair(Pairs(max_per_article=9, cut_off="rejected"), 0, article)
    # Never against summary 0: the judge prefers it, though it was cut off.
    assert pairs_of(outcome) == [(1, 2), (1, 3)]
    assert {pair["reason"] for pair in outcome["pairs"]} == {
        "2 against 2 right, 20 against 20 words; the rejected was cut off",
        "2 against 1 right, 20 against 900 words; the rejected was cut off",
    }
    assert outcome["tally"]["only rejected: was cut off"] == 3
    assert _pair(Pairs(max_per_article=9), 0, article)["skipped"] == "under two usable summaries"


def test_a_summary_that_was_cut_off_and_not_read_is_in_no_pair():
    article = row([(score(3, 20), {}), (score(0, 20), {"unread": 5})])
    article["summaries"][1]["finish_reason"] = "length"
    assert _pair(Pairs(cut_off="rejected"), 0, article)["tally"]["unusable: unread"] == 1


def test_faults_of_a_table_without_them_are_measured_when_a_limit_needs_them():
    said_twice = "The roof of the hall is red. The roof of the hall is red. "
    article = row([(score(5, 20), {}), (score(2, 20), {}), (score(1, 20), {})])
    article["summaries"][0]["text"] = said_twice
    assert pairs_of(_pair(Pairs(max_repeated=0.2), 0, article)) == [(1, 2)]
    assert len(pairs_of(_pair(Pairs(), 0, article))) == 3


def test_a_fault_of_the_base_may_be_rejected():
    article = faulty_row((2, SOUND), (2, REPEATS)) | {"writer": "now", "prompt_ids": [1]}
    base = faulty_row((2, SOUND), (2, REPEATS), (5, REPEATS))
    article |= {"base_writer": "base", "base_summaries": base["summaries"], "base_scores": base["scores"]}
    limits = Pairs(max_repeated=0.2, faulty="rejected")
    outcome = stage.pair_article_with_base(accuracy_then_length, limits, 0, article)
    assert pairs_of(outcome) == [(0, 3)]
    assert outcome["scores"] == [*article["scores"], *base["scores"]], "the texts are not stored a second time"


def test_noise_of_the_score_says_nothing_about_a_fault():
    article = faulty_row((2, SOUND), (3, SOUND), (2, REPEATS))
    for i, items in enumerate(([1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0])):
        article["scores"][i] |= {"items": [float(item) for item in items], "value": float(sum(items))}
    limits = Pairs(preference="accuracy_only", max_per_article=9, min_standard_errors=2)
    assert _pair(limits, 0, article)["skipped"] == "difference within the score's noise"
    limits = limits.model_copy(update={"max_repeated": 0.2, "faulty": "rejected"})
    assert pairs_of(_pair(limits, 0, article)) == [(0, 2), (1, 2)]


def test_no_pair_teaches_copying_beyond_the_gap():
    by_count = {"preference": "accuracy_only", "max_per_article": 9}
    copies, copies_less, short = (SOUND | {"copied": share} for share in (0.6, 0.45, None))
    article = faulty_row((5, copies), (4, copies_less), (1, short))
    assert pairs_of(_pair(Pairs(**by_count), 0, article)) == [(0, 1), (0, 2), (1, 2)]
    assert pairs_of(_pair(Pairs(**by_count, max_copied_gap=0.2), 0, article)) == [(0, 1)]
    assert _pair(Pairs(**by_count, max_copied_gap=0.1), 0, article)["skipped"] == "the better one copies more"
    reversed_order = faulty_row((1, copies), (5, short))
    assert pairs_of(_pair(Pairs(**by_count, max_copied_gap=0.0), 0, reversed_order)) == [(1, 0)]


def test_the_copied_gap_holds_against_a_summary_with_a_fault_too():
    copies, repeats = SOUND | {"copied": 0.6}, REPEATS | {"copied": 0.0}
    article = faulty_row((5, copies), (1, repeats))
    limits = Pairs(preference="accuracy_only", max_repeated=0.2, faulty="rejected")
    assert pairs_of(_pair(limits, 0, article)) == [(0, 1)]
    limits = limits.model_copy(update={"max_copied_gap": 0.1})
    assert _pair(limits, 0, article)["skipped"] == "the better one copies more"
    base = {"base_writer": "base", "base_summaries": article["summaries"][1:], "base_scores": article["scores"][1:]}
    own = article | {name: article[name][:1] for name in ("summaries", "scores")} | base
    own |= {"writer": "policy", "prompt_ids": [1]}
    assert stage.pair_article_with_base(accuracy_only, limits, 0, own)["skipped"] == "the better one copies more"


def test_the_copied_gap_of_a_table_without_faults_is_measured():
    article = row([(score(5, 20), {}), (score(2, 20), {})])
    article["article"] = "The roof of the hall is red, and the door of the hall is blue since May."
    article["summaries"][0]["text"] = article["article"]
    article["summaries"][1]["text"] = "It is about a hall with a roof that somebody painted red once."
    assert _pair(Pairs(max_copied_gap=0.5), 0, article)["skipped"] == "the better one copies more"


def test_faulty_without_a_limit_is_refused():
    with pytest.raises(ValueError, match="faulty is rejected, and no setting says what a fault is: set pairs.max_repe"):
        Pairs(faulty="rejected")
    assert not Pairs().limits_faults and Pairs(max_copied=0.0).limits_faults and Pairs(same_language=True).limits_faults


def test_user_function_sees_the_texts(write_preference):
    pairs = write_preference(
        "text_preference",
        """
        def prefer(a, b, settings):
            assert a['article'] == b['article'] and {a['finish_reason'], b['finish_reason']} <= {'stop', 'length'}
            found = [len(set(s['text'].split()) & set(s['article'].split())) - s['faults']['repeated'] for s in (a, b)]
            return (found[0] > found[1]) - (found[0] < found[1])
        """,
    )
    check_preference(pairs, 5, logprobs=False)
    article = row([(score(5, 20), {}), (score(5, 20), {})]) | {"article": "The roof is red."}
    for summary, text in zip(article["summaries"], ("A hall.", " The roof is red. "), strict=True):
        summary["text"] = text
    assert pairs_of(_pair(pairs, 0, article)) == [(1, 0)]
    seen = scores_to_compare(article, pairs)[1]
    assert (seen["text"], seen["article"], seen["finish_reason"]) == ("The roof is red.", "The roof is red.", "stop")
    assert "text" not in article["scores"][1], "texts are not stored in scores"


def test_random_pairs_depend_on_the_article_and_not_on_its_position():
    many = [(score(i % 6, 10 + i), {}) for i in range(8)]
    assert _pair(Pairs(), 0, row(many)) == _pair(Pairs(), 0, row(many))
    drawn = {str(_pair(Pairs(), 0, row(many, article_id=str(i)))["pairs"]) for i in range(20)}
    assert len(drawn) > 5


def selected(name, score_rows, most=3, seed=0):
    article = row([(s, {}) for s in score_rows], article_id=str(seed))
    made = _pair(Pairs(selection=name, max_per_article=most), 0, article)["pairs"]
    return [(p["chosen"], p["rejected"]) for p in made]


def test_best_worst_pairs_the_most_preferred_with_the_least_preferred():
    score_rows = [score(2, 20), score(5, 20), score(0, 20), score(4, 10), score(1, 20)]
    assert selected("best_worst", score_rows) == [(3, 2)]  # 4 right in 10 words beat 5 right in 20


def test_best_worst_gives_a_pair_even_if_best_and_worst_tie():
    score_rows = [score(1, 10), score(5, 20), score(0, 10), score(4, 20)]
    made = _pair(Pairs(selection="best_worst", preference="length_matched"), 0, row([(s, {}) for s in score_rows]))[
        "pairs"
    ]
    assert len(made) == 1 and made[0]["reason"] in (
        "1 against 0 right, 10 against 10 words",
        "5 against 4 right, 20 against 20 words",
    )


def test_widest_margin_takes_accuracy_first_then_length():
    score_rows = [score(5, 40), score(3, 10), score(4, 20), score(1, 20)]
    assert selected("widest_margin", score_rows) == [(0, 3), (2, 3), (1, 3)]
    assert selected("widest_margin", score_rows, 4) == [(0, 3), (2, 3), (1, 3), (1, 0)]


def test_widest_margin_takes_the_larger_soft_margin_of_equal_differences():
    score_rows = [score(4, 40) | {"soft": 3.9}, score(4, 20) | {"soft": 3.1}, score(1, 20) | {"soft": 0.9}]
    assert selected("widest_margin", score_rows, 1) == [(0, 2)]
    for without in ([s | {"soft": None} for s in score_rows], [score(4, 40), score(4, 20), score(1, 20)]):
        assert selected("widest_margin", without, 1) == [(1, 2)]  # by words


soft_scores = st.tuples(scores, st.floats(0, 1) | st.none()).map(
    lambda s: s[0] | {"soft": None if s[1] is None else s[0]["correct"] * s[1]}
)


@given(st.lists(soft_scores, min_size=2, max_size=8), st.sampled_from(list(SELECTIONS)), st.integers())
def test_margin_weighting_keeps_the_mean_weight_of_an_article(score_rows, selection, seed):
    settings = {"max_per_article": 4, "min_words": 5, "max_words": 40, "selection": selection}
    plain, by_margin = (
        _pair(Pairs(**settings, weighting=name), seed, row([(s, {}) for s in score_rows]))
        for name in ("none", "margin")
    )
    if "pairs" not in plain:
        assert by_margin == plain
        return
    ours, theirs = by_margin["pairs"], plain["pairs"]
    assert [p | {"weight": 0} for p in ours] == [p | {"weight": 0} for p in theirs]
    assert sum(p["weight"] for p in ours) == pytest.approx(sum(p["weight"] for p in theirs))
    assert all(p["weight"] >= 0 for p in ours)
    softs = [(score_rows[p["chosen"]]["soft"], score_rows[p["rejected"]]["soft"]) for p in ours]
    if any(None in pair for pair in softs):
        assert ours == theirs
        return
    by_right = [
        (high - low, p["weight"])
        for (high, low), p in zip(softs, ours, strict=True)
        if score_rows[p["chosen"]]["correct"] > score_rows[p["rejected"]]["correct"]
    ]
    if all(margin > 0 for margin, _ in by_right):
        for (margin, weight), (other, lighter) in combinations(by_right, 2):
            assert weight * other == pytest.approx(lighter * margin)


def test_weights_by_hand():
    right, soft = (5, 2, 1, 4), (4.5, 1.0, 1.5, 3.0)
    score_rows = [score(r, 9) | {"soft": s} for r, s in zip(right, soft, strict=True)]
    pairs = [(0, 1), (0, 2), (1, 2), (3, 0)]  # margins 3.5, 3.0 and one below 0; the last pair by length
    assert pair_weights(pairs, score_rows, 1.0, "margin") == pytest.approx([4 * m / 7.5 for m in (3.5, 3.0, 0.0, 1.0)])
    assert pair_weights(pairs, score_rows, 0.25, "margin") == pytest.approx([m / 7.5 for m in (3.5, 3.0, 0.0, 1.0)])
    assert pair_weights(pairs, score_rows, 0.25, "none") == [0.25] * 4
    assert pair_weights([(1, 2)], score_rows, 1.0, "margin") == [1.0]  # no pair has a positive margin: equal weights
    old = [score(5, 9), score_rows[1]]  # of a table that is older than the soft score
    assert pair_weights([(0, 1)], old, 1.0, "margin") == [1.0]


def test_pairs_with_equal_margins_are_drawn_at_random_by_article():
    score_rows = [score(5, 20), score(5, 20), score(1, 20), score(1, 20)]
    drawn = Counter(selected("widest_margin", score_rows, 1, seed)[0] for seed in range(60))
    assert set(drawn) == {(0, 2), (0, 3), (1, 2), (1, 3)}


# A margin in standard errors of the score


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([1, 1, 1, 0, 0], [0, 0, 0, 0, 0], 6**0.5),  # mean 3/5, standard deviation sqrt(3/10)
        ([1, 1, 0, 0], [0, 0, 0, 1], 1 / 4 / (0.25 + 2 / 3) ** 0.5 * 2),  # mean 1/4, variance 11/12
        ([1, 0], [0, 1], 0),
        ([0, 0, 0], [1, 1, 0], -2),
        ([1, 1], [0, 0], float("inf")),
        ([1, None, 1, 0], [0, 1, 0, 0], 2),  # items that were not read for both do not count
        ([1], [0], None),
        ([1, None], [0, 0], None),
        ([], [], None),
        ([1, 1], [0, 0, 0], None),
    ],
)
def test_difference_in_standard_errors(chosen, rejected, expected):
    assert standard_errors(chosen, rejected) == (expected if expected is None else pytest.approx(expected))


def answered(*patterns, **settings):
    """The outcome of an article whose summaries answer four questions so: r right, w wrong."""
    scores = [
        score(pattern.count("r"), 40) | {"items": [float(letter == "r") for letter in pattern]} for pattern in patterns
    ]
    return _pair(
        Pairs(preference="accuracy_only", max_per_article=99, **settings), 0, row([(each, {}) for each in scores])
    )


def test_pairs_within_the_noise_are_not_made():
    everything = answered("rrww", "wwww", "rrrr")
    assert sorted((p["chosen"], p["rejected"]) for p in everything["pairs"]) == [(0, 1), (2, 0), (2, 1)]
    clear = answered("rrww", "wwww", "rrrr", min_standard_errors=2)
    assert [(p["chosen"], p["rejected"]) for p in clear["pairs"]] == [(2, 1)]
    assert clear["tally"] == {"summaries to pair": 3, "pairs": 1, "pairs found": 1}
    assert answered("rrww", "wwww", min_standard_errors=2)["skipped"] == "difference within the score's noise"
    assert answered("rrww", "rrww", min_standard_errors=2)["skipped"] == "all ties"
    assert answered("r", "w", min_standard_errors=2)["skipped"] == "score of one item, which has no standard error"


def test_noise_says_nothing_about_pairs_that_length_decides():
    """Both summaries reach the threshold, and the shorter one is preferred, whichever has more right answers."""
    scores = [
        score(correct, words) | {"items": [1.0] * correct + [0.0] * (5 - correct)}
        for correct, words in ((4, 20), (3, 40), (5, 60))
    ]
    margin = Pairs(preference="accuracy_then_length", threshold=3, min_standard_errors=9)
    assert len(_pair(margin, 0, row([(each, {}) for each in scores]))["pairs"]) == 3


@given(score_rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=2, max_size=6))
def test_a_larger_margin_only_drops_pairs(score_rows):
    def pairs(least):
        patterns = ["".join("r" if right else "w" for right in answers) for answers in score_rows]
        outcome = answered(*patterns, min_standard_errors=least)
        return {(p["chosen"], p["rejected"]) for p in outcome.get("pairs", ())}

    assert pairs(0) >= pairs(1) >= pairs(2.5)


def test_answers_without_items_are_compared_with_the_keys():
    """Tables of older versions have no items."""
    questions = [{"question_id": "q", "question": "?", "options": ["x", "y"], "answer": key} for key in (1, 0, 1)]
    assert score_items({"answers": ["B", "unsure", None]}, questions) == [1.0, 0.0, None]
    assert score_items({"answers": ["A"], "items": [0.5]}, questions) == [0.5]
