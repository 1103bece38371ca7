"""Rondo from Python: `from pipeline import run, align, judge_card`.

`run` runs rounds, `align` trains on preference pairs made elsewhere, and `judge_card` tries a judge. Each is imported
when it is first used, so that reading settings and `rondo --help` need neither Ray nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.judge.card import judge_card
    from jobs.run_rounds import run
    from pipeline.execution.align import align

__all__ = ["align", "judge_card", "run"]

_MODULES = {"align": "pipeline.execution.align", "judge_card": "jobs.judge.card", "run": "jobs.run_rounds"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
