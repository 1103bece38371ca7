"""Defines the command line of `rondo`. Heavy modules are imported when a command runs, so `rondo --help` is fast."""

import gc
import os
import sys
from typing import Annotated, NoReturn

import typer

# New objects between two garbage collections. Python's default of 700 costs a fifth of the time that imports take.
_GC_THRESHOLD = 50_000

app = typer.Typer(
    help="Iterative on-policy DPO: a policy writes summaries, a judge scores them, and DPO trains the policy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # wraps the paragraphs of help texts to the terminal; "rich" keeps our line ends
)


def _expand(value: str | list[str] | None) -> str | list[str] | None:
    """Expand `~` and variables in paths, also where the shell does not, as in --out=~/x."""
    if value is None:
        return None
    from pipeline.config import UserError
    from pipeline.config.base import expand_location

    try:
        return expand_location(value) if isinstance(value, str) else [expand_location(path) for path in value]
    except ValueError as error:
        raise UserError(f"{value!r}: {error}") from None


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME=VALUE]...",
        help="Settings that replace those of the file, such as training.beta=0.05.",
        show_default=False,
    ),
]
ConfigFile = Annotated[
    str, typer.Argument(metavar="CONFIG", callback=_expand, help="A YAML file, such as configs/demo.yaml.")
]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", callback=_expand, help="The run's folder or URI.")]


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    remake: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Make this artifact and what follows again, such as round-01/pairs or 'round-*/exam'.",
        ),
    ] = None,
) -> None:
    """Run rounds. The same command resumes an interrupted run."""
    from jobs.run_rounds import run_command

    run_command(config, overrides or [], remake)


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    rates: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", callback=_expand, help="A run whose records give the speed. Default: this run."),
    ] = None,
    price: Annotated[float | None, typer.Option(metavar="DOLLARS", min=0, help="Price of a GPU for an hour.")] = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(metavar="GIB", min=1, help="Memory of one GPU. Default: that of this machine's smallest GPU."),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--json", metavar="FILE", callback=_expand, help="Write the plan as JSON.")
    ] = None,
) -> None:
    """Show what a run would make and reuse: prompts, tokens, hours, cost and memory. Nothing is started or made.

    A model that cannot fit is refused, with exit status 2.
    """
    from jobs.plan import plan as show_plan

    show_plan(config, overrides or [], rates or [], price, gpu_memory, out)


@app.command()
def schedule(
    config: ConfigFile,
    overrides: Overrides = None,
    cron: Annotated[
        str | None,
        typer.Option(metavar="EXPRESSION", help='When to run a round, such as "0 2 * * *" for every night at two.'),
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Such as Europe/Berlin. Default: this machine's.")
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="Run a round now, and then on schedule.")] = False,
    once: Annotated[
        bool, typer.Option("--once", help="Run one round now and exit, for use with another scheduler.")
    ] = False,
    max_failures: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Stop after N failed rounds in a row. Default: never.")
    ] = None,
) -> None:
    """Run one more round at each firing of --cron, in the foreground.

    Each round runs in a process of its own. If a round fails, the next firing resumes it. A firing that comes while a
    round is still running is left out.
    """
    from jobs.scheduling.schedule import schedule as run_schedule

    run_schedule(config, overrides or [], cron, timezone, now, once, max_failures)


@app.command()
def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            callback=_expand,
            help="A YAML file, such as configs/own_pairs.yaml, or the file of a run.",
        ),
    ],
    overrides: Overrides = None,
    remake: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Make this artifact and what follows again, such as policy.")
    ] = None,
) -> None:
    """Train on your own preference pairs, without rounds: pairs=FILE names them.

    FILE is JSON, CSV or Parquet by path or URI, or hf:OWNER/NAME:SPLIT, with the columns of TRL, UltraFeedback,
    Intel orca or LLaMA-Factory. The same command resumes an interrupted training.
    """
    from jobs.train import train as run_training

    run_training(config, overrides or [], remake)


@app.command()
def export(
    folder: RunFolder,
    out: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            callback=_expand,
            help="Path or URI of the file: .jsonl, .json or .parquet.",
            show_default=False,
        ),
    ],
    number: Annotated[
        int | None, typer.Option("--round", metavar="N", help="Only this round. Default: all rounds.", min=1)
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="trl, ultrafeedback, llama-factory-alpaca, llama-factory-sharegpt, or argilla.",
        ),
    ] = "trl",
) -> None:
    """Write a run's pairs in TRL's format (prompt, chosen, rejected) or that of another tool.

    `rondo train` reads each of them back. For LLaMA-Factory, the file is added to the dataset_info.json beside it.
    """
    from jobs.sharing.export import export as run_export

    run_export(folder, out, number, form)


@app.command()
def push(
    folder: RunFolder,
    to: Annotated[
        str,
        typer.Option(metavar="OWNER/NAME", help="The repository on the Hugging Face hub.", show_default=False),
    ],
    number: Annotated[
        int | None,
        typer.Option(
            "--round",
            metavar="N",
            help="Push the policy, or with --dataset the pairs, of this round. Default: the champion; all pairs.",
            min=1,
        ),
    ] = None,
    dataset: Annotated[bool, typer.Option("--dataset", help="Push the pairs and scores, not the policy.")] = False,
    base: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="The base's name on the hub, if the run used a local copy of it."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository, if it is new.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch to push to. Default: main.", show_default=False)
    ] = None,
    commit_message: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The commit's message.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder, show it, and push nothing.")] = False,
    out: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", callback=_expand, help="A new folder for --dry-run. Default: a temporary one."),
    ] = None,
) -> None:
    """Push a run's policy to the Hugging Face hub, with a model card; or its pairs and scores, with a dataset card.

    The token is that of `hf auth login`, or HF_TOKEN. No path, user or host of this machine is in what is pushed.
    """
    from jobs.sharing.hub import Destination
    from jobs.sharing.push import push as run_push

    destination = Destination(to, "dataset" if dataset else "model", private, revision, commit_message)
    run_push(folder, destination, number, base, dry_run, out)


@app.command("judge-card")
def judge_card(config: ConfigFile, overrides: Overrides = None) -> None:
    """Show how far the configuration's judge can be trusted on its articles. No policy is needed.

    The judge scores extracts of each article: its first sentences and six random sets of sentences. Some are scored
    twice, in another order of options or criteria. A judge that asks questions also answers them from the whole article
    and from nothing. The card shows what the judge costs, its biases, and whether its score is worth training on.

    articles.limit=100 takes fewer articles. If the run folder already has questions about the same articles, the card
    uses them.
    """
    from jobs.judge.card import make_judge_card

    make_judge_card(config, overrides or [])


@app.command("judge-eval")
def judge_eval(
    config: ConfigFile,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", callback=_expand, help="Articles, summaries, and people's ratings or choices."),
    ],
    overrides: Overrides = None,
    ratings: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Columns with ratings. Default: the known names, such as relevance."),
    ] = None,
    articles: Annotated[int | None, typer.Option(metavar="N", min=1, help="Use only the first N articles.")] = None,
    out: Annotated[
        str | None, typer.Option("--json", metavar="FILE", callback=_expand, help="Write all figures as JSON.")
    ] = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE.png", callback=_expand, help="Draw the figures.")] = None,
) -> None:
    """Compare the configuration's judge with people who rated the same summaries, or chose between two.

    FILE is JSON, CSV or Parquet by path or URI, or hf:OWNER/NAME:SPLIT, such as hf:mteb/summeval:test. Each table has
    lines for the judge, for the number of words alone, and for one rater compared with the others.
    """
    from jobs.judge.evaluate import evaluate_judge

    names = [name.strip() for name in (ratings or "").split(",") if name.strip()]
    evaluate_judge(config, file, overrides or [], names, articles, out, plot)


@app.command()
def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|MODEL...", help="A run's folder or URI, and folders, URIs or hub names of other models."
        ),
    ],
    tasks: Annotated[
        str, typer.Option(metavar="NAME,…", help="Tasks, groups or tags of lm-evaluation-harness.", show_default=False)
    ],
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Use only the first N documents.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Write prompts with the model's chat template.")] = False,
    articles: Annotated[
        str | None,
        typer.Option(metavar="RUN|FILE", help="Articles for the local tasks. Default: the run's held-out ones."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Default: the run's, or 0.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the weights. Default: the run's, or float32 on a CPU and bfloat16 on a GPU."),
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Requests in one forward pass.")] = 8,
    out: Annotated[str | None, typer.Option(metavar="FOLDER", help="For the results. Default: the run's.")] = None,
) -> None:
    """Measure what policies have forgotten: benchmarks, the base of a run against the policy of each round.

    Two tasks need no network: rondo_perplexity (of held-out articles) and rondo_questions (a blank to fill, after
    reading the article). Without a run, the first model is the base. The table shows the difference from the base with
    its interval, and goes into the run's report. The same command resumes: a finished task of a model is not run again.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported; the harness has bars of its own
    from jobs.benchmark import run_benchmark

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    run_benchmark(models, names, limit, chat, seed, dtype, batch_size, articles, out)


@app.command()
def status(folder: RunFolder, overrides: Overrides = None) -> None:
    """Show what is made, what is stale, and what comes next.

    NAME=VALUE shows the status that the run would have with another setting.
    """
    from jobs.show.tables import show_status

    show_status(folder, overrides or [])


@app.command()
def show(
    folder: RunFolder,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A table, such as scores or round-01/pairs.")],
    rows: Annotated[int, typer.Option(min=1, help="Number of articles to show.")] = 2,
    article: Annotated[str | None, typer.Option(help="Show the article with this id.")] = None,
) -> None:
    """Show a few rows: article, questions, summaries with scores, what was chosen and why."""
    from jobs.show.tables import show_rows

    show_rows(folder, stage, rows, article)


@app.command()
def view(
    folder: RunFolder,
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Of this machine. Default: a free one.")] = 0,
) -> None:
    """Show a run in the browser, also while it is running: results, articles with every summary, progress, costs.

    The command prints a link for this machine. report.html in the run folder is the same page with fewer articles.
    """
    from jobs.show.view import view as show_view

    show_view(folder, port)


@app.command()
def merge(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", callback=_expand, help="Folder, URI or hub name of a LoRA adapter.")
    ],
    out: Annotated[
        str, typer.Option(metavar="FOLDER", callback=_expand, help="A new folder for the model.", show_default=False)
    ],
) -> None:
    """Merge a LoRA adapter, such as runs/x/round-02/policy, into its base, and write the complete model."""
    from jobs.sharing.merge import merge as run_merge

    run_merge(adapter, out)


def main() -> None:
    """Run a command. For a user's mistake, print a message without a traceback and exit with status 2."""
    gc.set_threshold(_GC_THRESHOLD)
    try:
        status = app(standalone_mode=False)
    except Exception as error:
        _explain(error)
    else:
        if status == 130:  # typer returns this after Ctrl-C
            _exit_interrupted()
    finally:
        gc.freeze()  # else Python looks through a million objects of imported modules when it exits, for 2 s


def _exit_interrupted() -> NoReturn:
    print("stopped; the same command resumes from here", file=sys.stderr)
    sys.exit(130)


def _explain(error: Exception) -> None:
    # After Ctrl-C a library may raise its own error, whose context is the KeyboardInterrupt.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, typer.Abort | KeyboardInterrupt):
            _exit_interrupted()
        cause = cause.__context__
    if isinstance(error, typer.TyperException) and hasattr(error, "show"):
        error.show()
        sys.exit(error.exit_code)
    from pipeline.config import UserError

    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    raise error


if __name__ == "__main__":
    main()
