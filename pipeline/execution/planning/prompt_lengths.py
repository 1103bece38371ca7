"""Counts the tokens of prompts on a sample of the articles, with the models' own tokenizers and chat templates.

How often each prompt is sent, and how long replies are, is in `stage_counts.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from judges.base import Judge, Question
from pipeline.config import Config
from pipeline.config.judging import JudgeSettings
from pipeline.config.messages import one_line
from pipeline.config.run import PolicySettings
from pipeline.inference.sampling import fill_article, instruction_prompt
from pipeline.inference.thinking import Thinker, make_thinker
from pipeline.judging.factory import asks_questions, make_judge
from pipeline.storage.model_files.hub import adapter_config, fetch


@dataclass(frozen=True)
class JudgePromptLengths:
    """Mean tokens of a judge's prompts.

    Attributes:
        article: of the prompt that asks for questions about an article.
        passage: of an article alone. It is the passage in the check that answers from the whole article.
        answers: of the prompt that asks for answers, with an empty passage and without questions.
        questions: of an article's questions in a prompt; None if no earlier run has any questions.
        question_limit, answer_limit: the most tokens in a reply with questions, and in a reply with answers. They
            include the budget of a thought.
    """

    article: float
    passage: float
    answers: float
    questions: float | None
    question_limit: int
    answer_limit: int


@dataclass(frozen=True)
class PromptLengths:
    """Numbers of tokens, measured on a sample of the articles.

    Attributes:
        sample: the number of articles in the sample.
        prompt: mean tokens of the policy's prompt; None if the policy's tokenizer cannot be loaded.
        longest_prompt: tokens of the policy's longest prompt; 0 if its tokenizer cannot be loaded.
        article: mean tokens of an article by the policy's tokenizer; 0 if that cannot be loaded.
        judge, second_judge: the prompts of each judge; None if there is no such judge, if it has no model, or if its
            tokenizer cannot be loaded.
        notes: one message for each tokenizer that cannot be loaded.
    """

    sample: int
    prompt: float | None
    longest_prompt: int
    article: float
    judge: JudgePromptLengths | None
    second_judge: JudgePromptLengths | None
    notes: tuple[str, ...]


def measure_prompts(config: Config, articles: Sequence[str], rows: Sequence[dict[str, Any]]) -> PromptLengths:
    """Tokenize the prompts of a sample of the articles.

    Args:
        config: settings of the run, with the models whose tokenizers are used.
        articles: texts of the sampled articles.
        rows: rows of this run or earlier runs with `questions` or `second_questions`; may be empty.
    """
    notes: list[str] = []
    mean_prompt_length, longest_prompt, mean_article_length = None, 0, 0.0
    if tokenizer := load_tokenizer("policy", config.policy.model, notes):
        template = instruction_prompt(config.policy, config.summaries.max_tokens)
        thinker = _thinker(tokenizer, "policy", config.policy)
        prompt_lengths = [count_prompt(tokenizer, fill_article(template, text).messages, thinker) for text in articles]
        mean_prompt_length, longest_prompt = fmean(prompt_lengths), max(prompt_lengths)
        mean_article_length = fmean(_count_text(tokenizer, text) for text in articles)
    return PromptLengths(
        sample=len(articles),
        prompt=mean_prompt_length,
        longest_prompt=longest_prompt,
        article=mean_article_length,
        judge=_measure_judge("judge", config, articles, [row.get("questions") for row in rows], notes),
        second_judge=_measure_judge(
            "second_judge", config, articles, [row.get("second_questions") for row in rows], notes
        ),
        notes=tuple(notes),
    )


def _measure_judge(
    section: str, config: Config, articles: Sequence[str], questions: Sequence[Any], notes: list[str]
) -> JudgePromptLengths | None:
    """Tokenize the prompts of one judge. None if there is no such judge, or if it has no model or no tokenizer.

    Args:
        section: the section of the configuration that describes the judge.
        questions: the questions of each row; None or empty for a row without questions.
        notes: gets a message if the tokenizer cannot be loaded.
    """
    settings: JudgeSettings | None = getattr(config, section)
    if settings is None or settings.model is None:
        return None
    tokenizer = load_tokenizer(section, settings.model, notes)
    if tokenizer is None:
        return None
    judge = make_judge(config.questions.drafting(settings), config.seed)
    if not asks_questions(judge):
        return None  # its prompts are not counted: records of earlier runs give its rate
    thinker = _thinker(tokenizer, section, settings)
    thought_limit = thinker.budget or 0
    length_without_questions = count_prompt(tokenizer, judge.ask_answers("", []).messages, thinker)
    lengths_with_questions = [
        _count_with_questions(tokenizer, judge, row_questions, thinker) for row_questions in questions if row_questions
    ]
    question_tokens = fmean(lengths_with_questions) - length_without_questions if lengths_with_questions else None
    return JudgePromptLengths(
        article=fmean(count_prompt(tokenizer, judge.ask_questions(text).messages, thinker) for text in articles),
        passage=fmean(_count_text(tokenizer, text) for text in articles),
        answers=length_without_questions,
        questions=question_tokens,
        question_limit=judge.ask_questions("").max_tokens + thought_limit,
        answer_limit=make_judge(settings, config.seed).ask_answers("", []).max_tokens + thought_limit,
    )


def _thinker(tokenizer: Any, section: str, settings: PolicySettings | JudgeSettings) -> Thinker:
    return make_thinker(tokenizer, settings.thinking, section, str(settings.model))


def _count_with_questions(tokenizer: Any, judge: Judge, questions: Sequence[dict[str, Any]], thinker: Thinker) -> int:
    parsed = [Question(q["question_id"], q["question"], tuple(q["options"]), q["answer"]) for q in questions]
    return count_prompt(tokenizer, judge.ask_answers("", parsed).messages, thinker)


def load_tokenizer(section: str, model: str, notes: list[str]) -> Any:
    """Load the tokenizer of a model. If it cannot be loaded, add a message to `notes` and return None."""
    from transformers import AutoTokenizer

    try:
        folder = fetch(model) if "://" in model else model
        if adapter := adapter_config(folder):
            folder = adapter["base_model_name_or_path"]
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # offline, gated, no such model, a damaged file: the classes are many
        notes.append(f"{section}: the tokenizer of {model} cannot be loaded: {one_line(error, limit=160)}")
        return None


def count_prompt(tokenizer: Any, messages: Sequence[dict[str, str]], thinker: Thinker) -> int:
    """The tokens of a conversation as an engine gives it to its model."""
    from pipeline.inference.vllm import encode_messages

    return len(encode_messages(tokenizer, messages, thinker))


def _count_text(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
