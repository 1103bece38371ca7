"""Train on preference pairs from elsewhere, and say in a few lines what came of it."""

from collections.abc import Sequence

from pipeline.config.loader import load_alignment
from pipeline.execution.align import Aligned, run_alignment
from pipeline.execution.preflight import warn_of_removed_folders
from pipeline.execution.progress import Display
from pipeline.stages.external_pairs import BOTH_WAYS, MERGED_TOKEN, REPEATED


def train(path: str, overrides: Sequence[str], remake: str | None) -> None:
    """Train as a configuration says. Raises UserError: see `reading.load_alignment` and `alignment.carry_out`."""
    settings = load_alignment(path, overrides)
    display = Display()
    warn_of_removed_folders(settings, display)
    tell(run_alignment(settings, display, remake), display)


def tell(aligned: Aligned, display: Display) -> None:
    """Where the model is, what it learned, and what to know of the pairs."""
    metrics = aligned.metrics
    display.say(f"\nModel: {aligned.path}", style="bold")
    display.say(
        f"  loss                  {metrics['step0_loss']:.4f} at the first step, {metrics['final_loss']:.4f} now"
    )
    if metrics["eval_pairs"]:
        display.say(
            f"  reward accuracy       {metrics['eval_accuracy_first']:.2f} before, {metrics['eval_accuracy_last']:.2f} "
            f"after, on {metrics['eval_pairs']:,} pairs held out"
        )
    else:
        display.say("  reward accuracy       not known: no pair was held out (training.eval_fraction)")
    if metrics["chosen_fell"] is not None:
        display.say(
            f"  chosen fell           in {metrics['chosen_fell']:.0%} of pairs it is now less likely than before"
        )
    tally = aligned.pairs["tally"]
    for what in (REPEATED, BOTH_WAYS, MERGED_TOKEN):
        if what in tally:
            display.warn(f"{what}: {tally[what]:,}")
    for warning in metrics["warnings"]:
        display.warn(warning)
