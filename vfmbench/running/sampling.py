"""Draws and stores what is missing of a run, batch by batch: seeded noise, cost, memory that does not suffice, divergence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from vfmbench.interfaces import Sampler
from vfmbench.measurement import Measurement, Samples
from vfmbench.randomness import PhiloxNoise, sample_rows, split_seed
from vfmbench.results.shards import Shard, Shards
from vfmbench.running.cost import measure_cost
from vfmbench.running.plan import Plan
from vfmbench.running.shards import HostCopy, ShardWriter, measurement_hashes

Progress = Callable[[int, int], None]

LOG = logging.getLogger("vfmbench")

PRIOR_STREAM = "prior"
"""Noise stream of draws from a method's own prior; figures make the same noise again."""

DIVERGED_ABOVE = 100.0
"""A sample with a pixel (on the scale of [-1, 1]) or latent entry beyond this or not a number has status `diverged`."""


def sample_images(plan: Plan, sampler: Sampler, todo: list[int], session: int, progress: Progress) -> int:
    """Samples and stores the images at the given positions, batch by batch; returns the samples in a batch at the end.

    `progress` hears of a batch as soon as it is drawn; all are stored when this returns or is interrupted.
    """
    planned, samples = plan.identity.num_images, plan.identity.samples
    rows, warm, waiting = plan.batch_size, False, list(todo)
    compiled_sizes = set[int]() if plan.execution.compile else None
    progress(planned - len(waiting), planned)
    with ShardWriter(Shards(plan.store.directory)) as writer:
        while waiting:
            batch = waiting[: max(1, rows // samples)]
            positions = plan.dataset.readable(batch)
            if positions:
                facts = {"first_batch": float(not warm), "session": session}
                finish = None
                try:
                    if compiled_sizes is not None and len(positions) not in compiled_sizes:
                        # What compiles the networks for this size must not count as the time that a batch takes.
                        _draw(plan, sampler, positions, rows, facts)
                        compiled_sizes.add(len(positions))
                    finish = _draw(plan, sampler, positions, rows, facts)
                except RuntimeError as error:
                    tried = min(rows, len(positions) * samples)
                    if not out_of_memory(error) or tried == 1:
                        raise
                if finish is None:
                    # Results do not depend on the batch size, so the rest of the run takes a smaller one. The error, and with
                    # it the tensors of the batch that did not fit, is gone by now.
                    rows = tried // 2
                    LOG.warning("out of memory; going on with %d samples in a batch", rows)
                    torch.cuda.empty_cache()
                    continue
                # The first batch of a process also pays for allocations and lazy initialisation.
                warm = True
                writer.write(finish)
            del waiting[: len(batch)]
            progress(planned - len(waiting), planned)
    for position in sorted(plan.dataset.errors.keys() & todo):
        LOG.warning("image %d left out: %s", position, plan.dataset.errors[position])
    return rows


def _draw(plan: Plan, sampler: Sampler, positions: list[int], rows: int, facts: Mapping[str, float]) -> Callable[[], Shard]:
    """All samples of the images at the given positions, at most `rows` in a call of the sampler (for a single image).

    Args:
        facts: what the records say about the batch beside its cost.

    Returns a function that gives the finished shard, to be called in any thread.
    """
    samples = plan.identity.samples
    truth, measurement = plan.measure(positions)
    parts = []
    with measure_cost(sampler.meter, len(positions) * samples, plan.device) as cost:
        for start in range(0, samples, samples if len(positions) > 1 else rows):
            drawn = range(start, samples if len(positions) > 1 else min(samples, start + rows))
            noise = PhiloxNoise(plan.identity.seed, "sampling", *sample_rows(measurement.index, drawn))
            parts.append(sampler.sample(measurement, len(drawn), noise))
    return _shard(plan, sampler, parts, measurement, _fresh(plan, truth, measurement), {**cost, **facts})


def _within_bounds(samples: Samples) -> Tensor:
    """Whether each sample's image and latent are finite and not huge, bool [B,S]."""
    # A decoder can turn an exploding latent into an ordinary image. NaN fails the comparison too.
    tensors = [samples.images] if samples.latents is None else [samples.images, samples.latents]
    return torch.stack([(tensor.flatten(2).abs() <= DIVERGED_ABOVE).all(2) for tensor in tensors]).all(0)


def _fresh(plan: Plan, truth: Tensor, measurement: Measurement) -> Measurement:
    """A second observation of the true images by the same operators, with Gaussian noise of its own."""
    seed = split_seed(plan.identity.split, plan.identity.seed)
    noise = PhiloxNoise(seed, f"fresh observation/{plan.identity.problem}", measurement.index)
    normal = noise.normal(measurement.y.shape[1:], draw=0)
    return replace(measurement, y=measurement.operator.forward(truth) + measurement.noise_std * normal)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on any device."""
    # The allocator of a CPU has no exception type of its own.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _shard(
    plan: Plan, sampler: Sampler, parts: list[Samples], measurement: Measurement, fresh: Measurement, cost: dict[str, float]
) -> Callable[[], Shard]:
    """Starts the copies to the host of all that a shard holds; the function returned waits for them and gives the shard.

    Args:
        parts: the sampler's answers, one after the other along the samples.
    """
    finite = torch.cat([_within_bounds(part) for part in parts], 1)
    images = torch.cat([part.images for part in parts], 1)
    samples = images.shape[1]
    domain = plan.suite.domain
    stored = domain.store(torch.nan_to_num(images))
    # Residual and likelihood belong to the image that metrics see, after rounding.
    seen = domain.restore(stored).flatten(0, 1)
    residual = measurement.repeat(samples).normalised_residual(seen).unflatten(0, (-1, samples))
    likelihood = fresh.repeat(samples).log_likelihood(seen).unflatten(0, (-1, samples))
    tensors = {
        "images": stored,
        "index": measurement.index,
        "label": measurement.label,
        "residual": torch.where(finite, residual, torch.nan),
        "log_likelihood": torch.where(finite, likelihood, torch.nan),
    }
    sources = [part.source for part in parts if part.source is not None]
    optional = {
        "prior": _prior(plan, sampler, measurement, samples) if domain.keeps_sources else None,
        "source": torch.cat(sources, 1) if domain.keeps_sources and len(sources) == len(parts) else None,
        "effective_samples": _effective(parts, samples),
    }
    tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    copied, measured_values = HostCopy(tensors), HostCopy({"y": measurement.y})

    def finish() -> Shard:
        return Shard(**copied.wait(), measurement_hash=measurement_hashes(measured_values.wait()["y"]), cost=cost)

    return finish


def _effective(parts: list[Samples], samples: int) -> Tensor | None:
    """Effective number of all samples together, float32 [B], where the parts share what they were drawn from."""
    known = [(part.effective_samples, part.images.shape[1]) for part in parts if part.effective_samples is not None]
    if len(known) < len(parts):
        return None
    shared = torch.stack([1 / effective.double() - 1 / count for effective, count in known]).mean(0)
    return (1 / (1 / samples + shared)).float()


def _prior(plan: Plan, sampler: Sampler, measurement: Measurement, samples: int) -> Tensor | None:
    """One draw from the method's own prior beside each posterior sample, [B,S,C,H,W]; not part of the cost."""
    rows = sample_rows(measurement.index, range(samples))
    draws = sampler.sample_prior(PhiloxNoise(plan.identity.seed, PRIOR_STREAM, *rows))
    if draws is None:
        return None
    # Kept as they are: the metrics of a prior refuse draws that are not finite.
    return plan.suite.domain.store(draws).unflatten(0, (-1, samples))
