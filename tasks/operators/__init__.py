"""Forward operators of inverse problems, batched with per-image parameters; see `vfmbench.interfaces.Operator`."""

from vfmbench.tasks.operators.base import BatchedOperator
from vfmbench.tasks.operators.masks import Identity, Mask
from vfmbench.tasks.operators.matrix import MatrixOperator
from vfmbench.tasks.operators.motion import MotionBlur
from vfmbench.tasks.operators.nonlinear import HDR, PhaseRetrieval
from vfmbench.tasks.operators.separable import GaussianBlur, SuperResolution

__all__ = [
    "HDR",
    "BatchedOperator",
    "GaussianBlur",
    "Identity",
    "Mask",
    "MatrixOperator",
    "MotionBlur",
    "PhaseRetrieval",
    "SuperResolution",
]
