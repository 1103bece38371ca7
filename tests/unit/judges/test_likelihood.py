"""Tests of the judge `likelihood`: its prompts, its value, and what it finds in an article."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.base import Sample
from judges.likelihood.judge import LikelihoodJudge
from judges.likelihood.key_sentences import article_sentences, key_sentences, weight_per_length, word_weights
from judges.likelihood.restore import restore

ARTICLE = (
    "(CNN) Paul Merson has restarted his row with Andros Townsend. The Tottenham midfielder scored for England on "
    "Tuesday. Merson had said that Townsend should not be in the England squad. It rained. Townsend answered Merson on "
    "Twitter after the match in Turin."
)


def score(judge, summaries, logp_of, article=ARTICLE):
    """Answer the judge's prompts with `logp_of(prompt text, continuation)` nats per token, 10 tokens each."""
    prompts = judge.ask_scores(article, summaries)
    replies = [
        [
            Sample(text, [1] * 10, "stop", 10 * logp_of(prompt.messages[0]["content"], text))
            for text in prompt.continuations
        ]
        for prompt in prompts
    ]
    return judge.read_scores(article, summaries, replies)


def test_the_article_is_read_once_for_all_summaries_and_key_sentences_once_for_each():
    summaries = ["Merson is at odds with Townsend.", "It rained in Turin."]
    prompts = LikelihoodJudge(sentences=2).ask_scores(ARTICLE, summaries)
    article, alone, *after = prompts
    assert ARTICLE in article.messages[0]["content"] and article.continuations == tuple(summaries)
    assert [prompt.continuations for prompt in after] == [alone.continuations] * 2 and len(alone.continuations) == 2
    for prompt, summary in zip(after, summaries, strict=True):
        assert summary in prompt.messages[0]["content"] and ARTICLE not in prompt.messages[0]["content"]


def test_value_adds_faithfulness_relevance_and_the_limited_gain():
    summary = "Merson is at odds with Townsend."
    first_key = LikelihoodJudge(sentences=2).ask_scores(ARTICLE, [summary])[1].continuations[0]

    def logp(prompt, text):
        if ARTICLE in prompt:
            return -2.0
        return -4.0 if summary not in prompt else (-3.5 if text == first_key else -1.0)

    (judgement,) = score(LikelihoodJudge(sentences=2, coverage=2.0, max_gain=1.0, relevance=3.0), [summary], logp)
    relevance = weight_per_length(summary, word_weights(article_sentences(ARTICLE)))
    assert judgement.items == pytest.approx((-2 + 3 * relevance + 2 * 0.5, -2 + 3 * relevance + 2 * 1.0))
    assert judgement.value == pytest.approx(sum(judgement.items) / 2)


def test_what_is_said_twice_counts_as_unlikely():
    once = "Merson restarted his row with Townsend."
    flat = LikelihoodJudge(coverage=0.0, relevance=0.0)
    single, twice = score(flat, [once, f"{once} {once}"], lambda prompt, text: -2.0)
    assert single.value == pytest.approx(-2.0)
    assert twice.value == pytest.approx((-2.0 - 6.0) / 2, abs=0.2)


def test_an_empty_summary_is_worse_than_noise():
    noise, empty = score(LikelihoodJudge(), ["zzz qqq", ""], lambda prompt, text: -5.9)
    assert empty.value < noise.value


@pytest.mark.parametrize("replies", [[], [[]], [[]] * 3, [[Sample("x", [1], "stop")]] * 3])
def test_a_reply_that_is_missing_makes_the_value_unread(replies):
    (judgement,) = LikelihoodJudge().read_scores(ARTICLE, ["Merson and Townsend."], replies)
    assert judgement.value is None


def test_a_summary_that_is_too_long_for_the_model_leaves_the_others_scored():
    judge = LikelihoodJudge()
    prompts = judge.ask_scores(ARTICLE, ["Merson.", "Townsend."])
    replies = [[Sample(text, [1], "stop", -2.0) for text in prompt.continuations] for prompt in prompts]
    replies[0][1] = Sample("Townsend.", [1], "length")
    first, second = judge.read_scores(ARTICLE, ["Merson.", "Townsend."], replies)
    assert first.value is not None
    assert second.value is None and second.reason == "not scored: too long"


def test_an_article_without_words_can_be_scored():
    (judgement,) = score(LikelihoodJudge(), ["A summary."], lambda prompt, text: -1.0, article="")
    assert judgement.value == pytest.approx(-1.0)


def test_another_order_asks_about_other_sentences():
    judge = LikelihoodJudge(sentences=2)
    first, second = (judge.ask_scores(ARTICLE, ["Merson."], order)[1].continuations for order in (0, 1))
    assert not set(first) & set(second)


@pytest.mark.parametrize(
    ("settings", "fault"), [({"sentences": 0}, "sentences"), ({"max_gain": 0}, "max_gain"), ({"relevance": -1}, "0 or")]
)
def test_impossible_settings_are_refused(settings, fault):
    with pytest.raises(ValueError, match=fault):
        LikelihoodJudge(**settings)


def test_key_sentences_hold_what_the_article_repeats():
    sentences = article_sentences(ARTICLE)
    assert sentences[0] == "Paul Merson has restarted his row with Andros Townsend."  # without the dateline
    keys = key_sentences(sentences, word_weights(sentences), 3)
    assert keys[0] == sentences[0] and "It rained." not in keys


def test_weight_per_length_prefers_what_matters_and_does_not_grow_with_noise():
    weights = word_weights(article_sentences(ARTICLE))
    about = weight_per_length("Merson argues with Townsend", weights)
    assert about > weight_per_length("It rained in Turin", weights)
    assert about > weight_per_length("Merson argues with Townsend " + "x y z u v w", weights)
    assert weight_per_length("", weights) == 0


@pytest.mark.parametrize(
    ("summary", "restored"),
    [
        ("paul merson restarted his row with andros townsend .", "Paul Merson restarted his row with Andros Townsend."),
        ("townsend -lrb- england -rrb- did n't play , he said", "Townsend (England) didn't play, he said"),
        ("`` it rained '' , merson said", '"It rained", Merson said'),
        ("Merson's row. It rained.", "Merson's row. It rained."),
        ("Merson’s row\u00a0– it rained…", "Merson's row - it rained..."),
        ("Ｍｅｒｓｏｎ，　Ｔｏｗｎｓｅｎｄ！", "Merson, Townsend!"),
        ("Он сказал , что дождь .", "Он сказал, что дождь."),
        ("", ""),
    ],
)  # fmt: skip
def test_restore_gives_a_summary_the_writing_of_its_article(summary, restored):
    assert restore(summary, ARTICLE) == restored


@given(st.text(max_size=80), st.text(max_size=200))
def test_restore_changes_nothing_but_case_spaces_and_marks(summary, article):
    def letters(text):
        return "".join(text.split()).casefold()

    summary = "".join(c for c in summary if c not in "’‘“”–—‑…" and not 0xFF01 <= ord(c) <= 0xFF5E)
    marks = ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-", "`", "''")
    if not any(mark in summary.lower() for mark in marks):
        assert letters(restore(summary, article)) == letters(summary)


@given(st.text(max_size=300), st.lists(st.text(max_size=60), min_size=1, max_size=3, unique=True))
def test_any_text_gets_a_finite_value(article, summaries):
    for judgement in score(LikelihoodJudge(), summaries, lambda prompt, text: -3.0, article):
        assert judgement.value is not None and math.isfinite(judgement.value)
