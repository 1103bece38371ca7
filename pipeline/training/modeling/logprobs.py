"""Computes log-probabilities of completions on an article tree, with one function for the policy and the reference.

The decoder runs on the whole row; the LM head runs only on the positions that predict a completion token
(`lm_head.py`). `tree_attention.py` computes attention on the tree. Before training, `consistency.py` compares the
result with Hugging Face's own forward, one sequence at a time. Models that the tree cannot score exactly are refused.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.training.batches.article_tree import ArticleTree, Ids, Unscored
from pipeline.training.losses.router import router_losses
from pipeline.training.modeling import lm_head, tree_attention
from pipeline.training.modeling.recurrent_layers import RECURRENT, layer_kinds, recurrent_obstacle

# Settings by which a model changes its logits after the head, each with the value that turns it off. They act outside
# of the base decoder and the head, so `lm_head.py` would silently ignore them.
_CHANGED_LOGITS = {
    "final_logit_softcapping": None,  # Gemma 2
    "logits_soft_cap": None,  # RecurrentGemma
    "output_logit_soft_cap": None,  # xLSTM
    "logits_mup_width_multiplier": 1,
}
# Settings by which a model multiplies its logits, each with the power to which the setting is taken.
_LOGIT_FACTORS = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}  # Cohere, Falcon H1, Granite
# The same for attention scores, which these models change with eager attention only.
_CHANGED_SCORES = {"attn_logit_softcapping": None}  # Gemma 2; SDPA ignores it
# The supported kinds of layers beside recurrent ones: attention, and networks that treat each token alone.
_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention", "attention", "moe", "mlp"}
UNSUPPORTED_REMEDY = (
    "use another model, or hardware.trainer.article_tree=false, which is slow and works for every model"
)
# Largest difference in nats per token between the tree and one sequence at a time.
_MAX_DIFFERENCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}


class RowScores(NamedTuple):
    """What training uses of a row with C completions and N scored tokens. Values that were not asked for are None.

    Attributes:
        logps: (C,), the log-probability of each completion: the sum over its scored tokens, in nats.
        token_logps: (N,), the log-probability of each scored token, in nats, in the order of `tree.targets`.
        concentrations: (N,), see `lm_head.token_logps_and_concentration`; without a gradient.
        router_losses: (number of articles,), see `losses.router.router_losses`.
    """

    logps: Tensor
    token_logps: Tensor
    concentrations: Tensor | None
    router_losses: Tensor | None


def completion_logps(model: PreTrainedModel, tree: ArticleTree) -> Tensor:
    """`RowScores.logps` of a row."""
    return score_row(model, tree).logps


def score_row(
    model: PreTrainedModel, tree: ArticleTree, with_concentrations: bool = False, with_router_losses: bool = False
) -> RowScores:
    """Log-probabilities of the completions in a row, given their prompts, and what else training needs of the row.

    Args:
        model: a causal LM with `attn_implementation="article_tree"`. With another implementation each completion goes
            through the model's own forward as a sequence of its own: slow, but exact for every model.
        tree: the row, on the model's device.
        with_concentrations, with_router_losses: whether to compute these.

    Returns:
        Log-probabilities are float32, or float64 for a float64 model.

    Raises:
        ValueError: the tree cannot score this model exactly, or an article is longer than the model's context.
    """
    check_supported(model, tree.longest)
    if model.config._attn_implementation != tree_attention.NAME:
        token_logps, concentrations, router = _score_sequences(model, tree, with_concentrations, with_router_losses)
    else:
        head, (hidden, router_logits) = model.get_output_embeddings(), _tree_hidden(model, tree, with_router_losses)
        token_logps, concentrations = lm_head.token_logps_and_concentration(
            hidden,
            tree.targets,
            head.weight,
            head.bias,
            factor=_logit_factor(model),
            with_concentration=with_concentrations,
        )
        spans = [(span.start, span.prompt_end + sum(span.lengths)) for span in tree.articles]
        router = router_losses(model, router_logits, spans) if router_logits else None
    logps = _sum_by_completion(token_logps, tree.owner, len(tree.completions))
    return RowScores(logps, token_logps, concentrations, router)


def _tree_hidden(model: PreTrainedModel, tree: ArticleTree, with_router: bool) -> tuple[Tensor, Sequence[Tensor]]:
    """(N, d): the hidden states that predict the N completion tokens of a tree; and each router's logits, if wanted."""
    outputs = model.base_model(
        input_ids=tree.input_ids,
        attention_mask=tree.placeholder_mask,
        position_ids=tree.position_ids,
        use_cache=False,
        tree=tree,
        **({"output_router_logits": True} if with_router else {}),
    )
    return outputs.last_hidden_state[0, tree.predictors], outputs.router_logits if with_router else ()


def _score_sequences(
    model: PreTrainedModel, tree: ArticleTree, with_concentrations: bool, with_router: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`RowScores` without the sums, by Hugging Face's own forward: each completion is a sequence of its own."""
    token_logps, concentrations, by_article = [], [], []
    for prompt, completions, unscored in tree.unpack():
        router_logits: list[Sequence[Tensor]] = []
        for completion, (start, end) in zip(completions, unscored, strict=True):
            logps, router = _vocabulary_logps(model, prompt, completion, with_router)
            scored = torch.tensor([*range(start), *range(end, len(completion))], device=model.device)
            logps = logps[scored]
            targets = torch.tensor(completion, device=model.device)[scored]
            token_logps.append(logps.gather(1, targets[:, None])[:, 0])
            if with_concentrations:
                concentrations.append((2 * logps.detach()).logsumexp(-1))
            router_logits.append(router)
        if with_router:
            layers = [torch.cat(of_layer) for of_layer in zip(*router_logits, strict=True)]
            by_article.append(router_losses(model, layers, [(0, len(layers[0]))]))
    return (
        torch.cat(token_logps),
        torch.cat(concentrations) if with_concentrations else None,
        torch.cat(by_article) if with_router else None,
    )


def _vocabulary_logps(
    model: PreTrainedModel, prompt: Ids, completion: Ids, with_router: bool = False
) -> tuple[Tensor, Sequence[Tensor]]:
    """(tokens of the completion, V): log-probabilities of all tokens at each place; and each router's logits."""
    ids = torch.tensor([[*prompt, *completion]], device=model.device)
    outputs = model(input_ids=ids, use_cache=False, **({"output_router_logits": True} if with_router else {}))
    logits = outputs.logits[0, len(prompt) - 1 : -1]
    logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return logps, outputs.router_logits if with_router else ()


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
        logps, _ = _vocabulary_logps(model, prompt, completion)
        token_logps = logps.gather(1, torch.tensor(completion, device=model.device)[:, None])
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
    head = model.get_output_embeddings()
    predicting, targets = hidden[row, position - 1], ids[row, position]
    token_logps = lm_head.token_logps(predicting, targets, head.weight, head.bias, _logit_factor(model))
    return _sum_by_completion(token_logps, row, len(completions))


def _logit_factor(model: PreTrainedModel) -> float:
    """What a model multiplies its logits with after the head."""
    config = model.config.get_text_config(decoder=True)
    values = {name: getattr(config, name, None) for name in _LOGIT_FACTORS}
    return math.prod(value ** _LOGIT_FACTORS[name] for name, value in values.items() if value is not None)


def _sum_by_completion(token_logps: Tensor, owner: Tensor, count: int) -> Tensor:
    # The sum is in float64, which costs nothing: summing a thousand values in float32 has a larger error than the whole
    # model. With float64 the gradient of a step of 3 pairs came 6 times closer to the float64 gradient.
    return token_logps.new_zeros(count, dtype=torch.float64).index_add(0, owner, token_logps.double()).to(token_logps)


def largest_difference(dtype: torch.dtype) -> float:
    """How far the tree and one sequence at a time may be apart by rounding in this dtype, in nats per token."""
    return _MAX_DIFFERENCE[dtype]


def check_agreement(model: PreTrainedModel, difference: float) -> None:
    """Refuse a model if the tree and the model's own forward, one sequence at a time, differ by more than rounding.

    `check_supported` knows some unsupported models; this finds the others: ALiBi, state-space layers, unusual heads.

    Args:
        model: the model that was scored both ways.
        difference: the largest difference over completions, in nats per token.

    Raises:
        ValueError: the difference is too large, or nan.
    """
    limit = largest_difference(model.dtype)
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
    if (reason := _longer_than_context(model, longest)) is not None:
        raise ValueError(f"{reason}: use shorter articles, or a model with a longer context")
    if model.config._attn_implementation != tree_attention.NAME:
        return  # the settings ask for one sequence at a time (see `loading.load_model`), which is always exact
    if (reason := tree_obstacle(model, longest)) is not None:
        raise ValueError(f"{reason}: {UNSUPPORTED_REMEDY}")


def tree_obstacle(model: PreTrainedModel, longest: int, *, with_head: bool = True) -> str | None:
    """Why a model's log-probabilities on a tree would be wrong, as far as its config shows it; None if it does not.

    Args:
        model, longest: see `check_supported`.
        with_head: `lm_head.py` computes the logits; False: a head does that knows the model's config.
    """
    config = model.config.get_text_config(decoder=True)
    name = type(model).__name__
    if (reason := _longer_than_context(model, longest)) is not None:
        return reason
    for setting, neutral in ((_CHANGED_LOGITS if with_head else {}) | _CHANGED_SCORES).items():
        value = getattr(config, setting, None)
        if value is not None and value != neutral:
            return f"{name} has {setting}={value}, which the tree's log-probabilities would leave out"
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)
    if rope.get("rope_type") == "longrope" and original is not None and longest > original:
        return (
            f"{name} has longrope, whose positions depend on the longest article of a row, and one has {longest} "
            f"tokens, more than {original}"
        )
    kinds = set(layer_kinds(config))
    if unknown := kinds - _LAYER_TYPES - RECURRENT:
        return f"{name} has layers of kind {', '.join(sorted(unknown))}, which article trees do not know"
    if (reason := recurrent_obstacle(model)) is not None:
        return reason
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk is not None and longest > chunk and kinds != {"full_attention"}:
        return (
            f"an article with one of its summaries has {longest} tokens, and {name} has attention_chunk_size={chunk}, "
            "which the tree would ignore"
        )
    return None


def _longer_than_context(model: PreTrainedModel, longest: int) -> str | None:
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is None or longest <= limit:
        return None
    return (
        f"an article with one of its summaries has {longest} tokens, and {type(model).__name__} takes {limit} "
        "(max_position_embeddings)"
    )
