"""Compares the speed of judging with the published order: `.venv/bin/python -m bench.inference.judging`.

Rondo puts the questions first and the summary last, so that all summaries of an article share the prefix before them in
the prefix cache. It restricts replies with a regular expression, and judges equal summaries once. The reference order
is that of the published system: first the summary, then the questions, and a free-text reply with reasons; one prompt
per summary. Both sides use one `VllmEngine`, hence the same model, engine and settings, and run by turns. The prompts
of each turn begin with words of their own, so that no turn finds its prefixes in the cache. Three more sides differ
from the reference order in one of the three points only.

The length of free replies decides much. The newsroom's judge ends its own replies. A model with random weights never
does, so its reply length (`--replies`) must be taken from real judges: five answers of one sentence each are 100 to 150
tokens. Ray is not used; a stage would add the same time to both sides. `rondo judge-card` measures whether answers are
right.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.print_table import machine_info, median_and_range, print_table
from judges.base import Prompt, Question
from judges.mcq import McqJudge
from judges.prompts import NEWSROOM, PLAIN, Wording
from newsroom import tasks, world
from newsroom.recipe.make_models import MODELS
from newsroom.tokenizer import build
from pipeline.inference.base import TOKENS_CACHED, TOKENS_IN, TOKENS_OUT, Engine, count_tokens

OURS = "ours"
REFERENCE = "reference order"


@dataclass(frozen=True)
class Work:
    """The questions about an article, and its summaries, some of which may be equal."""

    questions: list[Question]
    summaries: list[str]


@dataclass(frozen=True)
class Side:
    """One way to judge.

    Attributes:
        name: shown in the table.
        questions_first: the questions come before the summary.
        constrained: replies are restricted to the form by a regular expression.
        deduplicated: equal summaries are judged once.
    """

    name: str
    questions_first: bool
    constrained: bool
    deduplicated: bool


SIDES = (
    Side(OURS, questions_first=True, constrained=True, deduplicated=True),
    Side(REFERENCE, questions_first=False, constrained=False, deduplicated=False),
    Side("… questions first", questions_first=True, constrained=False, deduplicated=False),
    Side("… constrained replies", questions_first=False, constrained=True, deduplicated=False),
    Side("… deduplicated summaries", questions_first=False, constrained=False, deduplicated=True),
)


def main() -> None:
    options = _options()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for case, count in (("newsroom", options.articles), ("random", options.random_articles)):
        if case in options.cases:
            rows += measure(case, count, options)
    result: dict[str, Any] = {"machine": machine_info(options.device, options.threads), "rows": rows}
    ours = [row for row in rows if row["side"] == OURS]
    by_case = {row["case"]: row["vs_reference_order"] for row in ours}
    # The random judge is preferred, because the length of its free replies is that of real judges.
    result["vs_reference_order"] = by_case.get("random", by_case.get("newsroom"))
    result["vs_reference_order_by_case"] = by_case
    result["seconds"] = time.perf_counter() - began
    print(f"\n{result['machine']}\n{result['seconds']:.0f} s in all")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(case: str, count: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all sides on one judge, by turns. Returns a row for each side and for each other limit of free replies."""
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        if case == "newsroom":
            model, wording = str(MODELS / "judge"), NEWSROOM
            work = [newsroom_work(rng, options.summaries, options.equal) for _ in range(count)]
        else:
            model, wording = folder, PLAIN
            make_random_model(Path(folder), options)
            work = [random_work(rng, options) for _ in range(count)]
        engine = _engine(model, options)
    timings = time_sides(case, engine, work, wording, options)
    rows = make_rows(case, timings, sum(len(article.summaries) for article in work), options)
    print_table(
        f"{case}: {count} articles, {options.summaries} summaries each, {options.equal:.0%} of them equal to another",
        [_cells(row) for row in rows],
    )
    ratios = rows[0]["vs_reference_order_by_length"]
    by_limit = ", ".join(f"{limit}: {ratio:.2f}" for limit, ratio in ratios.items())
    print(f"Speed of ours / reference order, by the limit of its replies: {by_limit}")
    return rows


@dataclass
class Timing:
    """The timed turns of one side: seconds and CPU seconds of each, and the token counts of the last."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)


def time_sides(
    case: str, engine: Engine, work: Sequence[Work], wording: Wording, options: argparse.Namespace
) -> dict[tuple[Side, int], Timing]:
    """Run all sides `options.runs` times, by turns, after a short turn that warms up.

    Returns:
        timings by side and token limit of its free replies (0 for ours, whose form limits its replies).
    """
    sides = SIDES if options.equal else SIDES[:-1]  # without equal summaries the last side is the reference order
    runs = [(sides[0], 0), *((side, options.replies[0]) for side in sides[1:])]
    runs += [(SIDES[1], limit) for limit in options.replies[1:]]
    timings = {run: Timing() for run in runs}
    for turn in range(options.runs + 1):
        warm_up = turn == 0
        for number, (side, limit) in enumerate(runs):
            prompts = make_prompts(side, limit, work[:1] if warm_up else work, wording, f"Turn {turn} {number}.\n")
            prompts = prompts[:2] if warm_up else prompts
            start, cpu_start = time.perf_counter(), time.process_time()
            replies = engine.generate(prompts)
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            assert all(reply.error is None for reply in replies), "the engine refused a prompt"
            print(f"  {case}, turn {turn}, {side.name}, {limit or 'form'}: {seconds:.1f} s", flush=True)
            if not warm_up:
                timing = timings[side, limit]
                timing.seconds.append(seconds)
                timing.cpu_seconds.append(cpu_seconds)
                timing.tokens = count_tokens(replies)
    return timings


def make_rows(
    case: str, timings: Mapping[tuple[Side, int], Timing], summaries: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row of figures for each timing; the reference order with the first limit is the base of the ratios."""
    reference = timings[SIDES[1], options.replies[0]]
    rows: list[dict[str, Any]] = []
    for (side, limit), timing in timings.items():
        tokens = timing.tokens
        rows.append(
            {
                "case": case,
                "side": side.name,
                "reply_limit": limit or None,
                "summaries": summaries,
                "seconds": timing.seconds,
                "summaries_per_second": summaries / statistics.median(timing.seconds),
                "cpu_seconds": timing.cpu_seconds,
                "vs_reference_order": _ratio(reference.seconds, timing.seconds),
                "vs_reference_order_cpu": _ratio(reference.cpu_seconds, timing.cpu_seconds),
                "vs_reference_order_by_length": {
                    str(other): _ratio(timings[SIDES[1], other].seconds, timing.seconds) for other in options.replies
                },
                "prefix_cache_hit_rate": tokens[TOKENS_CACHED] / tokens[TOKENS_IN],
                "tokens_in_per_summary": tokens[TOKENS_IN] / summaries,
                "tokens_out_per_summary": tokens[TOKENS_OUT] / summaries,
            }
        )
    return rows


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median of the ratios of single turns: a busy machine slows down both sides of a turn."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def make_prompts(side: Side, limit: int, work: Sequence[Work], wording: Wording, salt: str) -> list[Prompt]:
    """A side's prompts for all articles. Each begins with `salt`; a free reply has at most `limit` tokens."""
    if side.questions_first:
        text = wording.answers_prompt if side.constrained else _FREE
    else:
        text = _CONSTRAINED_PASSAGE_FIRST if side.constrained else _FREE_PASSAGE_FIRST
    judge = McqJudge(wording=replace(wording, answers_prompt=salt + text))
    prompts = []
    for article in work:
        summaries = dict.fromkeys(article.summaries) if side.deduplicated else article.summaries
        for summary in summaries:
            prompt = judge.ask_answers(summary, article.questions)
            prompts.append(prompt if side.constrained else replace(prompt, regex=None, max_tokens=limit))
    return prompts


_ASK = "Answer each question from the passage alone, and say in a sentence why. If it does not tell, say so."
_FREE = f"{_ASK}\n\n{{questions}}\n\nPassage\n{{passage}}"
_FREE_PASSAGE_FIRST = f"Passage\n{{passage}}\n\n{_ASK}\n\n{{questions}}"
_CONSTRAINED_PASSAGE_FIRST = "Passage\n{passage}\n\nAnswer questions.\n{questions}"


def newsroom_work(rng: random.Random, summaries: int, equal: float) -> Work:
    """Questions that the newsroom's judge could ask about an article, and summaries like those of its policy."""
    story = world.article(rng)

    def summary() -> str:
        facts = set(rng.sample(list(story.facts), rng.randint(2, 6)))
        return tasks.retell(story, facts, rng.randint(0, 3), rng)

    return Work(tasks.any_questions(story, rng), _some_equal(rng, summary, summaries, equal))


def random_work(rng: random.Random, options: argparse.Namespace) -> Work:
    """Questions of `question_tokens` words in all and summaries of 40 to 60 words, all words random."""
    words_each = options.question_tokens // (tasks.MOST_QUESTIONS * (tasks.OPTIONS + 1))

    def words(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count))

    # Three more tokens of an option are its letter, its full stop and the line break.
    questions = [
        Question(
            str(i), f"{words(words_each - 3)}?", tuple(words(max(1, words_each - 3)) for _ in range(tasks.OPTIONS)), 0
        )
        for i in range(tasks.MOST_QUESTIONS)
    ]
    return Work(questions, _some_equal(rng, lambda: words(rng.randint(40, 60)), options.summaries, options.equal))


def _some_equal(rng: random.Random, make_summary: Callable[[], str], count: int, equal: float) -> list[str]:
    """`count` summaries, of which a fraction `equal` repeats one of the others."""
    distinct = [make_summary() for _ in range(count - round(equal * count))]
    return [*distinct, *rng.choices(distinct, k=count - len(distinct))]


WORDS = [f"w{number:05}" for number in range(48_000)]


def make_random_model(folder: Path, options: argparse.Namespace) -> None:
    """Write a Llama with random weights, by default of SmolLM-135M's shape. Every word is one token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build(
        [*tasks.vocabulary_texts(), PLAIN.answers_prompt, _FREE, "Turn 0.", *(f" {w}" for w in WORDS), *WORDS[:9]]
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64 * options.heads,
        intermediate_size=64 * options.heads * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=max(1, options.heads // 3),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).to(torch.float32 if options.device == "cpu" else torch.bfloat16)
    print(f"random: {sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer):,}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _engine(model: str, options: argparse.Namespace) -> Engine:
    from pipeline.config.hardware import EngineHardware
    from pipeline.inference.vllm import VllmEngine

    hardware = EngineHardware(gpus_per_replica=int(options.device == "cuda"), kvcache_space=2)
    return VllmEngine(model, "float32" if options.device == "cpu" else "bfloat16", 2048, 0, hardware)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    per_second = [row["summaries"] / seconds for seconds in row["seconds"]]
    return {
        "side": row["side"],
        "reply limit": str(row["reply_limit"] or "form"),
        "summaries/s": median_and_range(per_second),
        "x reference": f"{row['vs_reference_order']:.2f}",
        "… by CPU time": f"{row['vs_reference_order_cpu']:.2f}",
        "tokens in": f"{row['tokens_in_per_summary']:.0f}",
        "cached": f"{row['prefix_cache_hit_rate']:.0%}",
        "tokens out": f"{row['tokens_out_per_summary']:.1f}",
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=["newsroom", "random"], choices=["newsroom", "random"])
    parser.add_argument("--articles", type=int, default=32, help="articles of the newsroom (%(default)s)")
    parser.add_argument("--random-articles", type=int, default=4, help="articles for the random model (%(default)s)")
    parser.add_argument("--summaries", type=int, default=10, help="summaries of each article (%(default)s)")
    parser.add_argument("--equal", type=float, default=0.0, help="share of summaries that equal another (%(default)s)")
    parser.add_argument(
        "--question-tokens", type=int, default=600, help="tokens of the random model's questions (%(default)s)"
    )
    parser.add_argument("--replies", nargs="+", type=int, default=[128, 64, 256], help="token limits of free replies")
    parser.add_argument("--layers", type=int, default=30, help="layers of the random model (%(default)s)")
    parser.add_argument("--heads", type=int, default=9, help="attention heads of width 64 (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="timed turns of every side (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="OMP_NUM_THREADS (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of articles, questions and summaries (%(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", metavar="FILE", help="write the figures and every row")
    return parser.parse_args()


if __name__ == "__main__":
    main()
