"""The order of pairs: every pair once, and pairs of one prompt in the same batch where they fit."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("trl")
from pipeline.trl.sampler import PromptSampler

PROMPTS = st.lists(st.integers(0, 6), min_size=1, max_size=40)


@given(prompts=PROMPTS, batch_size=st.integers(1, 9), shuffle=st.booleans(), epoch=st.integers(0, 3))
def test_every_pair_comes_once(prompts, batch_size, shuffle, epoch):
    sampler = PromptSampler(prompts, batch_size, shuffle=shuffle, seed=0)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(prompts))) and len(sampler) == len(prompts)
    again = PromptSampler(prompts, batch_size, shuffle=shuffle, seed=0)
    again.set_epoch(epoch)
    assert list(again) == order


@given(prompts=PROMPTS, batch_size=st.integers(1, 9))
def test_at_most_one_prompt_is_cut_at_the_end_of_a_batch(prompts, batch_size):
    order = list(PromptSampler(prompts, batch_size, shuffle=True, seed=0))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for batch, following in pairwise(batches):
        continued = {prompts[i] for i in batch} & {prompts[i] for i in following}
        assert len([p for p in continued if prompts.count(p) <= batch_size]) <= 1


def test_prompts_that_fill_batches_are_never_cut():
    prompts = [number % 20 for number in range(60)]  # three pairs each, far apart
    order = list(PromptSampler(prompts, 6, shuffle=True, seed=3))
    assert all(len({prompts[i] for i in order[start : start + 6]}) == 2 for start in range(0, 60, 6))


def test_each_epoch_has_another_order_and_without_shuffling_the_same():
    def orders(shuffle):
        sampler, result = PromptSampler([n // 3 for n in range(30)], 6, shuffle=shuffle, seed=0), []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            result.append(list(sampler))
        return result

    first, second = orders(shuffle=True)
    assert first != second
    assert orders(shuffle=False) == [list(range(30))] * 2
