"""Settings of training and of its references. Names are TRL's.

Which mixtures of losses make sense is checked in `losses.py`. Workers and memory are in `hardware.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Positive, Settings, Share
from pipeline.config.losses import REFERENCE_FREE, check_mixture, parse_loss_type


class References(Settings):
    """Which policy is the reference, and where its log-probabilities come from."""

    # previous: the policy that the round starts from, which also wrote the summaries. The loss at step 0 is ln 2.
    # base: the policy before any training, in every round. This is another objective: it pulls the policy back to the
    # base. Without rounds, and in the first round, both are the same policy.
    policy: Literal["previous", "base"] = "previous"
    # trainer: the training code computes the log-probabilities. sampler: the engine that sampled the summaries returned
    # them, and the trainer computes only some, as a check. none: there are none; only for losses without a reference
    # (sft, simpo, orpo).
    source: Literal["trainer", "sampler", "none"] = "trainer"
    check_articles: Positive = 16  # with `sampler`: articles for which the trainer also computes the values
    # With `sampler`: largest mean difference between engine and trainer, in nats per token. A larger one ends the run.
    max_difference: Annotated[float, Field(gt=0)] = 0.02


class Lora(Settings):
    """LoRA adapters. Names as in PEFT's LoraConfig. Dropout is always off, here and in the whole model."""

    r: Positive = 8  # rank of the adapter
    lora_alpha: Positive = 16  # the adapter counts lora_alpha / r times
    use_rslora: bool = False  # True: lora_alpha / sqrt(r) times (rank-stabilized LoRA)
    # Train the length of each row of a weight apart from its direction (DoRA). Slower than LoRA. It needs `merge`.
    use_dora: bool = False
    # all-linear: every linear layer but the LM head. Or the last parts of layer names: [q_proj, v_proj].
    target_modules: str | tuple[str, ...] = "all-linear"
    # False: one adapter is trained from round to round on a base that never changes; the adapter is saved and served.
    # True: each round's adapter is merged into the weights. The policy is a complete model, and the next round begins
    # a fresh adapter.
    merge: bool = False

    @field_validator("target_modules", mode="before")
    @classmethod
    def _check_target_modules(cls, value: Any) -> Any:
        is_list_of_names = isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value)
        if not is_list_of_names and value != "all-linear":
            raise ValueError(
                f"training.lora.target_modules is {value!r:.80}: it should be all-linear, or a list of linear layers "
                "such as [q_proj, v_proj]"
            )
        return value

    @model_validator(mode="after")
    def _check_dora(self) -> "Lora":
        if self.use_dora and not self.merge:
            raise ValueError(
                "training.lora.use_dora is true and training.lora.merge is false: vLLM does not serve DoRA adapters, "
                "so set training.lora.merge=true, or leave use_dora out"
            )
        return self


class FourBit(Settings):
    """A base whose linear layers are in 4 bits (QLoRA, Dettmers et al., 2023, arXiv 2305.14314), by bitsandbytes.

    Names as in transformers' BitsAndBytesConfig.
    """

    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"  # nf4 has more values near zero, where weights are dense
    bnb_4bit_use_double_quant: bool = True  # the scales of 64 weights are quantized too


class Training(Settings):
    """DPO. Names as in TRL. One step updates the weights once, on `pairs_per_step` pairs over all workers together."""

    loss_type: str | tuple[str, ...] = "sigmoid"  # one loss, or a list to add up; see `training/losses/formulas.py`
    loss_weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None  # one per loss, in their order; None: all 1.0
    # Weight of an additional sft loss, which keeps up the likelihood of chosen completions. None: no such loss.
    rpo_alpha: Annotated[float, Field(gt=0)] | None = None
    beta: Annotated[float, Field(gt=0)] = 0.1  # how strongly the reference holds the policy back
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # probability that a preference label is wrong
    simpo_gamma: Annotated[float, Field(ge=0)] = 0.5  # target margin of simpo
    # Temperature of discopop. Above 1 the loss of a wrong pair would grow exponentially.
    discopop_tau: Annotated[float, Field(gt=0, le=1)] = 0.05
    # The divergence from the reference that DPO's derivation penalizes (f-DPO).
    # `pipeline/training/losses/objective.py` has the formulas.
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    f_alpha_divergence_coef: Annotated[float, Field(allow_inf_nan=False)] = 0.5  # of alpha_divergence
    # How much the tokens of a completion count beyond the length of the pair's shorter one (LD-DPO). None: like all.
    ld_alpha: Share | None = None
    use_weighting: bool = False  # True: a pair counts by how likely the policy is to write it (WPO)
    # Weight of the load-balancing loss of a mixture of experts. 0: none. TRL's default is the model's own value.
    router_aux_loss_coef: Annotated[float, Field(ge=0)] = 0.0
    learning_rate: Annotated[float, Field(gt=0)] = 5e-7  # at its highest, after the warm-up
    num_train_epochs: Positive = 1  # how often all pairs of a round are used
    pairs_per_step: Positive = 36  # over all workers together
    warmup_ratio: Share = 0.1  # share of the steps in which the learning rate rises from 0
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "cosine"  # how it falls after the warm-up
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0  # a longer gradient is scaled down to this norm
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # of AdamW
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9  # decay of AdamW's mean of the gradients
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999  # decay of AdamW's mean of their squares
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.02  # share of articles held out to measure reward accuracy
    eval_steps: Positive | None = None  # steps between evaluations on the held-out articles; None: once per epoch
    # The evaluation is the best that has the highest reward accuracy, or the lowest loss.
    metric_for_best_model: Literal["eval_rewards/accuracies", "eval_loss"] = "eval_rewards/accuracies"
    load_best_model_at_end: bool = False  # True: save the weights of the best evaluation, not those of the last step
    early_stopping_patience: Positive | None = None  # evaluations without improvement before training ends; None: never
    lora: Lora | None = None  # None: all weights are trained
    # QLoRA: training and references load the base of the adapter in 4 bits. True or a section, with `lora` only.
    load_in_4bit: FourBit | None = None
    # What the loss counts of a policy that thinks (policy.thinking). sequence: all sampled tokens, the thought and the
    # answer. answer: the tokens of the answer, given the thought.
    loss_on: Literal["sequence", "answer"] = "sequence"

    @field_validator("loss_type", mode="before")
    @classmethod
    def _check_loss_type(cls, value: object) -> str | tuple[str, ...]:
        return parse_loss_type(value)

    @field_validator("load_in_4bit", mode="before")
    @classmethod
    def _check_4bit_form(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {} if value else None
        if value is not None and not isinstance(value, dict | FourBit):
            raise ValueError(f"training.load_in_4bit is {value!r:.80}: it should be true, false, or a section")
        return value

    @model_validator(mode="after")
    def _check_4bit(self) -> "Training":
        if self.load_in_4bit and not self.lora:
            raise ValueError(
                "training.load_in_4bit is set and training.lora is not: weights in 4 bits cannot be trained, only an "
                "adapter on them, so set training.lora, or leave load_in_4bit out"
            )
        return self

    @model_validator(mode="after")
    def _check_evaluation(self) -> "Training":
        for name in ("load_best_model_at_end", "early_stopping_patience"):
            if getattr(self, name) and not self.eval_fraction:
                raise ValueError(
                    f"training.{name} is set and training.eval_fraction is 0: the best weights are found on held-out "
                    "articles, so set eval_fraction above 0"
                )
        return self

    @model_validator(mode="after")
    def _check_losses(self) -> "Training":
        names = ("beta", "label_smoothing", "simpo_gamma", "discopop_tau")
        loss_settings = {name: getattr(self, name) for name in names}
        check_mixture(
            loss_names(self),
            loss_weights=self.loss_weights,
            rpo_alpha=self.rpo_alpha,
            changed_settings={
                name: value for name, value in loss_settings.items() if value != Training.model_fields[name].default
            },
            f_divergence_type=self.f_divergence_type,
            ld_alpha=self.ld_alpha,
            use_weighting=self.use_weighting,
        )
        alpha = self.f_alpha_divergence_coef
        if self.f_divergence_type != "alpha_divergence" and alpha != 0.5:
            raise ValueError(
                f"training.f_alpha_divergence_coef is {alpha:g} and training.f_divergence_type is "
                f"{self.f_divergence_type}: leave it out, or set f_divergence_type to alpha_divergence"
            )
        return self


def loss_names(training: Training) -> list[str]:
    """The losses of `loss_type`, which is one or a list."""
    return [training.loss_type] if isinstance(training.loss_type, str) else list(training.loss_type)


def check_router_loss(training: Training, torch_compile: bool) -> None:
    """Raise ValueError if the router's loss is wanted, and the layers are compiled."""
    if training.router_aux_loss_coef and torch_compile:
        raise ValueError(
            f"training.router_aux_loss_coef is {training.router_aux_loss_coef:g} and hardware.trainer.torch_compile is "
            "true: the router's logits cannot be taken out of compiled layers, so leave torch_compile out"
        )


def check_4bit(training: Training, references: References, workers: int, cpu_offload: bool) -> None:
    """Raise ValueError if a base in 4 bits is to be used in a way for which it cannot be."""
    if training.load_in_4bit is None:
        return
    if workers > 1 or cpu_offload:
        found = f"hardware.trainer.workers is {workers}" if workers > 1 else "hardware.trainer.cpu_offload is true"
        raise ValueError(
            f"training.load_in_4bit is set and {found}: weights in 4 bits are not sharded. Use workers=1 without "
            "cpu_offload; or leave load_in_4bit out, as sharding saves memory too"
        )
    if references.source == "sampler":
        raise ValueError(
            "training.load_in_4bit is set and references.source is sampler: vLLM samples from the base in full "
            "precision, and the references must be of the base in 4 bits that is trained. Use references.source=trainer"
        )


def check_references(references: References, training: Training) -> None:
    """Raise ValueError if training needs reference log-probabilities that the run will not have."""
    losses_with_reference = [loss for loss in loss_names(training) if loss not in REFERENCE_FREE]
    if references.source == "none" and losses_with_reference:
        raise ValueError(
            f"references.source is none, and training.loss_type has {', '.join(losses_with_reference)}, which needs a "
            f"reference: leave references.source out, or train with {', '.join(sorted(REFERENCE_FREE))}"
        )
    if references.source == "sampler" and training.ld_alpha is not None:
        raise ValueError(
            "training.ld_alpha is set and references.source is sampler, which gives one log-probability for a whole "
            "summary: use references.source=trainer"
        )
    if references.policy == "base" and references.source != "trainer":
        problem = (
            "the sampler gives log-probabilities of the policy that wrote the summaries, not of the base"
            if references.source == "sampler"
            else "there are no reference log-probabilities"
        )
        raise ValueError(
            f"references.policy is base and references.source is {references.source}: {problem}. "
            "Use references.source=trainer, or references.policy=previous"
        )
