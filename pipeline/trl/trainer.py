"""A subclass of TRL's DPOTrainer whose policy and reference compute their log-probabilities on article trees.

TRL's own code computes losses and metrics, so they are equal by construction, and every option of DPOConfig keeps its
meaning. What cannot go on a tree goes through TRL's forward, and one warning says why.
"""

from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import nn
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from transformers import PreTrainedModel
from trl import DPOTrainer

from pipeline.trl.sampler import PromptSampler
from pipeline.trl.tree_forward import Layouts, add_tree_forward

logger = get_logger(__name__)


class TreeDPOTrainer(DPOTrainer):
    """TRL's DPOTrainer on article trees. It takes the same arguments.

    Pairs of a batch that have the same prompt share it, and equal completions of a prompt are computed once. So
    `per_device_train_batch_size` should be at least the number of pairs of a prompt. Training brings such pairs
    together: with the default random order, prompts are shuffled instead of pairs, and with
    `train_sampling_strategy="sequential"` prompts keep the order of their first pair. The pairs of an epoch and the
    number of steps stay the same. A dataset in which no prompt repeats keeps TRL's order, as do evaluation, iterable
    datasets and other sampling strategies; there pairs share a prompt where they happen to meet.

    Attention on a tree is Rondo's, whatever `attn_implementation` is. Sharing the prompt of a pair is from Wang and
    Hegde (2024), arXiv 2410.20305.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._uses_trees: bool | None = None  # None: not decided yet
        self._told: set[str] = set()
        super().__init__(*args, **kwargs)
        self._add_trees()

    def _add_trees(self) -> None:
        """Give policy and reference a forward on trees, once. TRL's constructor may need it before it returns."""
        if self._uses_trees is not None:
            return
        models = [_causal_lm(self.accelerator.unwrap_model(model)) for model in (self.model, self.ref_model) if model]
        reasons = [reason for model in models if (reason := self._obstacle(model)) is not None]
        self._uses_trees = not reasons
        if reasons:
            self._tell(reasons[0])
            return
        autocast = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        layouts = Layouts()
        for model in models:
            add_tree_forward(model, autocast or model.dtype, layouts, self._tell)

    def _obstacle(self, model: PreTrainedModel) -> str | None:
        """Why nothing that this trainer computes with a model can go on a tree; None if it can."""
        parallel = self.accelerator.parallelism_config
        if self._is_vlm:
            return "the processing class takes images"
        if self.args.padding_free:
            return "padding_free=True asks for another layout"
        if self.args.use_liger_kernel:
            return "use_liger_kernel=True replaces layers of the model"
        if self.args.torch_compile:
            return "torch_compile=True compiles the whole model, and each batch has another tree"
        if parallel is not None and parallel.total_size > 1:
            return "parallelism_config divides sequences or weights in a way that trees do not support"
        if not model._supports_attention_backend:
            return f"{type(model).__name__} has attention code of its own"
        if dropout := _active_dropout(model):
            return f"{dropout} is on, and rows that share a prompt would share its noise"
        return None

    def _tell(self, reason: str) -> None:
        """Warn once about each reason."""
        if reason not in self._told:
            self._told.add(reason)
            logger.warning("TreeDPOTrainer uses TRL's own forward, without shared prompts: %s", reason)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if not self._uses_trees or type(sampler) not in (RandomSampler, SequentialSampler):
            return sampler
        prompts = _number_prompts(self.train_dataset if train_dataset is None else train_dataset)
        if prompts is None:
            return sampler
        return PromptSampler(
            prompts,
            self._train_batch_size,
            shuffle=type(sampler) is RandomSampler,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self._add_trees()
        prompts = None if isinstance(dataset, IterableDataset) or not self._uses_trees else _number_prompts(dataset)
        if prompts is None:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        order = list(PromptSampler(prompts, batch_size, shuffle=False, seed=0))
        together = super()._precompute_ref_logps(dataset.select(order), name, batch_size)
        return together.select(torch.tensor(order).argsort().tolist())


def _causal_lm(model: nn.Module) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _active_dropout(model: PreTrainedModel) -> str | None:
    """The name of a dropout that is not 0: a module, or a number that an attention module passes to its kernel."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            return f"the dropout {name}"
        for attribute, value in vars(module).items():
            if "att" in attribute and "dropout" in attribute and isinstance(value, float) and value > 0:
                return f"{attribute}={value}"
    return None


def _number_prompts(dataset: Dataset) -> list[int] | None:
    """For each pair a number that stands for its prompt; None if no prompt repeats, or prompts are not known."""
    if not isinstance(dataset, Dataset) or "prompt_ids" not in dataset.column_names:
        return None
    number_of: dict[tuple[int, ...], int] = {}
    prompts = [
        number_of.setdefault(tuple(ids), len(number_of))
        for batch in dataset.select_columns("prompt_ids").iter(1000)
        for ids in batch["prompt_ids"]
    ]
    return prompts if len(number_of) < len(prompts) else None
