"""Write a run's pairs to a file, and say how faithful it is."""

from pipeline.config import Alignment, UserError
from pipeline.export import export as write
from pipeline.storage.ledger import Ledger
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
