"""Counts the tokens of prompts on a sample of the articles, with the models' own tokenizers and chat templates.

How often each prompt is sent, and how long replies are, is in `stage_counts.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from judges.base import Judge, Prompt, Question, user
from pipeline.config import Config
from pipeline.config.run import JudgeSettings
from pipeline.config.sanitize import one_line
from pipeline.inference.sampling import fill_article
from pipeline.judging.factory import make_judge
from pipeline.storage.model_files.hub import adapter_config, fetch


@dataclass(frozen=True)
class JudgePromptLengths:
    """Mean tokens of a judge's prompts.

    Attributes:
        article: of the prompt that asks for questions about an article.
        passage: of an article alone. It is the passage in the check that answers from the whole article.
        answers: of the prompt that asks for answers, with an empty passage and without questions.
        questions: of an article's questions in a prompt; None where no run has asked any yet.
        question_limit, answer_limit: the most tokens of a reply.
    """

    article: float
    passage: float
    answers: float
    questions: float | None
    question_limit: int
    answer_limit: int


@dataclass(frozen=True)
class PromptLengths:
    """Mean tokens of a sample. None where a tokenizer cannot be loaded, or no model is used.

    Attributes:
        sample: the number of articles in it.
        prompt: of the policy's prompt.
        longest: of the policy's longest prompt.
        article: of an article, by the policy's tokenizer.
        judge, second_judge: of the prompts of each judge.
        unknown: a note for each tokenizer that cannot be loaded.
    """

    sample: int
    prompt: float | None
    longest: int
    article: float
    judge: JudgePromptLengths | None
    second_judge: JudgePromptLengths | None
    unknown: tuple[str, ...]


def measure_prompts(config: Config, articles: Sequence[str], rows: Sequence[dict[str, Any]]) -> PromptLengths:
    """Tokenize the prompts of a sample.

    Args:
        articles: the texts.
        rows: rows of earlier runs with `questions` or `second_questions`; may be empty.
    """
    unknown: list[str] = []
    prompt, longest, article_tokens = None, 0, 0.0
    if tokenizer := _load_tokenizer("policy", config.policy.model, unknown):
        template = Prompt(user(config.policy.instruction), config.summaries.max_tokens)
        prompts = [_count_prompt(tokenizer, fill_article(template, text).messages) for text in articles]
        prompt, longest = fmean(prompts), max(prompts)
        article_tokens = fmean(_count_text(tokenizer, text) for text in articles)
    return PromptLengths(
        sample=len(articles),
        prompt=prompt,
        longest=longest,
        article=article_tokens,
        judge=_measure_judge("judge", config, articles, [row.get("questions") for row in rows], unknown),
        second_judge=_measure_judge(
            "second_judge", config, articles, [row.get("second_questions") for row in rows], unknown
        ),
        unknown=tuple(unknown),
    )


def _measure_judge(
    section: str, config: Config, articles: Sequence[str], questions: Sequence[Any], unknown: list[str]
) -> JudgePromptLengths | None:
    """The prompts of one judge.

    Args:
        section: of the configuration that describes the judge.
        questions: those of each row of earlier runs; None or empty where a row has none.
    """
    settings: JudgeSettings | None = getattr(config, section)
    if settings is None or settings.model is None:
        return None
    tokenizer = _load_tokenizer(section, settings.model, unknown)
    if tokenizer is None:
        return None
    judge = make_judge(settings, config.seed)
    empty = _count_prompt(tokenizer, judge.ask_answers("", []).messages)
    with_questions = [_count_with_questions(tokenizer, judge, of_row) for of_row in questions if of_row]
    return JudgePromptLengths(
        article=fmean(_count_prompt(tokenizer, judge.ask_questions(text).messages) for text in articles),
        passage=fmean(_count_text(tokenizer, text) for text in articles),
        answers=empty,
        questions=fmean(with_questions) - empty if with_questions else None,
        question_limit=judge.ask_questions("").max_tokens,
        answer_limit=judge.ask_answers("", []).max_tokens,
    )


def _count_with_questions(tokenizer: Any, judge: Judge, questions: Sequence[dict[str, Any]]) -> int:
    parsed = [Question(q["question_id"], q["question"], tuple(q["options"]), q["answer"]) for q in questions]
    return _count_prompt(tokenizer, judge.ask_answers("", parsed).messages)


def _load_tokenizer(section: str, model: str, unknown: list[str]) -> Any:
    """The tokenizer of a model; None where it cannot be loaded, with a note in `unknown`."""
    from transformers import AutoTokenizer

    try:
        folder = fetch(model) if "://" in model else model
        if adapter := adapter_config(folder):
            folder = adapter["base_model_name_or_path"]
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # offline, gated, no such model, a damaged file: the classes are many
        unknown.append(f"{section}: the tokenizer of {model} cannot be loaded: {one_line(error, limit=160)}")
        return None


def _count_prompt(tokenizer: Any, messages: Sequence[dict[str, str]]) -> int:
    from pipeline.inference.vllm import encode_messages

    return len(encode_messages(tokenizer, messages))


def _count_text(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
