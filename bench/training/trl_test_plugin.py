"""The pytest plugin of `trl_tests.py`: swaps the class, reads local data sets, and counts trees.

The environment variable RONDO_TRL_SIDE chooses the class: `trl` or `dropin`.
"""

import os
from collections.abc import Iterator
from typing import Any

import datasets
import pytest
import trl

from bench.training.trl_test_models import load_local_dataset

_trees = 0


def _use_the_dropin() -> None:
    from pipeline.trl import TreeDPOTrainer, tree_forward

    trl.DPOTrainer = TreeDPOTrainer
    spread = tree_forward.TreeBatch.spread

    def counting_spread(self: tree_forward.TreeBatch, outputs: Any) -> Any:
        global _trees
        _trees += 1
        return spread(self, outputs)

    tree_forward.TreeBatch.spread = counting_spread  # type: ignore[method-assign]


datasets.load_dataset = load_local_dataset
if os.environ["RONDO_TRL_SIDE"] == "dropin":
    _use_the_dropin()


@pytest.fixture(autouse=True)
def _count_trees(request: pytest.FixtureRequest) -> Iterator[None]:
    before = _trees
    yield
    request.node.user_properties.append(("trees", _trees - before))
