"""Which losses training can minimise, and which mixtures of them mean something: names only, so that it is light.

The mathematics is in `dpo/losses.py`, which needs torch; a test holds the two together. Left out: the range of one
setting by itself, which is in `config.py`.
"""

from collections.abc import Mapping, Sequence

# Each loss by TRL's name, and the settings that it takes.
LOSS_SETTINGS: dict[str, tuple[str, ...]] = {
    "sigmoid": ("beta", "label_smoothing"),
    "robust": ("beta", "label_smoothing"),
    "ipo": ("beta",),
    "hinge": ("beta",),
    "sigmoid_norm": ("beta",),
    "apo_zero": ("beta",),
    "apo_down": ("beta",),
    "sppo_hard": ("beta",),
    "exo_pair": ("beta", "label_smoothing"),
    "nca_pair": ("beta",),
    "bco_pair": ("beta",),
    "sft": (),
    "simpo": ("beta", "label_smoothing", "simpo_gamma"),
    "orpo": ("beta",),
}
# What compares with no reference. TRL has simpo and orpo in trainers of their own.
REFERENCE_FREE = frozenset({"sft", "simpo", "orpo"})


def parse_loss_type(value: object) -> str | tuple[str, ...]:
    """`training.loss_type` as it was written, checked: one name, or two and more of them.

    One name in a list becomes the name, so that both ways of writing it are one recipe.

    Raises:
        ValueError: not a name or a list of names, an unknown name, or one that comes twice.
    """
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise ValueError(f"training.loss_type is {value!r:.80}: name a loss, or a list of losses; {_there_are()}")
    for name in names:
        if not isinstance(name, str) or name not in LOSS_SETTINGS:
            raise ValueError(f"training.loss_type has no loss {name!r:.80}; {_there_are()}")
        if names.count(name) > 1:
            raise ValueError(f"training.loss_type has {name} twice: name it once, with its weight in loss_weights")
    return names[0] if len(names) == 1 else tuple(names)


def check_mixture(
    losses: Sequence[str], *, loss_weights: Sequence[float] | None, rpo_alpha: float | None, given: Mapping[str, float]
) -> None:
    """Refuse a mixture in which a setting would do nothing, do the same twice, or make no sense.

    Args:
        losses: names that `loss_names` has passed.
        given: of the settings that only some losses take (`beta`, `label_smoothing`, `simpo_gamma`), those that are not
            at their default.

    Raises:
        ValueError: the first thing wrong, and what to do about it.
    """
    if loss_weights is not None and len(loss_weights) != len(losses):
        raise ValueError(
            f"training.loss_weights has {len(loss_weights)} and training.loss_type {len(losses)} "
            f"({', '.join(losses)}): give each loss a weight, or leave loss_weights out for 1.0 each"
        )
    for name, value in given.items():
        takers = [loss for loss, settings in LOSS_SETTINGS.items() if name in settings]
        if not set(takers) & set(losses):
            raise ValueError(
                f"training.{name} is {value:g}, which does nothing with training.loss_type {', '.join(losses)}: "
                f"leave {name} out, or add a loss that takes it ({', '.join(takers)})"
            )
    if "exo_pair" in losses and "label_smoothing" not in given:
        raise ValueError(
            "training.loss_type has exo_pair, which is infinite without training.label_smoothing: set one above 0 "
            "(its paper has 0.001)"
        )
    if rpo_alpha is not None and "sft" in losses:
        raise ValueError(
            "training.rpo_alpha adds sft, and training.loss_type has it already: leave rpo_alpha out, and put the "
            "weight of sft in training.loss_weights"
        )
    if rpo_alpha is not None and "orpo" in losses:
        raise ValueError(
            "training.rpo_alpha adds sft, and orpo in training.loss_type has it within: leave rpo_alpha out"
        )


def _there_are() -> str:
    return f"there are {', '.join(LOSS_SETTINGS)}"
