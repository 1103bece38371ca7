"""Defines what a stage is: a plain function, and a declaration of everything that it depends on.

A stage never sees a path, a ledger or another stage. `execution/runner.py` calls its function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.storage.ledger import Artifact

# The section of the configuration that describes a judge, and the resource that runs it.
JUDGE_ENGINES = {"judge": "judge_engine", "second_judge": "second_judge_engine"}
# The settings of a judge that name a file or a model whose contents its judgements depend on.
JUDGE_CONTENTS = ("model", "kind", "function")


def judge_contents(section: str) -> tuple[str, ...]:
    """The settings for `Stage.contents` of a stage that uses a judge. The members of a jury have them too."""
    return (*(f"{section}.{name}" for name in JUDGE_CONTENTS), f"{section}.members")


@dataclass(frozen=True)
class Stage:
    """One step of a round. Calling a stage calls its function, so a unit test of it needs no ledger.

    Attributes:
        name: the name of the stage, which is also the name of its folder and of its line in the log.
        function: takes the inputs by position; then, by keyword, each of `settings` (by the last part of its name) and
            each of `uses`. With `writes` it returns rows: a `ray.data.Dataset`, or an iterator of tables. Without
            `writes` it makes files, and returns what the record should hold about them.
        version: raise it when a change of the code changes the result. Older artifacts are then stale.
        inputs: a name for each input, in order. `rows` is the table; a last name with a star takes any number of
            tables; a name with a question mark may be missing. `policy.build` passes that value of the policy's record
            to the function, instead of the artifact.
        settings: the settings that the result depends on: sections, or single values.
        contents: the settings that name a file or a model whose contents the result depends on.
        uses: the resources that the function needs and the result does not depend on: see `execution/resources.py`.
        writes: the columns that the stage adds to each row.
        splits: the rows that the stage takes, by their `split`; empty: all.
        limits: settings named max_skipped (a share of rows) or max_unread (a share of answers). The run stops when a
            limit is exceeded. Limits change no row, so they are not in the recipe.
        resumes: the function resumes from the files that an interrupted attempt left. If it does not, these files are
            removed first. A table that is made row by row is resumed in any case.
        by_row: each row is made from one row of the first input. A stage that is not `by_row` gets whole tables, and
            starts from the beginning after an interruption.
        workload: the kind of work that `rondo plan` counts for the stage: see `execution/planning/stage_counts.py`.
            None: it uses the counts in earlier records of the stage.
    """

    name: str
    function: Callable[..., Any]
    version: int
    inputs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    resumes: bool = False
    by_row: bool = True
    workload: str | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def named_inputs(self, inputs: Sequence[Artifact]) -> dict[str, Artifact]:
        """The inputs by name. Those that a starred name takes are left out."""
        names = [name.rstrip("?").partition(".")[0] for name in self.inputs if not name.startswith("*")]
        return dict(zip(names, inputs, strict=False))

    def argument(self, position: int, value: Any) -> Any:
        """The argument for an input: the value itself, or the value in its record that `inputs` names."""
        declared = self.inputs[position] if position < len(self.inputs) else ""
        field = declared.rstrip("?").partition(".")[2]
        return value.record[field] if field and isinstance(value, Artifact) else value


def stage(name: str, **declared: Any) -> Callable[[Callable[..., Any]], Stage]:
    """Make a plain function a stage: `@stage("pairs", version=1, settings=("pairs",), writes=("pairs",))`."""
    return lambda function: Stage(name, function, **declared)
