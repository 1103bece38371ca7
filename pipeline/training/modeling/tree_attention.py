"""Attention on article trees, as one of Hugging Face's attention implementations: `attn_implementation="article_tree"`.

Any decoder that calls attention through transformers' `AttentionInterface` takes it, and passes `tree=` on to it from
its own arguments. On CUDA the tree is a FlexAttention block mask (Dong et al., 2024, arXiv 2412.05496), which skips
what nobody sees. On a CPU there is no such kernel with a backward: each article is cut into pieces that dense kernels
do well, its prompt (causal) and its branches (the whole prompt, and themselves), so that neither other articles nor
the upper triangle of the prompt cost anything. Without a tree it is causal attention as ever.
Left out: dropout (there is none), attention sinks, score soft-capping: models that ask for them are refused.
"""

import functools
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipeline.training.batches.article_tree import ArticleTree, Branches

NAME = "article_tree"
_BLOCK = 128  # tokens, FlexAttention's default
# What some models pass to their attention, and this one would leave out in silence.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


@torch.compiler.disable  # its program depends on the tree: a compiled layer steps out of its graph here
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
    """Attention as transformers calls it.

    Args:
        query: (1, heads, T, head size).
        key, value: (1, key-value heads, T, head size).
        attention_mask: only looked at where there is no tree.
        tree: the row, on the same device.
        sliding_window: of this layer: a token sees those at most `sliding_window - 1` positions before it.

    Returns:
        (1, T, heads, head size), and None for the weights, which are never made.

    Raises:
        ValueError: a row without its tree, or attention of a kind that this is not.
    """
    asked = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if asked:
        raise ValueError(f"{type(module).__name__} asks its attention for {asked[0]}, which article trees do not have")
    if tree is None:
        if attention_mask is not None and attention_mask.dtype == torch.int8:  # `Tree.placeholder`
            raise ValueError(f"{type(module).__name__} does not get the tree: its model keeps arguments from it")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **kwargs
        )
    window = sliding_window if sliding_window is not None and tree.longest > sliding_window else None
    groups = query.shape[1] // key.shape[1]
    # FlexAttention shares key-value heads among 2^k query heads; everything else is given copies.
    if groups > 1 and not (query.is_cuda and groups & (groups - 1) == 0):
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    kernel = on_blocks if query.is_cuda else in_pieces
    return kernel(query, key, value, tree, scaling, window).transpose(1, 2).contiguous(), None


def in_pieces(
    query: Tensor, key: Tensor, value: Tensor, tree: ArticleTree, scaling: float | None, window: int | None
) -> Tensor:
    """By dense kernels, article by article: its prompt, then its branches, a few at a time.

    The row is split once: of each slice of it, backward would make a gradient as long as the row.
    """
    lengths = [n for a in tree.articles for n in (a.prompt_end - a.start, *(g.end - g.start for g in a.groups))]
    parts = iter(zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True))
    pieces = []
    for article in tree.articles:
        q, prompt_k, prompt_v = next(parts)
        prompt = slice(article.start, article.prompt_end)
        if window is None or q.shape[2] <= window:
            pieces.append(F.scaled_dot_product_attention(q, prompt_k, prompt_v, is_causal=True, scale=scaling))
        else:
            mask = tree.cached((article, window), partial(_sees, tree, prompt, prompt, window))
            pieces.append(F.scaled_dot_product_attention(q, prompt_k, prompt_v, attn_mask=mask, scale=scaling))
        for group in article.groups:
            q, k, v = next(parts)
            k, v = torch.cat([prompt_k, k], dim=2), torch.cat([prompt_v, v], dim=2)
            mask = tree.cached((group, window), partial(_group_mask, tree, prompt, group, window))
            pieces.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling))
    return torch.cat(pieces, dim=2)


def on_blocks(
    query: Tensor, key: Tensor, value: Tensor, tree: ArticleTree, scaling: float | None, window: int | None
) -> Tensor:
    """By FlexAttention: compiled on CUDA; elsewhere interpreted, which has no backward and is for tests."""
    mask = tree.cached(("blocks", window), lambda: block_mask(tree, window))
    kernel = _compiled() if query.is_cuda else flex_attention
    return kernel(query, key, value, block_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])


def block_mask(tree: ArticleTree, window: int | None) -> BlockMask:
    """The tree as FlexAttention wants it: which blocks are empty, which are full, and a function for the others.

    From the first and last article, branch and position of each block of tokens, so that nothing of T x T is made
    (`create_block_mask` would). A block that nobody sees may pass for one that is to be looked at; no other mistake.
    """
    article, branch, position = tree.article, tree.branch, tree.position_ids[0]
    first_article, last_article = _per_block(article)
    # Branches count up along the row, so those in a block are a range of numbers; -1 is a prompt.
    lowest, highest = _per_block(torch.where(branch < 0, tree.tokens, branch))[0], _per_block(branch)[1]
    last_prompt = _per_block(torch.where(branch < 0, article, -1))[1]  # the article of the last prompt token in it
    nearest, farthest = _per_block(position)
    no_prompt = _per_block(branch)[0] >= 0
    block = torch.arange(len(lowest), device=article.device)
    q, k = block[:, None], block[None, :]
    seen = (k <= q) & ((last_prompt[k] >= first_article[q]) | ((highest[k] >= lowest[q]) & (lowest[k] <= highest[q])))
    one_article = (first_article[k] == first_article[q]) & (last_article[k] == last_article[q])
    one_article &= first_article[q] == last_article[q]
    one_branch = no_prompt[q] & no_prompt[k] & (lowest[k] == highest[q])
    whole = (q + 1) * _BLOCK <= tree.tokens  # the last block may be cut
    full = (k < q) & whole & one_article & ((highest[k] == -1) | one_branch)
    if window is not None:
        seen &= nearest[q] - farthest[k] < window
        full &= farthest[q] - nearest[k] < window

    def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # A row lists every token after all that it may see, so the causal triangle is the outer limit.
        seen = (q >= k) & (article[q] == article[k]) & ((branch[k] == -1) | (branch[q] == branch[k]))
        return seen if window is None else seen & (position[q] - position[k] < window)

    return BlockMask.from_kv_blocks(
        *_listed(seen & ~full), *_listed(full), BLOCK_SIZE=_BLOCK, mask_mod=sees, seq_lengths=(tree.tokens, tree.tokens)
    )


def _per_block(values: Tensor) -> tuple[Tensor, Tensor]:
    """(T,) -> the least and the largest of each block, (blocks,) each."""
    index = torch.arange(-(-len(values) // _BLOCK) * _BLOCK, device=values.device)
    return values[index.clamp(max=len(values) - 1)].view(-1, _BLOCK).aminmax(dim=1)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks, blocks) bool -> how many there are in each row, and which, as FlexAttention has them."""
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


@functools.cache
def _compiled() -> Any:
    # Past its limit of recompilations torch falls back, with no more than a log line, to attention of T x T.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(flex_attention)


def _group_mask(tree: ArticleTree, prompt: slice, group: Branches, window: int | None) -> Tensor:
    """(tokens of the group, tokens of the prompt and of the group) bool."""
    own = slice(group.start, group.end)
    return torch.cat([_sees(tree, own, prompt, window), _sees(tree, own, own, window)], dim=1)


def _sees(tree: ArticleTree, queries: slice, keys: slice, window: int | None) -> Tensor:
    """Which of some tokens of an article see which: (queries, keys) bool."""
    index = torch.arange(tree.tokens, device=tree.branch.device)
    seen = index[queries, None] >= index[None, keys]
    seen &= (tree.branch[None, keys] == -1) | (tree.branch[queries, None] == tree.branch[None, keys])
    if window is not None:
        position = tree.position_ids[0]
        seen &= position[queries, None] - position[None, keys] < window
    return seen


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)  # of a forward without a tree
