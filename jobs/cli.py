"""The command `rondo`. Nothing heavy is imported until a command runs: `rondo --help` answers at once."""

import sys
from typing import Annotated, NoReturn

import typer

app = typer.Typer(
    help="Synthetic preferences and iterative on-policy DPO: a policy writes, is judged, learns, and writes again.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", show_default=False)]
ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/demo.yaml.")]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="The run's folder or URI.")]


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    remake: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Make this again, such as round-01/pairs or 'round-*/exam', and what follows."
        ),
    ] = None,
) -> None:
    """Play rounds. The same command goes on where a run was cut off.

    NAME=VALUE puts a setting over the file's, such as training.beta=0.05 rounds=3.
    """
    from jobs.run_rounds import run_rounds

    run_rounds(config, overrides or [], remake)


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    rates: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="A run whose records say how fast; else this run's own.")
    ] = None,
    price: Annotated[float | None, typer.Option(metavar="DOLLARS", min=0, help="Of an hour of a GPU.")] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(metavar="GIB", min=1, help="Of a GPU; else of this machine's, if it has any.")
    ] = None,
    out: Annotated[str | None, typer.Option("--json", metavar="FILE", help="The same for machines.")] = None,
) -> None:
    """What a run would make and reuse, its prompts, tokens, hours, cost and memory. Starts and makes nothing.

    A model that cannot fit is refused, with exit status 2.
    """
    from jobs.plan import plan as tell

    tell(config, overrides or [], rates or [], price, gpu_memory, out)


@app.command()
def schedule(
    config: ConfigFile,
    overrides: Overrides = None,
    cron: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help='When, such as "0 2 * * *": every night at two.')
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Such as Europe/Berlin; else this machine's own.")
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="One round at once, and then on schedule.")] = False,
    once: Annotated[bool, typer.Option("--once", help="One round at once, and no schedule: another keeps it.")] = False,
    max_failures: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Stop after so many failed rounds in a row; else never.")
    ] = None,
) -> None:
    """Play one more round at each firing of --cron, in the foreground.

    Each round is a process of its own: one that fails is told of, and gone on with at the next firing. What comes
    while a round is still played, by this schedule or by anybody, is left out.
    """
    from jobs.schedule import schedule as keep

    keep(config, overrides or [], cron, timezone, now, once, max_failures)


@app.command()
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Such as configs/own_pairs.yaml, or that of a run.")],
    overrides: Overrides = None,
    remake: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Make this again, such as policy, and what follows.")
    ] = None,
) -> None:
    """Train on preference pairs of your own, without rounds: pairs=FILE says where they are.

    FILE is JSONL, JSON or Parquet by path or URI, or hf:OWNER/NAME:SPLIT, with the columns of TRL, UltraFeedback,
    Intel orca or LLaMA-Factory. The same command goes on where a training was cut off.
    """
    from jobs.train import train as start

    start(config, overrides or [], remake)


@app.command()
def export(
    folder: RunFolder,
    out: Annotated[str, typer.Option(metavar="FILE", help="Path or URI of the JSONL file.", show_default=False)],
    number: Annotated[
        int | None, typer.Option("--round", metavar="N", help="Of this round only; else of all.", min=1)
    ] = None,
) -> None:
    """Write a run's pairs in TRL's format: prompt, chosen, rejected."""
    from jobs.export import export as write

    write(folder, out, number)


@app.command("judge-card")
def judge_card(config: ConfigFile, overrides: Overrides = None) -> None:
    """How far the configuration's judge can be trusted on its articles, without a policy.

    It asks about each article, and answers from the whole article, from nothing and twice from the first sentences;
    articles.limit=100 makes it some articles. In the folder of a run about the same articles its questions are used.
    """
    from jobs.judge_card import make_judge_card

    make_judge_card(config, overrides or [])


@app.command()
def status(folder: RunFolder, overrides: Overrides = None) -> None:
    """What is made, what is stale, and what would be made next.

    NAME=VALUE asks how it would be with another setting.
    """
    from jobs.show import show_status

    show_status(folder, overrides or [])


@app.command()
def show(
    folder: RunFolder,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Such as scores, or round-01/pairs.")],
    rows: Annotated[int, typer.Option(min=1, help="How many articles.")] = 2,
    article: Annotated[str | None, typer.Option(help="The id of one article.")] = None,
) -> None:
    """A few rows, readable: article, questions, summaries with their scores, what was chosen and why."""
    from jobs.show import show_rows

    show_rows(folder, stage, rows, article)


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Folder, URI or hub name of a LoRA adapter.")],
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Where the model goes: a new folder.", show_default=False)],
) -> None:
    """Write the complete model that a LoRA adapter, such as runs/x/round-02/policy, and its base make."""
    from jobs.export import merge as write

    write(adapter, out)


def main() -> None:
    """Run a command. A mistake of the user's ends in its message and exit status 2, without a traceback."""
    try:
        status = app(standalone_mode=False)
    except Exception as error:
        _explain(error)
    else:
        if status == 130:  # typer's word for Ctrl-C
            _stopped()


def _stopped() -> NoReturn:
    print("stopped; the same command goes on from here", file=sys.stderr)
    sys.exit(130)


def _explain(error: Exception) -> None:
    # A library that is interrupted may well fail over that, with an error of its own.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, typer.Abort | KeyboardInterrupt):
            _stopped()
        cause = cause.__context__
    if isinstance(error, typer.TyperException) and hasattr(error, "show"):  # a mistake in the command line
        error.show()
        sys.exit(error.exit_code)
    from pipeline.config import UserError

    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    raise error


if __name__ == "__main__":
    main()
