"""Rondo from Python: `from pipeline import align` trains a model on preference pairs.

Nothing is imported until it is asked for: settings are read, and `rondo --help` answers, without Ray or torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.execution.align import align

__all__ = ["align"]


def __getattr__(name: str) -> Any:
    if name == "align":
        from pipeline.execution.align import align

        return align
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
