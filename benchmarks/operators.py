"""Times the operators against deepinv's counterparts and against Python loops over images, in one run on one machine.

    python benchmarks/operators.py [--size 256] [--batch 16] [--repeats 5] [--device cpu] [--threads 1]

A row shows the best time of either side, their ratio (above 1: ours is faster) and the largest difference of the results, so
that no ratio compares two different operators. deepinv convolves where we correlate, so it is given kernels turned by 180
degrees. Needs deepinv (the `dev` extra).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator

import deepinv
import torch
import torch.nn.functional as F
from torch import Tensor

from vfmbench.randomness import PhiloxNoise
from vfmbench.tasks.kernels import gaussian_kernel
from vfmbench.tasks.motion_kernels import traced_kernels
from vfmbench.tasks.operators import GaussianBlur, Identity, Mask, MotionBlur, SuperResolution

Map = Callable[[Tensor], Tensor]
CHANNELS = 3


def vjp(forward: Map, like: Tensor) -> Map:
    """The adjoint of a linear map by automatic differentiation, as solvers without an own adjoint compute it."""

    def adjoint(y: Tensor) -> Tensor:
        x = torch.zeros_like(like).requires_grad_()
        return torch.autograd.grad(forward(x), x, y)[0]

    return adjoint


def pairs(x: Tensor) -> Iterator[tuple[str, str, Map, Map, Map, Map]]:
    """Operator, counterpart, our forward and adjoint, their forward and adjoint."""
    batch, _, size, _ = x.shape
    shape = (CHANNELS, size, size)
    rows = torch.arange(batch, device=x.device)
    kernel_size = max(3, 2 * (61 * size // 512) + 1)

    identity, denoising = Identity(batch, shape), deepinv.physics.Denoising(device=x.device)
    yield "denoise", "deepinv Denoising", identity.forward, identity.adjoint, denoising.A, denoising.A_adjoint

    mask = Mask(torch.rand(batch, 1, size, size, device=x.device) < 0.5, shape)
    inpainting = deepinv.physics.Inpainting(shape, mask=mask.observed.float().expand_as(x).contiguous(), device=x.device)
    yield "inpaint", "deepinv Inpainting", mask.forward, mask.adjoint, inpainting.A, inpainting.A_adjoint

    reduction, imresize = SuperResolution(batch, shape, 4), deepinv.physics.DownsamplingMatlab(factor=4, device=x.device)
    yield "super_resolution", "deepinv Matlab", reduction.forward, reduction.adjoint, imresize.A, imresize.A_adjoint

    std = 3 * size / 256
    line = torch.from_numpy(gaussian_kernel(kernel_size, std)).to(x)
    ours = GaussianBlur(batch, shape, kernel_size, std)
    for name, use_fft in (("direct", False), ("FFT", True)):
        theirs = deepinv.physics.Blur(line.outer(line)[None, None], padding="reflect", use_fft=use_fft, device=x.device)
        yield "gaussian_deblur", f"deepinv Blur, {name}", ours.forward, ours.adjoint, theirs.A, theirs.A_adjoint

    kernel = traced_kernels(PhiloxNoise(0, "benchmark", rows), 0, kernel_size, 0.5).to(x)
    blur = MotionBlur(kernel, shape)
    for name, use_fft in (("direct", False), ("FFT", True)):
        theirs = deepinv.physics.Blur(kernel.flip(-1, -2)[:, None], padding="reflect", use_fft=use_fft, device=x.device)
        yield "motion_deblur", f"deepinv Blur, {name}", blur.forward, blur.adjoint, theirs.A, theirs.A_adjoint

    def loop(z: Tensor) -> Tensor:
        padded = F.pad(z, (kernel_size // 2,) * 4, mode="reflect")
        weights = [k.expand(CHANNELS, 1, -1, -1) for k in kernel]
        return torch.cat([F.conv2d(padded[b : b + 1], weights[b], groups=CHANNELS) for b in range(batch)])

    yield "motion_deblur", "loop, conv2d", blur.forward, blur.adjoint, loop, vjp(loop, x)

    single = [MotionBlur(kernel[b : b + 1], shape) for b in range(batch)]
    yield (
        "motion_deblur",
        "loop, our FFT",
        blur.forward,
        blur.adjoint,
        lambda z: torch.cat([operator.forward(z[b : b + 1]) for b, operator in enumerate(single)]),
        lambda z: torch.cat([operator.adjoint(z[b : b + 1]) for b, operator in enumerate(single)]),
    )


def seconds(function: Map, argument: Tensor) -> tuple[float, Tensor]:
    """Wall time of one call, and its result."""
    start = time.perf_counter()
    result = function(argument)
    if result.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def compare(ours: Map, theirs: Map, argument: Tensor, repeats: int) -> tuple[float, float, float]:
    """Best seconds of either side, taken in turns after a warm-up, and the largest difference."""
    difference = float((seconds(ours, argument)[1] - seconds(theirs, argument)[1]).detach().abs().max())
    times = [(seconds(ours, argument)[0], seconds(theirs, argument)[0]) for _ in range(repeats)]
    return min(first for first, _ in times), min(second for _, second in times), difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    x = torch.randn(arguments.batch, CHANNELS, arguments.size, arguments.size, device=arguments.device)
    where = torch.cuda.get_device_name(x.device) if x.is_cuda else f"CPU, {arguments.threads} thread(s)"
    print(
        f"{arguments.batch} x {CHANNELS} x {arguments.size} x {arguments.size}, float32, {where}, deepinv {deepinv.__version__}"
    )
    print(f"{'operator':17} {'map':8} {'counterpart':20} {'ours ms':>9} {'theirs ms':>10} {'ratio':>7} {'max diff':>9}")
    for name, counterpart, forward, adjoint, their_forward, their_adjoint in pairs(x):
        y = torch.randn_like(forward(x))
        for what, ours, theirs, argument in (("forward", forward, their_forward, x), ("adjoint", adjoint, their_adjoint, y)):
            mine, other, difference = compare(ours, theirs, argument, arguments.repeats)
            times = f"{1e3 * mine:9.2f} {1e3 * other:10.2f} {other / mine:7.1f}"
            print(f"{name:17} {what:8} {counterpart:20} {times} {difference:9.1e}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="deepinv")
    main()
