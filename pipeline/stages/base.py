"""What a stage is: a plain function with a name, a version, and what it depends on.

Left out: what rows are (`rows.py`), where they are stored and when they are made again (`ledger.py`, `run.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """A step of the journey. Calling it calls the function, so a test of it needs no ledger.

    Attributes:
        name: of the stage, of its folder and of its log line.
        function: takes the inputs by position, then by keyword each of `settings` (by its last name) and of `uses`.
            It gives rows (a `ray.data.Dataset`, or tables one by one) if it has `writes`; else it makes files and
            gives what the record should say of them.
        version: goes up when equal settings begin to mean something else; what was made before is then stale.
        settings: sections of the configuration that the result depends on.
        contents: settings that name a file or a model, whose contents the result depends on too.
        uses: what the run must provide and the result does not depend on: see `equipment.equip`.
        writes: the columns that it adds to each row.
        split: the rows that it is given, "train" or "eval"; None: all.
        resumes: it goes on from the files that a making of the same recipe, cut off, has left in its folder; else
            they are removed first. A table that is made from a table goes on in any case, row by row.
        whole: but this one does not, for its rows are not each made of one row of the first: it is given all its tables
            and made from the beginning.
        limits: settings named max_skipped (share of rows) or max_unread (share of answers). Past one the run stops;
            no limit is part of the recipe, since it changes no row.
    """

    name: str
    function: Callable[..., Any]
    version: int
    settings: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    split: str | None = None
    limits: tuple[str, ...] = ()
    resumes: bool = False
    whole: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def stage(name: str, **declared: Any) -> Callable[[Callable[..., Any]], Stage]:
    """Make a plain function a stage: `@stage("pairs", version=1, settings=("pairs",), writes=("pairs",))`."""
    return lambda function: Stage(name, function, **declared)
