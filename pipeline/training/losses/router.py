"""Computes the load-balancing loss of a mixture of experts, which keeps its router from sending all tokens to a few.

The formula is that of transformers and TRL: Fedus et al. (2021), Switch Transformers, arXiv 2101.03961, equations 4
to 6. It multiplies two means over tokens, so it depends on which tokens are taken together. TRL takes a micro-batch;
here it is an article with its completions, each token once, so that packing and workers do not change it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func


def router_losses(model: PreTrainedModel, router_logits: Sequence[Tensor], spans: Sequence[tuple[int, int]]) -> Tensor:
    """The load-balancing loss of each article; top-k experts that are used equally give k.

    Args:
        model: a mixture of experts.
        router_logits: for each layer with a router, (T, experts).
        spans: for each article, its first token and the token after its last.

    Returns:
        (number of articles,)
    """
    config = model.config.get_text_config(decoder=True)
    experts, top_k = router_logits[0].shape[-1], config.num_experts_per_tok
    return torch.stack(
        [
            load_balancing_loss_func(tuple(layer[start:end] for layer in router_logits), experts, top_k)
            for start, end in spans
        ]
    )


def check_router(model: PreTrainedModel) -> None:
    """Raise ValueError if a model has no router whose logits it returns."""
    config = model.config.get_text_config(decoder=True)
    recorded = getattr(model.base_model, "_can_record_outputs", None) or {}
    if not hasattr(config, "output_router_logits") or "router_logits" not in recorded:
        raise ValueError(
            f"training.router_aux_loss_coef is set, and {type(model).__name__} is not a mixture of experts that gives "
            "its router's logits: leave router_aux_loss_coef out"
        )
