"""Computes what TRL's fused forward returns for a padded batch, with each prompt and each completion computed once.

TRL's DPOTrainer asks the model for log-probabilities and other numbers of each token of a padded batch, chosen rows
first. `add_tree_forward` wraps that forward: the batch becomes one `ArticleTree`, the decoder runs on the tree, TRL's
own head scores the completion tokens, and the results go back to their places in the padded batch. So TRL computes
losses and metrics from the same numbers as before.
"""

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from pipeline.training.batches.article_tree import ArticleTree, pack_row
from pipeline.training.modeling import last_layer, tree_attention
from pipeline.training.modeling.logprobs import largest_difference, tree_obstacle

_PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")  # of FusedCausalLMOutput


@dataclass(frozen=True)
class TreeBatch:
    """A padded batch of B rows of L tokens as a tree.

    Attributes:
        tree: the row of T tokens, of which N are scored.
        is_scored: (B, L - 1) bool, True where the next token has a label.
        scored_token: (B, L - 1) int64, the number of that next token in `tree.targets`; 0 where nothing is scored.
        token: (B, L) int64, the index of each token in the tree's row; 0 for padding.
    """

    tree: ArticleTree
    is_scored: Tensor
    scored_token: Tensor
    token: Tensor

    def spread(self, outputs: FusedCausalLMOutput) -> FusedCausalLMOutput:
        """Put the results of the N scored tokens, (1, N) each, to their places in the padded batch, (B, L - 1)."""
        fields: dict[str, Any] = {}
        for name in _PER_TOKEN:
            values = getattr(outputs, name)
            if values is not None:
                fields[name] = values[0, self.scored_token].masked_fill(~self.is_scored, 0)
        loss = -fields["log_probs"].sum() / self.is_scored.sum().clamp(min=1)
        return FusedCausalLMOutput(loss=loss, label_mask=self.is_scored, aux_loss=outputs.aux_loss, **fields)


def lay_out(input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> TreeBatch | None:
    """Make the tree of a padded batch. Rows with the same tokens before the first label share these tokens.

    Args:
        input_ids: (B, L) int64.
        attention_mask: (B, L), 0 for padding, which is at the end of a row.
        labels: (B, L), the token, or -100 where it is not scored.

    Returns:
        None if a row has padding elsewhere, or has no completion.
    """
    ids = input_ids.cpu().numpy()
    is_token, is_labelled = attention_mask.cpu().numpy() > 0, labels.cpu().numpy() != -100
    lengths = is_token.sum(1)
    if not (is_token == (np.arange(ids.shape[1]) < lengths[:, None])).all():
        return None
    articles: dict[bytes, tuple[int, dict[bytes, int]]] = {}  # by prompt: its number, its completions' numbers
    contents: list[tuple[np.ndarray, list[np.ndarray]]] = []
    places: list[tuple[int, int, int]] = []  # of each row: article, completion, first token of the completion
    for row, length in zip(ids, lengths, strict=True):
        labelled = np.flatnonzero(is_labelled[len(places), :length])
        # TRL does not score the first token of a row either, as no token predicts it.
        begin = max(1, labelled[0]) if len(labelled) else length
        if begin >= length:
            return None
        prompt, completion = row[:begin], row[begin:length]
        number, completions = articles.setdefault(prompt.tobytes(), (len(articles), {}))
        if number == len(contents):
            contents.append((prompt, []))
        branch = completions.setdefault(completion.tobytes(), len(completions))
        if branch == len(contents[number][1]):
            contents[number][1].append(completion)
        places.append((number, branch, begin))
    tree = pack_row(contents)
    starts = _branch_starts(tree)
    scored_token, token = np.zeros((len(ids), ids.shape[1] - 1), np.int64), np.zeros(ids.shape, np.int64)
    for row, (number, branch, begin) in enumerate(places):
        first_target, first_token = starts[number, branch]
        length = lengths[row] - begin
        scored_token[row, begin - 1 : lengths[row] - 1] = np.arange(first_target, first_target + length)
        token[row, :begin] = np.arange(tree.articles[number].start, tree.articles[number].prompt_end)
        token[row, begin : lengths[row]] = np.arange(first_token, first_token + length)
    is_scored = (is_labelled & is_token)[:, 1:]
    device = input_ids.device
    return TreeBatch(
        tree.to(device), *(torch.from_numpy(array).to(device) for array in (is_scored, scored_token, token))
    )


def _branch_starts(tree: ArticleTree) -> dict[tuple[int, int], tuple[int, int]]:
    """For each completion, by article and branch: its first number in `tree.targets`, its first index in the row."""
    starts, target = {}, 0
    for number, span in enumerate(tree.articles):
        token = span.prompt_end
        for branch, length in enumerate(span.lengths):
            starts[number, branch] = (target, token)
            target, token = target + length, token + length
    return starts


class Layouts:
    """Makes the tree of a batch. It keeps the last one, because the reference asks for the same tree as the policy."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor, TreeBatch | None] | None = None

    def get(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> TreeBatch | None:
        """What `lay_out` returns."""
        if self._last is None or self._last[0] is not input_ids or not torch.equal(self._last[1], labels):
            self._last = (input_ids, labels, lay_out(input_ids, attention_mask, labels))
        return self._last[2]


def add_tree_forward(model: PreTrainedModel, dtype: torch.dtype, layouts: Layouts, tell: Callable[[str], None]) -> None:
    """Wrap the fused forward that TRL gave a model, in place. Other calls of the model do not change.

    Before the first batch, up to four of its rows are computed both ways. If they differ by more than rounding, the
    model keeps TRL's forward. So does every batch that cannot be a tree.

    Args:
        model: a causal LM with TRL's fused LM head, not wrapped by PEFT.
        dtype: what the forward computes in: the autocast dtype, or that of the weights.
        layouts: makes the trees, for policy and reference.
        tell: takes the reason why a batch goes through TRL's forward.
    """
    if not getattr(model, "skips_unread_tokens", False):  # a second trainer on the same model must not skip twice
        last_layer.skip_unread_tokens(model)
        model.skips_unread_tokens = True
    state = _TreeForward(model, model.forward, model.config._attn_implementation, dtype, layouts, tell)

    @functools.wraps(model.forward)  # generate and Trainer read the signature
    def forward(
        self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any
    ) -> Any:
        if not fused_lm_head or labels is None or args:
            passed = {"labels": labels} if labels is not None else {}
            passed |= {"fused_lm_head": True} if fused_lm_head else {}
            return state.by_sequence(*args, **passed, **kwargs)
        return state.fused(labels, **kwargs)

    model.forward = types.MethodType(forward, model)


class _TreeForward:
    """The two forwards of a model: by sequence, which is TRL's, and on the tree."""

    def __init__(
        self,
        model: PreTrainedModel,
        trl_forward: Callable[..., Any],
        attention: str,
        dtype: torch.dtype,
        layouts: Layouts,
        tell: Callable[[str], None],
    ) -> None:
        self.model, self.trl_forward, self.attention = model, trl_forward, attention
        self.dtype, self.layouts, self.tell = dtype, layouts, tell
        self.agrees: bool | None = None  # None: not known before the first batch

    def by_sequence(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's forward, with the model's own attention."""
        self.model.config._attn_implementation = self.attention
        return self.trl_forward(*args, **kwargs)

    def fused(self, labels: Tensor, **kwargs: Any) -> FusedCausalLMOutput:
        """What TRL's fused forward returns for a padded batch, on the tree if it can be."""
        batch = self._tree_batch(labels, kwargs)
        if batch is None:
            return self.by_sequence(labels=labels, fused_lm_head=True, **kwargs)
        return self._on_tree(batch, **kwargs)

    def _tree_batch(self, labels: Tensor, inputs: dict[str, Any]) -> TreeBatch | None:
        if self.agrees is False:
            return None
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        others = inputs.keys() - {"input_ids", "attention_mask", "use_cache", "output_router_logits"}
        if ids is None or mask is None or any(inputs[name] is not None for name in others):
            named = ", ".join(sorted(name for name in others if inputs[name] is not None)) or "no token ids"
            self.tell(f"the model gets {named}, which a tree has no place for")
            return None
        batch = self.layouts.get(ids, mask, labels)
        if batch is None:
            self.tell("a batch has a row without a completion, or padding that is not at its end")
            return None
        self.model.config._attn_implementation = tree_attention.NAME
        if (reason := tree_obstacle(self.model, batch.tree.longest, with_head=False)) is not None:
            self.tell(reason)
            return None
        if self.agrees is None and (reason := self._disagreement(labels, inputs)) is not None:
            self.agrees = False
            self.tell(reason)
            return None
        self.agrees = True
        return batch

    def _on_tree(self, batch: TreeBatch, **kwargs: Any) -> FusedCausalLMOutput:
        self.model.config._attn_implementation = tree_attention.NAME
        with _decoder_on_tree(self.model.base_model, batch):
            outputs = self.trl_forward(shift_labels=batch.tree.targets[None], fused_lm_head=True, **kwargs)
        return batch.spread(outputs)

    @torch.no_grad()
    def _disagreement(self, labels: Tensor, inputs: dict[str, Any]) -> str | None:
        """Why the model must not be computed on a tree: an error, or other log-probabilities than by sequence."""
        count = len(labels)
        rows = sorted({0, count // 2 - 1, count // 2, count - 1} & set(range(count)))  # first and last pair
        few = {name: value[rows] if isinstance(value, Tensor) else value for name, value in inputs.items()}
        name = type(self.model).__name__
        batch = lay_out(few["input_ids"], few["attention_mask"], labels[rows])
        assert batch is not None, "rows of a batch that has a tree have one too"
        try:
            ours = self._on_tree(batch, **few).log_probs
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # any model may come here, and each fails in its own way
            return f"{name} cannot be computed on a tree ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        theirs = self.by_sequence(labels=labels[rows], fused_lm_head=True, **few).log_probs
        difference = ((ours - theirs).sum(1).abs() / batch.is_scored.sum(1).clamp(min=1)).max().item()
        limit = largest_difference(self.dtype)
        if difference <= limit:
            return None
        return (
            f"{name} gives other log-probabilities on a tree, by {difference:.2g} nats per token, where rounding in "
            f"{self.dtype} gives at most {limit}"
        )


@contextmanager
def _decoder_on_tree(decoder: nn.Module, batch: TreeBatch) -> Iterator[None]:
    """While this lasts, the decoder reads the tree instead of the padded batch, and returns what predicts a target.

    Hooks do this, so that TRL's forward, which calls the decoder and then the head, stays as it is, with all that it
    does for sharded weights and for models that change their logits.
    """

    def give_tree(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tree = batch.tree
        row = {"input_ids": tree.input_ids, "attention_mask": tree.placeholder_mask, "position_ids": tree.position_ids}
        return args, kwargs | row | {"tree": tree}

    def keep_predictors(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], output: Any) -> None:
        output.last_hidden_state = output.last_hidden_state[:, batch.tree.predictors]
        if (router_logits := getattr(output, "router_logits", None)) is not None:
            # TRL's auxiliary loss is over the padded batch, where each row has its own prompt.
            places = batch.token.flatten()
            output.router_logits = tuple(of_layer.view(-1, of_layer.shape[-1])[places] for of_layer in router_logits)

    handles = [
        decoder.register_forward_pre_hook(give_tree, with_kwargs=True),
        decoder.register_forward_hook(keep_predictors, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
