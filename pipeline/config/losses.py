"""Lists the losses that training can minimise, and checks which of them can be combined.

It has names only, so that it imports fast. The formulas are in `training/losses/formulas.py`, which needs torch; a test
compares the two lists. The range of each single setting is in `training.py`.
"""

from collections.abc import Mapping, Sequence

# Each loss by its name in TRL, and the settings that it uses.
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
    "discopop": ("beta", "discopop_tau"),
    "aot": ("beta", "label_smoothing"),
    "aot_unpaired": ("beta", "label_smoothing"),
    "sft": (),
    "simpo": ("beta", "label_smoothing", "simpo_gamma"),
    "orpo": ("beta",),
}
# Losses without a reference. TRL implements simpo and orpo in separate trainers.
REFERENCE_FREE = frozenset({"sft", "simpo", "orpo"})
# Losses that are built on a difference of scores. Only there an f-divergence other than reverse_kl makes sense, because
# only there the unknown normalization of the scores cancels.
F_DIVERGENCE_LOSSES = frozenset({"sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "exo_pair", "discopop"})
# Losses that sort the pairs of a step, so that a value belongs to no single pair.
SORTING_LOSSES = frozenset({"aot", "aot_unpaired"})


def parse_loss_type(value: object) -> str | tuple[str, ...]:
    """Check `training.loss_type`, and return it as one name, or as a tuple of two names or more.

    A list of one name becomes that name: both ways to write it are the same recipe.

    Raises:
        ValueError: the value is not a name or a list of names, or a name is unknown or repeated.
    """
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise ValueError(
            f"training.loss_type is {value!r:.80}: it should be a loss or a list of losses; {_known_losses()}"
        )
    for name in names:
        if not isinstance(name, str) or name not in LOSS_SETTINGS:
            raise ValueError(f"training.loss_type has an unknown loss {name!r:.80}; {_known_losses()}")
        if names.count(name) > 1:
            raise ValueError(f"training.loss_type has {name} twice: name it once, with its weight in loss_weights")
    return names[0] if len(names) == 1 else tuple(names)


def check_mixture(
    losses: Sequence[str],
    *,
    loss_weights: Sequence[float] | None,
    rpo_alpha: float | None,
    changed_settings: Mapping[str, float],
    f_divergence_type: str,
    ld_alpha: float | None,
    use_weighting: bool,
) -> None:
    """Refuse a mixture of losses in which a setting has no effect, has its effect twice, or makes no sense.

    Args:
        losses: names that `parse_loss_type` has accepted.
        loss_weights: one weight per loss, or None.
        rpo_alpha: weight of the additional sft loss, or None.
        changed_settings: those of `beta`, `label_smoothing`, `simpo_gamma` and `discopop_tau` (settings that only some
            losses use) that differ from their defaults.
        f_divergence_type, ld_alpha, use_weighting: the settings, which act on several losses.

    Raises:
        ValueError: the first problem, and what to do about it.
    """
    if loss_weights is not None and len(loss_weights) != len(losses):
        raise ValueError(
            f"training.loss_weights has {len(loss_weights)} weight{'s' * (len(loss_weights) != 1)} and "
            f"training.loss_type has {len(losses)} loss{'es' * (len(losses) != 1)} "
            f"({', '.join(losses)}): give each loss a weight, or leave loss_weights out for 1.0 each"
        )
    for name, value in changed_settings.items():
        losses_with_setting = [loss for loss, settings in LOSS_SETTINGS.items() if name in settings]
        if not set(losses_with_setting) & set(losses):
            raise ValueError(
                f"training.{name} is {value:g}, and it has no effect on training.loss_type {', '.join(losses)}: "
                f"leave {name} out, or add a loss that uses it ({', '.join(losses_with_setting)})"
            )
    if "exo_pair" in losses and "label_smoothing" not in changed_settings:
        raise ValueError(
            "training.loss_type has exo_pair, which is infinite if training.label_smoothing is 0: set it above 0 "
            "(its paper uses 0.001)"
        )
    if rpo_alpha is not None and "sft" in losses:
        raise ValueError(
            "training.rpo_alpha adds sft, and training.loss_type already has it: leave rpo_alpha out, and put the "
            "weight of sft in training.loss_weights"
        )
    if rpo_alpha is not None and "orpo" in losses:
        raise ValueError(
            "training.rpo_alpha adds sft, and training.loss_type has orpo, which already includes sft: leave rpo_alpha "
            "out"
        )
    _check_shared_settings(losses, rpo_alpha, f_divergence_type, ld_alpha, use_weighting)


def _check_shared_settings(
    losses: Sequence[str], rpo_alpha: float | None, f_divergence_type: str, ld_alpha: float | None, use_weighting: bool
) -> None:
    """Check the settings that act on several losses. Raises ValueError."""
    without_divergence = [loss for loss in losses if loss not in F_DIVERGENCE_LOSSES | {"sft"}]
    if f_divergence_type != "reverse_kl" and (without_divergence or list(losses) == ["sft"]):
        raise ValueError(
            f"training.f_divergence_type is {f_divergence_type}, and it has no meaning for "
            f"{', '.join(without_divergence or losses)}: use reverse_kl, or only losses that are built on a difference "
            f"of scores ({', '.join(loss for loss in LOSS_SETTINGS if loss in F_DIVERGENCE_LOSSES)}), and sft"
        )
    without_lengths = [loss for loss in losses if loss in REFERENCE_FREE - {"sft"}]
    if ld_alpha is not None and (without_lengths or list(losses) == ["sft"]):
        raise ValueError(
            f"training.ld_alpha is {ld_alpha:g}, and it has no meaning for {', '.join(without_lengths or losses)}: "
            "leave ld_alpha out, or use losses that compare with a reference"
        )
    unweighted = [loss for loss in losses if loss in SORTING_LOSSES | {"sft", "orpo"}]
    if use_weighting and (unweighted or rpo_alpha is not None):
        raise ValueError(
            "training.use_weighting weighs each pair's preference loss, and training has "
            f"{', '.join(unweighted) or 'rpo_alpha'}, which is not one for each pair: leave use_weighting out, or "
            "use other losses"
        )


def _known_losses() -> str:
    return f"known losses are {', '.join(LOSS_SETTINGS)}"
