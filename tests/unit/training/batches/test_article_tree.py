"""The layout of article trees."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.batches.article_tree import first_fit_rows, pack_row, pack_rows


def test_pack_row_lays_out_two_articles_in_one_row() -> None:
    tree = pack_row([([10, 11, 12], [[20, 21], [30]]), ([40], [[50, 51]])])

    assert tree.input_ids.tolist() == [[10, 11, 12, 20, 21, 30, 40, 50, 51]]
    assert tree.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2]]
    assert tree.article.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert tree.branch.tolist() == [-1, -1, -1, 0, 0, 1, -1, 2, 2]
    assert tree.predictors.tolist() == [2, 3, 2, 6, 7]  # the last prompt token predicts a branch's first token
    assert tree.targets.tolist() == [20, 21, 30, 50, 51]
    assert tree.owner.tolist() == [0, 0, 1, 2, 2]
    assert tree.completions == ((0, 0), (0, 1), (1, 0))
    assert (tree.tokens, tree.longest) == (9, 5)
    assert tree.mask().shape == (1, 1, 9, 9)
    assert tree.mask()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize(
    ("article", "message"),
    [
        (([], [[1]]), "empty prompt"),
        (([1], []), "no completions"),
        (([1], [[2], []]), "completion 1 of article 0 is empty"),
    ],
)
def test_pack_row_refuses_empty_prompts_and_completions(article: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_row([article])


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 60))
def test_first_fit_rows_packs_every_item_once_within_the_budget(sizes: list[int], budget: int) -> None:
    rows = first_fit_rows(sizes, budget)

    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    for row in rows:
        assert len(row) == 1 or sum(sizes[item] for item in row) <= budget


def test_first_fit_rows_refuses_a_budget_of_zero() -> None:
    with pytest.raises(ValueError, match="tokens_per_batch is 0"):
        first_fit_rows([1], 0)


def test_pack_rows_numbers_completions_by_article() -> None:
    articles = [([1, 2], [[3], [4]]), ([5] * 20, [[6]]), ([7], [[8]])]
    trees = pack_rows(articles, tokens_per_batch=8)

    assert sorted(tree.tokens for tree in trees) == [6, 21]
    for tree in trees:
        for number, (article, completion) in enumerate(tree.completions):
            assert tree.targets[tree.owner == number].tolist() == articles[article][1][completion]


def test_moving_a_tree_moves_all_its_tensors() -> None:
    tree = pack_row([([1], [[2]])]).to("meta")
    tensors = [value for value in vars(tree).values() if isinstance(value, torch.Tensor)]

    assert tensors
    assert all(tensor.device == torch.device("meta") for tensor in [*tensors, tree.mask()])
