"""Makes the judge that the settings name: a built-in judge, or an object of the user's class."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from judges.base import ComparingJudge, Judge, ModelFreeJudge, Prompt, ScoringJudge
from judges.cloze import ClozeJudge
from judges.likelihood.judge import LikelihoodJudge
from judges.mcq import McqJudge
from judges.pairwise import PairwiseJudge
from judges.prompts import WORDINGS
from judges.reward import RewardJudge
from judges.rubric import RubricJudge
from judges.verifiable import VerifiableJudge
from pipeline.config import Config, UserError
from pipeline.config.judging import JUDGES, JudgeSettings
from pipeline.judging.preference import ScoreKind
from pipeline.judging.user_code.class_settings import constructor_arguments
from pipeline.judging.user_code.loading import load_user_code

AnyJudge = Judge | ScoringJudge

# The classes of built-in judges other than mcq. Their constructors take `judge.settings`, as a user's class does.
_CLASSES: dict[str, type] = {
    "cloze": ClozeJudge,
    "likelihood": LikelihoodJudge,
    "rubric": RubricJudge,
    "pairwise": PairwiseJudge,
    "reward": RewardJudge,
}
_EXAM_METHODS = ("ask_questions", "read_questions", "ask_answers", "read_answers")
_SCORING_METHODS = ("ask_scores", "read_scores")


def make_judge(settings: JudgeSettings, seed: int, section: str = "judge") -> Any:
    """Make the judge that the settings name: a `Judge`, which asks questions, or a `ScoringJudge`.

    Args:
        settings: the settings of the judge.
        seed: decides the order of the options.
        section: the section of the settings, such as `judge`, for messages.

    Raises:
        UserError: the user's class cannot be loaded, is not a judge, does not accept its settings, or fails.
    """
    assert settings.kind != "jury", "the members of a jury are made one by one"
    if settings.kind == "verifiable":
        return VerifiableJudge(load_user_code(f"{section}.settings.function", str(settings.function), "function"))
    if settings.kind != "mcq":
        cls = _CLASSES.get(settings.kind) or _load_class(settings, section)
        return _make_judge_of_class(cls, settings, seed, section)
    wording = WORDINGS[settings.wording]
    return McqJudge(
        questions=settings.questions,
        options=settings.options,
        seed=seed,
        wording=replace(
            wording,
            questions_prompt=settings.questions_prompt or wording.questions_prompt,
            answers_prompt=settings.answers_prompt or wording.answers_prompt,
        ),
        question_temperature=settings.question_temperature,
        logprobs=settings.logprobs,
        language=settings.language,
    )


def asks_questions(judge: AnyJudge) -> bool:
    """Return whether a judge asks questions. Otherwise it gives scores (`ScoringJudge`)."""
    return not _has(type(judge), "ask_scores", ScoringJudge)


def compares_with_base(config: Config) -> bool:
    """Return whether a judge compares summaries (`judges.base.ComparingJudge`), so that it needs the base's."""
    sections = {"judge": config.judge, "second_judge": config.second_judge}
    return any(compares_summaries(judge, config.seed, section) for section, judge in sections.items() if judge)


def compares_summaries(settings: JudgeSettings, seed: int, section: str = "judge") -> bool:
    """Return whether a judge, or a member of a jury, compares summaries with each other."""
    return any(
        JUDGES[single.kind].compares
        if single.kind in JUDGES
        else bool(getattr(make_judge(single, seed, name), "compares", False))
        for name, single in settings.single_judges(section).items()
    )


def score_kind(settings: JudgeSettings, seed: int, section: str = "judge") -> ScoreKind:
    """Return what a judge's scores hold: right answers, a value, or the values of a jury's members."""
    if settings.kind == "jury":
        return "votes"
    asks = settings.asks_questions
    if asks is None:
        asks = asks_questions(make_judge(settings, seed, section))
    return "answers" if asks else "value"


def reply_method(judge: AnyJudge) -> Callable[[Prompt, int], str] | None:
    """Return the judge's `reply`, which stands in for a model; None if the judge has none."""
    return getattr(judge, "reply", None) if _has(type(judge), "reply", ModelFreeJudge) else None


def _load_class(settings: JudgeSettings, section: str) -> type:
    """Import the user's class and check that it has the methods of a judge."""
    kind = settings.kind
    cls = load_user_code(f"{section}.kind", kind, "class")
    scores = any(_has(cls, name, ScoringJudge) for name in _SCORING_METHODS)
    protocol, methods = (ScoringJudge, _SCORING_METHODS) if scores else (Judge, _EXAM_METHODS)
    if missing := [name for name in methods if not _has(cls, name, protocol)]:
        raise UserError(
            f"{section}.kind is {kind}, which has no method {', '.join(missing)}: see judges.base.{protocol.__name__}"
        )
    if scores and getattr(cls, "compares", False) and not _has(cls, "count_places", ComparingJudge):
        raise UserError(
            f"{section}.kind is {kind}, which compares summaries and has no method count_places: see "
            "judges.base.ComparingJudge"
        )
    engine = getattr(cls, "engine", "text") if scores else "text"
    if engine not in ("text", "likelihood", "reward", "none"):
        raise UserError(
            f"{section}.kind is {kind}, whose engine is {engine!r}: it should be text, likelihood, reward or none"
        )
    if engine in ("likelihood", "reward") and (not settings.model or settings.served):
        raise UserError(
            f"{section}.kind is {kind}, whose engine is {engine}, a model that runs here: set {section}.model, and "
            f"remove {section}.served"
        )
    needs_model = engine != "none"
    if needs_model and not settings.model and not _has(cls, "reply", ModelFreeJudge):
        raise UserError(
            f"{section}.kind is {kind}, which has no method reply, and {section}.model is missing: name a model, or "
            "add reply(prompt, sample), which writes the reply in place of a model"
        )
    return cls


def _make_judge_of_class(cls: type, settings: JudgeSettings, seed: int, section: str) -> Any:
    kind = settings.kind
    common: dict[str, Any] = {"seed": seed}
    optional = {"seed"} if _has(cls, "ask_scores", ScoringJudge) else {"logprobs"}
    if "seed" not in optional:
        common |= {"questions": settings.questions, "options": settings.options, "logprobs": settings.logprobs}
    arguments = constructor_arguments(cls, kind, common, settings.settings, section, optional)
    try:
        return cls(**arguments)
    except ValueError as error:  # a class raises it to refuse a setting
        raise UserError(f"{section}.settings is refused by {kind}: {error}") from None
    except Exception as error:
        raise UserError(f"{section}.kind is {kind}, whose constructor fails: {type(error).__name__}: {error}") from None


def _has(cls: Any, method: str, protocol: Any) -> bool:
    """Return whether a class has a method of its own: a subclass of the protocol inherits an empty one."""
    return callable(getattr(cls, method, None)) and getattr(cls, method) is not getattr(protocol, method, None)
