"""Log-probabilities of completions on an article tree: the one function for the policy and the reference.

The decoder runs on the whole row; the LM head only on the positions that predict a completion token (`head.py`).
`passport.py` compares with Hugging Face's own forward, one sequence at a time, before anything is trained.
Left out: how attention sees the tree (`attention.py`), and models whose answer it cannot give (they are refused).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.training.batches.article_tree import Article, ArticleTree, Ids, pack_rows
from pipeline.training.modeling import lm_head, tree_attention

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
PLAIN = "use another model, or hardware.trainer.article_tree=false, which is slow and takes every model"
_AGREEMENT = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1}


def completion_logps(model: PreTrainedModel, tree: ArticleTree) -> Tensor:
    """Log-probability of each completion in the row, given its prompt.

    Args:
        model: a causal LM with `attn_implementation="article_tree"`; with another, each completion is a sequence of
            its own and goes through the model's own forward: slow, and right for every model.
        tree: on the model's device.

    Returns:
        (number of completions,) in nats, in the order of `tree.completions`; float32, or float64 for a float64 model.

    Raises:
        ValueError: a model that the tree cannot score exactly, or an article longer than the model's window.
    """
    check_supported(model, tree.longest)
    if model.config._attn_implementation != tree_attention.NAME:
        return torch.cat([plain_logps(model, *article) for article in tree.texts()])
    hidden = model.base_model(
        input_ids=tree.input_ids,
        attention_mask=tree.placeholder,
        position_ids=tree.position_ids,
        use_cache=False,
        tree=tree,
    ).last_hidden_state[0, tree.predictors]
    return _summed(model, hidden, tree.targets, tree.owner, len(tree.completions))


@torch.no_grad()
def frozen_logps(model: PreTrainedModel, articles: Sequence[Article], tokens_per_batch: int) -> list[list[float]]:
    """`completion_logps` of every completion of every article, packed as in training and without a gradient.

    Args:
        articles: each a prompt and its completions.
        tokens_per_batch: of a packed row.
    """
    logps = [[math.nan] * len(completions) for _, completions in articles]
    for tree in pack_rows(articles, tokens_per_batch):
        values = completion_logps(model, tree.to(model.device)).tolist()
        for (article, completion), value in zip(tree.completions, values, strict=True):
            logps[article][completion] = value
    return logps


def plain_logps(model: PreTrainedModel, prompt: Ids, completions: Sequence[Ids]) -> Tensor:
    """The same numbers by Hugging Face's own forward, one sequence at a time: slow, and the yardstick of the tree.

    Returns:
        (number of completions,) in nats; float32, or float64 for a float64 model.
    """
    totals = []
    for completion in completions:
        ids = torch.tensor([[*prompt, *completion]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        totals.append(logps.gather(1, ids[0, len(prompt) :, None]).sum())
    return torch.stack(totals)


def batch_logps(model: PreTrainedModel, prompt: Ids, completions: Sequence[Ids]) -> Tensor:
    """The same numbers as other trainers have them: all completions at once, each after the prompt, padded at the end.

    Returns:
        (number of completions,) in nats, as `plain_logps`.
    """
    sequences = [torch.tensor([*prompt, *completion]) for completion in completions]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True).to(model.device)
    lengths = torch.tensor([len(completion) for completion in completions], device=model.device)
    column = torch.arange(ids.shape[1], device=model.device)
    hidden = model.base_model(
        input_ids=ids, attention_mask=(column < len(prompt) + lengths[:, None]).long(), use_cache=False
    ).last_hidden_state
    row, place = torch.nonzero((column >= len(prompt)) & (column < len(prompt) + lengths[:, None]), as_tuple=True)
    return _summed(model, hidden[row, place - 1], ids[row, place], row, len(completions))


def _summed(model: PreTrainedModel, hidden: Tensor, targets: Tensor, owner: Tensor, count: int) -> Tensor:
    outputs = model.get_output_embeddings()
    token_logps = lm_head.token_logps(hidden, targets, outputs.weight, outputs.bias)
    # Added up in float64: a sum of a thousand float32 loses more than the whole model does (a 3-pair step's gradient
    # came 6 times closer to the one in float64), and it costs nothing.
    return token_logps.new_zeros(count, dtype=torch.float64).index_add(0, owner, token_logps.double()).to(token_logps)


def check_agreement(model: PreTrainedModel, difference: float) -> None:
    """Refuse a model whose tree and whose own forward, one sequence at a time, differ by more than rounding.

    `refuse` knows of some; this finds the rest: ALiBi, state-space layers, odd heads.

    Args:
        difference: the largest over completions, in nats per token.

    Raises:
        ValueError: it is too large, or not a number.
    """
    limit = _AGREEMENT[model.dtype]
    if not difference <= limit:  # also where it is nan
        raise ValueError(
            f"{type(model).__name__} cannot be scored on a tree: log-probabilities differ from one sequence at a time "
            f"by {difference:.2g} nats per token, where rounding in {model.dtype} gives at most {limit}. The model "
            f"does something that the tree does not reach: {PLAIN}"
        )


def check_supported(model: PreTrainedModel, longest: int) -> None:
    """Raise ValueError where the tree would give this model's log-probabilities wrong, and it shows in its config.

    Args:
        longest: tokens of the longest prompt with one of its completions.
    """
    config = model.config.get_text_config(decoder=True)
    name = type(model).__name__
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ValueError(
            f"an article with one of its summaries has {longest} tokens, and {name} takes {limit} "
            "(max_position_embeddings): use shorter articles, or a model with a longer context"
        )
    if model.config._attn_implementation != tree_attention.NAME:
        return  # scored one sequence at a time, which was asked for: see `weights.load`
    for setting, neutral in _UNSUPPORTED.items():
        value = getattr(config, setting, None)
        if value is not None and value != neutral:
            raise ValueError(
                f"{name} has {setting}={value}, which the tree's log-probabilities would leave out: {PLAIN}"
            )
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    if rope.get("rope_type") == "longrope" and longest > original:
        raise ValueError(
            f"{name} has longrope, whose positions depend on the longest article of a row, and one has {longest} "
            f"tokens, more than {original}: {PLAIN}, or shorter articles"
        )
    kinds = set(getattr(config, "layer_types", None) or [])
    if not kinds <= _LAYERS:
        raise ValueError(
            f"{name} has layers of kind {sorted(kinds - _LAYERS)}: a tree needs attention in all of them: {PLAIN}"
        )
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk is not None and longest > chunk and kinds != {"full_attention"}:
        raise ValueError(
            f"an article with one of its summaries has {longest} tokens, and {name} has attention_chunk_size={chunk}, "
            f"which the tree would look past: {PLAIN}"
        )
