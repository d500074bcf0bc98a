"""Priors over points whose posteriors under linear observations are known in closed form.

A prior has `dimension`, `draw(noise)`, `log_density(points)` and `posterior(measurement)`, which gives a
`vfmbench.interfaces.ExactPosterior`; where the velocity of its flow is known as well, `velocity()` gives it as a network.
Points are [...,d,1,1]. All is computed in float64; what a caller draws is float32.
"""

from vfmbench.tasks.exact.checkerboard import CheckerboardPrior, in_support, mode_index
from vfmbench.tasks.exact.gaussian import GaussianPrior, random_gaussian
from vfmbench.tasks.exact.mixture import MixturePrior, grid_mixture

__all__ = [
    "CheckerboardPrior",
    "GaussianPrior",
    "MixturePrior",
    "grid_mixture",
    "in_support",
    "mode_index",
    "random_gaussian",
]
