"""Tokens of what will be asked, on a sample of the articles, by the models' own tokenizers and chat templates.

Left out: how often each is asked, and how long the replies are (`plan.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from judges.base import Judge, Prompt, Question, user
from pipeline.config import Config
from pipeline.config.run import JudgeSettings
from pipeline.inference.sampling import fill_article
from pipeline.judging.factory import make_judge
from pipeline.storage.model_files.hub import adapter_config, fetch


@dataclass(frozen=True)
class JudgePromptLengths:
    """Mean tokens of a judge's prompts.

    Attributes:
        article: for questions about an article.
        passage: an article alone, as a passage: what the judge answers from in the first check.
        answers: for answers from an empty passage, questions aside.
        questions: of the questions of an article, as the judge shows them; None where none were asked yet.
        question_limit, answer_limit: tokens of a reply at most.
    """

    article: float
    passage: float
    answers: float
    questions: float | None
    question_limit: int
    answer_limit: int


@dataclass(frozen=True)
class PromptLengths:
    """Mean tokens of a sample; None where a tokenizer is not to be had, or nothing is asked of a model.

    Attributes:
        sample: articles in it.
        prompt: of the policy's prompt; longest: of the longest one.
        article: of an article by the policy's tokenizer.
        judge, second_judge: prompts of each.
        unknown: what has no tokenizer here, and why.
    """

    sample: int
    prompt: float | None
    longest: int
    article: float
    judge: JudgePromptLengths | None
    second_judge: JudgePromptLengths | None
    unknown: tuple[str, ...]


def measure_prompts(config: Config, articles: Sequence[str], rows: Sequence[dict[str, Any]]) -> PromptLengths:
    """Tokenize a sample.

    Args:
        articles: the texts.
        rows: with `questions` where an earlier run asked some; may be none.
    """
    unknown: list[str] = []
    prompt, longest, article = None, 0, 0.0
    if tokenizer := _tokenizer("policy", config.policy.model, unknown):
        asked = Prompt(user(config.policy.instruction), config.summaries.max_tokens)
        prompts = [_count(tokenizer, fill_article(asked, text).messages) for text in articles]
        prompt, longest = fmean(prompts), max(prompts)
        article = fmean(_plain(tokenizer, text) for text in articles)
    return PromptLengths(
        sample=len(articles),
        prompt=prompt,
        longest=longest,
        article=article,
        judge=_asked("judge", config.judge, config.seed, articles, rows, "questions", unknown),
        second_judge=_asked(
            "second_judge", config.second_judge, config.seed, articles, rows, "second_questions", unknown
        ),
        unknown=tuple(unknown),
    )


def _asked(
    who: str,
    settings: JudgeSettings | None,
    seed: int,
    articles: Sequence[str],
    rows: Sequence[dict[str, Any]],
    column: str,
    unknown: list[str],
) -> JudgePromptLengths | None:
    if settings is None or settings.model is None or not (tokenizer := _tokenizer(who, settings.model, unknown)):
        return None
    judge = make_judge(settings, seed)
    empty = _count(tokenizer, judge.ask_answers("", []).messages)
    some = [row[column] for row in rows if row.get(column)]
    return JudgePromptLengths(
        article=fmean(_count(tokenizer, judge.ask_questions(text).messages) for text in articles),
        passage=fmean(_plain(tokenizer, text) for text in articles),
        answers=empty,
        questions=fmean(_block(tokenizer, judge, questions) for questions in some) - empty if some else None,
        question_limit=judge.ask_questions("").max_tokens,
        answer_limit=judge.ask_answers("", []).max_tokens,
    )


def _block(tokenizer: Any, judge: Judge, questions: Sequence[dict[str, Any]]) -> int:
    asked = [Question(q["question_id"], q["question"], tuple(q["options"]), q["answer"]) for q in questions]
    return _count(tokenizer, judge.ask_answers("", asked).messages)


def _tokenizer(who: str, name: str, unknown: list[str]) -> Any:
    from transformers import AutoTokenizer

    try:
        folder: str = name
        if "://" in name:
            folder = fetch(name)
        if adapter := adapter_config(folder):
            folder = adapter["base_model_name_or_path"]
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # offline, gated, no such model, a damaged file: many classes, one meaning
        unknown.append(f"{who}: no tokenizer of {name}: {str(error).strip().splitlines()[0][:160]}")
        return None


def _count(tokenizer: Any, messages: Sequence[dict[str, str]]) -> int:
    from pipeline.inference.vllm import encode_messages

    return len(encode_messages(tokenizer, messages))


def _plain(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
