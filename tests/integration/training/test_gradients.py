"""The gradient of a step does not depend on how it is cut up. Uses real processes, FSDP2 and gloo, in float32."""

import random
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.training.batches.batching import micro_batches
from pipeline.training.batches.example import Example
from pipeline.training.losses.objective import Objective
from pipeline.training.losses.whole_step import step_slopes
from pipeline.training.modeling import tree_attention
from pipeline.training.modeling.fsdp import PolicyModule, shard
from pipeline.training.modeling.logprobs import score_row
from tests.helpers.tiny_models import tiny_config, tiny_model

VOCABULARY = 53
CASES = range(10)
BUDGETS = (1, 60, 10**6)  # each article alone; a few together; all in one row
# One loss of each kind: of margins, per token, with sft, without a reference, and of all pairs together.
LOSSES = ("sigmoid", "ipo", ("sigmoid", "sft"), "simpo", ("aot", "aot_unpaired", "sft"))


def step_of(seed: int) -> list[Example]:
    """A step with articles of very different sizes, and in some cases with fewer articles than workers."""
    draw = random.Random(seed)

    def ids(longest: int) -> np.ndarray:
        return np.array([draw.randrange(VOCABULARY) for _ in range(draw.randint(1, longest))])

    examples = []
    for number in range(draw.choice([1, 3, 9])):
        completions = tuple(ids(12) for _ in range(draw.randint(2, 5)))
        last = len(completions) - 1
        pairs = ((0, last),) if draw.random() < 0.5 else tuple((i, last) for i in range(last))
        logps = tuple(-draw.uniform(5, 50) for _ in completions)
        examples.append(Example(f"article-{number}", ids(60), completions, pairs, logps))
    return examples


def gradients(rank: int, workers: int, folder: str) -> None:
    """Compute all cases on one of several workers; rank 0 writes the whole gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{workers}", rank=rank, world_size=workers)
    config = tiny_config(vocab_size=VOCABULARY, intermediate_size=33)
    policy = PolicyModule(tiny_model(config, attention=tree_attention.NAME))
    if workers > 1:
        shard(policy, torch.device("cpu"), workers)
    whole_gradients = {}
    for case in CASES:
        examples = step_of(case)
        objective = Objective(
            {"loss_type": LOSSES[case % len(LOSSES)], "beta": 0.1, "label_smoothing": 0.0, "simpo_gamma": 0.5}
        )
        pairs = sum(len(example.pairs) for example in examples)
        length = sum(example.chosen_tokens for example in examples) / pairs
        for budget in BUDGETS:
            policy.zero_grad()
            batches = micro_batches(examples, rank=rank, workers=workers, tokens_per_batch=budget)
            step = {"mean_chosen_length": length, "weight": pairs, "rank": rank, "workers": workers}
            if objective.compares_pairs:
                with torch.no_grad():
                    rows = [batch.by_pair(policy(score_row, batch.tree)) for batch in batches]
                slopes = step_slopes(objective, rows, **step)
            for place, batch in enumerate(batches):
                values = batch.by_pair(policy(score_row, batch.tree))
                if objective.compares_pairs:
                    slopes[place].surrogate(values).backward()
                else:
                    (objective(**values, mean_chosen_length=length).sum() / pairs).backward()
            whole = [p.grad.full_tensor() if workers > 1 else p.grad for p in policy.parameters()]
            whole_gradients[case, budget] = torch.cat([gradient.flatten() for gradient in whole])
    if rank == 0:
        torch.save(whole_gradients, f"{folder}/gradients-{workers}.pt")
    dist.destroy_process_group()


def test_gradients_do_not_depend_on_packing_accumulation_or_workers(tmp_path: Path) -> None:
    for workers in (1, 2, 4):
        mp.spawn(gradients, args=(workers, str(tmp_path)), nprocs=workers)
    one = torch.load(tmp_path / "gradients-1.pt", weights_only=True)
    for workers in (1, 2, 4):
        for (case, budget), gradient in torch.load(tmp_path / f"gradients-{workers}.pt", weights_only=True).items():
            whole = one[case, BUDGETS[-1]]
            difference = float((gradient - whole).norm() / whole.norm())
            assert difference < 1e-6, (case, budget, workers, difference)
