"""The last decoder layer, for the tokens whose output is read.

The head looks at completion tokens only. So of a prompt's tokens the last layer's keys and values are needed, and its
feed-forward network is not: with prompts ten times as long as completions that is most of a layer. It is left out, and
nothing that is read changes. Left out too, of this module: the same for queries and output projections, which would
mean to rewrite each model's attention.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pipeline.training.batches.article_tree import ArticleTree


def skip_unread_tokens(model: PreTrainedModel) -> None:
    """Have the last layer's network skip tokens that predict nothing, in place.

    Where the layer is not given a tree, it is as ever. A model whose layers have no plain network called `mlp`, such as
    a mixture of experts (whose routing may look at all tokens), is left as it is.
    """
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    mlp = getattr(layers[-1], "mlp", None) if layers else None
    if mlp is None or not _token_by_token(mlp):
        return
    layer, reading = layers[-1], _Reading()
    whole, feed = layer.forward, mlp.forward

    def of_layer(*args: Any, tree: ArticleTree | None = None, **kwargs: Any) -> Any:
        reading.tree = tree
        try:
            return whole(*args, tree=tree, **kwargs)
        finally:
            reading.tree = None

    def of_network(hidden: Tensor) -> Tensor:
        if reading.tree is None:
            return feed(hidden)
        read = reading.tree.read
        return torch.zeros_like(hidden).index_copy(1, read, feed(hidden[:, read]))

    layer.forward, mlp.forward = of_layer, of_network


class _Reading:
    """Which row the last layer is at."""

    tree: ArticleTree | None = None


def _token_by_token(network: nn.Module) -> bool:
    """Whether all that it learns is in linear layers, which know no other token."""
    owners = [module for module in network.modules() if next(module.parameters(recurse=False), None) is not None]
    return all(isinstance(module, nn.Linear | Conv1D) for module in owners)
