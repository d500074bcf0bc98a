"""Ranks of the truth among S posterior samples, and what they say of calibration.

Everything is computed from each image's share of truths that have the ranks 0..S, as `vfmbench.metrics.ranks` counts them.

If the truth and the S samples are exchangeable given the measurement, the number of samples below the truth is uniform on
0..S, at every S: that is what "calibrated" means here. A flat histogram is necessary, not sufficient: opposite errors in
different pixels or images cancel (Hamill 2001, "Interpretation of rank histograms for verifying ensemble forecasts").

Images are the independent units. What is pooled within an image (pixels, projections) is dependent, so every test and
interval works on one row [S+1] for each image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SEED = 0
_NULL_DRAWS = 9999
_BATCH_VALUES = 2**21


def central_levels(count: int) -> Array:
    """Levels at which the interval between order statistics j and S+1-j is exact, (S+1-2j)/(S+1), ascending, float64 [S//2]."""
    return (count + 1 - 2 * np.arange(count // 2, 0, -1)) / (count + 1)


def central_coverage(shares: Array) -> Array:
    """Share of the truths inside the central interval of each of `central_levels(S)`, shares [...,S+1] -> [...,S//2]."""
    count = shares.shape[-1] - 1
    inside = [shares[..., j : count + 1 - j].sum(-1) for j in range(count // 2, 0, -1)]
    return np.stack(inside, axis=-1)


def calibration_error(shares: Array) -> Array:
    """Mean over the levels of |coverage - level|, shares [...,S+1] with S >= 2 -> [...]."""
    return np.abs(central_coverage(shares) - central_levels(shares.shape[-1] - 1)).mean(-1)


def largest_deviation(shares: Array) -> Array:
    """Kolmogorov-Smirnov distance of the ranks from the uniform law on 0..S, shares [...,S+1] -> [...]."""
    return np.abs(expected_coverage(shares) - rank_levels(shares.shape[-1] - 1)).max(-1)


def expected_coverage(shares: Array) -> Array:
    """Share of the truths whose rank is below k = 1..S, shares [...,S+1] -> [...,S]."""
    return shares.cumsum(-1)[..., :-1]


def rank_levels(count: int) -> Array:
    """Probability k/(S+1) of a rank below k = 1..S under calibration, float64 [S]."""
    return np.arange(1, count + 1) / (count + 1)


def uniformity_p_value(shares: Array) -> float | None:
    """p-value of "the ranks have the mean and the spread of uniform ones", shares [n,S+1] with S >= 2; None for n < 3 images.

    Bias and spread are the linear and the quadratic part of a rank histogram (Jolliffe and Primo 2008, "Evaluating rank
    histograms using decompositions of the chi-square test statistic"). Their covariance is estimated over images (Hotelling's
    T^2), so that an image's dependent pixels do not count as many. The law is that of normal means: at a nominal 5 % it rejects
    a calibrated sampler in 8 % of cases for 30 images, 6 % for 60, 5 % from about 130 on.
    """
    n, ranks = shares.shape
    if n < 3:
        return None
    powers = np.vander(np.linspace(-1, 1, ranks), 3, increasing=True)
    scores = shares @ np.linalg.qr(powers)[0][:, 1:]
    if np.abs(scores).max() < 1e-12:
        return 1.0
    # T^2 / (n - 1 + T^2) is how much of a constant the scores explain; this form also holds for a singular covariance.
    solution, _, rank, _ = np.linalg.lstsq(scores, np.ones(n), rcond=1e-10)
    explained = min(1.0, float((scores @ solution).mean()))
    # scipy.stats would take three times as long to import.
    from scipy.special import betaincc

    return float(betaincc(rank / 2, (n - rank) / 2, explained))


def kolmogorov_test(shares: Array) -> tuple[float, float]:
    """Kolmogorov-Smirnov test of n independent ranks, shares [n,S+1], against the uniform law on 0..S.

    The law of the distance for discrete ranks is simulated (9999 seeded draws), because the continuous one is conservative at
    small S.

    Returns:
        p-value (1e-4 at least), and the mean distance of n calibrated ranks.
    """
    n, ranks = shares.shape
    observed = float(largest_deviation(shares.mean(0)))
    rng = np.random.default_rng(_SEED)
    size = max(1, _BATCH_VALUES // ranks)
    distances = [
        largest_deviation(rng.multinomial(n, np.full(ranks, 1 / ranks), size=batch) / n)
        for batch in (min(size, _NULL_DRAWS - done) for done in range(0, _NULL_DRAWS, size))
    ]
    null = np.concatenate(distances)
    # Equal distances must count as equal although they were rounded differently.
    extreme = int((null >= observed - 1e-9).sum())
    return (extreme + 1) / (_NULL_DRAWS + 1), float(null.mean())


def p_text(p_value: float) -> str:
    """`p = 0.032`, or a bound for what no test here tells from zero."""
    return "p ≤ 0.0001" if p_value <= 1e-4 else f"p = {p_value:.2g}"
