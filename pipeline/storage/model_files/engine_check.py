"""The file with which an engine proves that it holds the weights of a trained policy.

The trainer writes log-probabilities of a few token sequences under the final weights beside them. An engine that has
loaded the policy computes the same, and compares (`inference/vllm.py`).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_FILE = "engine_check.json"


@dataclass(frozen=True)
class EngineCheck:
    """Log-probabilities that the trainer gives token sequences.

    Attributes:
        prompts: token ids that come before each sequence.
        sequences: token ids, one or more for each prompt.
        logps: one per sequence, in nats.
        limit: how far an engine's log-probability may be from the trainer's, in nats per token.
    """

    prompts: Sequence[Sequence[int]]
    sequences: Sequence[Sequence[Sequence[int]]]
    logps: Sequence[Sequence[float]]
    limit: float

    def write(self, folder: Path) -> None:
        """Write the file into the folder of the policy."""
        (folder / _FILE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    def largest_gap(self, logps: Sequence[Sequence[float]]) -> float:
        """How far other log-probabilities of the sequences are from these, in nats per token; nan if one is nan."""
        gaps = [
            abs(logp - expected) / len(ids)
            for row, expected_row, ids_row in zip(logps, self.logps, self.sequences, strict=True)
            for logp, expected, ids in zip(row, expected_row, ids_row, strict=True)
        ]
        return next((gap for gap in gaps if gap != gap), max(gaps))


def read_engine_check(folder: str) -> EngineCheck | None:
    """The check in the folder of a policy; None if there is none: nothing was trained, or an older version trained."""
    path = Path(folder, _FILE)
    return EngineCheck(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
