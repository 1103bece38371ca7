"""Computes log-probabilities of completions on an article tree, with one function for the policy and the reference.

The decoder runs on the whole row; the LM head runs only on the positions that predict a completion token
(`lm_head.py`). `tree_attention.py` computes attention on the tree. Before training, `consistency.py` compares the
result with Hugging Face's own forward, one sequence at a time. Models that the tree cannot score exactly are refused.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.training.batches.article_tree import Article, ArticleTree, Ids, Unscored, pack_rows
from pipeline.training.modeling import lm_head, tree_attention

# Settings by which a model changes its logits after the head, or its attention scores with eager attention only. Each
# has the value that turns it off. They act outside of the base decoder and the head, so the tree would silently ignore
# them.
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
# The supported kinds of layers. A recurrent layer carries its state along the row, from one branch into the next, which
# no mask can prevent.
_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}
UNSUPPORTED_REMEDY = (
    "use another model, or hardware.trainer.article_tree=false, which is slow and works for every model"
)
# Largest difference in nats per token between the tree and one sequence at a time.
_MAX_DIFFERENCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1}


def completion_logps(model: PreTrainedModel, tree: ArticleTree) -> Tensor:
    """Log-probability of each completion in the row, given its prompt: the sum over its scored tokens.

    Args:
        model: a causal LM with `attn_implementation="article_tree"`. With another implementation each completion goes
            through the model's own forward as a sequence of its own: slow, but exact for every model.
        tree: the row, on the model's device.

    Returns:
        (number of completions,) in nats, in the order of `tree.completions`; float32, or float64 for a float64 model.

    Raises:
        ValueError: the tree cannot score this model exactly, or an article is longer than the model's context.
    """
    check_supported(model, tree.longest)
    if model.config._attn_implementation != tree_attention.NAME:
        return torch.cat([plain_logps(model, *article) for article in tree.unpack()])
    return _sum_by_completion(model, _tree_hidden(model, tree), tree.targets, tree.owner, len(tree.completions))


@torch.no_grad()
def frozen_logps(
    model: PreTrainedModel,
    articles: Sequence[Article],
    tokens_per_batch: int,
    unscored: Sequence[Sequence[Unscored]] | None = None,
) -> list[list[float]]:
    """Compute `completion_logps` for all articles, packed as in training and without a gradient.

    Args:
        model: see `completion_logps`.
        articles: each a prompt and its completions.
        tokens_per_batch: largest number of tokens in a packed row.
        unscored: for each article, what of each completion is not scored; None: everything is scored.

    Returns:
        For each article, the log-probability of each completion, in nats.
    """
    logps = [[math.nan] * len(completions) for _, completions in articles]
    for tree in pack_rows(articles, tokens_per_batch, unscored):
        values = completion_logps(model, tree.to(model.device)).tolist()
        for (article, completion), value in zip(tree.completions, values, strict=True):
            logps[article][completion] = value
    return logps


@torch.no_grad()
def frozen_token_logps(
    model: PreTrainedModel, articles: Sequence[Article], tokens_per_batch: int
) -> list[list[list[float]]]:
    """Like `frozen_logps`, for every token of each completion instead of their sum.

    Args:
        model: a causal LM with `attn_implementation="article_tree"`.
        articles, tokens_per_batch: see `frozen_logps`.

    Returns:
        For each article and each of its completions, the log-probability of each token, in nats.

    Raises:
        ValueError: as `completion_logps`.
    """
    logps: list[list[list[float]]] = [[[] for _ in completions] for _, completions in articles]
    for tree in pack_rows(articles, tokens_per_batch):
        on_device = tree.to(model.device)
        check_supported(model, on_device.longest)
        head = model.get_output_embeddings()
        values = lm_head.token_logps(_tree_hidden(model, on_device), on_device.targets, head.weight, head.bias)
        by_completion = values.split(list(tree.lengths))
        for (article, completion), of_completion in zip(tree.completions, by_completion, strict=True):
            logps[article][completion] = of_completion.tolist()
    return logps


def _tree_hidden(model: PreTrainedModel, tree: ArticleTree) -> Tensor:
    """(N, d): the hidden states that predict the N completion tokens of a tree."""
    return model.base_model(
        input_ids=tree.input_ids,
        attention_mask=tree.placeholder_mask,
        position_ids=tree.position_ids,
        use_cache=False,
        tree=tree,
    ).last_hidden_state[0, tree.predictors]


def plain_logps(
    model: PreTrainedModel, prompt: Ids, completions: Sequence[Ids], unscored: Sequence[Unscored] = ()
) -> Tensor:
    """The same as `completion_logps` by Hugging Face's own forward, one sequence at a time: the baseline for the tree.

    Args:
        unscored: what of each completion is not scored; empty: everything is scored.

    Returns:
        (number of completions,) in nats; float32, or float64 for a float64 model.
    """
    totals = []
    for completion, (start, end) in zip(completions, unscored or ((0, 0),) * len(completions), strict=True):
        ids = torch.tensor([[*prompt, *completion]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        token_logps = logps.gather(1, ids[0, len(prompt) :, None])
        totals.append(token_logps[:start].sum() + token_logps[end:].sum())
    return torch.stack(totals)


def batch_logps(
    model: PreTrainedModel, prompt: Ids, completions: Sequence[Ids], unscored: Sequence[Unscored] = ()
) -> Tensor:
    """The same as other trainers compute it: all completions in one batch, each after the prompt, padded at the end.

    Args:
        unscored: what of each completion is not scored; empty: everything is scored.

    Returns:
        (number of completions,) in nats; float32, or float64 for a float64 model.
    """
    sequences = [torch.tensor([*prompt, *completion]) for completion in completions]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True).to(model.device)
    lengths = torch.tensor([len(completion) for completion in completions], device=model.device)
    column = torch.arange(ids.shape[1], device=model.device)
    is_token = column < len(prompt) + lengths[:, None]  # False is padding
    hidden = model.base_model(input_ids=ids, attention_mask=is_token.long(), use_cache=False).last_hidden_state
    is_scored = (column >= len(prompt)) & is_token
    if unscored:
        start, end = (len(prompt) + torch.tensor(unscored, device=model.device)).T[:, :, None]
        is_scored &= (column < start) | (column >= end)
    row, position = torch.nonzero(is_scored, as_tuple=True)
    return _sum_by_completion(model, hidden[row, position - 1], ids[row, position], row, len(completions))


def _sum_by_completion(model: PreTrainedModel, hidden: Tensor, targets: Tensor, owner: Tensor, count: int) -> Tensor:
    head = model.get_output_embeddings()
    token_logps = lm_head.token_logps(hidden, targets, head.weight, head.bias)
    # The sum is in float64, which costs nothing: summing a thousand values in float32 has a larger error than the whole
    # model. With float64 the gradient of a step of 3 pairs came 6 times closer to the float64 gradient.
    return token_logps.new_zeros(count, dtype=torch.float64).index_add(0, owner, token_logps.double()).to(token_logps)


def check_agreement(model: PreTrainedModel, difference: float) -> None:
    """Refuse a model if the tree and the model's own forward, one sequence at a time, differ by more than rounding.

    `check_supported` knows some unsupported models; this finds the others: ALiBi, state-space layers, unusual heads.

    Args:
        model: the model that was scored both ways.
        difference: the largest difference over completions, in nats per token.

    Raises:
        ValueError: the difference is too large, or nan.
    """
    limit = _MAX_DIFFERENCE[model.dtype]
    if not difference <= limit:  # `not <=` also catches nan
        raise ValueError(
            f"{type(model).__name__} cannot be scored on a tree: log-probabilities differ from one sequence at a time "
            f"by {difference:.2g} nats per token, where rounding in {model.dtype} gives at most {limit}. The model "
            f"computes something that the tree leaves out: {UNSUPPORTED_REMEDY}"
        )


def check_supported(model: PreTrainedModel, longest: int) -> None:
    """Refuse a model if its config shows that its log-probabilities on a tree would be wrong.

    Args:
        model: the model to score.
        longest: number of tokens of the longest prompt with one of its completions.

    Raises:
        ValueError: the tree does not support the model, or an article is longer than the model's context.
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
        return  # the settings ask for one sequence at a time (see `loading.load_model`), which is always exact
    for setting, neutral in _UNSUPPORTED.items():
        value = getattr(config, setting, None)
        if value is not None and value != neutral:
            raise ValueError(
                f"{name} has {setting}={value}, which the tree's log-probabilities would leave out: "
                f"{UNSUPPORTED_REMEDY}"
            )
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    if rope.get("rope_type") == "longrope" and longest > original:
        raise ValueError(
            f"{name} has longrope, whose positions depend on the longest article of a row, and one has {longest} "
            f"tokens, more than {original}: {UNSUPPORTED_REMEDY}, or use shorter articles"
        )
    kinds = set(getattr(config, "layer_types", None) or [])
    if not kinds <= _LAYER_TYPES:
        raise ValueError(
            f"{name} has layers of kind {sorted(kinds - _LAYER_TYPES)}, and a tree needs attention in all layers: "
            f"{UNSUPPORTED_REMEDY}"
        )
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk is not None and longest > chunk and kinds != {"full_attention"}:
        raise ValueError(
            f"an article with one of its summaries has {longest} tokens, and {name} has attention_chunk_size={chunk}, "
            f"which the tree would ignore: {UNSUPPORTED_REMEDY}"
        )
