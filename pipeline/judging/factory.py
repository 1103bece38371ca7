"""Makes the judge that the settings name: a built-in judge, or an object of the user's class."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from judges.base import Judge, ModelFreeJudge, Prompt
from judges.cloze import ClozeJudge
from judges.mcq import McqJudge
from judges.prompts import WORDINGS
from pipeline.config import UserError
from pipeline.config.run import JudgeSettings
from pipeline.judging.class_settings import constructor_arguments
from pipeline.judging.user_code import load_user_code

_METHODS = ("ask_questions", "read_questions", "ask_answers", "read_answers")


def make_judge(settings: JudgeSettings, seed: int, section: str = "judge") -> Judge:
    """Make the judge that the settings name.

    Args:
        settings: the settings of the judge.
        seed: decides the order of the options.
        section: `judge` or `second_judge`, for messages.

    Raises:
        UserError: the user's class cannot be loaded, is not a judge, does not accept its settings, or fails.
    """
    if settings.is_user_class:
        return _make_user_judge(settings, seed, section)
    if settings.kind == "cloze":
        return ClozeJudge(questions=settings.questions, options=settings.options, seed=seed)
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
    )


def reply_method(judge: Judge) -> Callable[[Prompt, int], str] | None:
    """Return the judge's `reply`, which stands in for a model; None if the judge has none."""
    return getattr(judge, "reply", None) if _has(type(judge), "reply", ModelFreeJudge) else None


def _make_user_judge(settings: JudgeSettings, seed: int, section: str) -> Judge:
    kind = settings.kind
    cls = load_user_code(f"{section}.kind", kind, "class")
    if missing := [name for name in _METHODS if not _has(cls, name, Judge)]:
        raise UserError(f"{section}.kind is {kind}, which has no method {', '.join(missing)}: see judges.base.Judge")
    if not settings.model and not _has(cls, "reply", ModelFreeJudge):
        raise UserError(
            f"{section}.kind is {kind}, which has no method reply, and {section}.model is missing: name a model, or "
            "add reply(prompt, sample), which writes the reply in place of a model"
        )
    common = {
        "questions": settings.questions,
        "options": settings.options,
        "seed": seed,
        "logprobs": settings.logprobs,
    }
    arguments = constructor_arguments(cls, kind, common, settings.settings, section)
    try:
        return cls(**arguments)
    except ValueError as error:  # a class raises it to refuse a setting
        raise UserError(f"{section}.settings is refused by {kind}: {error}") from None
    except Exception as error:
        raise UserError(f"{section}.kind is {kind}, whose constructor fails: {type(error).__name__}: {error}") from None


def _has(cls: Any, method: str, protocol: Any) -> bool:
    """Return whether a class has a method of its own: a subclass of the protocol inherits an empty one."""
    return callable(getattr(cls, method, None)) and getattr(cls, method) is not getattr(protocol, method)
