"""The sides of `sampling.py`: the same summaries by Rondo, by Ray Data's LLM processor, and by bare vLLM.

Each takes `folder` (the articles and the policy, as `sampling.make` writes them) and how to run, and gives seconds and
tokens. Left out: the comparison.
"""

import json
import os
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

INSTRUCTION = "Summarize.\n{article}"
MAX_MODEL_LEN = 1024


def rondo(*, folder: str, at_once: int = 2, lengths: str = "equal", **how: Any) -> dict[str, Any]:
    from pipeline.config import run
    from pipeline.config.hardware import EngineHardware, Hardware
    from pipeline.execution.ray_cluster import connected_ray
    from pipeline.inference.pool import EnginePool
    from pipeline.stages.summaries import sample_summaries

    gpus = float(how["device"] == "cuda")
    hardware = EngineHardware(gpus_per_replica=gpus, batch_size=how["batch_size"], kvcache_space=how["kvcache"])
    log = Path(folder, f"steps-{time.monotonic_ns()}")
    model = str(Path(folder, lengths))
    policy = run.PolicySettings(model=model, dtype=how["dtype"], max_model_len=MAX_MODEL_LEN, instruction=INSTRUCTION)
    settings = run.Summaries(n=how["k"], max_tokens=how["max_tokens"], temperature=1.0, top_p=1.0)
    with connected_ray(Hardware(policy=hardware, ray_cpus=4)):
        began = time.time()
        pool = EnginePool(partial(recorded, model, how["dtype"], hardware, str(log)), hardware, at_once)
        door = Door(folder, how)
        made = sample_summaries(door.rows(1), "base", summaries=settings, policy=policy, seed=0, policy_engine=pool)
        rows = door.through(made, how["batch_size"])
        done = door.timed(began, [len(summary["token_ids"]) for row in rows for summary in row["summaries"]])
    return done | {"steps": [[float(n) for n in line.split()] for line in log.read_text().splitlines()]}


def recorded(model: str, dtype: str, hardware: Any, log: str) -> Any:
    """A VllmEngine that writes down of each step: when it began and ended, requests under way before and after."""
    from pipeline.inference.vllm import VllmEngine

    engine = VllmEngine(model, dtype, MAX_MODEL_LEN, 0, hardware)
    stepped = engine.stepper.engine
    usual = stepped.step
    file = Path(log).open("w", buffering=1)  # noqa: SIM115 (as long as the engine)

    def step() -> Any:
        began, before = time.time(), stepped.get_num_unfinished_requests()
        outputs = usual()
        file.write(f"{began} {time.time()} {before} {stepped.get_num_unfinished_requests()}\n")
        return outputs

    stepped.step = step
    return engine


def ray_data_llm(*, folder: str, caching: bool = True, **how: Any) -> dict[str, Any]:
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from pipeline.config.hardware import Hardware
    from pipeline.execution.ray_cluster import connected_ray

    gpu = how["device"] == "cuda"
    max_tokens = how["max_tokens"]
    with connected_ray(Hardware(ray_cpus=16)):  # an actor each for templates, tokens, engine and text: no CPU short
        began = time.time()
        config = vLLMEngineProcessorConfig(
            model_source=str(Path(folder, "equal")),
            engine_kwargs=_vllm_settings(how) | {"enable_prefix_caching": caching},
            batch_size=min(32, how["k"] * how["batch_size"]),  # 32 is its default; it waits for a whole one
            concurrency=1,
            placement_group_config=None if gpu else {"bundle_per_worker": {"CPU": 1}},
            runtime_env={"env_vars": _vllm_environment(how)},
            log_engine_metrics=False,
        )  # fmt: skip
        processor = build_processor(
            config,
            preprocess=lambda row: {
                "messages": [{"role": "user", "content": INSTRUCTION.replace("{article}", row["article"])}],
                "sampling_params": {"temperature": 1.0, "top_p": 1.0, "max_tokens": max_tokens},
            },
            postprocess=lambda row: {"text": row["generated_text"], "tokens": row["num_generated_tokens"]},
        )
        door = Door(folder, how)
        rows = door.through(processor(door.rows(how["k"])), how["k"] * how["batch_size"])
        return door.timed(began, [row["tokens"] for row in rows])


class Door:
    """Lets the first rows into a dataset at once, and the others when those have come through it."""

    def __init__(self, folder: str, how: dict[str, Any]):
        self.folder, self.how = folder, how
        self.sign = Path(folder, f"open-{time.monotonic_ns()}")
        self.opened, self.closed = 0.0, 0.0
        self.cpu_before: dict[int, float] = {}
        self.cpu_after: dict[int, float] = {}

    def rows(self, copies: int) -> Any:
        import ray

        parts = ray.data.from_items([{"first": True}, {"first": False}], override_num_blocks=2)
        return parts.flat_map(partial(_behind, str(self.sign), self.folder, self.how, copies))

    def through(self, made: Any, first: int) -> list[dict[str, Any]]:
        """The rows that come after the first ones."""
        rows: list[dict[str, Any]] = []
        last = first + first // self.how["batch_size"] * self.how["articles"]
        # None ahead of time: it would wait for the second batch before it shows the first.
        for table in made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            rows += table.to_pylist()
            if len(rows) == first:
                self.open()
            if len(rows) == last:
                self.close()  # here, where the actors are still there, whose seconds count
        return rows[first:]

    def open(self) -> None:
        self.opened, self.cpu_before = time.time(), _cpu_seconds()
        self.sign.touch()

    def close(self) -> None:
        self.closed, self.cpu_after = time.time(), _cpu_seconds()

    def timed(self, began: float, lengths: list[int]) -> dict[str, Any]:
        assert len(lengths) == self.how["k"] * self.how["articles"] and min(lengths) > 0, "not every summary came"
        return {
            "seconds": self.closed - self.opened,
            "cpu_seconds": sum(spent - self.cpu_before.get(pid, 0.0) for pid, spent in self.cpu_after.items()),
            "whole_seconds": self.closed - began,
            "opened": self.opened,
            "summaries": len(lengths),
            "tokens": sum(lengths),
        }


def _cpu_seconds() -> dict[int, float]:
    """Of this process and all that it has started, Ray's too. What others do on the machine hardly touches it."""
    here = psutil.Process()
    found = {}
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def _behind(sign: str, folder: str, how: dict[str, Any], copies: int, part: dict[str, bool]) -> list[dict[str, Any]]:
    while not (part["first"] or Path(sign).exists()):
        time.sleep(0.01)
    first, others = _articles(folder, how)
    return [row for row in (first if part["first"] else others) for _ in range(copies)]


def bare_vllm(*, folder: str, **how: Any) -> dict[str, Any]:
    began = time.time()
    os.environ.update(_vllm_environment(how) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    from vllm import LLM, SamplingParams

    model = str(Path(folder, "equal"))
    llm = LLM(model=model, enable_prefix_caching=True, disable_log_stats=True, **_vllm_settings(how))
    tokenizer = llm.get_tokenizer()
    params = SamplingParams(n=how["k"], temperature=1.0, top_p=1.0, max_tokens=how["max_tokens"])

    def sampled(rows: list[dict[str, Any]]) -> list[int]:
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": INSTRUCTION.replace("{article}", row["article"])}],
                add_generation_prompt=True, tokenize=True, return_dict=False,
            )
            for row in rows
        ]  # fmt: skip
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [len(o.token_ids) for output in outputs for o in output.outputs]

    first, others = _articles(folder, how)
    sampled(first)
    door = Door(folder, how)
    door.open()
    lengths = sampled(others)
    door.close()
    return door.timed(began, lengths)


def _articles(folder: str, how: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One batch to begin with, and the others."""
    texts = json.loads(Path(folder, "articles.json").read_text(encoding="utf-8"))
    rows = [{"article_id": f"a{i}", "article": text, "split": "train"} for i, text in enumerate(texts)]
    return rows[: how["batch_size"]], rows[how["batch_size"] :]


def _vllm_settings(how: dict[str, Any]) -> dict[str, Any]:
    """What Rondo's engine is told, for the other sides."""
    cpu = {"enforce_eager": True, "block_size": 32} if how["device"] == "cpu" else {}
    return {"dtype": how["dtype"], "max_model_len": MAX_MODEL_LEN} | cpu


def _vllm_environment(how: dict[str, Any]) -> dict[str, str]:
    """What Rondo's engine sets for itself, for the other sides."""
    own = {"VLLM_CPU_KVCACHE_SPACE": str(how["kvcache"]), "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    cpu = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if how["device"] == "cpu" else {}
    return own | cpu | {"OMP_NUM_THREADS": str(how["threads"])}


TASKS = {
    "rondo": rondo,
    "ray_data_llm": ray_data_llm,
    "ray_data_llm_uncached": partial(ray_data_llm, caching=False),
    "bare_vllm": bare_vllm,
}
