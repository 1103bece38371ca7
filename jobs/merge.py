"""Merge an adapter into its base: a complete model folder, for what takes no adapters."""

from pathlib import Path

from pipeline.config import UserError
from pipeline.storage.model_files import hub


def merge(adapter: str, out: str) -> None:
    """Write the model that an adapter and its base make, in the dtype of the base.

    Raises:
        UserError: there is no such adapter or its base is not there, or `out` is there already.
    """
    hub.check_model("ADAPTER", adapter)
    if "://" in out or Path(out).exists():
        raise UserError(f"--out is {out!r}: it should be a path on this machine that is not there yet")
    from pipeline.training.modeling import loading

    try:
        loading.merge_adapter(hub.fetch(adapter), out)
    except ValueError as error:
        raise UserError(f"ADAPTER is {adapter!r}: {error}") from None
    print(f"{out} holds the merged model")
