"""What tests of training share: settings, examples, the training of an adapter, and checkpoints in a folder."""

import math
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config.training import Lora, References, Training
from pipeline.training.batches.article_tree import pack_row
from pipeline.training.batches.dataset import write_examples
from pipeline.training.batches.example import Example
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.loop import TrainLoop
from pipeline.training.modeling import loading
from pipeline.training.modeling.logprobs import completion_logps
from tests.helpers.tiny_models import save_tiny_model

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


def read_examples(path: str, parts: Sequence[str], digest: str | None, *more: Any, **options: Any) -> ExampleTable:
    """The examples that a training worker maps. The arguments are those of `write_examples`, without its file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "examples")
        write_examples(path, parts, digest, out, *more, **options)
        return ExampleTable.map_file(out)


def article_ids(examples: Sequence[Example]) -> list[str]:
    return [example.article_id for example in examples]


LORA = Lora(r=3, lora_alpha=6).model_dump()
LORA_VOCABULARY = 65  # odd, like the inner size below, so that shards are uneven


def save_lora_base(folder: Path) -> Path:
    """Write a model for adapters, with tied embeddings, grouped heads and dropout."""
    save_tiny_model(
        folder,
        vocab_size=LORA_VOCABULARY,
        hidden_size=32,
        intermediate_size=65,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        tie_word_embeddings=True,
        attention_dropout=0.1,
    )
    (folder / "chat_template.jinja").write_text("")
    return folder


def learnable_examples(policy: Path, dtype: str = "float32", **loaded: Any) -> list[Example]:
    """Pairs whose chosen completion has only small token ids, which a policy can learn. `policy` is the reference."""
    draw = random.Random(0)
    model = loading.load_model(policy, dtype, **loaded).requires_grad_(False)
    examples = []
    for number in range(16):
        prompt = np.array([draw.randrange(1, LORA_VOCABULARY) for _ in range(draw.randint(3, 20))])
        completions = tuple(
            np.array([draw.randrange(*span) for _ in range(draw.randint(2, 9))]) for span in ((1, 32), (32, 65))
        )
        logps = completion_logps(model, pack_row([(prompt, completions)])).tolist()
        examples.append(Example(f"article-{number:02d}", prompt, completions, ((0, 1),), tuple(logps)))
    return examples


def lora_loop(policy: Path, examples: list[Example], rank: int = 0, workers: int = 1, **changes: Any) -> TrainLoop:
    """The training of an adapter on `policy`; `changes` are settings, or `checkpoints`, the checkpoint store."""
    checkpoints = changes.pop("checkpoints", None)
    whole = settings(
        learning_rate=1e-2,
        num_train_epochs=2,
        pairs_per_step=8,
        warmup_ratio=0.0,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        eval_fraction=0.0,
        lora=LORA,
    )
    options = {"rank": rank, "workers": workers, "checkpoints": checkpoints, "save_steps": 3}
    return TrainLoop(ExampleTable.of(examples), str(policy), whole | changes, 100, torch.device("cpu"), **options)


def train_lora_round(base: Path, out: Path) -> Path:
    """Train a fresh adapter on `base` and save it to `out`. Its loss begins at log 2 and falls."""
    loop = lora_loop(base, learnable_examples(base))
    result = loop.run()
    loop.save(out)
    assert abs(result["step0_loss"] - math.log(2)) < 1e-6 and result["final_loss"] < 0.6
    return out


@dataclass
class FolderCheckpointStore:
    """A `CheckpointStore` for one worker, in a local folder. It keeps every checkpoint, as `last-STEP`."""

    root: Path

    def save(self, name: str, folder: Path) -> None:
        shutil.copytree(folder, self.root / name)

    save_best = save

    @contextmanager
    def load_best(self, name: str) -> Iterator[Path]:
        yield self.root / name

    def prune(self, keep: Sequence[str]) -> None:
        for folder in self.root.glob("best-*"):
            if folder.name not in keep:
                shutil.rmtree(folder)
