"""Judged summaries per second, ours against the reference order: `python -m bench.inference.judging`.

Ours is what a run does: questions first and summary last, so that an article's summaries share what comes before them
in the prefix cache; replies held to their form; equal summaries judged once. The reference order is the published
system's: summary first, then the questions, and a reply in free text that says why; one prompt a summary. Both sides
go through one `VllmEngine`, hence the same model, engine and settings, by turns; each turn begins with words that no
other has, so that none finds its prefixes in the cache. The sides in between have one of the three alone.

A free reply's length decides much. The newsroom judge ends its own; a model of random weights never does, and what it
is asked for (`--replies`) has to be taken from models that do: five answers of a sentence each are 100 to 150 tokens.
Left out: whether the answers are right (`rondo judge-card`), and Ray (a stage adds what it adds to both sides).
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.print_table import machine, show, spread
from judges.base import Prompt, Question
from judges.mcq import McqJudge
from judges.prompts import NEWSROOM, PLAIN, Wording
from newsroom import tasks, world
from newsroom.recipe.make_models import MODELS
from newsroom.tokenizer import build
from pipeline.inference.base import Engine, count_tokens

HELD_TO = "ours"
REFERENCE = "reference order"


@dataclass(frozen=True)
class Work:
    """What is judged: an article's questions, and its summaries, some of them equal."""

    questions: list[Question]
    summaries: list[str]


@dataclass(frozen=True)
class Side:
    """One way to judge. Any of the three makes it less of the reference's and more of ours."""

    name: str
    questions_first: bool
    held: bool
    once: bool  # equal summaries


SIDES = (
    Side(HELD_TO, questions_first=True, held=True, once=True),
    Side(REFERENCE, questions_first=False, held=False, once=False),
    Side("… questions first", questions_first=True, held=False, once=False),
    Side("… replies held to their form", questions_first=False, held=True, once=False),
    Side("… equal summaries once", questions_first=False, held=False, once=True),
)


def main() -> None:
    options = _options()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for case, count in (("newsroom", options.articles), ("random", options.random_articles)):
        if case in options.cases:
            rows += measure(case, count, options)
    result = {"machine": machine(options.device, options.threads), "rows": rows}
    ours = [row for row in rows if row["side"] == HELD_TO]
    by_case = {row["case"]: row["vs_reference_order"] for row in ours}
    # Of the judge whose free replies have the length that judges' have, where it was measured.
    result["vs_reference_order"] = by_case.get("random", by_case.get("newsroom"))
    result["vs_reference_order_by_case"] = by_case
    result["seconds"] = time.perf_counter() - began
    print(f"\n{result['machine']}\n{result['seconds']:.0f} s in all")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(case: str, count: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All sides on one judge, by turns; a row for each, and one for each length of a free reply."""
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
    total = sum(len(some.summaries) for some in work)
    sides = SIDES if options.equal else SIDES[:-1]  # where none are equal, that side is the reference
    runs = [(sides[0], 0), *((side, options.replies[0]) for side in sides[1:])]
    runs += [(SIDES[1], length) for length in options.replies[1:]]
    seconds: dict[tuple[Side, int], list[float]] = {run: [] for run in runs}
    cpu: dict[tuple[Side, int], list[float]] = {run: [] for run in runs}
    spent: dict[tuple[Side, int], dict[str, int]] = {}
    for turn in range(options.runs + 1):
        for number, (side, length) in enumerate(runs):
            # The first turn warms up, and is not counted.
            prompts = ask(side, length, work if turn else work[:1], wording, f"Turn {turn} {number}.\n")
            prompts = prompts if turn else prompts[:2]
            start, used = time.perf_counter(), time.process_time()
            replies = engine.generate(prompts)
            took, used = time.perf_counter() - start, time.process_time() - used
            assert all(reply.error is None for reply in replies), "every prompt has room"
            print(f"  {case}, turn {turn}, {side.name}, {length or 'form'}: {took:.1f} s", flush=True)
            if turn:
                seconds[side, length].append(took)
                cpu[side, length].append(used)
                spent[side, length] = count_tokens(replies)
    rows = []
    reference = (SIDES[1], options.replies[0])
    for (side, length), took in seconds.items():
        cost = spent[side, length]
        rows.append(
            {
                "case": case,
                "side": side.name,
                "reply_limit": length or None,
                "summaries": total,
                "seconds": took,
                "summaries_per_second": total / statistics.median(took),
                "cpu_seconds": cpu[side, length],
                "vs_reference_order": _ratio(seconds[reference], took),
                "vs_reference_order_cpu": _ratio(cpu[reference], cpu[side, length]),
                "vs_reference_order_by_length": {
                    str(other): _ratio(seconds[SIDES[1], other], took) for other in options.replies
                },
                "prefix_cache_hit_rate": cost["tokens_cached"] / cost["tokens_in"],
                "tokens_in_per_summary": cost["tokens_in"] / total,
                "tokens_out_per_summary": cost["tokens_out"] / total,
            }
        )
    show(
        f"{case}: {count} articles, {options.summaries} summaries each, {options.equal:.0%} of them equal to another",
        [_shown(row) for row in rows],
    )
    ratios = rows[0]["vs_reference_order_by_length"]
    print("Ours over the reference order, by its limit: " + ", ".join(f"{n}: {x:.2f}" for n, x in ratios.items()))
    return rows


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median over turns: what a busy machine does to one turn it does to both sides."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def ask(side: Side, length: int, work: Sequence[Work], wording: Wording, salt: str) -> list[Prompt]:
    """The side's prompts for all the work, which begin with `salt`."""
    held = McqJudge(wording=replace(wording, answers_prompt=salt + wording.answers_prompt))
    free = McqJudge(wording=replace(wording, answers_prompt=salt + _FREE))
    first = McqJudge(wording=replace(wording, answers_prompt=salt + _HELD if side.held else salt + _FREE_PASSAGE_FIRST))
    judge = (held if side.held else free) if side.questions_first else first
    prompts = []
    for some in work:
        summaries = dict.fromkeys(some.summaries) if side.once else some.summaries
        for summary in summaries:
            prompt = judge.ask_answers(summary, some.questions)
            prompts.append(prompt if side.held else replace(prompt, regex=None, max_tokens=length))
    return prompts


_ASK = "Answer each question from the passage alone, and say in a sentence why. If it does not tell, say so."
_FREE = f"{_ASK}\n\n{{questions}}\n\nPassage\n{{passage}}"
_FREE_PASSAGE_FIRST = f"Passage\n{{passage}}\n\n{_ASK}\n\n{{questions}}"
_HELD = "Passage\n{passage}\n\nAnswer questions.\n{questions}"


def newsroom_work(rng: random.Random, summaries: int, equal: float) -> Work:
    """An article of the newsroom, questions that its judge might ask, and summaries as its policy writes them."""
    story = world.article(rng)

    def summary() -> str:
        told = set(rng.sample(list(story.facts), rng.randint(2, 6)))
        return tasks.retell(story, told, rng.randint(0, 3), rng)

    return Work(tasks.any_questions(story, rng), _some_equal(rng, summary, summaries, equal))


def random_work(rng: random.Random, options: argparse.Namespace) -> Work:
    """Questions that fill a block of `question_tokens` words, and summaries of 40 to 60, of any words."""
    each = options.question_tokens // (tasks.MOST_QUESTIONS * (tasks.OPTIONS + 1))

    def words(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count))

    # The letter, its point and the line break are three tokens of an option's.
    questions = [
        Question(str(i), f"{words(each - 3)}?", tuple(words(max(1, each - 3)) for _ in range(tasks.OPTIONS)), 0)
        for i in range(tasks.MOST_QUESTIONS)
    ]
    return Work(questions, _some_equal(rng, lambda: words(rng.randint(40, 60)), options.summaries, options.equal))


def _some_equal(rng: random.Random, one: Callable[[], str], count: int, equal: float) -> list[str]:
    kept = [one() for _ in range(count - round(equal * count))]
    return [*kept, *rng.choices(kept, k=count - len(kept))]


WORDS = [f"w{number:05}" for number in range(48_000)]


def make_random_model(folder: Path, options: argparse.Namespace) -> None:
    """A Llama of random weights, by default of the shape of SmolLM-135M, whose every word is one token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build(
        [*tasks.every_text(), PLAIN.answers_prompt, _FREE, "Turn 0.", *(f" {w}" for w in WORDS), *WORDS[:9]]
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


def _shown(row: dict[str, Any]) -> dict[str, str]:
    per_second = [row["summaries"] / seconds for seconds in row["seconds"]]
    return {
        "side": row["side"],
        "reply limit": str(row["reply_limit"] or "form"),
        "summaries/s": spread(per_second),
        "vs reference": f"{row['vs_reference_order']:.2f}",
        "… CPU seconds": f"{row['vs_reference_order_cpu']:.2f}",
        "tokens in": f"{row['tokens_in_per_summary']:.0f}",
        "cached": f"{row['prefix_cache_hit_rate']:.0%}",
        "tokens out": f"{row['tokens_out_per_summary']:.1f}",
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=["newsroom", "random"], choices=["newsroom", "random"])
    parser.add_argument("--articles", type=int, default=32, help="of the newsroom")
    parser.add_argument("--random-articles", type=int, default=4)
    parser.add_argument("--summaries", type=int, default=10, help="of each article")
    parser.add_argument("--equal", type=float, default=0.0, help="share of summaries that equal another")
    parser.add_argument("--question-tokens", type=int, default=600, help="of the random model's question block")
    parser.add_argument("--replies", nargs="+", type=int, default=[128, 64, 256], help="token limits of free replies")
    parser.add_argument("--layers", type=int, default=30, help="of the random model")
    parser.add_argument("--heads", type=int, default=9, help="of the random model, of width 64")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
