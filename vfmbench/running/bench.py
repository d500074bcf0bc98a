"""What a method costs on this machine: latency at batch 1, throughput at the best batch, memory, FLOPs, share of the peak.

Timing only: samples are drawn and thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vfmbench.interfaces import Sampler
from vfmbench.measurement import Evaluations
from vfmbench.models.compilation import DTYPES
from vfmbench.precision import Precision
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.running.cost import measure_cost
from vfmbench.running.memory import peak_tensor_memory
from vfmbench.running.plan import Plan
from vfmbench.running.sampling import out_of_memory

_GROWTH, _WORTHWHILE = 4, 1.05
_REPEATS, _ENOUGH_SECONDS = 3, 1.0


@dataclass(frozen=True)
class Cost:
    """Cost of one method.

    Attributes:
        latency: seconds for one sample of one image, the median of at most three calls after one that is not counted.
        seconds: seconds per sample at `batch`, the batch size (in samples) of the highest throughput that was tried.
        network_share: share of `seconds` inside networks and codec.
        evaluations: per sample.
        flops: of one sample, multiplications and additions counted apart; matrix products, convolutions, plain attention only.
        peak_share: flops / seconds over the device's own rate on a large matrix product in the same precision.
        memory: bytes of tensors at batch 1, weights not included; as without compilation.
        memory_per_sample: what each further sample adds; None if three do not fit.
        precision: of the products inside networks.
        random_weights: whether the networks were untrained.
    """

    latency: float
    seconds: float
    batch: int
    network_share: float
    evaluations: Evaluations
    flops: float
    peak_share: float
    memory: int
    memory_per_sample: float | None
    precision: Precision
    random_weights: bool


class FlopCounter(TorchDispatchMode):
    """Adds up torch's own FLOP formulas. Torch's counter also follows modules, which fails on gradients of a module's input."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def matrix_rate(device: torch.device, precision: Precision = "float32") -> float:
    """FLOP/s of a large matrix product under the process's settings, the best of five."""
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device).to(DTYPES[precision])
    return 2 * side**3 / min(_seconds(lambda: matrix @ matrix, device) for _ in range(5))


def bench(plan: Plan, rate: float, largest_batch: int, random_weights: bool = False) -> Cost:
    """Measures one plan.

    Batches grow fourfold from 1 to `largest_batch` as long as the time per sample falls by 5 % or more and memory suffices.

    Args:
        rate: from `matrix_rate` in the plan's precision, so that all methods are held against the same number.
        random_weights: whether the plan's suite has untrained networks; passed on to the result.
    """
    execution = plan.execution
    eager = plan.sampler(replace(execution, compile=False))
    sampler = plan.sampler() if execution.compile else eager

    def drawing(batch: int, sampler: Sampler = sampler) -> Callable[[], object]:
        """A call that draws one sample for each of `batch` images, beginning again at the first where the split is smaller."""
        positions = [row % len(plan.dataset) for row in range(batch)]
        _, measurement = plan.measure(positions)
        noise = PhiloxNoise(plan.identity.seed, "sampling", *sample_rows(measurement.index, range(1)))
        return lambda: sampler.sample(measurement, 1, noise)

    # Operations are counted one by one, and compiled code does not show its own. Which attention kernel runs, and how often its
    # gradient computes a product again, depends on processor, precision and torch's version: counted is the plain one.
    watched = drawing(1, eager)
    with sdpa_kernel(SDPBackend.MATH), FlopCounter() as counter:
        watched()
    memory = peak_tensor_memory(watched, plan.device)
    memory_per_sample = _memory_per_sample(drawing(3, eager), memory, plan.device)
    best = latency = typical_cost(drawing(1), sampler, 1, plan.device, execution.compile)
    evaluations = sampler.meter.per_sample(1)
    batch, best_batch = _GROWTH, 1
    while batch <= largest_batch:
        try:
            cost = typical_cost(drawing(batch), sampler, batch, plan.device, execution.compile)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            break
        gain = best["seconds"] / cost["seconds"]
        if gain > 1:
            best, best_batch = cost, batch
        if gain < _WORTHWHILE:
            break
        batch *= _GROWTH
    flops = float(counter.total)
    return Cost(
        latency=latency["seconds"],
        seconds=best["seconds"],
        batch=best_batch,
        network_share=best["network_seconds"] / best["seconds"],
        evaluations=evaluations,
        flops=flops,
        peak_share=flops / best["seconds"] / rate,
        memory=memory,
        memory_per_sample=memory_per_sample,
        precision=execution.precision,
        random_weights=random_weights,
    )


def _memory_per_sample(draw_three: Callable[[], object], single: int, device: torch.device) -> float | None:
    try:
        return (peak_tensor_memory(draw_three, device) - single) / 2
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None


def typical_cost(
    call: Callable[[], object], sampler: Sampler, batch: int, device: torch.device, compiles: bool
) -> dict[str, float]:
    """Cost per sample of the call with the median time of at most three, fewer where they are long.

    Args:
        compiles: whether the first call compiles.

    The first call is a warm-up and does not count, unless it is long and does not compile.
    """

    def once() -> dict[str, float]:
        with measure_cost(sampler.meter, batch, device) as cost:
            call()
        return cost

    if compiles:
        # Code for other batch sizes counts towards a limit, beyond which nothing is compiled.
        torch.compiler.reset()
    first = once()
    if not compiles and first["seconds"] * batch >= _ENOUGH_SECONDS:
        return first
    costs = [once()]
    while len(costs) < _REPEATS and sum(cost["seconds"] for cost in costs) * batch < _ENOUGH_SECONDS:
        costs.append(once())
    return sorted(costs, key=lambda cost: cost["seconds"])[len(costs) // 2]


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
