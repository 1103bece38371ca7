"""Computes attention on article trees, as the Hugging Face attention implementation "article_tree".

It works with any decoder that calls attention through transformers' `AttentionInterface` and passes `tree=` on from its
own arguments. On CUDA the tree becomes a FlexAttention block mask (Dong et al., 2024, arXiv 2412.05496), which skips
blocks that no token sees. On a CPU FlexAttention has no backward, so each article is cut into blocks of queries, which
plain matrix products compute: pieces of its prompt (causal), and groups of its branches (each sees the whole prompt and
itself). Then neither other articles nor the upper triangle of the prompt cost anything. (SDPA's kernel for CPUs
computes whole groups with a mask. In bf16 it does not use the CPU's bf16 units, and takes three times as long.) Without
a tree it is ordinary causal attention. Attention sinks and score soft-capping are not supported, and models that ask
for them are refused. Dropout is always off.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipeline.training.batches.article_tree import ArticleTree
from pipeline.training.modeling import MOST_KEPT_SCORES
from pipeline.training.modeling.last_layer import is_in_skipping_layer
from pipeline.training.modeling.products import product

NAME = "article_tree"
_BLOCK_TOKENS = 128  # FlexAttention's default
# `block_kernel` computes this many scores at a time: 4 MiB of float32, so that they stay in the CPU's cache.
_SCORES_PER_BLOCK = 1 << 20
# A block has at least and at most so many queries. Few queries read all their keys for little work. Many queries
# compute many scores only to mask them out, between branches and in the upper triangle of a prompt.
_FEWEST_QUERIES, _MOST_QUERIES = 32, 128
# Arguments that some models pass to their attention, and that this one would silently ignore.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


@torch.compiler.disable  # its operations depend on the tree, so a compiled layer must break its graph here
def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: ArticleTree | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention; transformers calls this function.

    Args:
        module: the model's attention module.
        query: (1, heads, T, head size).
        key, value: (1, key-value heads, T, head size).
        attention_mask: used only if there is no tree.
        tree: the row, on the same device.
        scaling: factor of the scores; None: the kernels' default.
        sliding_window: window of this layer: a token sees those at most `sliding_window - 1` positions before it.
        kwargs: other arguments of the model's attention.

    Returns:
        (1, T, heads, head size), and None instead of the attention weights, which are never computed.

    Raises:
        ValueError: the tree of a row did not arrive here, or the model asks for a kind of attention that article trees
            do not support.
    """
    unsupported = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if unsupported:
        raise ValueError(
            f"{type(module).__name__} asks its attention for {unsupported[0]}, which article trees do not support"
        )
    if tree is None:
        refuse_placeholder(module, attention_mask)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **kwargs
        )
    if torch.is_autocast_enabled(query.device.type):  # SDPA does this itself, FlexAttention does not
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    window = sliding_window if sliding_window is not None and tree.longest > sliding_window else None
    if query.is_cuda:
        groups = query.shape[1] // key.shape[1]
        if groups & (groups - 1):  # FlexAttention can share a key-value head among 2^k query heads
            key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        result = flex_kernel(query, key, value, tree, scaling, window)
    else:
        dtype = query.dtype
        if dtype == torch.bfloat16 and not _has_bf16_products():
            query, key, value = query.float(), key.float(), value.float()
        result = block_kernel(
            query,
            key,
            value,
            tree,
            scaling,
            window,
            layers=getattr(getattr(module, "config", None), "num_hidden_layers", 1),
            only_read=is_in_skipping_layer(module),
        ).to(dtype)
    return result.transpose(1, 2).contiguous(), None


def refuse_placeholder(module: nn.Module, attention_mask: Tensor | None) -> None:
    """Raise ValueError if a module without a tree gets the mask of a row, `ArticleTree.placeholder_mask`."""
    if attention_mask is not None and attention_mask.dtype == torch.int8:
        raise ValueError(
            f"{type(module).__name__} does not get the tree: its model does not pass its arguments on to it"
        )


def block_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: ArticleTree,
    scaling: float | None,
    window: int | None,
    *,
    layers: int = 1,
    only_read: bool = False,
) -> Tensor:
    """Attention by products of matrices, for blocks of queries and the keys that they see.

    Scores are at least float32. Except in bf16, probabilities of the first blocks are kept for backward, which computes
    the others again. Key-value heads are not copied.

    Args:
        query, key, value, tree, scaling: as in `attend`.
        window: the sliding window; None if no token is outside it.
        layers: the number of the model's layers, which keep probabilities at the same time.
        only_read: whether only outputs that predict a completion token are used. Those of other prompt tokens are 0.

    Returns:
        (1, heads, T, head size).
    """
    heads, scaling = query.shape[1], query.shape[-1] ** -0.5 if scaling is None else scaling
    blocks = tree.cached(
        ("blocks of scores", heads, window, only_read), lambda: score_blocks(tree, heads, window, only_read)
    )
    # In bf16 it takes less time to compute them again than to get memory for them.
    most_kept = 0 if query.dtype == torch.bfloat16 else MOST_KEPT_SCORES // (layers * heads)
    return _BlockAttention.apply(query[0], key[0], value[0], blocks, scaling, most_kept)[None]


@dataclass(frozen=True)
class ScoreBlock:
    """Some queries of a row, and all keys that any of them sees.

    Attributes:
        queries: Q tokens of a prompt, or of a group of branches.
        places: where the keys are in the row, one slice or two: the tokens of the prompt that come before the queries,
            and those of the same prompt or group up to the last query.
        mask: (Q, K) float32, for the last K keys: 0 where a query sees a key, else -inf. A query sees all other keys.
    """

    queries: slice
    places: tuple[slice, ...]
    mask: Tensor

    @property
    def key_counts(self) -> list[int]:
        """The number of keys in each place."""
        return [place.stop - place.start for place in self.places]

    @property
    def scores(self) -> int:
        """The number of scores of a head."""
        return (self.queries.stop - self.queries.start) * sum(self.key_counts)

    def keys(self, rows: Tensor) -> Tensor:
        """(heads, T, d) -> (heads, number of keys, d)"""
        parts = [rows[:, place] for place in self.places]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def add_product(self, rows: Tensor, a: Tensor, b: Tensor) -> None:
        """Add the product of (heads, number of keys, n) and (heads, n, d) to the keys' places in (heads, T, d)."""
        for place, part in zip(self.places, a.split(self.key_counts, dim=1), strict=True):
            if rows.dtype == b.dtype:
                rows[:, place].baddbmm_(part, b)
            else:
                rows[:, place] += torch.bmm(part, b)


def score_blocks(tree: ArticleTree, heads: int, window: int | None, only_read: bool = False) -> list[ScoreBlock]:
    """Cut a row into blocks of at most `_SCORES_PER_BLOCK` scores, if that is enough for a few queries.

    With `only_read` the last token of a prompt is the only one with a block.
    """
    blocks: list[ScoreBlock] = []
    for article in tree.articles:
        prompt = slice(article.start, article.prompt_end)
        longest = prompt.stop - prompt.start + max(article.lengths)
        most = max(_FEWEST_QUERIES, min(_MOST_QUERIES, _SCORES_PER_BLOCK // (heads * longest)))
        blocks += [
            _score_block(tree, queries, slice(prompt.start, queries.start), queries, window)
            for queries in _pieces(prompt.stop - 1 if only_read else prompt.start, prompt.stop, most)
        ]
        blocks += [
            _score_block(tree, queries, prompt, slice(group.start, queries.stop), window)
            for group in _group_branches(prompt.stop, article.lengths, most)
            for queries in _pieces(group.start, group.stop, most)
        ]
    return blocks


def _group_branches(begin: int, lengths: Sequence[int], most: int) -> list[slice]:
    """Group neighbouring branches into groups of at most `most` tokens; a longer branch is a group of its own.

    Args:
        begin: first token of the first branch.
        lengths: number of tokens of each branch.
        most: largest number of tokens in a group.
    """
    groups = [slice(begin, begin)]
    for length in lengths:
        start, stop = groups[-1].start, groups[-1].stop
        if stop > start and stop + length - start > most:
            groups.append(slice(stop, stop + length))
        else:
            groups[-1] = slice(start, stop + length)
    return groups


def _has_bf16_products() -> bool:
    """Whether oneDNN multiplies bf16 matrices on this CPU. If not, torch does so by plain loops."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _pieces(start: int, stop: int, most: int) -> list[slice]:
    """Cut tokens `start` to `stop` into pieces of about the same size, of at most `most` tokens."""
    count = -(-(stop - start) // most)
    return [slice(a, b) for a, b in pairwise(start + (stop - start) * n // count for n in range(count + 1))]


def _score_block(tree: ArticleTree, queries: slice, before: slice, own: slice, window: int | None) -> ScoreBlock:
    seen = _sees(tree, queries, own, window)
    if window is not None:
        seen = torch.cat([_sees(tree, queries, before, window), seen], dim=1)
    is_one_place = before.stop == own.start
    places = (slice(before.start, own.stop),) if is_one_place else (before, own)
    return ScoreBlock(queries, places, torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf))


class _BlockAttention(torch.autograd.Function):
    """Attention of (heads, T, d) queries to (key-value heads, T, d) keys and values, by blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: Sequence[ScoreBlock],
        scaling: float,
        most_kept: int,
    ) -> Tensor:
        heads, tokens, _ = query.shape
        result = query.new_zeros(tokens, heads, value.shape[-1]).transpose(0, 1)  # as the output projection reads it
        kept: list[Tensor] = []
        room = most_kept if any(ctx.needs_input_grad) else 0
        for block in blocks:
            k, v = block.keys(key), block.keys(value)
            probabilities = _probabilities(_by_key_head(query, block, len(k)), k, block.mask, scaling)
            attended = torch.bmm(probabilities.to(v.dtype), v)
            result[:, block.queries] = attended.view(heads, -1, value.shape[-1])
            room -= block.scores
            if room >= 0:
                kept.append(probabilities)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.blocks, ctx.scaling = blocks, scaling
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        query_grad = torch.zeros_like(query)
        # Many blocks add to the gradient of a prompt's keys, so the sums are float32.
        dtype = torch.promote_types(key.dtype, torch.float32)
        key_grad, value_grad = torch.zeros_like(key, dtype=dtype), torch.zeros_like(value, dtype=dtype)
        for number, block in enumerate(ctx.blocks):
            k, v = block.keys(key), block.keys(value)
            q, g = (_by_key_head(tensor, block, len(k)) for tensor in (query, gradient))
            probabilities = kept[number] if number < len(kept) else _probabilities(q, k, block.mask, ctx.scaling)
            block.add_product(value_grad, probabilities.to(g.dtype).mT, g)
            scores_grad = torch._softmax_backward_data(product(g, v.mT), probabilities, -1, dtype)
            scores_grad = scores_grad.mul_(ctx.scaling).to(q.dtype)
            block.add_product(key_grad, scores_grad.mT, q)
            query_grad[:, block.queries] = torch.bmm(scores_grad, k).view(len(query), -1, query.shape[-1])
        return query_grad, key_grad.to(key.dtype), value_grad.to(value.dtype), None, None, None


def _by_key_head(rows: Tensor, block: ScoreBlock, key_heads: int) -> Tensor:
    """(heads, T, d) -> (key-value heads, heads per key-value head x Q, d): the block's queries, by what they read."""
    return rows[:, block.queries].reshape(key_heads, -1, rows.shape[-1])


def _probabilities(query: Tensor, key: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """(heads, n x Q, d), (heads, keys, d), (Q, K) -> (heads, n x Q, keys) in at least float32"""
    scores = product(query, key.mT).mul_(scaling)
    queries, masked = mask.shape
    scores.view(len(key), -1, queries, key.shape[1])[..., key.shape[1] - masked :] += mask
    return scores.softmax(-1)


def flex_kernel(
    query: Tensor, key: Tensor, value: Tensor, tree: ArticleTree, scaling: float | None, window: int | None
) -> Tensor:
    """Attention by FlexAttention, compiled on CUDA; elsewhere interpreted, without backward, for tests."""
    mask = tree.cached(("blocks", window), lambda: block_mask(tree, window))
    kernel = _compiled_flex_attention() if query.is_cuda else flex_attention
    return kernel(query, key, value, block_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])


def block_mask(tree: ArticleTree, window: int | None) -> BlockMask:
    """Describe the tree to FlexAttention: which blocks are empty, which are full, and a function for the others.

    It uses only the first and last article, branch and position of each block of tokens, so it makes nothing of size
    T x T (`create_block_mask` would). It may call an empty block a partial one, but makes no other mistake.
    """
    article, branch, position = tree.article, tree.branch, tree.position_ids[0]
    first_article, last_article = _per_block(article)
    # Branch numbers ascend along the row, so the branches in a block are a range of numbers; -1 marks a prompt.
    lowest_branch, highest_branch = _per_block(torch.where(branch < 0, tree.tokens, branch))[0], _per_block(branch)[1]
    last_prompt = _per_block(torch.where(branch < 0, article, -1))[1]  # article of the block's last prompt token
    lowest_position, highest_position = _per_block(position)
    no_prompt = _per_block(branch)[0] >= 0
    block = torch.arange(len(lowest_branch), device=article.device)
    q, k = block[:, None], block[None, :]
    common_branch = (highest_branch[k] >= lowest_branch[q]) & (lowest_branch[k] <= highest_branch[q])
    seen = (k <= q) & ((last_prompt[k] >= first_article[q]) | common_branch)
    one_article = (first_article[k] == first_article[q]) & (last_article[k] == last_article[q])
    one_article &= first_article[q] == last_article[q]
    one_branch = no_prompt[q] & no_prompt[k] & (lowest_branch[k] == highest_branch[q])
    is_whole = (q + 1) * _BLOCK_TOKENS <= tree.tokens  # the last block may be cut off
    full = (k < q) & is_whole & one_article & ((highest_branch[k] == -1) | one_branch)
    if window is not None:
        seen &= lowest_position[q] - highest_position[k] < window
        full &= highest_position[q] - lowest_position[k] < window

    def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # In a row every token comes after all tokens that it may see, so the mask is a subset of the causal one.
        seen = (q >= k) & (article[q] == article[k]) & ((branch[k] == -1) | (branch[q] == branch[k]))
        return seen if window is None else seen & (position[q] - position[k] < window)

    return BlockMask.from_kv_blocks(
        *_to_indices(seen & ~full),
        *_to_indices(full),
        BLOCK_SIZE=_BLOCK_TOKENS,
        mask_mod=sees,
        seq_lengths=(tree.tokens, tree.tokens),
    )


def _per_block(values: Tensor) -> tuple[Tensor, Tensor]:
    """(T,) -> the smallest and the largest value of each block, (blocks,) each."""
    index = torch.arange(-(-len(values) // _BLOCK_TOKENS) * _BLOCK_TOKENS, device=values.device)
    return values[index.clamp(max=len(values) - 1)].view(-1, _BLOCK_TOKENS).aminmax(dim=1)


def _to_indices(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks, blocks) bool -> the number of true blocks in each row, and their indices, for FlexAttention."""
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


@functools.cache
def _compiled_flex_attention() -> Any:
    # Past its recompilation limit torch would fall back to attention of size T x T, with only a log line.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(flex_attention)


def _sees(tree: ArticleTree, queries: slice, keys: slice, window: int | None) -> Tensor:
    """Which tokens `queries` of an article see which of its tokens `keys`: (queries, keys) bool."""
    index = torch.arange(tree.tokens, device=tree.branch.device)
    seen = index[queries, None] >= index[None, keys]
    seen &= (tree.branch[None, keys] == -1) | (tree.branch[queries, None] == tree.branch[None, keys])
    if window is not None:
        position = tree.position_ids[0]
        seen &= position[queries, None] - position[None, keys] < window
    return seen


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for a forward without a tree
