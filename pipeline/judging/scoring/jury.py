"""Has several judges ask about articles and score summaries, each with an engine pool of its own, one after the other.

A question carries the name of the member that asked it, and only this member answers it. A score has each member's
value among its `items`, in the order of the settings, and the members' weights. `preference.majority_vote` counts the
votes. Everything that a member tallies is also kept under its own name, for its own judge card.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

from ray.data import Dataset

from judges.base import Judge, Skip
from pipeline.config.judging import JudgeSettings, Questions
from pipeline.inference.base import Engine, EngineStep
from pipeline.inference.pool import EnginePool
from pipeline.judging import tallies
from pipeline.judging.factory import AnyJudge, asks_questions, make_judge
from pipeline.judging.question_generation import generate_questions
from pipeline.judging.scoring.length_bias import count_length_bias
from pipeline.judging.scoring.step import scoring_step
from pipeline.storage.schema import Outcome, Row, map_rows

# The engines of a judge: a pool, or a pool for each member of a jury.
JudgePool = EnginePool | Mapping[str, EnginePool]

# Each member counts the same summaries: only the first counts them for the whole jury.
_COUNTED_ONCE = {tallies.JUDGED, tallies.JUDGED_AGAIN}
# The length bias of a jury is that of its own value; members keep theirs under their names.
_OF_THE_MEMBER = {
    tallies.LENGTHS_DECIDED,
    tallies.LONGER_WON,
    tallies.LENGTH_CORRELATIONS,
    tallies.LENGTH_CORRELATION_SUM,
}


def ask_by_jury(
    rows: Dataset, jury: JudgeSettings, settings: Questions, seed: int, pools: Mapping[str, EnginePool]
) -> Dataset:
    """Add `questions` and `dropped` by all members that ask questions.

    A member with fewer than `settings.min_questions` good questions about an article asks none about it, and abstains.
    An article is skipped if no member can judge its summaries.
    """
    members = _make_members(jury, seed, "judge")
    asked = _ask(rows, jury, settings, seed, pools, "judge", ("questions", "dropped"))
    if not all(map(asks_questions, members.values())):
        return asked
    return map_rows(asked, partial(_require_questions, settings.min_questions), ("questions", "dropped"))


def ask_by_second_jury(
    rows: Dataset, jury: JudgeSettings, settings: Questions, seed: int, pools: Mapping[str, EnginePool]
) -> Dataset:
    """Add `second_questions` by all members that ask questions. No article is skipped."""
    return _ask(rows, jury, settings, seed, pools, "second_judge", ("second_questions",))


def _make_members(jury: JudgeSettings, seed: int, section: str) -> dict[str, AnyJudge]:
    return {name: make_judge(each, seed, f"{section}.members.{name}") for name, each in jury.members.items()}


def _asking_step(
    jury: JudgeSettings, name: str, settings: Questions, seed: int, section: str, writes: tuple[str, ...]
) -> EngineStep:
    """The step in which a member asks questions, with those of the checks that it can do."""
    member = jury.members[name]
    asking = make_judge(settings.drafting(member), seed, f"{section}.members.{name}")
    return partial(_add_questions, asking, member.questions, settings.for_judge(member), name, writes)


def _ask(
    rows: Dataset,
    jury: JudgeSettings,
    settings: Questions,
    seed: int,
    pools: Mapping[str, EnginePool],
    section: str,
    writes: tuple[str, ...],
) -> Dataset:
    """Add the members' questions as the first column of `writes`, and the dropped ones' reasons as the second."""
    rows = map_rows(rows, partial(_empty_lists, writes), writes)
    for name, judge in _make_members(jury, seed, section).items():
        if asks_questions(judge):
            rows = pools[name].map(rows, _asking_step(jury, name, settings, seed, section, writes), writes)
    return rows


def _empty_lists(names: tuple[str, ...], row: Row) -> Row:
    return {name: [] for name in names}


def _add_questions(
    judge: Judge,
    count: int,
    settings: Questions,
    name: str,
    writes: tuple[str, ...],
    engine: Engine,
    rows: list[Row],
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for row, generated in zip(rows, generate_questions(judge, count, settings, engine, rows), strict=True):
        assert not isinstance(generated, Skip), "generate_questions puts the reason into the column `skipped`"
        own = [] if generated.get("skipped") else [question | {"judge": name} for question in generated["questions"]]
        tally = generated["tally"] | {"articles with too few questions": int(bool(generated.get("skipped")))}
        columns = {column: row[column] + new for column, new in zip(writes, (own, generated["dropped"]), strict=False)}
        outcomes.append(columns | {"tally": tally | _named(tally, name)})
    return outcomes


def _require_questions(fewest: int, row: Row) -> Outcome:
    if not row["questions"]:
        return Skip(f"under {fewest} good questions")
    return {"questions": row["questions"], "dropped": row["dropped"]}


def score_by_jury(
    rows: Dataset,
    jury: JudgeSettings,
    seed: int,
    pools: Mapping[str, EnginePool],
    again: float = 0.0,
    anchored: bool = False,
    prefix: str = "",
) -> Dataset:
    """Add `scores` by all members.

    Args:
        rows: rows with `questions` and `summaries`.
        jury: the settings of the jury.
        seed: decides the order of options.
        pools: the engine pool of each member.
        again, anchored: as for `scoring_step`.
        prefix: `second_` for the second judge, whose columns are `second_questions` and `second_scores`.
    """
    members, column = _make_members(jury, seed, f"{prefix}judge"), f"{prefix}scores"
    for place, (name, judge) in enumerate(members.items()):
        member = _Member(name, jury.members[name].weight, asks_questions(judge), is_first=place == 0)
        step = partial(_add_member, scoring_step(judge, again, anchored), member, prefix)
        rows = pools[name].map(rows, step, (column,))
    return map_rows(rows, partial(_finish, column), (column,))


def judge_rows(
    jury: JudgeSettings, settings: Questions, seed: int, engines: Mapping[str, Engine], rows: list[Row]
) -> list[Outcome]:
    """Ask about articles and score their summaries by all members in this process, without Ray.

    Args:
        jury: the settings of the jury.
        settings: which questions are used. A member with too few questions about an article abstains.
        seed: decides the order of options.
        engines: the engine of each member.
        rows: articles with `summaries`.

    Returns:
        for each row `questions`, `dropped`, `scores` and `tally`; a Skip if it has no summary.
    """
    members, asked = _make_members(jury, seed, "judge"), ("questions", "dropped")
    rows = [row | _empty_lists(asked, row) for row in rows]
    for name, judge in members.items():
        if asks_questions(judge):
            step = _asking_step(jury, name, settings, seed, "judge", asked)
            rows = [row | cast(Row, outcome) for row, outcome in zip(rows, step(engines[name], rows), strict=True)]
    indices = [i for i, row in enumerate(rows) if row["summaries"]]
    outcomes: list[Outcome] = [Skip("no summary")] * len(rows)
    judged = [rows[i] for i in indices]
    for place, (name, judge) in enumerate(members.items()):
        member = _Member(name, jury.members[name].weight, asks_questions(judge), is_first=place == 0)
        scored = _add_member(scoring_step(judge), member, "", engines[name], judged)
        judged = [row | cast(Row, outcome) for row, outcome in zip(judged, scored, strict=True)]
    for i, row in zip(indices, judged, strict=True):
        outcomes[i] = {**{name: row[name] for name in asked}, **cast(Row, _finish("scores", row))}
    return outcomes


@dataclass(frozen=True)
class _Member:
    """A member of a jury that scores rows.

    Attributes:
        asks: it asks questions, and its value is the share of right answers.
        is_first: no member scored the rows before it.
    """

    name: str
    weight: float
    asks: bool
    is_first: bool


def _add_member(score: EngineStep, member: _Member, prefix: str, engine: Engine, rows: list[Row]) -> list[Outcome]:
    """Score rows by one member, and add its values to the items of the scores of the members before it."""
    column, name = f"{prefix}scores", member.name
    own_rows = [row | {"questions": [q for q in row[f"{prefix}questions"] if q.get("judge") == name]} for row in rows]
    outcomes: list[Outcome] = []
    for row, outcome in zip(rows, score(engine, own_rows), strict=True):
        if isinstance(outcome, Skip):
            outcomes.append(outcome)
            continue
        # The first member replaces scores that an earlier table may hold.
        before = [{"items": [], "weights": []} for _ in outcome["scores"]] if member.is_first else row[column]
        scores = [
            _empty_score(own)
            | {"items": [*earlier["items"], _value(own, member.asks)], "weights": [*earlier["weights"], member.weight]}
            for own, earlier in zip(outcome["scores"], before, strict=True)
        ]
        tally = outcome["tally"]
        left_out = _OF_THE_MEMBER | (set() if member.is_first else _COUNTED_ONCE)
        common = {what: count for what, count in tally.items() if what not in left_out}
        outcomes.append({column: scores, "tally": common | _named(tally, name)})
    return outcomes


def _value(score: Row, asks: bool) -> float | None:
    """The value of a member, for a judge that asks questions the share of right answers; None if it abstains."""
    if score["unread"] or (asks and not score["answers"]):
        return None
    return score["correct"] / len(score["answers"]) if asks else float(score["value"])


def _empty_score(score: Row) -> Row:
    return {
        "answers": [],
        "correct": 0,
        "unread": 0,
        "words": score["words"],
        "invalid_chars": score["invalid_chars"],
        "answer_logps": None,
        "soft": None,
        "value": None,
        "faults": score.get("faults"),
    }


def _finish(column: str, row: Row) -> Outcome:
    """Give each score its value, the weighted mean of the members' values, which the report shows."""
    scores = [score | _mean(score["items"], score["weights"]) for score in row[column]]
    texts = [summary["text"].strip() for summary in row["summaries"]]
    return {column: scores, "tally": count_length_bias(texts, scores)}


def _mean(items: list[float | None], weights: list[float]) -> Row:
    read = [(item, weight) for item, weight in zip(items, weights, strict=True) if item is not None]
    if not read:
        return {"value": None, "unread": 1}
    return {"value": sum(item * weight for item, weight in read) / sum(weight for _, weight in read), "unread": 0}


def _named(tally: Mapping[str, int], name: str) -> dict[str, int]:
    """The counts of a member under its own name."""
    return {f"{tallies.MEMBER_PREFIX}{name}: {what}": count for what, count in tally.items()}
