"""Makes the judge that the settings name: a built-in judge, or an object of the user's class."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from judges.base import Judge, ModelFreeJudge, Prompt, ScoringJudge
from judges.cloze import ClozeJudge
from judges.mcq import McqJudge
from judges.prompts import WORDINGS
from pipeline.config import UserError
from pipeline.config.judging import JudgeSettings
from pipeline.judging.user_code.class_settings import constructor_arguments
from pipeline.judging.user_code.loading import load_user_code

AnyJudge = Judge | ScoringJudge

# The classes of built-in judges other than mcq. Their constructors take `judge.settings`, as a user's class does.
_CLASSES: dict[str, type] = {"cloze": ClozeJudge}
_EXAM_METHODS = ("ask_questions", "read_questions", "ask_answers", "read_answers")
_SCORING_METHODS = ("ask_scores", "read_scores")


def make_judge(settings: JudgeSettings, seed: int, section: str = "judge") -> Any:
    """Make the judge that the settings name: a `Judge`, which asks questions, or a `ScoringJudge`.

    Args:
        settings: the settings of the judge.
        seed: decides the order of the options.
        section: `judge` or `second_judge`, for messages.

    Raises:
        UserError: the user's class cannot be loaded, is not a judge, does not accept its settings, or fails.
    """
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
    needs_model = not scores or getattr(cls, "engine", "text") != "none"
    if needs_model and not settings.model and not _has(cls, "reply", ModelFreeJudge):
        raise UserError(
            f"{section}.kind is {kind}, which has no method reply, and {section}.model is missing: name a model, or "
            "add reply(prompt, sample), which writes the reply in place of a model"
        )
    return cls


def _make_judge_of_class(cls: type, settings: JudgeSettings, seed: int, section: str) -> Any:
    kind = settings.kind
    common: dict[str, Any] = {"seed": seed}
    if not _has(cls, "ask_scores", ScoringJudge):
        common |= {"questions": settings.questions, "options": settings.options, "logprobs": settings.logprobs}
    arguments = constructor_arguments(cls, kind, common, settings.settings, section)
    try:
        return cls(**arguments)
    except ValueError as error:  # a class raises it to refuse a setting
        raise UserError(f"{section}.settings is refused by {kind}: {error}") from None
    except Exception as error:
        raise UserError(f"{section}.kind is {kind}, whose constructor fails: {type(error).__name__}: {error}") from None


def _has(cls: Any, method: str, protocol: Any) -> bool:
    """Return whether a class has a method of its own: a subclass of the protocol inherits an empty one."""
    return callable(getattr(cls, method, None)) and getattr(cls, method) is not getattr(protocol, method, None)
