"""Says before a run costs anything how many articles it has left, and why the others are skipped.

The stage `articles` skips rows by their own text. Later an engine skips an article whose prompt has more tokens than
its model may read. Here such prompts are counted before an engine starts, with the models' own tokenizers.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judges.base import Prompt
from pipeline.config import Config, UserError
from pipeline.config.judging import JudgeSettings
from pipeline.config.run import Articles, PolicySettings
from pipeline.execution.planning.prompt_lengths import count_prompt, load_tokenizer
from pipeline.inference.sampling import fill_article, instruction_prompt
from pipeline.inference.thinking import make_thinker
from pipeline.judging.factory import asks_questions, make_judge
from pipeline.storage.model_files import shapes
from pipeline.storage.schema import SPLITS

SAMPLED = 500  # articles whose prompts are looked at; of a larger corpus a sample
_FAR_FEWER = 0.8  # a limit that leaves less than this share of what it asks for gets a note
_FEW_LEFT = 0.5  # so does a corpus of which less than this share is left
_TEMPLATE_TOKENS = 64  # more than most chat templates add to a message

ENGINES = ("policy_engine", "judge_engine")  # those that skip an article whose prompt is too long

Text = tuple[str, str]  # the split and the article


def skipped_note(record: Mapping[str, Any], articles: Articles) -> str:
    """A note if far fewer articles are left than the settings ask for, with the reason and the remedy; else empty.

    Args:
        record: of the table `articles`, or what it would hold: `in`, `kept`, `skipped` and `tally`.
        articles: the settings of the corpus.
    """
    rows, kept, limit = record["in"], record["kept"], articles.limit
    expected = _FEW_LEFT * rows if limit is None else _FAR_FEWER * limit
    if kept >= expected:
        return ""
    left = f"{kept:,} of {rows:,} rows are left, {_describe_splits(record['tally'])}"
    if not record["skipped"]:
        return f"{left}: {articles.path} has no more rows, and articles.limit is {limit:,}"
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in record["skipped"].items())
    remedies = []
    if limit is not None and rows == limit:
        left = f"articles.limit={limit} counts rows of the file, also those that are skipped: {left}"
        remedies.append(f"raise it to about {_round_up(limit * rows / max(1, kept)):,}")
    if change := _remedy(max(record["skipped"], key=record["skipped"].__getitem__), articles):
        remedies.append(change)
    return f"{left} (skipped: {reasons}){_to_have_more(remedies)}"


def _describe_splits(counts: Mapping[str, int]) -> str:
    parts = [f"{counts.get('train', 0):,} to train on", f"{counts.get('eval', 0):,} held out"]
    if counts.get("test"):
        parts.append(f"{counts['test']:,} to test")
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _to_have_more(remedies: Sequence[str]) -> str:
    return f". To have more, {' or '.join(remedies)}" if remedies else ""


def _remedy(reason: str, articles: Articles) -> str:
    """The setting behind a reason of the stage `articles`; empty if there is none."""
    if reason.startswith("over "):
        return f"raise articles.max_words={articles.max_words}"
    if reason.startswith("under "):
        return f"lower articles.min_words={articles.min_words}"
    return f"raise articles.near_copies={articles.near_copies}" if reason.startswith("near-copy") else ""


def _round_up(count: float) -> int:
    step = 10 ** max(0, len(str(int(count))) - 2)
    return int(-(-count // step) * step)


@dataclass(frozen=True)
class TooLong:
    """Articles whose prompts are too long for a model.

    Attributes:
        section: the section of the settings that names the model.
        limit: the most tokens of a prompt with its reply, and in words which setting or model says so.
        reply: the most tokens of the reply, a thought included.
        counts: how many articles are too long, by split.
        left: how many are not, by split.
        is_exact: all articles were tokenized, and not a sample.
        remedies: what would leave more articles.
    """

    section: str
    limit: str
    reply: int
    counts: Mapping[str, int]
    left: Mapping[str, int]
    is_exact: bool
    remedies: Sequence[str]

    def __str__(self) -> str:
        about, count = "" if self.is_exact else "about ", sum(self.counts.values())
        return (
            f"{about}{count:,} of {count + sum(self.left.values()):,} articles are too long for {self.limit} with a "
            f"reply of {self.reply:,}, and will be skipped: {about}{_describe_splits(self.left)} are left"
            f"{_to_have_more(self.remedies)}"
        )


def find_too_long(
    config: Config, texts: Sequence[Text], totals: Mapping[str, int], uses: Collection[str] = ENGINES
) -> list[TooLong]:
    """Count the articles whose prompts are too long, for the policy and for a judge that asks a model about them.

    Left out are a model whose size or tokenizer is unknown, a model at a server, and the members of a jury, because an
    article is skipped only if none of them can read it.

    Args:
        config: the settings of the run.
        texts: articles, or a sample of them (`SAMPLED`).
        totals: how many articles there are, by split.
        uses: the engines that the run will use (`Stage.uses`). The models of others are left out.
    """
    policy, judge = config.policy, config.judge
    summarize = instruction_prompt(policy, max_tokens=0)
    replies = dict.fromkeys(SPLITS, config.evaluation.max_tokens) | {"train": config.summaries.max_tokens}
    found = []
    if "policy_engine" in uses:
        prompts = [fill_article(summarize, text) for _, text in texts]
        found.append(_count("policy", policy, prompts, replies, texts, totals, config))
    is_asked = "judge_engine" in uses and judge.kind != "jury" and judge.model and not judge.served
    made: Any = make_judge(config.questions.drafting(judge), config.seed) if is_asked else None
    if made is not None and asks_questions(made):
        prompts = [made.ask_questions(text) for _, text in texts]
        most = max((prompt.max_tokens for prompt in prompts), default=0)
        found.append(_count("judge", judge, prompts, dict.fromkeys(SPLITS, most), texts, totals, config))
    return [each for each in found if each]


def _count(
    section: str,
    model: PolicySettings | JudgeSettings,
    prompts: Sequence[Prompt],
    replies: Mapping[str, int],
    texts: Sequence[Text],
    totals: Mapping[str, int],
    config: Config,
) -> TooLong | None:
    """The articles that are too long for one model; None if there are none, or if that is unknown."""
    name, positions = str(model.model), _most_positions(str(model.model))
    limit = model.max_model_len or positions
    budget = model.thinking.budget if model.thinking else 0
    if limit is None:
        return None
    rooms = [limit - budget - replies[split] for split, _ in texts]
    most_tokens = _most_tokens(name)
    most = [most_tokens(prompt) + _TEMPLATE_TOKENS * len(prompt.messages) for prompt in prompts]
    suspects = [i for i, tokens in enumerate(most) if tokens > rooms[i]]
    tokenizer = load_tokenizer(section, name, []) if suspects else None
    if tokenizer is None:
        return None
    try:
        thinker = make_thinker(tokenizer, model.thinking, section, name)
    except UserError:
        return None  # the check before the run says so
    too_long = Counter(
        texts[i][0] for i in suspects if count_prompt(tokenizer, prompts[i].messages, thinker) > rooms[i]
    )
    if not too_long:
        return None
    sampled = Counter(split for split, _ in texts)
    counts = {split: round(totals[split] * too_long[split] / sampled[split]) for split in sampled}
    remedies = [f"raise {section}.max_model_len (the model's limit is {positions:,})"] * ((positions or 0) > limit)
    remedies += [f"raise articles.limit={config.articles.limit}"] * (config.articles.limit is not None)
    return TooLong(
        section,
        f"{section}.max_model_len={limit:,}" if model.max_model_len else f"{name} (its limit is {limit:,} tokens)",
        max(replies.values()) + budget,
        counts,
        {split: totals[split] - counts[split] for split in sampled},
        len(texts) == sum(totals.values()),
        remedies,
    )


def _most_tokens(model: str) -> Callable[[Prompt], int]:
    """A function that gives the most tokens of a prompt without its chat template, and needs no transformers.

    Its import takes 6 seconds of CPU time, and most runs have no article that comes near the limit.
    """
    from tokenizers import Tokenizer

    file = Path(model, "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else None

    def count(prompt: Prompt) -> int:
        texts = [message["content"] for message in prompt.messages]
        if tokenizer is None:
            return sum(len(text.encode("utf-8", "replace")) for text in texts)  # a token has at least one byte
        return sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)

    return count


def _most_positions(model: str) -> int | None:
    """The most tokens that a model can read; None if that is unknown."""
    try:
        return shapes.read_shapes(model).max_positions
    except (UserError, shapes.UnknownShapes):
        return None
