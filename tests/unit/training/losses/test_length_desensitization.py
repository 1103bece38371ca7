"""`ld_alpha` and `use_weighting` from the reference's rows to the first step of training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.stages import references
from pipeline.storage.schema import COLUMNS, Row
from pipeline.training.batches.batching import micro_batches
from pipeline.training.batches.example import Example
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.loop import TrainLoop
from pipeline.training.modeling import loading
from pipeline.training.modeling.frozen import FrozenPolicy
from pipeline.training.modeling.logprobs import score_row
from tests.helpers.tiny_models import save_tiny_model
from tests.helpers.training import VOCABULARY, random_examples, read_examples, settings

THOUGHT = 2  # tokens of a thought before each summary, which are not scored
DRAWN = [
    replace(e, completions=tuple(np.concatenate([[1] * THOUGHT, ids]) for ids in e.completions), reference_logps=())
    for e in random_examples(8)
]


def row_of(example: Example) -> Row:
    summaries = [
        {"text": "", "token_ids": ids.tolist(), "finish_reason": "stop", "thought_tokens": THOUGHT, "forced_tokens": 0}
        for ids in example.completions
    ]
    pairs = [{"chosen": c, "rejected": r, "reason": "", "weight": None} for c, r in example.pairs]
    ids = {"article_id": example.article_id, "prompt_ids": example.prompt_ids.tolist()}
    return ids | {"summaries": summaries, "pairs": pairs}


def read_back(rows: list[Row], folder: Path) -> ExampleTable:
    names = [name for name in COLUMNS if name in rows[0] and name != "tally"]
    table = pa.table({name: pa.array([row[name] for row in rows], COLUMNS[name]) for name in names})
    pq.write_table(table, folder / "part.parquet")
    return read_examples(str(folder), ["part.parquet"], "digest", "answer", with_shared_logps=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": 0.3}
    return save_tiny_model(tmp_path_factory.mktemp("model"), **sizes)


@pytest.fixture(scope="module")
def examples(model: Path, tmp_path_factory: pytest.TempPathFactory) -> ExampleTable:
    """What training reads after the reference has scored the rows."""
    rows = [row_of(example) for example in DRAWN]
    reference = FrozenPolicy(loading.load_model(model, "float32"), "cpu")
    outcomes = references._score("digest", 60, "answer", True, reference, rows)
    scored = [{**row, **outcome} for row, outcome in zip(rows, outcomes, strict=True) if isinstance(outcome, dict)]
    assert len(scored) == len(rows)
    return read_back(scored, tmp_path_factory.mktemp("rows"))


@torch.no_grad()
def token_logps(model: torch.nn.Module, example: Example, completion: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each scored token: its log-probability, and the log-sum of squares, by Hugging Face's own forward."""
    ids = example.completions[completion]
    logps = model(torch.tensor([[*example.prompt_ids, *ids]])).logits[0].log_softmax(-1)
    logps = logps[len(example.prompt_ids) + THOUGHT - 1 : -1]
    return logps.gather(1, torch.tensor(ids[THOUGHT:])[:, None])[:, 0], (2 * logps).logsumexp(-1)


@pytest.mark.parametrize("article_tree", [True, False])
def test_policy_and_reference_count_the_same_tokens(model: Path, examples: ExampleTable, article_tree: bool) -> None:
    policy = loading.load_model(model, "float32", article_tree=article_tree)
    (batch,) = micro_batches(examples, rank=0, workers=1, tokens_per_batch=10**6)
    scores = score_row(policy, batch.tree, with_concentrations=True)
    values = batch.by_pair(scores, ld_alpha=0.25)
    order = {number: place for place, number in enumerate(dict.fromkeys(_articles(batch, examples)))}
    place = 0
    for example in sorted(examples, key=lambda e: order[e.article_id]):
        for chosen, rejected in example.pairs:
            sides = {"chosen": token_logps(policy, example, chosen), "rejected": token_logps(policy, example, rejected)}
            shared = min(len(logps) for logps, _ in sides.values())
            weights = 1.0
            for side, (logps, squares) in sides.items():
                expected = float(logps[:shared].sum() + 0.25 * logps[shared:].sum())
                for name in (f"{side}_logps", f"ref_{side}_logps"):
                    assert float(values[name][place].detach()) == pytest.approx(expected, abs=1e-4), name
                weights *= float((logps - squares).mean().exp())
            assert float(values["wpo_weights"][place]) == pytest.approx(weights, rel=1e-4)
            place += 1
    assert place == len(batch.chosen)


def _articles(batch: Any, examples: ExampleTable) -> list[str]:
    """The ids of the row's articles, in its order, found by their prompts and completions."""
    by_ids = {(tuple(e.prompt_ids), tuple(map(tuple, e.completions))): e.article_id for e in examples}
    return [by_ids[tuple(prompt), tuple(map(tuple, completions))] for prompt, completions, _ in batch.tree.unpack()]


@pytest.mark.parametrize("changes", [{"ld_alpha": 0.0}, {"loss_type": "hinge", "use_weighting": True, "ld_alpha": 0.5}])
def test_training_starts_at_the_reference(model: Path, examples: ExampleTable, changes: dict[str, Any]) -> None:
    options = settings(eval_fraction=0.0, num_train_epochs=6, learning_rate=1e-2, **changes)
    loop = TrainLoop(examples, str(model), options, 80, torch.device("cpu"))
    result = loop.run()
    assert result["step0_max_abs_margin"] < 1e-4
    if "loss_type" in changes:
        assert 0 < loop.lines[0]["loss"] != pytest.approx(1)  # a margin of 0 has a hinge loss of 1, times the weight
    assert loop.lines[-1]["rewards/margins"] > 0


def test_rows_without_shared_log_probabilities_are_refused(tmp_path: Path) -> None:
    row = row_of(DRAWN[0])
    logps = {"reference_logps": [-1.0] * len(row["summaries"]), "reference_digest": "digest"}
    with pytest.raises(ValueError, match="which training.ld_alpha needs: make the references again"):
        read_back([row | logps | {"reference_shared_logps": None}], tmp_path)
