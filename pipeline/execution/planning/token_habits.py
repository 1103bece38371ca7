"""Compares token limits with the lengths of summaries that earlier runs have sampled.

The summaries may be those of a finished table or of an unfinished one, because its parts are on disk. Without such
summaries nothing is known, and nothing is said.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config, UserError
from pipeline.storage import parts
from pipeline.storage.ledger import Ledger
from pipeline.storage.schema import Row

_MANY_CUT_OFF = 0.1  # of the summaries; if a limit cuts off more, a note says so
_FEW_SUMMARIES = 16  # so few show nothing
_MOST_SUMMARIES = 2000  # read no further part after so many
_ENOUGH = 0.95  # a limit that cuts off no more than the others is suggested
_OF_POLICY = ("model", "instruction", "thinking")  # settings of the policy that change how long its summaries are
_FIELDS = ("summaries.finish_reason", "summaries.token_ids", "summaries.thought_tokens")


@dataclass(frozen=True)
class Habit:
    """How long the summaries of a table are.

    Attributes:
        limit: the token limit that they were sampled with.
        lengths: the tokens of each summary without its thought.
        are_cut_off: whether the limit cut off each summary.
    """

    limit: int
    lengths: Sequence[int]
    are_cut_off: Sequence[bool]

    def describe(self, planned: int, setting: str) -> str:
        """What a limit will do, if it cuts off many summaries; else empty.

        Args:
            planned: the limit of the planned run.
            setting: its name.
        """
        total = len(self.lengths)
        # A summary that a lower limit than the planned one cut off may be whole with the planned one.
        certain = sum(
            length > planned or (cut and length >= planned)
            for length, cut in zip(self.lengths, self.are_cut_off, strict=True)
        )
        if total < _FEW_SUMMARIES or certain <= _MANY_CUT_OFF * total:
            return ""
        if planned == self.limit:
            found = f"used {planned:,} of {planned:,} tokens in {certain / total:.0%} of cases and were cut off"
        else:
            found = f"have more than {planned:,} tokens in {certain / total:.0%} of cases and would be cut off"
        enough = self._enough()
        change = f"raise it to about {enough:,}" if enough else "raise it"
        return f"{found} by {setting}={planned}: {change}, or ask for a shorter summary in policy.instruction"

    def _enough(self) -> int | None:
        """A limit that leaves at least 95 % of the summaries whole; None if too many were cut off to know it."""
        whole = sorted(length for length, cut in zip(self.lengths, self.are_cut_off, strict=True) if not cut)
        needed = math.ceil(_ENOUGH * len(self.lengths))
        return whole[needed - 1] if needed <= len(whole) else None


def habit_notes(config: Config, ledgers: Iterable[Ledger]) -> list[str]:
    """What is known of the summaries of earlier runs: a note for each token limit that would cut off many.

    Args:
        config: the settings of the planned run.
        ledgers: run folders. Summaries of another policy or by another instruction are left out.
    """
    limits = {"summaries": config.summaries.max_tokens, "exam": config.evaluation.max_tokens}
    settings = {"summaries": "summaries.max_tokens", "exam": "evaluation.max_tokens"}
    notes: dict[str, str] = {}
    for ledger in ledgers:
        for address, stage, recipe in _sampled_tables(ledger):
            if stage not in notes and _is_same_policy(recipe, config):
                limit = recipe["summaries"]["max_tokens"] if stage == "summaries" else recipe["evaluation.max_tokens"]
                habit = _read_habit(ledger, address, stage, limit)
                if habit.lengths:  # the latest round is nearest to the next one, so earlier ones are not read
                    note = habit.describe(limits[stage], settings[stage])
                    notes[stage] = f"{ledger.root}/{address}: summaries {note}" if note else ""
    return [note for note in notes.values() if note]


def _sampled_tables(ledger: Ledger) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Address, stage and settings of the tables of summaries, also of unfinished ones, the latest round first."""
    folders = {name.rpartition("/")[0] for name in ledger.files() if name.endswith(("/record.json", "/begun.json"))}
    for address in sorted(folders, reverse=True):
        folder, _, stage = address.rpartition("/")
        if stage in ("summaries", "exam") and folder.startswith("round-"):
            entry = ledger.find(address)
            recipe = entry.record["recipe"] if entry else (ledger.begun(address) or {}).get("recipe", {})
            if isinstance(settings := recipe.get("settings"), dict):
                yield address, stage, settings


def _is_same_policy(recipe: Mapping[str, Any], config: Config) -> bool:
    was, now = recipe.get("policy") or {}, config.policy.model_dump(mode="json")
    return all(was.get(name) == now[name] for name in _OF_POLICY)


def _read_habit(ledger: Ledger, address: str, stage: str, limit: int) -> Habit:
    uri = f"{ledger.root}/{address}"
    lengths: list[int] = []
    are_cut_off: list[bool] = []
    for name in parts.list_parts(uri)["parts"]:
        if name.startswith(f"{parts.SKIPPED}/") or len(lengths) >= _MOST_SUMMARIES:
            continue
        rows: list[Row] = []
        with suppress(UserError):  # a part of an unfinished table may be damaged: it will be made again
            rows = parts.read_fields(uri, name, _FIELDS).to_pylist()
        for row in rows:
            # The policy's own summary of a held-out article comes first; baselines may follow.
            for summary in row["summaries"][: 1 if stage == "exam" else None]:
                lengths.append(len(summary["token_ids"]) - (summary.get("thought_tokens") or 0))
                are_cut_off.append(summary["finish_reason"] == "length")
    return Habit(limit, lengths, are_cut_off)
