"""Rondo from Python: `from pipeline import align` trains a model on preference pairs.

`align` is imported when it is first used, so that reading settings and `rondo --help` need neither Ray nor torch.
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
