"""Makes the last decoder layer skip its attention and its feed-forward network for tokens whose output is not used.

The head reads only tokens that predict a completion token. So for a prompt's tokens the last layer's keys and values
are needed, but nothing else: if prompts are ten times as long as completions, that is most of a layer. The
log-probabilities do not change. Queries and output projections could be skipped too, but this would mean to rewrite
each model's attention.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pipeline.training.batches.article_tree import ArticleTree

_MARK = "_rondo_skips_unread_tokens"  # an attribute of all modules of the last layer


def skip_unread_tokens(model: PreTrainedModel) -> None:
    """Make the last layer's network and its attention skip tokens that predict nothing, in place.

    A forward without a tree does not change. Nothing changes either if the layers have no plain network called `mlp`,
    as in a mixture of experts, whose routing may depend on all tokens.
    """
    layers = decoder_layers(model)
    mlp = getattr(layers[-1], "mlp", None) if layers else None
    if mlp is None or not _is_token_by_token(mlp):
        return
    current, original = keep_row(layers[-1]), mlp.forward

    def forward(hidden: Tensor) -> Tensor:
        if current.tree is None:
            return original(hidden)
        predictors = current.tree.unique_predictors
        read = original(hidden[:, predictors])
        return read.new_zeros(hidden.shape).index_copy(1, predictors, read)  # under autocast of another dtype

    mlp.forward = forward
    for module in layers[-1].modules():
        setattr(module, _MARK, True)


def is_in_skipping_layer(module: nn.Module) -> bool:
    """Whether a module is in a layer that skips tokens that predict nothing."""
    return getattr(module, _MARK, False)


class CurrentRow:
    """The row that a layer computes now; None in a forward without a tree."""

    tree: ArticleTree | None = None


def keep_row(layer: nn.Module) -> CurrentRow:
    """Make a decoder layer note the row that it computes, in place, for parts of it that do not get the tree."""
    current, original = CurrentRow(), layer.forward

    def forward(*args: Any, tree: ArticleTree | None = None, **kwargs: Any) -> Any:
        current.tree = tree
        try:
            return original(*args, tree=tree, **kwargs)
        finally:
            current.tree = None

    layer.forward = forward
    return current


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers, by the class names that the model's class lists. Empty if it lists none."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _is_token_by_token(network: nn.Module) -> bool:
    """Whether all its parameters are in linear layers, which treat each token alone."""
    owners = [module for module in network.modules() if next(module.parameters(recurse=False), None) is not None]
    return all(isinstance(module, nn.Linear | Conv1D) for module in owners)
