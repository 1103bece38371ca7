"""What tests of training share: its settings as the loop gets them, and a shelf for checkpoints in a folder."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.training import References, Training


def settings(**changes: Any) -> dict[str, Any]:
    """Of `learning.Training`, changed, and what else the loop is told."""
    return Training(**changes).model_dump() | {
        "dtype": "float32",
        "seed": 0,
        "references": References().model_dump(),
    }


@dataclass
class Folders:
    """A shelf in a folder."""

    root: Path

    def keep(self, folder: Path) -> None:
        step = json.loads((folder / "state.json").read_text())["step"]
        shutil.copytree(folder, self.root / f"last-{step:06d}")

    def keep_best(self, name: str, folder: Path) -> None:
        shutil.copytree(folder, self.root / name)

    @contextmanager
    def best(self, name: str) -> Iterator[Path]:
        yield self.root / name

    def forget(self, but: Sequence[str]) -> None:
        for folder in self.root.glob("best-*"):
            if folder.name not in but:
                shutil.rmtree(folder)
