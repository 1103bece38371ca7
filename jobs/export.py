"""Write a run's pairs to a file, and say how faithful it is."""

from pathlib import Path

from pipeline.config import Alignment, UserError
from pipeline.execution.export_pairs import export_pairs as write
from pipeline.storage.ledger import Ledger
from pipeline.storage.model_files import hub
from pipeline.storage.run_folder import read_settings


def export(folder: str, out: str, number: int | None) -> None:
    """Export the pairs of a run. Raises UserError: no run of rounds there, no pairs in it."""
    ledger = Ledger(folder)
    config = read_settings(ledger)
    if isinstance(config, Alignment):
        raise UserError(f"{folder} learned from pairs that came from elsewhere: they are in {config.pairs}")
    done = write(config, ledger, out, number)
    rounds = f"round{'s' * (len(done.rounds) > 1)} {', '.join(map(str, done.rounds))}"
    print(f"{out}: {done.pairs:,} pairs of {rounds}")
    print(f"Tokenized again, the text of {done.same_ids:,} of them gives the token ids that were sampled.")


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
