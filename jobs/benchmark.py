"""`rondo benchmark`: measures what policies have forgotten, by tasks of lm-evaluation-harness."""

import hashlib
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pipeline.config import Alignment, Config, UserError
from pipeline.config.base import Dtype
from pipeline.config.run import Report
from pipeline.execution.progress import Display, format_duration
from pipeline.storage import tables
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import read_raw_settings, read_settings

if TYPE_CHECKING:
    from pipeline.evaluation.benchmark.harness import BenchmarkModel, Task
    from pipeline.evaluation.benchmark.models import Subject
    from pipeline.evaluation.benchmark.results import Result

_RESAMPLES, _SLOW_RESAMPLES = 2_000, 100  # of the bootstrap; the second for metrics such as BLEU
_TEXT_COLUMNS = ("article", "text")


@dataclass(frozen=True)
class Options:
    """Options of the command that change a result.

    Attributes:
        limit: use the first documents of each task only; None: all.
        seed: of few-shot examples, samples and the bootstrap.
        chat: write prompts with the chat template.
        dtype: of the weights.
    """

    limit: int | None
    seed: int
    chat: bool
    dtype: str


def run_benchmark(
    models: Sequence[str],
    task_names: Sequence[str],
    limit: int | None = None,
    chat: bool = False,
    seed: int | None = None,
    dtype: str | None = None,
    batch_size: int = 8,
    articles: str | None = None,
    out: str | None = None,
) -> None:
    """Run tasks on the models of a run, or on models by name; print and keep the differences from the first model.

    Args:
        models: a run folder, which stands for its base and the policy of each round; and folders, URIs or hub names.
        task_names: of tasks, groups or tags of lm-evaluation-harness.
        limit, chat: see `Options`.
        seed: see `Options`; None: the run's, or 0.
        dtype: see `Options`; None: that of the run's policy, else float32 on a CPU and bfloat16 on a GPU.
        batch_size: requests in one forward pass.
        articles: the run or file whose articles the local tasks use; None: the held-out articles of the run.
        out: the folder for the results; None: the run's.

    Raises:
        UserError: the package lm-eval is missing; a model, a task or a folder cannot be used; or it is in use.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is not installed: install it with `make benchmark` in Rondo's folder")
    if not task_names:
        raise UserError(
            "--tasks is empty: name tasks with commas between, such as --tasks rondo_perplexity,rondo_questions"
        )
    if dtype is not None and dtype not in get_args(Dtype):
        raise UserError(f"--dtype is {dtype!r}: it should be one of {', '.join(get_args(Dtype))}")
    run, settings = _find_run(models)
    ledger = _results_ledger(run, out)
    import torch

    from pipeline.evaluation.benchmark import harness
    from pipeline.evaluation.benchmark.models import named_subject, subjects_of_run

    harness.silence()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run_dtype = settings.policy.dtype if settings else None
    options = Options(
        limit,
        seed if seed is not None else settings.seed if settings else 0,
        chat,
        dtype or run_dtype or ("float32" if device == "cpu" else "bfloat16"),
    )
    subjects: list[Subject] = []
    for name in models:
        subjects += subjects_of_run(run, settings) if run and settings and _is_run(name) else [named_subject(name)]
    if chat:
        _check_chat_templates(subjects)
    display = Display()
    with tempfile.TemporaryDirectory() as folder:
        file = _write_articles(articles, run, Path(folder)) if set(task_names) & set(harness.LOCAL_TASKS) else None
        tasks = harness.load_tasks(task_names, str(file) if file else None)
        definitions = {task.name: _define(task, file) for task in tasks}
        with ledger.lock(display.warn):
            results = _measure(subjects, tasks, definitions, options, device, batch_size, ledger, display)
            confidence = settings.report.confidence if isinstance(settings, Config) else Report().confidence
            comparisons = compare_results(results, tasks, options, confidence)
            _keep_and_show(comparisons, ledger, display)
            if run and run.root == ledger.root and isinstance(settings, Config):
                _write_report_again(run, settings, display)


def _is_run(name: str) -> bool:
    local = "://" not in name
    return (not local or os.path.isdir(name)) and read_raw_settings(Ledger(name)) is not None


def _find_run(models: Sequence[str]) -> tuple[Ledger | None, Config | Alignment | None]:
    """The run among the models with its settings, if there is one."""
    runs = [name for name in models if _is_run(name)]
    if len(runs) > 1:
        raise UserError(f"{' and '.join(runs)} are runs: benchmark one run at a time, with other models beside it")
    if not runs and len(models) == 1:
        raise UserError(
            f"{models[0]!r} is no run folder, and a single model has nothing to be compared with: name a run, or two "
            "models"
        )
    if not runs:
        return None, None
    if models[0] != runs[0]:
        raise UserError(f"{runs[0]} is a run, whose base comes first: name it before {models[0]}")
    ledger = Ledger(runs[0])
    return ledger, read_settings(ledger)


def _results_ledger(run: Ledger | None, out: str | None) -> Ledger:
    if out is not None:
        return Ledger(out)
    if run is None:
        raise UserError("--out is not set: without a run, name a folder for the results, such as --out runs/benchmark")
    return run


def _check_chat_templates(subjects: Sequence["Subject"]) -> None:
    from pipeline.data.pair_tokenizer import load_pair_tokenizer

    for subject in subjects:
        if not load_pair_tokenizer(subject.model).has_chat_template:
            raise UserError(
                f"--chat is set, but {subject.label} ({subject.model}) has no chat template: leave --chat out"
            )


def _define(task: "Task", articles: Path | None) -> dict[str, Any]:
    """What decides a task's documents and prompts: its definition, and the articles of a local task."""
    definition = task.describe()
    if task.is_local and articles:
        definition["articles"] = hashlib.sha256(articles.read_bytes()).hexdigest()[:16]
    return definition


# The articles of the local tasks


def _write_articles(source: str | None, run: Ledger | None, folder: Path) -> Path:
    """Write the articles of the local tasks as JSONL, in an order that `--limit` can cut: by a hash of the id.

    Raises:
        UserError: there are no articles.
    """
    if source is not None:
        texts = list(_read_heldout(Ledger(source)) if _is_run(source) else _read_file(source))
    elif run is not None:
        texts = list(_read_heldout(run))
    else:
        raise UserError(
            "--articles is not set: without a run, the local tasks need a run or a file of articles, such as "
            "--articles newsroom/articles.jsonl"
        )
    texts.sort(key=lambda item: hashlib.sha256(item[0].encode()).digest())
    file = folder / "articles.jsonl"
    lines = (json.dumps({"article_id": article_id, "article": text}) + "\n" for article_id, text in texts)
    file.write_text("".join(lines), encoding="utf-8")
    return file


def _read_heldout(ledger: Ledger) -> Iterator[tuple[str, str]]:
    """Id and text of each held-out article of a run. Its test articles stay unseen."""
    table = ledger.find("articles")
    if table is None:
        raise UserError(
            f"{ledger.root} has no table of articles, which the local tasks need: name a run or a file with --articles"
        )
    heldout = [row for row in tables.read_table(ledger, table) if row["split"] == "eval"]
    if not heldout:
        raise UserError(f"{ledger.root} has no held-out articles: name a run or a file with --articles")
    yield from ((row["article_id"], row["article"]) for row in heldout)


def _read_file(source: str) -> Iterator[tuple[str, str]]:
    from pipeline.data.readers import read_rows

    empty = True
    for number, row in enumerate(read_rows(source, "--articles")):
        text = next((row[name] for name in _TEXT_COLUMNS if isinstance(row.get(name), str)), "")
        if text.strip():
            empty = False
            yield str(row.get("id", number)), text
    if empty:
        raise UserError(f"--articles is {source!r}, which has no text in a column `article` or `text`")


# Measuring


def _measure(
    subjects: Sequence["Subject"],
    tasks: Sequence["Task"],
    definitions: dict[str, dict[str, Any]],
    options: Options,
    device: str,
    batch_size: int,
    ledger: Ledger,
    display: Display,
) -> dict[str, list["Result"]]:
    """The results of each task, in the order of the models. A model is loaded only if a result is missing."""
    from pipeline.evaluation.benchmark import harness
    from pipeline.evaluation.benchmark.results import find_result, result_recipe

    settings = {**vars(options), "lm_eval": harness.VERSION}
    results: dict[str, list[Result]] = {task.name: [] for task in tasks}
    for subject in subjects:
        model: BenchmarkModel | None = None
        for task in tasks:
            recipe = result_recipe(subject, task.name, definitions[task.name], settings)
            result = find_result(ledger, subject, task.name, recipe)
            is_new = result is None
            if result is None:
                model = model or harness.BenchmarkModel(subject.model, options.dtype, device, batch_size)
                result = _measure_one(subject, task, model, recipe, options, device, ledger, display)
            results[task.name].append(result)
            record = result.artifact.record
            figures = "  ".join(f"{metric} {figure:.4f}" for metric, figure in record["metrics"].items())
            effort = format_duration(record["seconds"]) if is_new else "made before"
            display.line(f"{subject.label} {task.name}", f"{figures}  {record['documents']:,} documents  {effort}")
            if record["cut"]:
                display.warn(f"{record['cut']:,} requests were longer than the model allows and lost their beginning")
    return results


def _measure_one(
    subject: "Subject",
    task: "Task",
    model: "BenchmarkModel",
    recipe: dict[str, Any],
    options: Options,
    device: str,
    ledger: Ledger,
    display: Display,
) -> "Result":
    from pipeline.evaluation.benchmark import harness
    from pipeline.evaluation.benchmark.results import write_result

    started = time.monotonic()
    total = harness.count_requests(task, options.limit)
    with display.working([f"{subject.label} {task.name}"], total, "requests") as (progress,):
        model.advance = progress.advance
        measured = harness.run_task(task, model, options.limit, options.seed, options.chat)
    values = {metric: values for metric, values in measured.values.items() if task.counts(metric)}
    figures = {metric: task.aggregate(metric, of_documents) for metric, of_documents in values.items()}
    details = {"task_version": task.version, "cut": measured.cut, "device": device}
    return write_result(ledger, subject, task.name, recipe, measured.documents, values, figures, started, **details)


# Comparing


def compare_results(
    results: dict[str, list["Result"]], tasks: Sequence["Task"], options: Options, confidence: float
) -> dict[str, Any]:
    """The lines of each task, or of each group: its tasks' documents are then taken together.

    Args:
        results: by task, those of the models in order, the base first.
        confidence: of the intervals.
    """
    comparisons = {}
    for name in dict.fromkeys(task.part_of for task in tasks):
        members = [task for task in tasks if task.part_of == name]
        comparisons[name] = {
            "tasks": {task.name: task.version for task in members},
            "lines": _compare_task(name, members, results, options.seed, confidence),
            "confidence": confidence,
            "resamples": _RESAMPLES,
            **vars(options),
            "lm_eval": results[members[0].name][0].artifact.record["recipe"]["settings"]["lm_eval"],
        }
    return comparisons


def _compare_task(
    name: str, members: Sequence["Task"], results: dict[str, list["Result"]], seed: int, confidence: float
) -> list[Any]:
    from pipeline.evaluation.benchmark.comparison import Line, bootstrap
    from pipeline.evaluation.benchmark.results import check_same_documents

    for task in members:
        for other in results[task.name][1:]:
            check_same_documents(results[task.name][0], other)
    metrics = [
        metric
        for metric in results[members[0].name][0].values
        if all(metric in results[task.name][0].values for task in members)
    ]
    lines = []
    for metric in metrics:
        task = members[0]
        bootstrap_figure = partial(
            bootstrap,
            aggregate=partial(task.aggregate, metric),
            resamples=_SLOW_RESAMPLES if task.is_slow(metric) else _RESAMPLES,
            confidence=confidence,
            seed=seed,
        )
        base_values = _pooled_values(members, results, 0, metric)
        for i, result in enumerate(results[task.name]):
            values = _pooled_values(members, results, i, metric)
            shown = bootstrap_figure(values, base_values if i else None)
            lines.append(
                Line(
                    name,
                    metric,
                    result.subject.label,
                    result.subject.slot,
                    result.subject.digest,
                    task.aggregate(metric, values),
                    shown.value if i else None,
                    shown.low,
                    shown.high,
                    len(values),
                    shown.verdict(task.higher_is_better(metric)) if i else "",
                )
            )
    return lines


def _pooled_values(members: Sequence["Task"], results: dict[str, list["Result"]], place: int, metric: str) -> list[Any]:
    """What each document of all these tasks contributes to a metric, for the model at index `place`."""
    return [value for task in members for value in results[task.name][place].values[metric]]


def _keep_and_show(comparisons: dict[str, Any], ledger: Ledger, display: Display) -> None:
    from pipeline.evaluation.benchmark.table import COMPARISONS, add_comparisons, benchmark_table
    from pipeline.evaluation.report.render import terminal_tables

    add_comparisons(ledger, comparisons)
    for table in terminal_tables(benchmark_table([line for entry in comparisons.values() for line in entry["lines"]])):
        display.say("")
        display.console.print(table)
    display.say("")
    display.say(f"Comparisons: {ledger.root}/{COMPARISONS}", style="bold")


def _write_report_again(ledger: Ledger, settings: Config, display: Display) -> None:
    """Write report.md with the new table, if the rounds are finished. If not, `rondo run` will write it."""
    from pipeline.evaluation.report.examples import choose_examples
    from pipeline.evaluation.report.metrics import collect_metrics
    from pipeline.evaluation.report.render import write_report
    from pipeline.execution.dry_run import DryRun
    from pipeline.round import rounds

    try:
        dry_run = DryRun(settings, ledger)
        rounds_so_far = list(rounds(dry_run))
    except UserError as error:
        display.warn(f"report.md is not written again, because the run is stale: {error}")
        return
    if dry_run.unmade:
        display.say("The rounds are not finished: rondo run will write this table into report.md.")
        return
    metrics = collect_metrics(rounds_so_far, settings, ledger)
    write_report(metrics, choose_examples(rounds_so_far, ledger, count=3), settings, ledger)
    display.say(f"Report: {ledger.root}/report.md", style="bold")
