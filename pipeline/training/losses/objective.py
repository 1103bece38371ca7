"""Adds up the losses that the settings name, and applies the settings that act on all of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.training.losses.formulas import ARGUMENTS, LOSSES

_MAX_EXPONENT = 80.0  # as in TRL: exp(80) is finite in float32


@dataclass(frozen=True)
class Objective:
    """The weighted sum of losses that a run minimises.

    Args:
        settings: settings of training. `loss_type` has one name or several. beta, label_smoothing, simpo_gamma and
            discopop_tau are needed if one of the losses takes them. The others may be missing, and then have their
            default: `loss_weights` has one weight per loss (None: 1.0 each), `rpo_alpha` adds sft with this weight
            (None: no sft), `f_divergence_type` and `f_alpha_divergence_coef` choose the scores (see
            `divergence_scores`), and with `use_weighting` a pair's losses are multiplied by its WPO weight.
    """

    settings: Mapping[str, Any]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each loss, by name."""
        names = self.settings["loss_type"]
        names = [names] if isinstance(names, str) else names
        weights = dict(zip(names, self.settings.get("loss_weights") or [1.0] * len(names), strict=True))
        alpha = self.settings.get("rpo_alpha")
        return weights if alpha is None else weights | {"sft": alpha}

    @property
    def needs_reference(self) -> bool:
        """Whether any of the losses takes reference log-probabilities, or scores, which are made of them."""
        return any(argument.startswith("ref_") or argument.endswith("_scores") for argument in self._arguments)

    @property
    def compares_pairs(self) -> bool:
        """Whether any of the losses compares pairs with each other, and so needs all pairs of a step at once."""
        return "pair_weights" in self._arguments

    @property
    def use_weighting(self) -> bool:
        """Whether each pair's losses are multiplied by its WPO weight."""
        return bool(self.settings.get("use_weighting"))

    @property
    def _arguments(self) -> set[str]:
        return {argument for name in self.weights for argument in ARGUMENTS[name]}

    def __call__(self, **values: Tensor | float) -> Tensor:
        """Compute the weighted sum of the losses of P pairs.

        Args:
            values: the arguments of the losses, except the settings and the scores. Those that no loss takes may be
                left out. With `use_weighting` also `wpo_weights`, (P,).

        Returns:
            (P,)
        """
        available: dict[str, Any] = {**self.settings, **values}
        for side in ("chosen", "rejected"):
            if f"{side}_scores" in self._arguments:
                ratios = available[f"{side}_logps"] - available[f"ref_{side}_logps"]
                available[f"{side}_scores"] = divergence_scores(ratios, self.settings)
        terms = [
            weight * LOSSES[name](**{argument: available[argument] for argument in ARGUMENTS[name]})
            for name, weight in self.weights.items()
        ]
        losses = torch.stack(terms).sum(0)
        return losses * available["wpo_weights"] if self.use_weighting else losses


def divergence_scores(ratios: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """f'(u) of an f-divergence, without its constant, where u = pi / ref; for reverse_kl this is log u, as in DPO.

    Wang et al. (2023), f-DPO, arXiv 2309.16240, table 1. a is f_alpha_divergence_coef:

    - forward_kl: `1 - 1 / u`, which is alpha_divergence with a = 0.
    - js_divergence: `log(2 u / (u + 1))`.
    - alpha_divergence: `(u^(a - 1) - 1) / (a - 1)`, which becomes log u at a = 1.

    A power of u is at most exp(80), and constant beyond. TRL limits alpha_divergence only, and its forward_kl overflows
    once a completion is 88 nats less likely than under the reference.

    Args:
        ratios: (P,), log u.
        settings: settings of training.

    Returns:
        (P,)
    """
    kind = settings.get("f_divergence_type", "reverse_kl")
    if kind == "js_divergence":
        return math.log(2) + F.logsigmoid(ratios)
    power = {"reverse_kl": 0.0, "forward_kl": -1.0}.get(kind)
    if power is None:
        power = settings["f_alpha_divergence_coef"] - 1
    if abs(power) < 1e-6:
        return ratios
    return ((power * ratios).clamp(max=_MAX_EXPONENT).exp() - 1) / power
