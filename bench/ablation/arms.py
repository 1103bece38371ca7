"""Lists the arms of a study. An arm is a run that differs from another arm in one setting.

An arm has the settings of the arm `differs_from`, and one more. So it takes all stages that do not depend on this
setting from that arm's run. Settings of training are compared in one round, because a second round would cost as much
as the first one and add the noise of other samples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config, UserError
from pipeline.config.loader import load_config
from pipeline.config.losses import LOSS_SETTINGS
from pipeline.config.training import Training
from pipeline.execution.recipe import get_setting


@dataclass(frozen=True)
class Times:
    """A value that is a multiple of the configuration's."""

    factor: float

    def of(self, value: float) -> float:
        """The product: a whole number for a whole number, else with two significant digits."""
        return round(self.factor * value) if isinstance(value, int) else float(f"{self.factor * value:.2g}")


@dataclass(frozen=True)
class Arm:
    """A run of the study.

    Attributes:
        name: its name on the command line, in plots and in tables.
        title: what it is, as the subject of a sentence.
        differs_from: the arm that it differs from in one setting; None: the configuration.
        setting: the dotted name of this setting.
        value: the value of this setting.
        needs: further settings without which this one has no effect or is refused.
        against: the arm that it is compared with, if that is another one than `differs_from`.
        group: the choice that it belongs to.
    """

    name: str
    title: str
    differs_from: str | None
    setting: str
    value: Any
    needs: tuple[str, ...] = ()
    against: str | None = None
    group: str = "rounds"

    @property
    def compared_with(self) -> str | None:
        """The arm that the page compares it with."""
        return self.against or self.differs_from


ARMS = (
    Arm("dpo-1", "DPO in one round", None, "rounds", 1),
    Arm("dpo-2", "DPO in two rounds", "dpo-1", "rounds", 2),
    Arm("dpo-3", "DPO in three rounds", "dpo-2", "rounds", 3),
    # The latest policy is trained on the base's samples again, instead of on samples of its own: as many updates, on as
    # many pairs, as in two rounds.
    Arm(
        "offline",
        "DPO in two epochs on pairs of the base's samples (offline)",
        "dpo-1",
        "training.num_train_epochs",
        Times(2),
        against="dpo-2",
    ),
    Arm("champion", "starting each round from the champion", "dpo-3", "start_from", "champion"),
    Arm("replay", "replaying pairs of earlier rounds", "dpo-2", "pairs.replay", 0.5),
    Arm("sft", "SFT on the chosen summaries", "dpo-1", "training.loss_type", "sft", group="loss"),
    Arm("ipo", "the loss IPO", "dpo-1", "training.loss_type", "ipo", group="loss"),
    Arm("hinge", "the hinge loss (SLiC)", "dpo-1", "training.loss_type", "hinge", group="loss"),
    Arm("apo-zero", "the loss APO-zero", "dpo-1", "training.loss_type", "apo_zero", group="loss"),
    Arm("beta-low", "a third of beta", "dpo-1", "training.beta", Times(1 / 3), group="beta"),
    Arm("beta-high", "three times beta", "dpo-1", "training.beta", Times(3), group="beta"),
    Arm("lr-low", "a third of the learning rate", "dpo-1", "training.learning_rate", Times(1 / 3), group="lr"),
    Arm("lr-high", "three times the learning rate", "dpo-1", "training.learning_rate", Times(3), group="lr"),
    Arm(
        "early-stopping",
        "early stopping on rewards/accuracies",
        "dpo-1",
        "training.early_stopping_patience",
        2,
        needs=("training.eval_steps=2", "training.load_best_model_at_end=true"),
        group="stopping",
    ),
)
BY_NAME = {arm.name: arm for arm in ARMS}


@dataclass(frozen=True)
class Planned:
    """An arm of one configuration.

    Attributes:
        overrides: its settings as NAME=VALUE, without `run` and `seed`.
        choice: the one setting in which it differs, and what this needs, as NAME=VALUE.
        config: all its settings.
    """

    arm: Arm
    overrides: tuple[str, ...]
    choice: tuple[str, ...]
    config: Config


def plan_arms(path: str, overrides: Sequence[str] = (), names: Iterable[str] = ()) -> tuple[list[Planned], list[str]]:
    """The arms of a configuration, each after the arms that it needs.

    Args:
        path: the YAML file.
        overrides: settings of all arms.
        names: the arms; empty: all. The arms that they differ from, or are compared with, are added.

    Returns:
        the arms, and a message for each arm that is left out because the configuration already has its setting.

    Raises:
        UserError: an arm is unknown, or its settings are refused.
    """
    wanted = list(names) or list(BY_NAME)
    if unknown := [name for name in wanted if name not in BY_NAME]:
        raise UserError(f"--arms has {', '.join(unknown)}: the arms are {', '.join(BY_NAME)}")
    chosen = _with_needed(wanted)
    planned: dict[str, Planned] = {}
    left_out = []
    for arm in (arm for arm in ARMS if arm.name in chosen):
        start = planned[arm.differs_from].config if arm.differs_from else load_config(path, overrides)
        choice = _choice(arm, start)
        before = planned[arm.differs_from].overrides if arm.differs_from else tuple(overrides)
        try:
            config = load_config(path, (*before, *choice))
        except UserError as error:
            raise UserError(f"the arm {arm.name} ({' '.join(choice)}) is refused: {error}") from None
        if arm.differs_from and config == start:
            left_out.append(f"{arm.name} is left out: {path} already has {choice[0]}")
        else:
            planned[arm.name] = Planned(arm, (*before, *choice), choice, config)
    return list(planned.values()), left_out


def _with_needed(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [other for other in (BY_NAME[name].differs_from, BY_NAME[name].against) if other]
    return found


def _choice(arm: Arm, start: Config) -> tuple[str, ...]:
    """The settings of the arm as NAME=VALUE: the one that it is about, and what that needs."""
    value = arm.value.of(get_setting(start, arm.setting)) if isinstance(arm.value, Times) else arm.value
    # A setting that the loss does not use is refused, so it returns to its default. It changes no result.
    unused = _unused_settings(str(value), start) if arm.setting == "training.loss_type" else ()
    return (f"{arm.setting}={value}", *arm.needs, *unused)


def _unused_settings(loss: str, start: Config) -> list[str]:
    every = dict.fromkeys(name for names in LOSS_SETTINGS.values() for name in names)
    defaults = {name: Training.model_fields[name].default for name in every if name not in LOSS_SETTINGS[loss]}
    return [
        f"training.{name}={default}" for name, default in defaults.items() if getattr(start.training, name) != default
    ]
