"""Rondo's sampling against Ray Data's LLM processor and bare vLLM: `.venv/bin/python -m bench.inference.sampling`.

K summaries of each article, by a policy of SmolLM2-135M's shape with random weights, on newsroom articles put together
to prompts of about 600 tokens; every summary has the same number of tokens on every side. The sides, in turn, with
the same vLLM settings and threads (on a CPU also Rondo's blocks of 32 tokens in the prefix cache, where vLLM's own are
of 128), each in a Python of its own:

- rondo: the stage `pipeline.stages.summaries.write` over a dataset, one row an article, as a round does it;
- ray_data_llm: Ray Data's LLM processor as its documentation has it, one row a summary, prefix caching on;
- ray_data_llm_uncached: the same without prefix caching, so that every row pays its prefill;
- bare_vllm: `vllm.LLM.generate`, all prompts in one call with n=K.

Each side first gets a few articles. When their summaries are there, everything is started and warm, the others are let
in, and the clock of `steady` starts; that of `whole` has run since the side's first line. Ray is started before both,
and bare vLLM's imports are after. Rondo asks for the log-probabilities of an engine's first batch, which is these few
articles here: what that costs is in `whole`. Summaries `per_cpu_second`, of all processes of a side, are nearly the
same on a busy machine, where the others are not. What an engine does between two batches is asked apart, with summaries
of many lengths: `engine_idle_share`. Left out: the sides themselves (`samplers.py`), judging, quality, several engines.
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
from bench.print_table import machine, show, spread

ROOT = Path(__file__).parents[2]
SHAPES = {  # of the policy, by device: SmolLM2-135M's, Qwen2.5-0.5B's
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
_ENDINGS = 40  # one token in so many ends a summary, where lengths are to differ


def main() -> None:
    options = _options()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.child:
        print("\n" + json.dumps(TASKS[options.child](**json.loads(options.arguments))))
        return
    began = time.perf_counter()
    result: dict[str, Any] = {"machine": machine(options.device, options.threads)}
    with tempfile.TemporaryDirectory() as folder:
        prompt_tokens = make(Path(folder), options)
        result |= {"prompt_tokens": prompt_tokens, "k": options.k, "max_tokens": options.max_tokens}
        result |= {"articles": options.articles, "dtype": options.dtype}
        print(
            f"{options.articles} articles of {prompt_tokens:.0f} tokens, {options.k} summaries of "
            f"{options.max_tokens} tokens, {options.dtype}, {options.threads} threads"
        )
        result |= compare(folder, options)
        result["idle"] = [idle(folder, at_once, options) for at_once in (1, 2)]
        show("What the engine does between batches, lengths differing", [_idle_row(row) for row in result["idle"]])
    result["engine_idle_share"] = result["idle"][-1]["engine_idle_share"]
    result["seconds"] = time.perf_counter() - began
    print(f"\n{result['machine']}\n{result['seconds']:.0f} s in all")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compare(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every side in turn, `options.runs` times: medians, and what they are of."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides}
    for _ in range(options.runs):
        for side in options.sides:
            done = child(side, options, folder=folder)
            run = {
                "steady": done["summaries"] / done["seconds"],
                "steady_tokens": done["tokens"] / done["seconds"],
                "per_cpu_second": done["summaries"] / done["cpu_seconds"],
                "whole": (done["summaries"] + options.k * options.batch_size) / done["whole_seconds"],
            }
            runs[side].append(run | {name: done[name] for name in ("seconds", "whole_seconds", "tokens")})
            print(f"  {side}: {run['steady']:.2f} summaries/s, {done['whole_seconds']:.0f} s in all", flush=True)
    medians = {
        side: {name: statistics.median(run[name] for run in line) for name in line[0]} for side, line in runs.items()
    }
    show("Summaries per second", [_row(side, line) for side, line in runs.items()])
    result: dict[str, Any] = {"runs": runs, "medians": medians}
    for side in options.sides:
        if side != "rondo" and "rondo" in options.sides:
            of = {name: medians["rondo"][name] / medians[side][name] for name in ("steady", "whole", "per_cpu_second")}
            print(
                f"vs {side}: {of['steady']:.2f} steady, {of['whole']:.2f} with the start of everything, "
                f"{of['per_cpu_second']:.2f} by CPU seconds"
            )
            result |= {f"vs_{side}": of["steady"]} | {f"vs_{side}_{name}": of[name] for name in of if name != "steady"}
    if {"bare_vllm", "ray_data_llm"} <= set(options.sides):
        bare = medians["bare_vllm"]["steady"] / medians["ray_data_llm"]["steady"]
        print(f"bare_vllm vs ray_data_llm: {bare:.2f} steady, which is what the engine has to give")
        result["bare_vllm_vs_ray_data_llm"] = bare
    return result


def idle(folder: str, at_once: int, options: argparse.Namespace) -> dict[str, Any]:
    """Of one pool with so many batches at a time: what share of the engine's seats was empty while samples waited.

    An engine has the seats of one batch. A seat counts as empty while fewer requests than that are under way, and more
    of the job are not done; between steps all are.
    """
    done = child("rondo", options, folder=folder, at_once=at_once, lengths="various")
    steps, seats, left = done["steps"], options.k * options.batch_size, done["summaries"]
    steps = [step for step in steps if step[0] >= done["opened"]]
    filled = possible = 0.0
    for (began, ended, running, after), following in zip(steps, [*steps[1:], None], strict=True):
        could = min(seats, left)
        filled += (ended - began) * min(running, could)
        possible += (ended - began) * could
        left -= running - after
        if following and left:
            possible += (following[0] - ended) * min(seats, left)
    wall = steps[-1][1] - steps[0][0]
    return {
        "at_once": at_once,
        "engine_idle_share": 1 - filled / possible,
        "between_steps_share": 1 - sum(ended - began for began, ended, *_ in steps) / wall,
        "summaries_per_second": done["summaries"] / wall,
        "tokens": done["tokens"],
    }


def child(side: str, options: argparse.Namespace, **arguments: Any) -> dict[str, Any]:
    """Run a side in a Python of its own."""
    names = ("device", "dtype", "k", "max_tokens", "threads", "batch_size", "kvcache", "articles")
    arguments |= {name: getattr(options, name) for name in names}
    command = [sys.executable, "-m", "bench.inference.sampling", "--child", side, "--arguments", json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=_environment(options))
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def make(folder: Path, options: argparse.Namespace) -> float:
    """Write the articles, and the policy twice: as it is, and with many tokens that end a summary. Tokens a prompt."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from newsroom import tokenizer
    from newsroom.recipe.make_articles import articles
    from pipeline.inference.vllm import encode_messages

    shape = TINY if options.tiny else SHAPES[options.device]
    wanted = options.batch_size + options.articles
    stories = iter(articles(12 + 9 * wanted))
    texts, first = [], [next(stories).text for _ in range(12)]
    words = len(tokenizer.build(first))  # and as many words more, never read, as the shape's vocabulary has
    built = tokenizer.build([*first, " ".join(f"w{i}" for i in range(shape["vocab_size"] - words))])
    for _ in range(wanted):
        text = next(stories).text
        while len(built(text)["input_ids"]) < options.prompt_tokens * 0.9:
            text += " " + next(stories).text
        texts.append(text)
    Path(folder, "articles.json").write_text(json.dumps(texts), encoding="utf-8")
    torch.manual_seed(0)
    special = {"bos_token_id": built.bos_token_id, "eos_token_id": built.eos_token_id}
    config = LlamaConfig(**shape, **special, max_position_embeddings=2048, tie_word_embeddings=True)
    policy = LlamaForCausalLM(config).to(getattr(torch, options.dtype))
    for name, endings in (("equal", shape["vocab_size"]), ("various", _ENDINGS)):
        ends = [built.eos_token_id, *range(1000, shape["vocab_size"], endings)] if name == "various" else [2]
        policy.generation_config = GenerationConfig(**special | {"eos_token_id": ends})
        policy.save_pretrained(folder / name)
        built.save_pretrained(folder / name)
    prompts = [[{"role": "user", "content": INSTRUCTION.replace("{article}", text)}] for text in texts]
    return statistics.mean(len(encode_messages(built, prompt)) for prompt in prompts)


def _environment(options: argparse.Namespace) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(options.threads), "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}


def _row(side: str, runs: list[dict[str, float]]) -> dict[str, str]:
    columns = {
        "steady": "steady",
        "steady_tokens": "tokens/s",
        "per_cpu_second": "a CPU second",
        "whole": "with the start",
        "whole_seconds": "s in all",
    }
    return {"side": side} | {title: spread([run[name] for run in runs]) for name, title in columns.items()}


def _idle_row(row: dict[str, Any]) -> dict[str, str]:
    return {
        "batches at a time": str(row["at_once"]),
        "seats empty": f"{row['engine_idle_share']:.1%}",
        "between steps": f"{row['between_steps_share']:.1%}",
        "summaries/s": f"{row['summaries_per_second']:.2f}",
        "tokens": str(row["tokens"]),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--runs", type=int, default=3, help="of every side (%(default)s)")
    parser.add_argument("--sides", default=",".join(SIDES), help="default: %(default)s")
    parser.add_argument("--articles", type=int, help="timed; default 32, on a GPU 1024")
    parser.add_argument("--batch-size", type=int, help="articles a batch of Rondo's; default 8, on a GPU 64")
    parser.add_argument("--k", type=int, default=10, help="summaries of an article (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=48, help="of a summary, and no fewer (%(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=600, help="about so many (%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="of the policy (%(default)s)")
    parser.add_argument("--kvcache", type=int, default=2, help="GiB, on a CPU (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="OMP_NUM_THREADS of every side (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a toy policy: to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="write the figures and every run")
    parser.add_argument("--child", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.articles = options.articles or (32 if options.device == "cpu" else 1024)
    options.batch_size = options.batch_size or (8 if options.device == "cpu" else 64)
    options.sides = options.sides.split(",")
    if unknown := set(options.sides) - set(TASKS):
        parser.error(f"no sides called {', '.join(sorted(unknown))}: there are {', '.join(TASKS)}")
    return options


if __name__ == "__main__":
    main()
