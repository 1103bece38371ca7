"""Log-probabilities of completions on an article tree: the one function for the policy and the reference.

The decoder runs on the whole row; the LM head only on the positions that predict a completion token (`head.py`).
`check_model` compares with Hugging Face's own forward, one sequence at a time, on a model's first article.
Left out: how attention sees the tree (`attention.py`), and models whose answer it cannot give (they are refused).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.dpo import attention, head
from pipeline.dpo.tree import Ids, Tree

# What models do to logits beyond the head, or to attention scores under eager attention only, and the value that
# means they do not. None of it is in the model's base decoder or its head, so the tree would leave it out in silence.
_UNSUPPORTED = {
    "final_logit_softcapping": None,  # Gemma 2
    "attn_logit_softcapping": None,  # Gemma 2; SDPA ignores it
    "logits_soft_cap": None,  # RecurrentGemma
    "output_logit_soft_cap": None,  # xLSTM
    "logit_scale": 1,  # Cohere
    "logits_scaling": 1,  # Granite
    "lm_head_multiplier": 1,  # Falcon H1
    "logits_mup_width_multiplier": 1,
}
# A recurrent layer carries its state along the row, from one branch into the next: no mask can keep it out.
_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
# Largest mean difference per token, in nats, between the tree and one sequence at a time.
_AGREEMENT = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1}


def completion_logps(model: PreTrainedModel, tree: Tree) -> Tensor:
    """Log-probability of each completion in the row, given its prompt.

    Args:
        model: a causal LM with `attn_implementation="article_tree"`.
        tree: on the model's device.

    Returns:
        (number of completions,) in nats, in the order of `tree.completions`; float32, or float64 for a float64 model.

    Raises:
        ValueError: a model that the tree cannot score exactly, or an article longer than the model's window.
    """
    refuse(model, tree.longest)
    hidden = model.base_model(
        input_ids=tree.input_ids,
        attention_mask=tree.placeholder,
        position_ids=tree.position_ids,
        use_cache=False,
        tree=tree,
    ).last_hidden_state[0, tree.predictors]
    outputs = model.get_output_embeddings()
    token_logps = head.token_logps(hidden, tree.targets, outputs.weight, outputs.bias)
    return token_logps.new_zeros(len(tree.completions)).index_add(0, tree.owner, token_logps)


def plain_logps(model: PreTrainedModel, prompt: Ids, completions: Sequence[Ids]) -> Tensor:
    """The same numbers by Hugging Face's own forward, one sequence at a time: slow, and the yardstick of the tree.

    Returns:
        (number of completions,) in nats; float32, or float64 for a float64 model.
    """
    totals = []
    for completion in completions:
        ids = torch.tensor([[*prompt, *completion]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        logps = logits.to(_at_least_float32(logits)).log_softmax(-1)
        totals.append(logps.gather(1, ids[0, len(prompt) :, None]).sum())
    return torch.stack(totals)


@torch.no_grad()
def check_model(model: PreTrainedModel, tree: Tree) -> None:
    """See that the tree of one article gives what the model itself gives, one sequence at a time.

    `completion_logps` refuses what it knows of; this finds the rest: ALiBi, state-space layers, odd heads.

    Raises:
        ValueError: they differ by more than rounding.
    """
    assert int(tree.article[-1]) == 0 and len(tree.completions) > 1, "check_model takes one article with branches"
    prompt = tree.input_ids[0, tree.branch == -1].tolist()
    completions = [tree.targets[tree.owner == j].tolist() for j in range(len(tree.completions))]
    lengths = torch.bincount(tree.owner)
    ours, plain = completion_logps(model, tree), plain_logps(model, prompt, completions)
    difference = float(((ours - plain).abs() / lengths).max())
    limit = _AGREEMENT[model.dtype]
    if not difference <= limit:  # also where it is nan
        raise ValueError(
            f"{type(model).__name__} cannot be scored on a tree: log-probabilities differ from one sequence at a time "
            f"by {difference:.2g} nats per token, where rounding in {model.dtype} gives at most {limit}. The model "
            "does something that the tree's mask and position_ids do not reach: use another model"
        )


def refuse(model: PreTrainedModel, longest: int) -> None:
    """Raise ValueError where the tree would give this model's log-probabilities wrong, and it shows in its config.

    Args:
        longest: tokens of the longest prompt with one of its completions.
    """
    config = model.config.get_text_config(decoder=True)
    name = type(model).__name__
    if model.config._attn_implementation != attention.NAME:
        raise ValueError(
            f"{name} runs attention as {model.config._attn_implementation!r}, not as {attention.NAME!r}: load it with "
            "dpo.weights.load; a model with attention code of its own cannot be given trees"
        )
    for setting, neutral in _UNSUPPORTED.items():
        value = getattr(config, setting, None)
        if value is not None and value != neutral:
            raise ValueError(
                f"{name} has {setting}={value}, which the tree's log-probabilities would leave out: use a model "
                "without it"
            )
    kinds = set(getattr(config, "layer_types", None) or [])
    if not kinds <= _LAYERS:
        raise ValueError(f"{name} has layers of kind {sorted(kinds - _LAYERS)}: a tree needs attention in all of them")
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk is not None and longest > chunk and kinds != {"full_attention"}:
        raise ValueError(
            f"an article with one of its summaries has {longest} tokens, and {name} has attention_chunk_size={chunk}, "
            "which the tree would look past. Use shorter articles, or another model"
        )
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ValueError(
            f"an article with one of its summaries has {longest} tokens, and {name} takes {limit} "
            "(max_position_embeddings): use shorter articles, or a model with a longer context"
        )


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
