"""Computes log-probabilities under a frozen policy, which one process holds, or several that each hold a shard.

The function is that of training (`logprobs.py`), on rows that are packed as in training, and policies are sharded as in
training (`fsdp.py`). So the values do not depend on the number of workers, except for rounding.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.training.batches.article_tree import Article, ArticleTree, Unscored, empty_row, pack_rows
from pipeline.training.modeling.fsdp import PolicyModule, place_policy
from pipeline.training.modeling.logprobs import RowScores, score_row


class FrozenPolicy:
    """A whole policy on one device.

    Args:
        model: the model, on the CPU or, in 4 bits, on the device. It is moved to the device.
        device: where to compute.

    Raises:
        ValueError: by each method, as `logprobs.score_row`.
    """

    rank, workers = 0, 1

    def __init__(self, model: PreTrainedModel, device: torch.device | str) -> None:
        self.policy, self.device = PolicyModule(model.requires_grad_(False)), torch.device(device)
        place_policy(self.policy, self.device, workers=1)

    def logps(
        self, articles: Sequence[Article], tokens_per_batch: int, unscored: Sequence[Sequence[Unscored]] | None = None
    ) -> list[list[Any]]:
        """The log-probability of each completion.

        Args:
            articles: each a prompt and its completions.
            tokens_per_batch: largest number of tokens in a packed row.
            unscored: for each article, what of each completion is not scored; None: everything is scored.

        Returns:
            For each article, the log-probability of each completion, in nats. None if another worker has scored it.
        """
        return self._score(articles, tokens_per_batch, unscored, lambda scores, _: scores.logps.tolist())

    def token_logps(
        self, articles: Sequence[Article], tokens_per_batch: int, unscored: Sequence[Sequence[Unscored]] | None = None
    ) -> list[list[Any]]:
        """Like `logps`, for every scored token of each completion instead of their sum."""

        def by_completion(scores: RowScores, tree: ArticleTree) -> list[list[float]]:
            parts: Sequence[Tensor] = scores.token_logps.split(list(tree.lengths))
            return [part.tolist() for part in parts]

        return self._score(articles, tokens_per_batch, unscored, by_completion)

    @torch.no_grad()
    def _score(
        self,
        articles: Sequence[Article],
        tokens_per_batch: int,
        unscored: Sequence[Sequence[Unscored]] | None,
        values_of: Callable[[RowScores, ArticleTree], Sequence[Any]],
    ) -> list[list[Any]]:
        values: list[list[Any]] = [[None] * len(completions) for _, completions in articles]
        trees = pack_rows(articles, tokens_per_batch, unscored)
        # Every worker computes the same number of rows, because each forward is a collective.
        for place in range(self.rank, math.ceil(len(trees) / self.workers) * self.workers, self.workers):
            tree = trees[place] if place < len(trees) else empty_row()
            scores = self.policy(score_row, tree.to(self.device))
            if place < len(trees):
                for (article, completion), value in zip(tree.completions, values_of(scores, tree), strict=True):
                    values[article][completion] = value
        return values


class FrozenShard(FrozenPolicy):
    """A shard of a policy that several processes hold together, each on a device of its own.

    The first worker calls `listen`, then all workers call `join` at the same time. After that, all workers call each
    other method at the same time and with the same arguments, and each scores a part of the rows.

    Args:
        model: the complete model, on the CPU.
        device: this worker's device.
        rank, workers: this worker's number, and how many workers there are.
        host: the address of this machine, for the other workers.
        cpu_offload: keep the shard in the CPU's memory between uses.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device | str,
        rank: int,
        workers: int,
        host: str,
        *,
        cpu_offload: bool,
    ) -> None:
        self.policy, self.device = PolicyModule(model.requires_grad_(False)), torch.device(device)
        self.rank, self.workers, self.host, self.cpu_offload = rank, workers, host, cpu_offload
        self.store: dist.TCPStore | None = None

    def listen(self) -> tuple[str, int]:
        """Open the store in which the workers find each other. Returns its address: host and port."""
        self.store = dist.TCPStore(self.host, 0, self.workers, is_master=True, wait_for_workers=False)
        return self.host, int(self.store.port)

    def join(self, host: str, port: int) -> None:
        """Meet the other workers, and keep only this worker's shard of the weights."""
        backend = "gloo" if self.device.type == "cpu" else "cpu:gloo,cuda:nccl"
        store = self.store or dist.TCPStore(host, port, self.workers)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.workers)
        place_policy(self.policy, self.device, self.workers, cpu_offload=self.cpu_offload)
