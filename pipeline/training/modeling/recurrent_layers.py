"""Makes recurrent layers (Mamba, gated delta nets, short convolutions) start each branch after the end of its prompt.

A recurrent layer carries a state along the row, which no mask can keep from going on into the next branch. So here it
gets each completion as a sequence of its own, after a copy of its prompt: the state is reset at every branch. All else
in the model, attention, experts and head included, computes a prompt once. The layers themselves do not change, so this
works for every layer that mixes tokens with a causal depthwise convolution. Others are refused in `logprobs.py`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from pipeline.training.batches.article_tree import ArticleTree
from pipeline.training.modeling.last_layer import CurrentRow, decoder_layers, keep_row
from pipeline.training.modeling.tree_attention import refuse_placeholder

# Kinds of layers, by transformers' names, that have a recurrent part.
RECURRENT = {"linear_attention", "conv", "hybrid", "hybrid_sliding"}


def layer_kinds(config: PreTrainedConfig) -> list[str]:
    """The kind of each layer; empty if the config of a text decoder does not name them."""
    return list(getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or [])


def reset_at_branches(model: PreTrainedModel) -> None:
    """Make the recurrent parts of a model compute article trees exactly, in place.

    A forward without a tree does not change, and neither does a model without recurrent parts.
    """
    for layer in decoder_layers(model):
        # The layers of some models contain other layers, of which the outer ones come first.
        parts = [
            part for part in layer.modules() if part is not layer and _is_recurrent(part) and not _is_unrolled(part)
        ]
        if parts:
            row = keep_row(layer)
        for part in parts:
            _unroll(part, row)


def recurrent_obstacle(model: PreTrainedModel) -> str | None:
    """Why `reset_at_branches` has not reached all recurrent layers of a model; None if it has."""
    kinds = [kind for kind in layer_kinds(model.config.get_text_config(decoder=True)) if kind in RECURRENT]
    unrolled = sum(map(_is_unrolled, model.modules()))
    if len(kinds) <= unrolled:
        return None
    return (
        f"{type(model).__name__} has {len(kinds)} layers of kind {', '.join(sorted(set(kinds)))}, whose state a tree "
        f"would carry from one branch into the next, and it can be reset in {unrolled} of them"
    )


def _is_recurrent(module: nn.Module) -> bool:
    """Whether a module is the recurrent part of a layer: all kinds begin with a depthwise convolution over tokens."""
    return any(isinstance(child, nn.Conv1d) and child.groups == child.in_channels for child in module.children())


def _is_unrolled(module: nn.Module) -> bool:
    return getattr(module, "is_unrolled", False)


def _unroll(part: nn.Module, row: CurrentRow) -> None:
    original = part.forward

    @torch.compiler.disable  # its operations depend on the tree, so a compiled layer must break its graph here
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        tree = row.tree
        if tree is None:
            refuse_placeholder(part, kwargs.get("attention_mask"))
            return original(hidden_states, *args, **kwargs)
        sequences, places = tree.cached("unrolled", lambda: _layout(tree))
        mixed = [original(hidden_states[0, of_article]).flatten(0, 1) for of_article in sequences]
        return torch.cat(mixed)[places][None]

    part.forward, part.is_unrolled = forward, True


def _layout(tree: ArticleTree) -> tuple[list[Tensor], Tensor]:
    """Where the tokens of a row are when each completion is a sequence of its own.

    Returns:
        For each article (completions, tokens of the longest sequence) int64: the place in the row of each token.
        Shorter sequences are padded at their end with their last token, which no token before it sees.
        (T,) int64: the place of each token of the row in these sequences, put one after the other. The prompt's tokens
        are taken from its first completion.
    """
    sequences, places, begin = [], [], 0
    for span in tree.articles:
        prompt = torch.arange(span.start, span.prompt_end)
        longest = len(prompt) + max(span.lengths)
        of_article, start = [], span.prompt_end
        places.append(begin + torch.arange(len(prompt)))
        for length in span.lengths:
            tokens = torch.cat([prompt, torch.arange(start, start + length)])
            of_article.append(nn.functional.pad(tokens[None], (0, longest - len(tokens)), mode="replicate")[0])
            places.append(begin + torch.arange(len(prompt), len(tokens)))
            begin += longest
            start += length
        sequences.append(torch.stack(of_article).to(tree.branch.device))
    return sequences, torch.cat(places).to(tree.branch.device)
