"""Which way each metric is better: the one place that says so, for every table and test."""

from __future__ import annotations

from dataclasses import dataclass

from vfmbench.metrics.calibration import quoted_level


@dataclass(frozen=True)
class Direction:
    """More is better, less is better, or (with a target) nearer to the target is better."""

    higher: bool = False
    target: float | None = None

    def score(self, value: float) -> float:
        """What methods are ordered by: the value itself, or its distance from the target."""
        return value if self.target is None else abs(value - self.target)

    def is_better(self, difference: float) -> bool:
        """Whether a score that differs by `difference` from another's is the better one."""
        return difference > 0 if self.higher else difference < 0

    def __str__(self) -> str:
        if self.target is not None:
            return f"→ {self.target:.3g}"
        return "↑" if self.higher else "↓"


_HIGHER, _LOWER = Direction(higher=True), Direction()

# By a metric's name without its feature space, in the order of tables. None: no direction, as for what only describes.
_DIRECTIONS: dict[str, Direction | None] = {
    "psnr": _HIGHER,
    "psnr_mean": _HIGHER,
    "ssim": _HIGHER,
    "ssim_mean": _HIGHER,
    "lpips_alex": _LOWER,
    "lpips_alex_mean": _LOWER,
    "lpips_vgg": _LOWER,
    "lpips_vgg_mean": _LOWER,
    "feature_distance": _LOWER,
    "crps": _LOWER,
    "crps_fair": _LOWER,
    "nlpd": _LOWER,
    "mmd_posterior": _LOWER,
    "sliced_wasserstein": _LOWER,
    "mode_error": _LOWER,
    "mode_share_error": _LOWER,
    "sacc_posterior": _HIGHER,
    "mmd_prior": _LOWER,
    "sacc_prior": _HIGHER,
    "fid": _LOWER,
    "fid_infinity": _LOWER,
    "mmd": _LOWER,
    "mmd_paired": _LOWER,
    "kid": _LOWER,
    "kid_paired": _LOWER,
    "precision": _HIGHER,
    "recall": _HIGHER,
    "density": None,
    "coverage": _HIGHER,
    "classifier_agreement": _HIGHER,
    "residual": Direction(target=1.0),
    "diversity": None,
    "interval_coverage": None,
    "calibration_error": _LOWER,
    "spread_skill": Direction(target=1.0),
    "tarp": _LOWER,
    "nfe": None,
    "network_vjps": None,
    "adapter_forwards": None,
    "decoder_forwards": None,
    "decoder_vjps": None,
    "encoder_forwards": None,
    "encoder_vjps": None,
    "seconds_per_sample": None,
}


def base_name(name: str) -> str:
    """`crps@pixel` -> `crps`."""
    return name.partition("@")[0]


def direction(name: str, num_samples: int) -> Direction | None:
    """Direction of a metric of a run with `num_samples` samples of an image; None if it has none, or is not known."""
    base = base_name(name)
    if base == "interval_coverage" and num_samples >= 2:
        return Direction(target=quoted_level(num_samples))
    return _DIRECTIONS.get(base)


def position(name: str) -> int:
    """Where a metric stands in tables; unknown ones come last."""
    base = base_name(name)
    return list(_DIRECTIONS).index(base) if base in _DIRECTIONS else len(_DIRECTIONS)
