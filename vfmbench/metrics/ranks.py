"""Ranks of the truth among S posterior samples, which `vfmbench.results.ranks` computes with."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_shares(truth: Tensor, samples: Tensor) -> Tensor:
    """How the truth's ranks are distributed over the P quantities of each image.

    A truth that equals T of the samples counts 1/(T+1) for each of the T+1 ranks it could have: the expectation of breaking
    ties at random, without the noise of doing so. 8-bit pixels tie often.

    Args:
        truth: [n,P], any type.
        samples: [n,S,P].

    Returns:
        Share of the P quantities that has each rank 0..S, float64 [n,S+1]; rows sum to 1.
    """
    count = samples.shape[1]
    below = (samples < truth[:, None]).sum(1)
    ties = (samples == truth[:, None]).sum(1)
    weight = 1 / (ties + 1).double()
    # Each quantity adds a constant to the ranks below..below+ties: steps up and down, summed along the ranks afterwards.
    steps = torch.zeros(len(truth), count + 2, dtype=torch.float64, device=truth.device)
    steps.scatter_add_(1, below, weight).scatter_add_(1, below + ties + 1, -weight)
    return steps.cumsum(1)[:, :-1].clamp_min(0) / truth.shape[1]
