"""`rondo train`: trains on preference pairs made elsewhere, and prints the result in a few lines."""

from collections.abc import Sequence

from pipeline.config.loader import load_alignment
from pipeline.execution.align import Aligned, run_alignment
from pipeline.execution.preflight import warn_of_removed_folders
from pipeline.execution.progress import Display
from pipeline.stages.external_pairs import BOTH_WAYS, GUESSED, MERGED_TOKEN, REPEATED, REPEATS_PROMPT


def train(path: str, overrides: Sequence[str], remake: str | None) -> None:
    """Train by a configuration, and print the result. Raises UserError as `load_alignment` and `run_alignment` do."""
    settings = load_alignment(path, overrides)
    display = Display()
    warn_of_removed_folders(settings, display)
    show_result(run_alignment(settings, display, remake), display)


def show_result(aligned: Aligned, display: Display) -> None:
    """Print where the model is, the metrics of its training, and what is unusual about the pairs."""
    metrics = aligned.metrics
    display.say(f"\nModel: {aligned.path}", style="bold")
    display.say(
        f"  loss                  {metrics['step0_loss']:.4f} at the first step, {metrics['final_loss']:.4f} now"
    )
    if metrics["eval_pairs"]:
        display.say(
            f"  reward accuracy       {metrics['eval_accuracy_first']:.2f} before, {metrics['eval_accuracy_last']:.2f} "
            f"after, on {metrics['eval_pairs']:,} held-out pairs"
        )
    else:
        display.say("  reward accuracy       unknown: no pair was held out (training.eval_fraction)")
    if metrics["chosen_fell"] is not None:
        display.say(
            f"  chosen fell           in {metrics['chosen_fell']:.0%} of pairs the chosen is less likely than before"
        )
    tally = aligned.pairs["tally"]
    for name in (REPEATED, BOTH_WAYS, MERGED_TOKEN, GUESSED, REPEATS_PROMPT):
        if name in tally:
            display.warn(f"{name}: {tally[name]:,}")
    for warning in metrics["warnings"]:
        display.warn(warning)
