"""How sure a number is: bootstrap intervals over images, and paired comparisons of two methods on the same images.

Images are the unit that is resampled, never pixels or samples. All draws are seeded, so that a table can be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfmbench.errors import UserError

Interval = tuple[float | None, float | None]
Values = NDArray[np.floating]

_SEED = 0
_MEAN_RESAMPLES = 2000
_SET_RESAMPLES = 200
_SIGN_FLIPS = 9999
# Below, a statistic of the whole set is not close enough to linear in its images for the law of its replicates to hold.
FEWEST_IMAGES = 20
_BATCH_VALUES = 2**21


def mean_interval(values: Values) -> Interval:
    """95 % interval of the mean of values [n], by the BCa bootstrap (Efron 1987, "Better bootstrap confidence intervals").

    Equal values give an interval of no width; a single value gives (None, None).
    """
    data = values.astype(np.float64)
    if len(data) < 2:
        return None, None
    # BCa divides by the spread of the data, and would return NaN where only rounding makes the values differ.
    if _constant(data):
        return float(data.mean()), float(data.mean())
    from scipy import stats  # takes a second, which a table does not need

    interval = stats.bootstrap(
        (data,),
        np.mean,
        n_resamples=_MEAN_RESAMPLES,
        vectorized=True,
        batch=max(1, _BATCH_VALUES // len(data)),
        method="BCa",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def share_interval(values: Values) -> Interval:
    """95 % interval of the mean of shares [n], each in [0, 1]: `mean_interval`, but Wilson's where all are 0 or all are 1.

    Equal values leave a bootstrap nothing to resample, and 360 of 360 does not make the share exactly 1.
    """
    total, n = float(values.sum(dtype=np.float64)), len(values)
    if n < 2 or 0 < total < n:
        return mean_interval(values)
    return wilson_interval(round(total), n)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a share of n trials (Wilson 1927, "Probable inference, the law of succession, ...")."""
    from scipy import stats

    interval = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def resampling_counts(n: int) -> NDArray[np.float64]:
    """How often each of n images occurs in each of 200 bootstrap resamples, float64 [200,n]; rows sum to n."""
    return np.random.default_rng(_SEED).multinomial(n, np.full(n, 1 / n), size=_SET_RESAMPLES).astype(np.float64)


def normal_interval(value: float, replicates: Values) -> tuple[float, float]:
    """95 % interval `value` +- 1.96 standard deviations of its bootstrap replicates [R].

    For statistics of a whole set, whose replicates are biased because a resample repeats images: only their spread is used.
    """
    margin = 1.96 * float(replicates[np.isfinite(replicates)].std(ddof=1))
    return value - margin, value + margin


@dataclass(frozen=True)
class PairedDifference:
    """Difference a - b over n images, its 95 % interval, and the two-sided p-value of "the difference is zero".

    The interval and p-value are None where there are too few images for them.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    n: int


def paired_difference(a: Values, b: Values) -> PairedDifference:
    """Compares two methods' per-image values, [n] each and in the same order of images.

    The interval is the BCa bootstrap of the per-image differences, which is the paired bootstrap of the mean difference. The
    p-value is a sign-flip permutation test (Fisher 1935; all 2**n flips if they are fewer than 10 000, else 9 999 random):
    it tests the mean, the number that tables show, where a Wilcoxon test speaks of the pseudo-median and may point the other
    way, and it needs no normality, only that a difference and its negative are equally likely when the methods are equal.
    Its smallest value is 1e-4.

    Raises:
        UserError: shapes differ, no images, or a value is not finite.
    """
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise UserError(f"a paired comparison needs values of the same images, not {list(a.shape)} and {list(b.shape)}")
    difference = a.astype(np.float64) - b.astype(np.float64)
    if not np.isfinite(difference).all():
        raise UserError(f"a paired comparison needs finite values; {int((~np.isfinite(difference)).sum())} images have others")
    low, high = mean_interval(difference)
    return PairedDifference(float(difference.mean()), low, high, paired_p_values([difference])[0], len(difference))


def paired_p_values(differences: Sequence[Values]) -> list[float | None]:
    """p-values of many paired comparisons, each given by its per-image differences [n]: the test of `paired_difference`.

    Comparisons over equally many images share their sign flips, and so cost little more than one. None for a single image.
    """
    p_values: list[float | None] = [None] * len(differences)
    for n in {len(difference) for difference in differences if len(difference) > 1}:
        positions = [position for position, difference in enumerate(differences) if len(difference) == n]
        columns = np.stack([differences[position].astype(np.float64) for position in positions], axis=1)
        for position, p_value in zip(positions, _sign_flip_p_values(columns).tolist(), strict=True):
            p_values[position] = p_value
    return p_values


def paired_set_difference(
    a: float, b: float, replicates_a: Values, replicates_b: Values, n: int, target: float | None = None
) -> PairedDifference:
    """Compares two methods by a statistic of the whole set, such as FID, from replicates [R] on the same resampled images.

    What both methods owe to the choice of images cancels in the replicates' differences, and so does most of the bias of a
    resample. Their deviation, times sqrt(n / (n - 1)) because a resample spreads about its own mean, is that of the difference
    on Student's scale with n - 1 degrees of freedom. Below 20 images there is no p-value.

    Args:
        target: compare the distances |a - target| and |b - target| instead. They are equal if a - b or a + b - 2 target is
            zero, and are called different only if both are not: the p-value is the larger of both (Berger 1982,
            "Multiparameter hypothesis testing and acceptance sampling").

    Raises:
        UserError: the numbers of replicates differ.
    """
    if replicates_a.shape != replicates_b.shape:
        raise UserError(f"a paired comparison needs equal resamples, not {len(replicates_a)} and {len(replicates_b)}")
    equal = a == b and np.array_equal(replicates_a, replicates_b)
    if target is not None:
        replicates_a, replicates_b = beyond(target, a, replicates_a), beyond(target, b, replicates_b)
        a, b = abs(a - target), abs(b - target)
    # The law that scipy.stats calls t, which takes three times as long to import.
    from scipy.special import stdtrit

    difference, deviation = a - b, _deviation(replicates_a - replicates_b, n)
    if equal:
        return PairedDifference(0.0, 0.0, 0.0, 1.0 if n >= FEWEST_IMAGES else None, n)
    if deviation == 0:
        return PairedDifference(difference, None, None, None, n)
    p_value = _student_p_value(difference, deviation, n)
    if target is not None:
        p_value = max(p_value, _student_p_value(a + b, _deviation(replicates_a + replicates_b, n), n))
    margin = float(stdtrit(n - 1, 0.975)) * deviation
    return PairedDifference(difference, difference - margin, difference + margin, p_value if n >= FEWEST_IMAGES else None, n)


def beyond(target: float, centre: float, values: Values) -> Values:
    """How far values [n] lie beyond the target, on the side of their centre: its distance there, and linear everywhere."""
    return values - target if centre >= target else target - values


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given (Holm 1979, "A simple sequentially rejective ... procedure").

    Calling those below 5 % significant makes any false call at all in at most 5 % of families, however the tests depend on
    each other.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, floor = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = floor
    return corrected


def _sign_flip_p_values(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values of the columns of differences [n,K] with n >= 2, all under the same sign flips."""
    n = len(differences)
    total = differences.sum(0)
    # Flipped sums that equal the observed one up to rounding count as equal.
    bound = np.abs(total) - 1e-12 * np.abs(differences).sum(0)

    def extreme(flips: NDArray[np.integer]) -> NDArray[np.integer]:
        return (np.abs(total - 2 * (flips.astype(np.float64) @ differences)) >= bound).sum(0)

    if 2**n <= _SIGN_FLIPS:
        return np.asarray(extreme(np.arange(2**n)[:, None] >> np.arange(n) & 1) / 2**n)
    rng = np.random.default_rng(_SEED)
    size = max(1, _BATCH_VALUES // n)
    batches = [min(size, _SIGN_FLIPS - done) for done in range(0, _SIGN_FLIPS, size)]
    # The observed signs are one of the possible flips, so that a p-value is never zero.
    count = np.ones(differences.shape[1])
    for batch in batches:
        count += extreme(rng.integers(2, size=(batch, n), dtype=np.int8))
    return count / (_SIGN_FLIPS + 1)


def _deviation(replicates: Values, n: int) -> float:
    """Standard deviation of a statistic of n images, from its replicates [R]; 0 where they do not show any."""
    finite = replicates[np.isfinite(replicates)]
    return float(finite.std(ddof=1)) * (n / (n - 1)) ** 0.5 if len(finite) > 1 and n > 1 else 0.0


def _student_p_value(value: float, deviation: float, n: int) -> float:
    """Two-sided; 0 for a value without deviation."""
    from scipy.special import stdtr

    return float(2 * stdtr(n - 1, -abs(value) / deviation)) if deviation > 0 else 0.0


def _constant(data: NDArray[np.float64]) -> bool:
    return bool(np.ptp(data) <= 1e-12 * np.abs(data).max())
