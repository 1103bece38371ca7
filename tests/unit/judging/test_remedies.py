"""Tests of remedies: the main reason without pairs, and token limits that cut off replies."""

import re

import pytest

from pipeline.config.judging import Pairs
from pipeline.config.loader import parse_config
from pipeline.execution.recipe import get_setting
from pipeline.inference.base import REPLIES, REPLIES_CUT_OFF
from pipeline.judging import tallies
from pipeline.judging.remedies import cut_off_note, few_pairs_note, why_no_pairs
from pipeline.judging.scoring.text_faults import COPIED, LEAD_COPIED, OFF_TOPIC_END, OTHER_LANGUAGE, REPEATED

RAW = {"run": "runs/x", "articles": {"path": "a.jsonl"}, "policy": {"model": "m"}, "judge": {"kind": "cloze"}}
ARTICLE_REASONS = (
    tallies.ALL_TIES,
    tallies.NONE_BEATS_BASE,
    tallies.COPIES_MORE,
    tallies.WITHIN_NOISE,
    tallies.NO_STANDARD_ERROR,
    tallies.IN_A_CIRCLE,
)
SUMMARY_REASONS = (
    *(tallies.CUT_OFF, tallies.UNREAD_SCORE, tallies.TOO_SHORT, tallies.TOO_LONG, tallies.GIBBERISH),
    *(REPEATED, COPIED, LEAD_COPIED, OFF_TOPIC_END, OTHER_LANGUAGE),
)


def config(**sections):
    return parse_config(RAW | sections)


def record(kept=9, articles=64, skipped=None, **unusable):
    skipped = {tallies.UNDER_TWO_USABLE: articles - kept} if skipped is None else skipped
    counts = {f"unusable: {reason}": count for reason, count in unusable.items()}
    return {"in": articles, "kept": kept, "skipped": skipped, "tally": {"summaries to pair": 384, **counts}}


def test_the_main_reason_is_that_of_the_summaries_if_too_few_are_usable():
    few = record(skipped={"under two usable summaries": 51, "all ties": 4}, **{"cut off": 240, "too short": 12})
    limited = config(summaries={"max_tokens": 96})
    why = (
        "Main reason: 240 of 384 summaries were cut off by summaries.max_tokens=96: raise it, ask for a shorter "
        "summary in policy.instruction, or let them be rejected by pairs.cut_off=rejected"
    )
    assert why_no_pairs(few, limited) == why
    assert few_pairs_note(few, limited) == f"only 9 of 64 articles gave a pair. {why}"


def test_the_main_reason_is_that_of_the_articles_if_summaries_are_usable():
    ties = record(skipped={"under two usable summaries": 4, "all ties": 51}, **{"cut off": 20})
    assert why_no_pairs(ties, config(summaries={"n": 6})) == (
        "Main reason: all ties (51 of 64 articles): raise summaries.n=6 or summaries.temperature=1, so that summaries "
        "differ more, or judge.questions=5, or lower pairs.min_word_gap=3"
    )
    assert "or summaries.temperature=[0.7, 1], so" in why_no_pairs(ties, config(summaries={"temperature": [1.0, 0.7]}))
    unknown = record(skipped={"given up by the engine: abort": 51})
    assert why_no_pairs(unknown, config()) == "Main reason: given up by the engine: abort (51 of 64 articles)"


@pytest.mark.parametrize("kept", [0, 16, 64])
def test_enough_pairs_and_none_at_all_have_no_note(kept):
    assert few_pairs_note(record(kept=kept), config()) == ""
    assert why_no_pairs(record(kept=64, skipped={}), config()) == ""


@pytest.mark.parametrize("reason", [*ARTICLE_REASONS, *SUMMARY_REASONS])
def test_each_reason_has_a_remedy_that_names_settings_with_their_values(reason):
    settings = config()
    of_article = reason in ARTICLE_REASONS
    why = why_no_pairs(record(skipped={reason: 55}) if of_article else record(**{reason: 240}), settings)
    assert reason in why or not of_article
    named = re.findall(r"\b((?:pairs|summaries|judge|policy)\.\w+)(?:=([\w.]+))?", why)
    assert named and ": " in why.removeprefix("Main reason: ")
    for name, value in named:
        found = get_setting(settings, name)
        assert not value or value in ("policy", "rejected") or value == str(found) or float(value) == found


def test_a_judge_that_gives_scores_has_no_questions_to_raise():
    margin = config(judge={"kind": "likelihood", "model": "m"}, pairs={"min_margin": 0.5})
    why = why_no_pairs(record(skipped={"all ties": 55}), margin)
    assert "judge.questions" not in why and why.endswith("or lower pairs.min_margin=0.5")
    assert Pairs().min_margin == 0  # then there is nothing to lower
    assert "min_margin" not in why_no_pairs(record(skipped={"all ties": 55}), config(judge=margin.judge.model_dump()))


@pytest.mark.parametrize(
    ("limit", "consequence"),
    [("summaries.max_tokens", "are in no pair"), ("evaluation.max_tokens", "win no comparison")],
)
def test_a_limit_that_cuts_off_more_than_half_of_the_summaries_is_named(limit, consequence):
    settings = config(**{limit.partition(".")[0]: {"max_tokens": 96}})

    def note(cut, replies, is_complete=False):
        return cut_off_note(limit, settings, replies, {REPLIES: replies, REPLIES_CUT_OFF: cut}, is_complete)

    assert note(33, 64) == (
        f"33 of the first 64 summaries were cut off by {limit}=96 and {consequence}: raise it, or ask for a shorter "
        "summary in policy.instruction"
    )
    assert note(32, 64) == note(0, 0) == note(0, 0, is_complete=True) == note(8, 8) == ""
    assert note(8, 8, is_complete=True).startswith("8 of 8 summaries were cut off")


def judge_note(judge, section="judge", rows=64, **tally):
    settings = config(judge=judge) if section == "judge" else config(second_judge=judge)
    return cut_off_note(section, settings, rows, tally)


def test_a_judge_whose_replies_are_cut_off_is_named_with_what_can_be_changed():
    mcq = {"kind": "mcq", "model": "m"}
    drafts = judge_note(mcq, **{"question dropped: question cut off": 40})
    assert drafts == (
        "judge was cut off in the questions about 40 of the first 64 articles: lower judge.questions=5, or use another "
        "judge.model, because this one does not end its replies"
    )
    answers = {"replies": 90, "replies cut off": 60, "answers": 450, "unread": 200}
    assert judge_note(mcq, **answers).startswith("judge was cut off in 60 of the first 90 replies: lower")
    thinking = mcq | {"thinking": {"budget": 64}}
    assert judge_note(thinking, "second_judge", **answers).endswith(
        "raise second_judge.thinking.budget=64, or use another model"
    )
    assert judge_note(mcq, rows=70) == judge_note(None, "second_judge", **answers) == ""
    # A reply of one token ends at its limit and is whole.
    assert judge_note(mcq, **answers | {"unread": 0}) == ""
    assert judge_note({"kind": "likelihood", "model": "m"}, **answers) == ""


def test_the_member_of_a_jury_whose_replies_are_cut_off_is_named():
    members = {"a": {"kind": "mcq", "model": "m"}, "b": {"kind": "rubric", "model": "m"}}
    own = {"replies": 64, "replies cut off": 64, "answers": 64, "unread": 60}
    tally = {f"member b: {what}": count for what, count in own.items()} | {"replies": 128, "replies cut off": 64}
    note = judge_note({"kind": "jury", "members": members}, **tally)
    assert note.startswith(
        "judge.members.b was cut off in 64 of the first 64 replies: use another judge.members.b.model"
    )
