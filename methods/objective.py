"""The adapter objective, of images and points alike: a weighted sum of terms with adaptive scaling.

Source: Variational Flow Maps (arXiv 2603.07276), eq. 10-19 and section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vfmbench.methods.terms import Coupling, Term
from vfmbench.options import Options
from vfmbench.training.mean_flow import adaptive_scale


class ScalingOptions(Options):
    """Adaptive scaling: a loss L counts as L / stopgrad(L + c)^p (section 3.4)."""

    adaptive_scope: Literal["row", "term", "batch"] = Field(
        "row",
        description="what L is: the total of each row, as in the paper and the authors' release for images; each flow term of "
        "each row by itself, the other terms left alone, because a mean-flow loss has rare large values, which a total hides; "
        "or the mean total of the batch, as in the authors' release for points",
    )
    adaptive_power: float = Field(1.0, ge=0, description="p of the adaptive scaling; 0 turns it off")
    adaptive_constant: float = Field(0.01, gt=0, description="c of the adaptive scaling")


class Objective:
    """The terms' weighted sum, scaled.

    Example:
        objective = Objective([Observation(options), Divergence(options)], options)
        loss, logged = objective(coupling)
        loss.backward()
    """

    def __init__(self, terms: Sequence[Term], options: ScalingOptions):
        self._terms, self._options = terms, options

    def __call__(self, coupling: Coupling) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and the mean over rows of each term without weight and scaling, without gradient."""
        # Gradients that meet at z add up from the last call on: this is the order that the shipped weights were trained with.
        parts = {term.name: term(coupling) for term in reversed(self._terms)}
        logged = {term.name: _mean(parts[term.name]).detach().mean() for term in self._terms}
        return self._total(parts, coupling), logged

    def _total(self, parts: Mapping[str, tuple[Tensor, ...]], coupling: Coupling) -> Tensor:
        if self._options.adaptive_scope == "batch":
            means = [term.weight * _mean(parts[term.name]).mean() for term in self._terms]
            total = torch.stack(means).sum()
            return self._scaled(total, coupling.batch.mean(total))
        if self._options.adaptive_scope == "row":
            return self._scaled(self._sum(parts)).mean()
        single = {
            term.name: tuple(map(self._scaled, parts[term.name])) if term.adaptive else parts[term.name] for term in self._terms
        }
        return self._sum(single).mean()

    def _sum(self, parts: Mapping[str, tuple[Tensor, ...]]) -> Tensor:
        """Weighted over terms, [B]."""
        return torch.stack([term.weight * _mean(parts[term.name]) for term in self._terms]).sum(0)

    def _scaled(self, loss: Tensor, size: Tensor | None = None) -> Tensor:
        return adaptive_scale(loss, self._options.adaptive_power, self._options.adaptive_constant, size)


def _mean(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.stack(parts).mean(0)
