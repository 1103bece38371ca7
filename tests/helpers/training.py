"""What tests of training share: settings for the loop, examples with random tokens, checkpoints in a folder."""

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.training import References, Training
from pipeline.training.batches.example import Example

VOCABULARY = 50  # token ids of `random_examples` are smaller


def settings(**changes: Any) -> dict[str, Any]:
    """The defaults of the section `training` with `changes`, and the other settings that the loop reads."""
    return Training(**changes).model_dump() | {
        "dtype": "float32",
        "seed": 0,
        "references": References().model_dump(),
    }


def random_examples(count: int, seed: int = 0) -> list[Example]:
    """Articles with random token ids and reference log-probabilities, 2 to 4 completions and 1 to 3 pairs each."""
    draw = random.Random(seed)

    def token_ids(low: int, high: int) -> np.ndarray:
        return np.array([draw.randrange(VOCABULARY) for _ in range(draw.randint(low, high))])

    examples = []
    for number in range(count):
        branches = draw.randint(2, 4)
        examples.append(
            Example(
                article_id=f"article-{number:04d}",
                prompt_ids=token_ids(1, 15),
                completions=tuple(token_ids(1, 8) for _ in range(branches)),
                pairs=tuple(tuple(draw.sample(range(branches), 2)) for _ in range(draw.randint(1, 3))),
                reference_logps=tuple(draw.uniform(-30, -5) for _ in range(branches)),
            )
        )
    return examples


def article_ids(examples: Sequence[Example]) -> list[str]:
    return [example.article_id for example in examples]


@dataclass
class FolderCheckpointStore:
    """A `CheckpointStore` for one worker, in a local folder. It keeps every checkpoint, as `last-STEP`."""

    root: Path

    def save(self, folder: Path) -> None:
        step = json.loads((folder / "state.json").read_text())["step"]
        shutil.copytree(folder, self.root / f"last-{step:06d}")

    def save_best(self, name: str, folder: Path) -> None:
        shutil.copytree(folder, self.root / name)

    @contextmanager
    def load_best(self, name: str) -> Iterator[Path]:
        yield self.root / name

    def prune(self, keep: Sequence[str]) -> None:
        for folder in self.root.glob("best-*"):
            if folder.name not in keep:
                shutil.rmtree(folder)
