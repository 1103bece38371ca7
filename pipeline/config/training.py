"""Settings of training, and of the references that it compares with: the part of `config.py` with TRL's names.

Left out: which mixtures of losses mean something (`objective.py`), and what workers have (`hardware.py`).
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Positive, Settings, Share
from pipeline.config.losses import REFERENCE_FREE, check_mixture, parse_loss_type


class References(Settings):
    """Which policy is the reference, and where its log-probabilities come from.

    `trainer`: the training code. `sampler`: the engine that sampled gave them, and none are computed but for a check.
    `none`: there are none, for losses that do without (sft, simpo, orpo).
    """

    # previous: the policy that the round starts from, which wrote its summaries; at step 0 the loss is ln 2.
    # base: the one before any training, in every round: another objective, which pulls back to it. Without rounds, or
    # in the first, the two are one.
    policy: Literal["previous", "base"] = "previous"
    source: Literal["trainer", "sampler", "none"] = "trainer"
    check_articles: Positive = 16  # of `sampler`: on so many the trainer is asked too
    max_difference: Annotated[float, Field(gt=0)] = 0.02  # of `sampler`: mean nats per token; more stops the run


class Lora(Settings):
    """LoRA adapters. Names as in PEFT's LoraConfig; their dropout is always off, as every dropout is."""

    r: Positive = 8
    lora_alpha: Positive = 16
    use_rslora: bool = False
    target_modules: str | tuple[str, ...] = "all-linear"  # that (all but the head), or last names: [q_proj, v_proj]
    # False: one adapter on a base that never changes, trained on from round to round; it is what is written and served.
    # True: each round's adapter ends in the weights, the policy is a complete model, and the next adapter is fresh.
    merge: bool = False

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names_layers(cls, value: Any) -> Any:
        names = isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value)
        if not names and value != "all-linear":
            raise ValueError(
                f"training.lora.target_modules is {value!r:.80}: it should be all-linear, or names of linear layers "
                "such as [q_proj, v_proj]"
            )
        return value


class Training(Settings):
    """DPO. Names as in TRL; a step is `pairs_per_step` pairs over all workers together."""

    loss_type: str | tuple[str, ...] = "sigmoid"  # one, or several to add up; `dpo/losses.py` says what each is
    loss_weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None  # of several, in their order; None: 1.0 each
    rpo_alpha: Annotated[float, Field(gt=0)] | None = None  # weight of sft on top, which anchors the chosen; None: none
    beta: Annotated[float, Field(gt=0)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # probability that a verdict is wrong
    simpo_gamma: Annotated[float, Field(ge=0)] = 0.5  # the margin that simpo aims at
    learning_rate: Annotated[float, Field(gt=0)] = 5e-7
    num_train_epochs: Positive = 1
    pairs_per_step: Positive = 36
    warmup_ratio: Share = 0.1
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "cosine"
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.02  # articles held out for reward accuracy
    eval_steps: Positive | None = None  # steps between evaluations of those; None: once an epoch
    metric_for_best_model: Literal["eval_rewards/accuracies", "eval_loss"] = "eval_rewards/accuracies"
    load_best_model_at_end: bool = False  # the policy is the best that an evaluation saw, not the last
    early_stopping_patience: Positive | None = None  # evaluations without a better one; None: train to the end
    lora: Lora | None = None  # None: all weights are trained

    @field_validator("loss_type", mode="before")
    @classmethod
    def _names_losses(cls, value: object) -> str | tuple[str, ...]:
        return parse_loss_type(value)

    @model_validator(mode="after")
    def _can_tell_the_best(self) -> "Training":
        for name in ("load_best_model_at_end", "early_stopping_patience"):
            if getattr(self, name) and not self.eval_fraction:
                raise ValueError(
                    f"training.{name} is set and training.eval_fraction is 0: hold articles out to tell what is best"
                )
        return self

    @model_validator(mode="after")
    def _mixes_losses(self) -> "Training":
        some_take = {name: getattr(self, name) for name in ("beta", "label_smoothing", "simpo_gamma")}
        check_mixture(
            [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type,
            loss_weights=self.loss_weights,
            rpo_alpha=self.rpo_alpha,
            given={name: value for name, value in some_take.items() if value != Training.model_fields[name].default},
        )
        return self


def check_references(references: References, training: Training) -> None:
    """Raise ValueError where a loss compares with a reference that is not to be there."""
    losses = [training.loss_type] if isinstance(training.loss_type, str) else training.loss_type
    if references.source == "none" and (comparing := [loss for loss in losses if loss not in REFERENCE_FREE]):
        raise ValueError(
            f"references.source is none, and training.loss_type has {', '.join(comparing)}, which compares with a "
            f"reference: leave the source out, or train with {', '.join(sorted(REFERENCE_FREE))}"
        )
    if references.policy == "base" and references.source != "trainer":
        wrong = "are the writer's own" if references.source == "sampler" else "are not there"
        raise ValueError(
            f"references.policy is base and references.source {references.source}, whose values {wrong}: "
            "use references.source=trainer, or references.policy=previous"
        )
