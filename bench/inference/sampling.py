"""Compares sampling by Rondo, Ray Data's LLM processor and bare vLLM: `.venv/bin/python -m bench.inference.sampling`.

A policy of SmolLM2-135M's shape with random weights writes K summaries of each article. Articles are newsroom articles
joined to prompts of about 600 tokens. Every summary has the same number of tokens on every side. The sides run by
turns, each in a Python process of its own, with the same vLLM settings and threads. (On a CPU all use Rondo's prefix
cache blocks of 32 tokens; vLLM's own default is 128.) The sides:

- rondo: the stage `pipeline.stages.summaries.sample_summaries` over a dataset, one row per article, as in a round;
- ray_data_llm: Ray Data's LLM processor as in its documentation, one row per summary, with prefix caching;
- ray_data_llm_uncached: the same without prefix caching, so that every row pays for its own prefill;
- bare_vllm: `vllm.LLM.generate`, all prompts in one call, n=K.

Each side first gets a few warm-up articles. When their summaries are done, the other articles are let in and the clock
of `steady` starts. The clock of `whole` starts at the side's first line: after Ray's start, and before the imports of
bare vLLM. Rondo requests log-probabilities for an engine's first batch, which here is the warm-up; that cost is in
`whole`. `per_cpu_second` is summaries per CPU second of all processes of a side; it changes little on a busy machine,
unlike the others. `engine_idle_share` comes from a run of its own, with summaries of many lengths: the share of an
engine's capacity that is idle between batches. Every side uses one engine. `samplers.py` has the sides.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.inference.samplers import INSTRUCTION, TASKS
from bench.print_table import machine_info, median_and_range, print_table

ROOT = Path(__file__).parents[2]
SHAPES = {  # of the policy, by device: SmolLM2-135M's and Qwen2.5-0.5B's
    "cpu": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    | {"num_key_value_heads": 3, "vocab_size": 49152},
    "cuda": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    | {"num_key_value_heads": 2, "vocab_size": 151936},
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2} | {
    "num_key_value_heads": 1,
    "vocab_size": 1024,
}
SIDES = ("rondo", "ray_data_llm", "ray_data_llm_uncached", "bare_vllm")
_END_TOKEN_EVERY = 40  # for summaries of many lengths, one token id in this many ends a summary


def main() -> None:
    options = _options()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.child:
        print("\n" + json.dumps(TASKS[options.child](**json.loads(options.arguments))))
        return
    began = time.perf_counter()
    result: dict[str, Any] = {"machine": machine_info(options.device, options.threads)}
    with tempfile.TemporaryDirectory() as folder:
        prompt_tokens = make_inputs(Path(folder), options)
        result |= {"prompt_tokens": prompt_tokens, "k": options.k, "max_tokens": options.max_tokens}
        result |= {"articles": options.articles, "dtype": options.dtype}
        print(
            f"{options.articles} articles of {prompt_tokens:.0f} tokens, {options.k} summaries of "
            f"{options.max_tokens} tokens, {options.dtype}, {options.threads} threads"
        )
        result |= compare(folder, options)
        result["idle"] = [measure_idle(folder, at_once, options) for at_once in (1, 2)]
        print_table("Idle engine capacity, summaries of many lengths", [_idle_cells(row) for row in result["idle"]])
    result["engine_idle_share"] = result["idle"][-1]["engine_idle_share"]
    result["seconds"] = time.perf_counter() - began
    print(f"\n{result['machine']}\n{result['seconds']:.0f} s in all")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compare(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run every side `options.runs` times, by turns. Returns all runs, their medians and Rondo's ratios."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides}
    for _ in range(options.runs):
        for side in options.sides:
            figures = run_child(side, options, folder=folder)
            run = {
                "steady": figures["summaries"] / figures["seconds"],
                "steady_tokens": figures["tokens"] / figures["seconds"],
                "per_cpu_second": figures["summaries"] / figures["cpu_seconds"],
                "whole": (figures["summaries"] + options.k * options.batch_size) / figures["whole_seconds"],
            }
            runs[side].append(run | {name: figures[name] for name in ("seconds", "whole_seconds", "tokens")})
            print(f"  {side}: {run['steady']:.2f} summaries/s, {figures['whole_seconds']:.0f} s in all", flush=True)
    medians = {
        side: {name: statistics.median(run[name] for run in side_runs) for name in side_runs[0]}
        for side, side_runs in runs.items()
    }
    print_table("Summaries per second", [_cells(side, side_runs) for side, side_runs in runs.items()])
    result: dict[str, Any] = {"runs": runs, "medians": medians}
    for side in options.sides:
        if side != "rondo" and "rondo" in options.sides:
            names = ("steady", "whole", "per_cpu_second")
            ratio = {name: medians["rondo"][name] / medians[side][name] for name in names}
            print(
                f"rondo / {side}: {ratio['steady']:.2f} steady, {ratio['whole']:.2f} with start-up, "
                f"{ratio['per_cpu_second']:.2f} per CPU second"
            )
            result[f"vs_{side}"] = ratio["steady"]
            result |= {f"vs_{side}_{name}": ratio[name] for name in names[1:]}
    if {"bare_vllm", "ray_data_llm"} <= set(options.sides):
        bare = medians["bare_vllm"]["steady"] / medians["ray_data_llm"]["steady"]
        print(f"bare_vllm / ray_data_llm: {bare:.2f} steady, the most that the engine allows")
        result["bare_vllm_vs_ray_data_llm"] = bare
    return result


def measure_idle(folder: str, at_once: int, options: argparse.Namespace) -> dict[str, Any]:
    """The share of an engine's seats that is empty while samples wait, with `at_once` batches at a time.

    An engine has as many seats as one batch has samples. A seat is empty during a step if fewer requests run than there
    are seats, although more samples of the job are unfinished. Between two steps all seats are empty.
    """
    figures = run_child("rondo", options, folder=folder, at_once=at_once, lengths="various")
    seats, unfinished = options.k * options.batch_size, figures["summaries"]
    steps = [step for step in figures["steps"] if step[0] >= figures["opened"]]
    used = possible = 0.0  # seat seconds
    for (began, ended, running, running_after), next_step in zip(steps, [*steps[1:], None], strict=True):
        usable = min(seats, unfinished)
        used += (ended - began) * min(running, usable)
        possible += (ended - began) * usable
        unfinished -= running - running_after
        if next_step and unfinished:
            possible += (next_step[0] - ended) * min(seats, unfinished)
    wall = steps[-1][1] - steps[0][0]
    return {
        "at_once": at_once,
        "engine_idle_share": 1 - used / possible,
        "between_steps_share": 1 - sum(ended - began for began, ended, *_ in steps) / wall,
        "summaries_per_second": figures["summaries"] / wall,
        "tokens": figures["tokens"],
    }


def run_child(side: str, options: argparse.Namespace, **arguments: Any) -> dict[str, Any]:
    """Run a side in a Python process of its own. Returns its figures."""
    names = ("device", "dtype", "k", "max_tokens", "threads", "batch_size", "kvcache", "articles")
    arguments |= {name: getattr(options, name) for name in names}
    command = [sys.executable, "-m", "bench.inference.sampling", "--child", side, "--arguments", json.dumps(arguments)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=_environment(options))
    if child.returncode:
        raise SystemExit(f"{side} failed:\n{child.stdout[-2000:]}\n{child.stderr[-4000:]}")
    return json.loads(child.stdout.splitlines()[-1])


def make_inputs(folder: Path, options: argparse.Namespace) -> float:
    """Write the articles, and the policy twice: "equal", and "various" with many tokens that end a summary.

    Returns:
        mean tokens of a prompt.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from newsroom import tokenizer
    from newsroom.recipe.make_articles import articles
    from pipeline.inference.vllm import encode_messages

    shape = TINY if options.tiny else SHAPES[options.device]
    article_count = options.batch_size + options.articles
    stories = iter(articles(12 + 9 * article_count))
    texts, vocabulary_texts = [], [next(stories).text for _ in range(12)]
    used_words = len(tokenizer.build(vocabulary_texts))
    # Words that no prompt contains fill the vocabulary up to the size of the shape.
    unused_words = " ".join(f"w{i}" for i in range(shape["vocab_size"] - used_words))
    policy_tokenizer = tokenizer.build([*vocabulary_texts, unused_words])
    for _ in range(article_count):
        text = next(stories).text
        while len(policy_tokenizer(text)["input_ids"]) < options.prompt_tokens * 0.9:
            text += " " + next(stories).text
        texts.append(text)
    Path(folder, "articles.json").write_text(json.dumps(texts), encoding="utf-8")
    torch.manual_seed(0)
    special = {"bos_token_id": policy_tokenizer.bos_token_id, "eos_token_id": policy_tokenizer.eos_token_id}
    config = LlamaConfig(**shape, **special, max_position_embeddings=2048, tie_word_embeddings=True)
    policy = LlamaForCausalLM(config).to(getattr(torch, options.dtype))
    many_ends = [policy_tokenizer.eos_token_id, *range(1000, shape["vocab_size"], _END_TOKEN_EVERY)]
    for name, end_tokens in (("equal", [2]), ("various", many_ends)):
        policy.generation_config = GenerationConfig(**special | {"eos_token_id": end_tokens})
        policy.save_pretrained(folder / name)
        policy_tokenizer.save_pretrained(folder / name)
    prompts = [[{"role": "user", "content": INSTRUCTION.replace("{article}", text)}] for text in texts]
    return statistics.mean(len(encode_messages(policy_tokenizer, prompt)) for prompt in prompts)


def _environment(options: argparse.Namespace) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(options.threads), "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}


def _cells(side: str, runs: list[dict[str, float]]) -> dict[str, str]:
    columns = {
        "steady": "steady",
        "steady_tokens": "tokens/s",
        "per_cpu_second": "per CPU second",
        "whole": "with start-up",
        "whole_seconds": "s in all",
    }
    return {"side": side} | {title: median_and_range([run[name] for run in runs]) for name, title in columns.items()}


def _idle_cells(row: dict[str, Any]) -> dict[str, str]:
    return {
        "batches at a time": str(row["at_once"]),
        "seats empty": f"{row['engine_idle_share']:.1%}",
        "time between steps": f"{row['between_steps_share']:.1%}",
        "summaries/s": f"{row['summaries_per_second']:.2f}",
        "tokens": str(row["tokens"]),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--runs", type=int, default=3, help="runs of every side (%(default)s)")
    parser.add_argument("--sides", default=",".join(SIDES), help="default: %(default)s")
    parser.add_argument("--articles", type=int, help="timed articles; default 32, on a GPU 1024")
    parser.add_argument("--batch-size", type=int, help="articles per batch of Rondo; default 8, on a GPU 64")
    parser.add_argument("--k", type=int, default=10, help="summaries of each article (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=48, help="tokens of every summary (%(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=600, help="approximate tokens of a prompt (%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="of the policy (%(default)s)")
    parser.add_argument("--kvcache", type=int, default=2, help="GiB of KV cache on a CPU (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="OMP_NUM_THREADS of every side (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a toy policy, to check that everything runs")
    parser.add_argument("--json", metavar="FILE", help="write the figures and every run")
    parser.add_argument("--child", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.articles = options.articles or (32 if options.device == "cpu" else 1024)
    options.batch_size = options.batch_size or (8 if options.device == "cpu" else 64)
    options.sides = options.sides.split(",")
    if unknown := set(options.sides) - set(TASKS):
        parser.error(f"--sides has {', '.join(sorted(unknown))}; known are {', '.join(TASKS)}")
    return options


if __name__ == "__main__":
    main()
