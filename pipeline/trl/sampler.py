"""Orders the pairs of an epoch so that pairs with the same prompt meet in a batch.

The pairs of an epoch and the number of batches stay the same; only the order changes.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class PromptSampler(Sampler[int]):
    """Yields every index once, and fills each batch with whole prompts where they fit.

    With `shuffle`, the order of the prompts is drawn from `seed` and the epoch alone, so all processes draw the same
    order and a resumed training continues with it. Without it, prompts keep the order of their first pair.

    Args:
        prompts: for each pair a number that stands for its prompt.
        batch_size: pairs of one forward.
        shuffle: draw a new order in each epoch.
        seed: seed of the order.
    """

    def __init__(self, prompts: Sequence[int], batch_size: int, *, shuffle: bool, seed: int) -> None:
        self._prompts, self._batch_size, self._shuffle, self._seed = prompts, batch_size, shuffle, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch. Trainer and accelerate call this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._prompts)

    def __iter__(self) -> Iterator[int]:
        order: Sequence[int] = range(len(self._prompts))
        if self._shuffle:
            generator = torch.Generator().manual_seed(self._seed + self._epoch)
            order = torch.randperm(len(self._prompts), generator=generator).tolist()
        pairs_of: dict[int, list[int]] = defaultdict(list)
        for index in order:
            pairs_of[self._prompts[index]].append(index)
        return iter(_fill_batches(list(pairs_of.values()), self._batch_size))


def _fill_batches(groups: Sequence[list[int]], batch_size: int) -> list[int]:
    """Put groups one after the other, so that few of them lie across the border of a batch.

    Each place goes to the earliest group that fits into the rest of the batch. If none fits, the earliest group is cut.
    """
    waiting: dict[int, deque[tuple[int, list[int]]]] = defaultdict(deque)  # by size, each with (place, pairs)
    for place, group in enumerate(groups):
        whole = len(group) - len(group) % batch_size  # pairs that fill batches of their own
        for start in range(0, whole, batch_size):
            waiting[batch_size].append((place, group[start : start + batch_size]))
        if rest := group[whole:]:
            waiting[len(rest)].append((place, rest))
    filled: list[int] = []
    while any(waiting.values()):
        room = batch_size - len(filled) % batch_size
        sizes = [size for size, queue in waiting.items() if queue]
        fitting = [size for size in sizes if size <= room]
        size = min(fitting or sizes, key=lambda size: waiting[size][0][0])
        place, group = waiting[size].popleft()
        filled += group[:room]
        if rest := group[room:]:
            waiting[len(rest)].appendleft((place, rest))
    return filled
