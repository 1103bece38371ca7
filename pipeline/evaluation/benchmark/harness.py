"""Runs tasks of lm-evaluation-harness on a model. This is the only module that imports lm_eval.

Models are loaded as for training: from safetensors only, without code of their own.
"""

import difflib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from pipeline.config import UserError
from pipeline.config.messages import one_line
from pipeline.data.pair_tokenizer import load_pair_tokenizer
from pipeline.storage.model_files.hub import fetch
from pipeline.training.modeling.loading import load_model

VERSION = version("lm-eval")
LOCAL_TASKS = ("rondo_perplexity", "rondo_questions")
_LOCAL_FOLDER = Path(__file__).parent / "tasks"
_REQUESTS_AT_ONCE = 8  # batches between two updates of the progress


@dataclass(frozen=True)
class Task:
    """A task that is ready to run.

    Attributes:
        name: of the task.
        part_of: the name that the user gave, of the task itself or of a group or tag that it belongs to.
        version: of the task's definition.
        loaded: the task of lm-evaluation-harness.
    """

    name: str
    part_of: str
    version: str
    loaded: Any

    def describe(self) -> dict[str, Any]:
        """What decides the task's figures, besides the model: for the recipe of a result."""
        config = {name: value for name, value in self.loaded.dump_config().items() if name != "metadata"}
        text = json.dumps(config, sort_keys=True, default=lambda value: getattr(value, "__qualname__", ""))
        return {"version": self.version, "config": hashlib.sha256(text.encode()).hexdigest()[:16]}

    def count_documents(self, limit: int | None) -> int:
        """How many documents there are; with a limit at most that many."""
        total = len(self.loaded.eval_docs)
        return total if limit is None else min(total, limit)

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        """The figure of a metric from the values of single documents.

        Args:
            metric: its name in `Measured.values`.
        """
        return float(self.loaded.aggregation()[metric.split(",")[0]](list(values)))

    @property
    def is_local(self) -> bool:
        """Whether it is one of the tasks about articles."""
        return self.name in LOCAL_TASKS

    def counts(self, metric: str) -> bool:
        """Whether the task has a figure for this metric."""
        return metric.split(",")[0] in self.loaded.aggregation()

    def higher_is_better(self, metric: str) -> bool:
        return bool(self.loaded.higher_is_better().get(metric.split(",")[0], True))

    def is_slow(self, metric: str) -> bool:
        """Whether it takes long to aggregate a metric, as lm-evaluation-harness itself assumes for its bootstrap."""
        return self.loaded.aggregation()[metric.split(",")[0]].__name__ in ("bleu", "chrf", "ter")


@dataclass(frozen=True)
class Measured:
    """The result of a task on a model.

    Attributes:
        documents: a digest of each document, in order.
        values: by metric, what each document contributes: a number, or for a perplexity the log-likelihood with the
            number of bytes. A metric of a task with several filters is named METRIC,FILTER.
        cut: requests that were longer than the model allows and lost their beginning.
    """

    documents: list[str]
    values: dict[str, list[Any]]
    cut: int


def silence() -> None:
    """Turn off the log lines and progress bars of the libraries. Errors are still raised."""
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def load_tasks(names: Sequence[str], articles: str | None) -> list[Task]:
    """Load tasks with their documents.

    Args:
        names: of tasks, groups or tags.
        articles: the JSONL file of articles for the local tasks; None: there are none.

    Raises:
        UserError: a task is unknown, cannot be loaded, or cannot be run on a language model.
    """
    only_local = set(names) <= set(LOCAL_TASKS)  # the other 14,000 names take seconds to read
    metadata = {"articles": articles} if articles else {}
    manager = TaskManager(include_path=str(_LOCAL_FOLDER), include_defaults=not only_local, metadata=metadata)
    for name in names:
        if name not in manager.task_index:
            raise UserError(
                f"--tasks has {name!r}, which lm-evaluation-harness {VERSION} does not have: {_near(name, manager)}"
            )
    tasks = {task.name: task for name in names for task in _load(name, manager)}
    return list(tasks.values())


def _near(name: str, manager: TaskManager) -> str:
    near = difflib.get_close_matches(name, manager.all_tasks, n=5, cutoff=0.6)
    return f"did you mean {', '.join(near)}?" if near else f"without network there are {' and '.join(LOCAL_TASKS)}"


def _load(name: str, manager: TaskManager) -> Iterator[Task]:
    try:
        loaded = manager.load([name])["tasks"]
    except Exception as error:  # no network, no such data set, a missing package: dozens of classes
        remedy = f"without network there are {' and '.join(LOCAL_TASKS)}"
        raise UserError(
            f"--tasks has {name!r}, which cannot be loaded ({one_line(error, limit=300)}): {remedy}"
        ) from None
    for task_name, task in loaded.items():
        for attribute, kind in (
            ("UNSAFE_CODE", "runs code that the model writes"),
            ("MULTIMODAL", "has pictures or sound"),
        ):
            if getattr(task, attribute, False):
                raise UserError(f"--tasks has {name!r}: {task_name} {kind}, which `rondo benchmark` does not run")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        yield Task(task_name, name, str(task.VERSION), task)


class BenchmarkModel(HFLM):
    """A model of lm-evaluation-harness that reports its progress and counts requests that do not fit.

    Requests are passed on in groups, the longest first, because the harness itself only has a progress bar.

    Attributes:
        name: the folder, URI or hub name.
        advance: is called with the number of requests that were answered.
        cut: how many requests were longer than the model allows and lost their beginning.
    """

    def __init__(self, model: str, dtype: str, device: str, batch_size: int):
        """Load a model.

        Args:
            model: folder, URI or hub name of a model or an adapter.
            dtype: of its weights, such as "float32".
            device: such as "cpu" or "cuda".
            batch_size: requests in one forward pass.

        Raises:
            UserError: the model cannot be loaded.
        """
        try:
            loaded = load_model(fetch(model), dtype, article_tree=False).to(device)
        except ValueError as error:
            raise UserError(f"{model}: {error}") from None
        super().__init__(pretrained=loaded, tokenizer=load_pair_tokenizer(model).tokenizer, batch_size=batch_size)
        self.name = model
        self.advance: Callable[[int], None] = lambda count: None
        self.cut = 0

    def _in_groups(self, requests: Sequence[Any], length: Callable[[Any], int], answer: Callable[..., list]) -> list:
        """The answers to all requests, in their order."""
        order = sorted(range(len(requests)), key=lambda i: -length(requests[i]))
        answers: list[Any] = [None] * len(requests)
        size = self.batch_size * _REQUESTS_AT_ONCE
        for start in range(0, len(order), size):
            group = order[start : start + size]
            for i, result in zip(group, answer([requests[i] for i in group], disable_tqdm=True), strict=True):
                answers[i] = result
            self.advance(len(group))
        return answers

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return self._in_groups(requests, lambda request: sum(map(len, request.args)), super().loglikelihood)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return self._in_groups(requests, lambda request: len(request.args[0]), super().loglikelihood_rolling)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return self._in_groups(requests, lambda request: len(request.args[0]), super().generate_until)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        self.cut += sum(len(context) + len(answer) > self.max_length + 1 for _, context, answer in requests)
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)


def count_requests(task: Task, limit: int | None) -> int | None:
    """How many requests a task makes; None if that depends on the document."""
    documents = task.count_documents(limit)
    if task.loaded.OUTPUT_TYPE != "multiple_choice":
        return documents
    choices = {len(task.loaded.doc_to_choice(doc)) for _, doc in task.loaded.doc_iterator(limit=min(documents, 5))}
    return documents * choices.pop() if len(choices) == 1 else None


def run_task(task: Task, model: BenchmarkModel, limit: int | None, seed: int, chat: bool) -> Measured:
    """Run a task on a model.

    Args:
        limit: use the first documents only; None: all.
        seed: of the few-shot examples, and of samples.
        chat: write the prompts with the model's chat template.

    Raises:
        UserError: the task cannot be run on this model.
    """
    torch.manual_seed(seed)
    task.loaded.set_fewshot_seed(seed=seed)
    cut_before = model.cut
    try:
        results = evaluate(
            lm=model,
            task_dict={"tasks": {task.name: task.loaded}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    except (ValueError, AssertionError) as error:
        raise UserError(f"{task.name} cannot be run on {model.name}: {one_line(error)}") from None
    return _collect(results["samples"][task.name], model.cut - cut_before)


def _collect(samples: Iterable[dict[str, Any]], cut: int) -> Measured:
    by_filter: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        by_filter.setdefault(sample["filter"], []).append(sample)
    values = {}
    for name, filtered in by_filter.items():
        suffix = "" if name == "none" else f",{name}"
        for metric in filtered[0]["metrics"]:
            values[f"{metric}{suffix}"] = [sample[metric] for sample in filtered]
    return Measured([sample["doc_hash"] for sample in next(iter(by_filter.values()))], values, cut)
