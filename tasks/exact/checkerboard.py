"""The checkerboard on [-2, 2]^2 and its posterior under an observed first coordinate (VFM paper, section 4.1 and B.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vfmbench.errors import UserError
from vfmbench.measurement import Measurement, NoiseSource
from vfmbench.tasks.exact.linear import LinearMeasurement, flat_points
from vfmbench.tasks.exact.sampling import categorical, fine_uniform, log_interval_probability, truncated_normal_quantile

_SIDE = 4
_MODES = 8

# Draws of the posterior's sampler; the first two take two each.
_WHICH, _FIRST, _SECOND = 0, 2, 4


def mode_index(points: Tensor) -> Tensor:
    """Filled cell that a point lies in, [...,2,1,1] -> int64 [...]; -1 outside the support.

    Cell (i, j) is [i-2, i-1) x [j-2, j-1), i and j from 0 to 3, filled where i + j is even. Modes count column by column (i),
    upwards in j: (0,0), (0,2), (1,1), (1,3), (2,0), (2,2), (3,1), (3,3).
    """
    column, row = (flat_points(points, 2).floor() + _SIDE // 2).unbind(-1)
    filled = (column >= 0) & (column < _SIDE) & (row >= 0) & (row < _SIDE) & ((column + row) % 2 == 0)
    return torch.where(filled, 2 * column + (row / 2).floor(), -1).long()


def in_support(points: Tensor) -> Tensor:
    """Whether a point lies in a filled cell, [...,2,1,1] -> bool [...]."""
    return mode_index(points) >= 0


class CheckerboardPrior:
    """Uniform on the 8 filled cells; see `mode_index`. Its velocity has no closed form."""

    dimension = 2

    def draw(self, noise: NoiseSource) -> Tensor:
        """Independent draws, one for each of the noise's rows: float32 [rows,2,1,1]."""
        uniform = noise.uniform((3,), 0).double()
        corner = _corner((_MODES * uniform[:, 0]).long())
        return _within_cell(corner + uniform[:, 1:], corner)

    def log_density(self, points: Tensor) -> Tensor:
        """log p(x) in nats, [...,2,1,1] -> float64 [...]; -inf outside the support."""
        inside = in_support(points)
        return torch.full(inside.shape, -math.log(_MODES), dtype=torch.float64, device=points.device).where(inside, -math.inf)

    def posterior(self, measurement: Measurement) -> CheckerboardPosterior:
        """The posteriors of a measurement's rows. Raises UserError for another observation than the first coordinate."""
        return CheckerboardPosterior(measurement)


class CheckerboardPosterior:
    """p(x|y) for y = x_1 + noise_std n; implements `vfmbench.interfaces.ExactPosterior`.

    Every column holds two filled cells, so the prior of x_1 is uniform on [-2, 2], and its posterior is a Gaussian about y
    restricted to there. Given its column, x_2 is uniform on that column's two cells.
    """

    def __init__(self, measurement: Measurement):
        observed = LinearMeasurement.of(measurement, CheckerboardPrior.dimension)
        if observed.matrix.tolist() != [[1.0, 0.0]]:
            raise UserError(
                "The checkerboard's posterior is known for an observed first coordinate only; use the task first_coordinate."
            )
        self._y, self._noise_std = observed.y, observed.noise_std
        left = torch.arange(_SIDE, dtype=torch.float64, device=self._y.device) - _SIDE / 2
        log_columns = log_interval_probability(*self._standardised(left))
        self._log_inside = log_columns.logsumexp(1)
        # Two cells a column.
        self._mode_weights = log_columns.softmax(1).repeat_interleave(2, 1) / 2

    def __len__(self) -> int:
        return len(self._y)

    def sample(self, count: int, noise: NoiseSource) -> Tensor:
        """Independent draws, float32 [B,count,2,1,1]; `noise` has B * count rows, those of one measurement adjacent."""
        which, first = (fine_uniform(noise, (), draw).reshape(-1, count) for draw in (_WHICH, _FIRST))
        second = noise.uniform((), _SECOND).double().reshape(-1, count)
        corner = _corner(categorical(self._mode_weights, which))
        standardised = truncated_normal_quantile(*self._standardised(corner[..., 0]), first)
        point = torch.stack([self._y + self._noise_std * standardised, corner[..., 1] + second], -1)
        return _within_cell(point, corner)

    def log_density(self, points: Tensor) -> Tensor:
        """log p(x|y) in nats, [B,S,2,1,1] -> float64 [B,S]; -inf outside the support."""
        squared = ((flat_points(points, 2)[..., 0] - self._y) / self._noise_std).square()
        log_gaussian = -0.5 * squared - self._noise_std.log() - 0.5 * math.log(2 * math.pi)
        # The density of x_2 is 1/2: two cells of unit height.
        return (log_gaussian - self._log_inside[:, None] - math.log(2)).where(in_support(points), -math.inf)

    def mode_weights(self) -> Tensor:
        """Probability of each cell under the posterior, float64 [B,8]."""
        return self._mode_weights

    def mode_shares(self, points: Tensor) -> Tensor:
        """1 at the cell that a point lies in, [B,S,2,1,1] -> float64 [B,S,8]; zeros outside the support."""
        modes = torch.arange(_MODES, device=points.device)
        return (mode_index(points)[..., None] == modes).double()

    def _standardised(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of columns that begin at x_1 = left, in standard deviations from y."""
        return (left - self._y) / self._noise_std, (left + 1 - self._y) / self._noise_std


def _corner(mode: Tensor) -> Tensor:
    """Lower left corner of a mode's cell, int64 [...] -> float64 [...,2]."""
    column = mode // 2
    row = 2 * (mode % 2) + column % 2
    return torch.stack([column, row], -1).double() - _SIDE / 2


def _within_cell(point: Tensor, corner: Tensor) -> Tensor:
    """Float64 points [...,2] of the cells at `corner` as float32 [...,2,1,1], none of them rounded into another cell."""
    # The largest offset that float32 holds exactly in every cell.
    return torch.minimum(torch.maximum(point, corner), corner + (1 - 2.0**-23)).float()[..., None, None]
