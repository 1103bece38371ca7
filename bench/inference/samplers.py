"""Samples the same summaries with Rondo, with Ray Data's LLM processor and with bare vLLM, for `sampling.py`.

Each side takes `folder` (the articles and policies that `sampling.make_inputs` writes) and the benchmark's options. It
returns seconds and tokens.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

INSTRUCTION = "Summarize.\n{article}"
MAX_MODEL_LEN = 1024


def rondo(*, folder: str, at_once: int = 2, lengths: str = "equal", **options: Any) -> dict[str, Any]:
    """Rondo's stage `summaries`, one row per article.

    Args:
        folder: the articles and policies.
        at_once: batches that one engine works on at a time.
        lengths: the policy: "equal" writes summaries of equal length, "various" of many lengths.
        options: of the benchmark.
    """
    from pipeline.config import run
    from pipeline.config.hardware import EngineHardware, Hardware
    from pipeline.execution.ray_cluster import connected_ray
    from pipeline.inference.pool import EnginePool
    from pipeline.stages.summaries import sample_summaries

    gpus = float(options["device"] == "cuda")
    hardware = EngineHardware(gpus_per_replica=gpus, batch_size=options["batch_size"], kvcache_space=options["kvcache"])
    step_log = Path(folder, f"steps-{time.monotonic_ns()}")
    model = str(Path(folder, lengths))
    policy = run.PolicySettings(
        model=model, dtype=options["dtype"], max_model_len=MAX_MODEL_LEN, instruction=INSTRUCTION
    )
    settings = run.Summaries(n=options["k"], max_tokens=options["max_tokens"], temperature=1.0, top_p=1.0)
    with connected_ray(Hardware(policy=hardware, ray_cpus=4)):
        began = time.time()
        pool = EnginePool(
            partial(recording_engine, model, options["dtype"], hardware, str(step_log)), hardware, at_once
        )
        gate = WarmupGate(folder, options)
        dataset = sample_summaries(gate.rows(1), "base", summaries=settings, policy=policy, seed=0, policy_engine=pool)
        rows = gate.timed_rows(dataset, options["batch_size"])
        lengths_sampled = [len(summary["token_ids"]) for row in rows for summary in row["summaries"]]
        result = gate.result(began, lengths_sampled)
    steps = [[float(number) for number in line.split()] for line in step_log.read_text().splitlines()]
    return result | {"steps": steps}


def recording_engine(model: str, dtype: str, hardware: Any, log: str) -> Any:
    """A VllmEngine that logs each step: its start, its end, and the requests under way before and after it."""
    from pipeline.inference.vllm import VllmEngine

    engine = VllmEngine(model, dtype, MAX_MODEL_LEN, 0, hardware)
    llm_engine = engine.stepper.engine
    original_step = llm_engine.step
    file = Path(log).open("w", buffering=1)  # noqa: SIM115 (open as long as the engine lives)

    def step() -> Any:
        began, requests_before = time.time(), llm_engine.get_num_unfinished_requests()
        outputs = original_step()
        file.write(f"{began} {time.time()} {requests_before} {llm_engine.get_num_unfinished_requests()}\n")
        return outputs

    llm_engine.step = step
    return engine


def ray_data_llm(*, folder: str, caching: bool = True, **options: Any) -> dict[str, Any]:
    """Ray Data's LLM processor, one row per summary.

    Args:
        folder: the articles and policies.
        caching: whether vLLM's prefix cache is on.
        options: of the benchmark.
    """
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from pipeline.config.hardware import Hardware
    from pipeline.execution.ray_cluster import connected_ray

    gpu = options["device"] == "cuda"
    max_tokens = options["max_tokens"]
    # The processor has four actors: chat template, tokenizer, engine, detokenizer. 16 CPUs are enough for all.
    with connected_ray(Hardware(ray_cpus=16)):
        began = time.time()
        config = vLLMEngineProcessorConfig(
            model_source=str(Path(folder, "equal")),
            engine_kwargs=_vllm_settings(options) | {"enable_prefix_caching": caching},
            # 32 is the default. The processor waits for a full batch, so it must not exceed the warm-up rows.
            batch_size=min(32, options["k"] * options["batch_size"]),
            concurrency=1,
            placement_group_config=None if gpu else {"bundle_per_worker": {"CPU": 1}},
            runtime_env={"env_vars": _vllm_environment(options)},
            log_engine_metrics=False,
        )
        processor = build_processor(
            config,
            preprocess=lambda row: {
                "messages": [{"role": "user", "content": INSTRUCTION.replace("{article}", row["article"])}],
                "sampling_params": {"temperature": 1.0, "top_p": 1.0, "max_tokens": max_tokens},
            },
            postprocess=lambda row: {"text": row["generated_text"], "tokens": row["num_generated_tokens"]},
        )
        gate = WarmupGate(folder, options)
        rows = gate.timed_rows(processor(gate.rows(options["k"])), options["k"] * options["batch_size"])
        return gate.result(began, [row["tokens"] for row in rows])


class WarmupGate:
    """Lets warm-up articles into a dataset, holds the others back until the warm-up is done, and times the others.

    Attributes:
        opened: time at which the timed articles were let in.
        closed: time at which the last of their rows came out.
    """

    def __init__(self, folder: str, options: dict[str, Any]):
        self.folder, self.options = folder, options
        self.open_file = Path(folder, f"open-{time.monotonic_ns()}")  # exists once the gate is open
        self.opened, self.closed = 0.0, 0.0
        self.cpu_before: dict[int, float] = {}
        self.cpu_after: dict[int, float] = {}

    def rows(self, copies: int) -> Any:
        """A dataset of the articles, each as `copies` rows. The timed articles wait until the gate opens."""
        import ray

        parts = ray.data.from_items([{"warm_up": True}, {"warm_up": False}], override_num_blocks=2)
        return parts.flat_map(partial(_rows_when_open, str(self.open_file), self.folder, self.options, copies))

    def timed_rows(self, dataset: Any, warmup_rows: int) -> list[dict[str, Any]]:
        """Run a dataset and return its rows after the warm-up. Opens and closes the gate."""
        rows: list[dict[str, Any]] = []
        all_rows = warmup_rows + warmup_rows // self.options["batch_size"] * self.options["articles"]
        # No prefetching: it would wait for the second batch before it hands out the first.
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            rows += table.to_pylist()
            if len(rows) == warmup_rows:
                self.open()
            if len(rows) == all_rows:
                self.close()  # inside the loop: after it Ray may have stopped the actors whose CPU time counts
        return rows[warmup_rows:]

    def open(self) -> None:
        self.opened, self.cpu_before = time.time(), _cpu_seconds()
        self.open_file.touch()

    def close(self) -> None:
        self.closed, self.cpu_after = time.time(), _cpu_seconds()

    def result(self, began: float, lengths: list[int]) -> dict[str, Any]:
        """The figures of a side.

        Args:
            began: time at which the side started.
            lengths: tokens of each timed summary.
        """
        expected = self.options["k"] * self.options["articles"]
        assert len(lengths) == expected and min(lengths) > 0, f"{len(lengths)} summaries, expected {expected}"
        return {
            "seconds": self.closed - self.opened,
            "cpu_seconds": sum(spent - self.cpu_before.get(pid, 0.0) for pid, spent in self.cpu_after.items()),
            "whole_seconds": self.closed - began,
            "opened": self.opened,
            "summaries": len(lengths),
            "tokens": sum(lengths),
        }


def _cpu_seconds() -> dict[int, float]:
    """CPU seconds by process: this one and all that it has started, Ray's included.

    Other work on the machine hardly changes them.
    """
    this_process = psutil.Process()
    seconds = {}
    for process in (this_process, *this_process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds[process.pid] = times.user + times.system
    return seconds


def _rows_when_open(
    open_file: str, folder: str, options: dict[str, Any], copies: int, part: dict[str, bool]
) -> list[dict[str, Any]]:
    while not (part["warm_up"] or Path(open_file).exists()):
        time.sleep(0.01)
    warmup, timed = _articles(folder, options)
    return [row for row in (warmup if part["warm_up"] else timed) for _ in range(copies)]


def bare_vllm(*, folder: str, **options: Any) -> dict[str, Any]:
    """`vllm.LLM.generate`, all prompts in one call, n=K."""
    began = time.time()
    os.environ.update(_vllm_environment(options) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    from vllm import LLM, SamplingParams

    model = str(Path(folder, "equal"))
    llm = LLM(model=model, enable_prefix_caching=True, disable_log_stats=True, **_vllm_settings(options))
    tokenizer = llm.get_tokenizer()
    params = SamplingParams(n=options["k"], temperature=1.0, top_p=1.0, max_tokens=options["max_tokens"])

    def sample(rows: list[dict[str, Any]]) -> list[int]:
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": INSTRUCTION.replace("{article}", row["article"])}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
            for row in rows
        ]
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [len(summary.token_ids) for output in outputs for summary in output.outputs]

    warmup, timed = _articles(folder, options)
    sample(warmup)
    gate = WarmupGate(folder, options)
    gate.open()
    lengths = sample(timed)
    gate.close()
    return gate.result(began, lengths)


def _articles(folder: str, options: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of one batch for the warm-up, and the rows that are timed."""
    texts = json.loads(Path(folder, "articles.json").read_text(encoding="utf-8"))
    rows = [{"article_id": f"a{i}", "article": text, "split": "train"} for i, text in enumerate(texts)]
    return rows[: options["batch_size"]], rows[options["batch_size"] :]


def _vllm_settings(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments that Rondo's engine gives vLLM, for the other sides."""
    cpu = {"enforce_eager": True, "block_size": 32} if options["device"] == "cpu" else {}
    return {"dtype": options["dtype"], "max_model_len": MAX_MODEL_LEN} | cpu


def _vllm_environment(options: dict[str, Any]) -> dict[str, str]:
    """The environment variables that Rondo's engine sets, for the other sides."""
    always = {
        "VLLM_CPU_KVCACHE_SPACE": str(options["kvcache"]),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "OMP_NUM_THREADS": str(options["threads"]),
    }
    return always | ({"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if options["device"] == "cpu" else {})


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "rondo": rondo,
    "ray_data_llm": ray_data_llm,
    "ray_data_llm_uncached": partial(ray_data_llm, caching=False),
    "bare_vllm": bare_vllm,
}
