"""Says what to change in the settings when summaries cannot be used.

There are two occasions: too few articles give a pair, or a token limit cuts off more than half of the replies.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.config.judging import JudgeSettings, Pairs
from pipeline.inference.base import REPLIES, REPLIES_CUT_OFF
from pipeline.judging import tallies
from pipeline.judging.factory import make_judge
from pipeline.judging.scoring.text_faults import COPIED, LEAD_COPIED, OFF_TOPIC_END, OTHER_LANGUAGE, REPEATED

_FEW_PAIRS = 0.25  # of the articles; if fewer give a pair, a note says why
_MANY_CUT_OFF = 0.5  # of the replies; if more are cut off, a note says so
_FEW_REPLIES = 16  # so few replies show nothing yet
_UNREAD = 0.1  # of the answers; if so few are unread, a judge's replies are whole although they end at the limit
_NOT_USABLE = (tallies.UNDER_TWO_USABLE, tallies.NONE_WITHOUT_FAULT, tallies.NONE_BY_POLICY, tallies.NONE_BY_BASE)
_REJECT = "let them be rejected by pairs.cut_off=rejected"
_SHORTER = "ask for a shorter summary in policy.instruction"


# Pairs


def few_pairs_note(record: Mapping[str, Any], config: Config) -> str:
    """A note if few articles gave a pair: how many, the main reason, and its remedy. Empty if enough did, or if none.

    Args:
        record: of a table `pairs`.
        config: the settings of the run.
    """
    if not 0 < record["kept"] < _FEW_PAIRS * record["in"]:
        return ""
    return f"only {record['kept']:,} of {record['in']:,} articles gave a pair. {why_no_pairs(record, config)}"


def why_no_pairs(record: Mapping[str, Any], config: Config) -> str:
    """The main reason why articles gave no pair, and its remedy, as a sentence without its full stop.

    Args:
        record: of a table `pairs`.
        config: the settings of the run.

    Returns:
        an empty text if each article gave a pair.
    """
    if not record["skipped"]:
        return ""
    (reason, count), *_ = Counter(record["skipped"]).most_common(1)
    tally, unusable = record["tally"], tallies.count_unusable(record["tally"])
    if reason in _NOT_USABLE and unusable:
        (fault, summaries), *_ = unusable.most_common(1)
        problem, remedy = _of_summaries(fault, config)
        found = f"{summaries:,} of {tally[tallies.TO_PAIR]:,} summaries {problem}"
    else:
        remedy = _of_articles(reason, config)
        found = f"{reason} ({count:,} of {record['in']:,} articles)"
    return f"Main reason: {found}{f': {remedy}' if remedy else ''}"


def _of_summaries(fault: str, config: Config) -> tuple[str, str]:
    """What is wrong with summaries that cannot be paired, and its remedy."""
    pairs, summaries = config.pairs, config.summaries
    limits = {
        REPEATED: "pairs.max_repeated",
        COPIED: "pairs.max_copied",
        LEAD_COPIED: "pairs.max_lead_copied",
        OFF_TOPIC_END: "pairs.max_off_topic_end",
        OTHER_LANGUAGE: "pairs.same_language",
    }
    match fault:
        case tallies.CUT_OFF:
            return f"were cut off by summaries.max_tokens={summaries.max_tokens}", f"raise it, {_SHORTER}, or {_REJECT}"
        case tallies.UNREAD_SCORE:
            return "have an answer of the judge that could not be read", (
                "rondo judge-card shows how good the judge is; use another judge.model"
            )
        case tallies.TOO_SHORT:
            return f"have under pairs.min_words={pairs.min_words} words", (
                "lower it, or ask for a longer summary in policy.instruction"
            )
        case tallies.TOO_LONG:
            return f"have pairs.max_words={pairs.max_words} words or more", f"raise it, or {_SHORTER}"
        case tallies.GIBBERISH:
            return "have invalid characters", (
                f"lower summaries.temperature={summaries.shown_temperature}, or use another policy.model"
            )
        case _ if fault in limits:
            limit = limits[fault]
            change = "set it to false" if fault == OTHER_LANGUAGE else "raise it"
            return f"are beyond {limit}={getattr(pairs, limit.partition('.')[2])} ({fault})", (
                f"{change}, or lower summaries.temperature={summaries.shown_temperature}"
            )
    return f"are unusable ({fault})", ""


def _of_articles(reason: str, config: Config) -> str:
    """The remedy for a reason why articles have usable summaries and no pair; empty if none is known."""
    pairs, summaries = config.pairs, config.summaries
    match reason:
        case tallies.ALL_TIES:
            more_items = f", or judge.questions={config.judge.questions}" if config.judge.asks_questions else ""
            margin = _margin(pairs)
            return (
                f"raise summaries.n={summaries.n} or summaries.temperature={summaries.shown_temperature}, so that "
                f"summaries differ more{more_items}{f', or lower {margin}' if margin else ''}"
            )
        case tallies.COPIES_MORE:
            return f"raise pairs.max_copied_gap={pairs.max_copied_gap}"
        case tallies.WITHIN_NOISE | tallies.NO_STANDARD_ERROR:
            more_items = f", or raise judge.questions={config.judge.questions}" if config.judge.asks_questions else ""
            return f"lower pairs.min_standard_errors={pairs.min_standard_errors:g}{more_items}"
        case tallies.IN_A_CIRCLE:
            return "give the members of the jury other weights, or raise pairs.min_margin"
        case tallies.NONE_BEATS_BASE:
            return f"raise summaries.n={summaries.n}, or set pairs.rejected=policy"
    return ""


def _margin(pairs: Pairs) -> str:
    """The setting that makes close summaries a tie, with its value; empty if none does."""
    if pairs.preference in ("higher_score", "majority_vote"):
        return f"pairs.min_margin={pairs.min_margin:g}" if pairs.min_margin else ""
    return f"pairs.min_word_gap={pairs.min_word_gap}" if pairs.preference == "accuracy_then_length" else ""


# Token limits


def cut_off_note(limit: str, config: Config, rows: int, tally: Mapping[str, int], is_complete: bool = False) -> str:
    """A note if a token limit cut off more than half of the replies so far: how many, and the remedy. Else empty.

    Args:
        limit: what decides the limit: `summaries.max_tokens`, `evaluation.max_tokens`, `judge` or `second_judge`.
        config: the settings of the run.
        rows: how many rows of the table are written.
        tally: the sums of their tallies.
        is_complete: the table is finished, so that few replies are all that there are.
    """
    if limit not in ("judge", "second_judge"):
        cut, replies = tally.get(REPLIES_CUT_OFF, 0), tally.get(REPLIES, 0)
        if not _are_many(cut, replies, is_complete):
            return ""
        is_training = limit == "summaries.max_tokens"
        is_rejected = is_training and config.pairs.cut_off == "rejected"
        consequence = (
            "can only be rejected" if is_rejected else "are in no pair" if is_training else "win no comparison"
        )
        most = (config.summaries if is_training else config.evaluation).max_tokens
        return (
            f"{_of(cut, replies, is_complete)} summaries were cut off by {limit}={most} and {consequence}: raise it, "
            f"or {_SHORTER}"
        )
    judge: JudgeSettings | None = getattr(config, limit)
    for name, single in judge.single_judges(limit).items() if judge else ():
        prefix = f"{tallies.MEMBER_PREFIX}{name.rpartition('.')[2]}: " if name != limit else ""
        own = {what.removeprefix(prefix): count for what, count in tally.items() if what.startswith(prefix)}
        note = _judge_cut_off(name, single, rows, own, is_complete)
        if note and getattr(make_judge(single, config.seed, name), "engine", "text") == "text":
            return note
    return ""


def _judge_cut_off(name: str, judge: JudgeSettings, rows: int, tally: Mapping[str, int], is_complete: bool) -> str:
    drafts = tally.get(f"{tallies.DROPPED_PREFIX}{tallies.QUESTION_CUT_OFF}", 0)
    cut, replies = tally.get(REPLIES_CUT_OFF, 0), tally.get(REPLIES, 0)
    if _are_many(drafts, rows, is_complete):  # each article has one reply with questions
        found = f"{name} was cut off in the questions about {_of(drafts, rows, is_complete)} articles"
    elif _are_many(cut, replies, is_complete) and _are_unread(tally):
        found = f"{name} was cut off in {_of(cut, replies, is_complete)} replies"
    else:
        return ""
    if judge.is_user_class:
        return f"{found}: raise max_tokens in the prompts of {judge.kind}"
    if judge.thinking and judge.thinking.budget:
        return f"{found}: raise {name}.thinking.budget={judge.thinking.budget}, or use another model"
    fewer = f"lower {name}.questions={judge.questions}, or " if judge.kind == "mcq" else ""
    return f"{found}: {fewer}use another {name}.model, because this one does not end its replies"


def _are_unread(tally: Mapping[str, int]) -> bool:
    return tally.get(tallies.UNREAD, 0) > _UNREAD * tally.get(tallies.ANSWERS, 0)


def _are_many(cut: int, replies: int, is_complete: bool) -> bool:
    return cut > _MANY_CUT_OFF * replies and (is_complete or replies >= _FEW_REPLIES)


def _of(cut: int, replies: int, is_complete: bool) -> str:
    return f"{cut:,} of {'' if is_complete else 'the first '}{replies:,}"
