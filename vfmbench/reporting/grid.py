"""Pictures of stored samples and of tasks: rows of images side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vfmbench.domains import IMAGES
from vfmbench.reporting.drawing import panels
from vfmbench.results.shards import PICTURED, Shards, common_positions
from vfmbench.running.plan import Plan

MAX_SAMPLES = 5
_PADDING = 0.01


def posterior_grid(plan: Plan, shards: Shards) -> Path:
    """Writes `grid.png` into the run's directory: observation, samples, mean, standard deviation and truth of the first images.

    Runs no model, and reads no other samples.
    """
    positions = shards.positions[:PICTURED]
    samples = torch.from_numpy(shards.read("images", positions))
    truth, measurement = plan.measure(positions)
    shown = min(MAX_SAMPLES, samples.shape[1])
    columns = [("observation", IMAGES.store(measurement.operator.to_image(measurement.y)).cpu())]
    columns += [(f"sample {number + 1}", samples[:, number]) for number in range(shown)]
    if samples.shape[1] > 1:
        values = IMAGES.restore(samples)
        spread = values.std(dim=1)
        columns += [
            (f"mean of {samples.shape[1]}", IMAGES.store(values.mean(dim=1))),
            (f"std, white = {spread.max():.2f}", IMAGES.store(2 * spread / spread.max().clamp_min(1e-6) - 1)),
        ]
    columns.append(("truth", IMAGES.store(truth).cpu()))
    identity = plan.identity
    title = f"{identity.method} on {identity.task} ({identity.suite}, {identity.split}, seed {identity.seed})"
    return draw(columns, title, plan.store.paths.picture)


def comparison_grid(finished: Sequence[tuple[Plan, Shards]]) -> Path:
    """Writes `<out>/<suite>/compare-<task>.png`: observation, one sample of each method, and truth, for images that all have.

    Args:
        finished: runs of one task on the same images, and their samples.
    """
    first, _ = finished[0]
    common = common_positions([shards for _, shards in finished])[:PICTURED]
    truth, measurement = first.measure(common)
    columns = [("observation", IMAGES.store(measurement.operator.to_image(measurement.y)).cpu())]
    for plan, shards in finished:
        columns.append((plan.identity.method, torch.from_numpy(shards.read("images", common, samples=1)[:, 0])))
    columns.append(("truth", IMAGES.store(truth).cpu()))
    identity = first.identity
    title = f"{identity.task}, one sample of each method ({identity.suite}, {identity.split}, seed {identity.seed})"
    return draw(columns, title, first.store.paths.comparison_picture(identity.task))


def task_grid(plan: Plan, positions: Sequence[int], path: Path) -> Path:
    """Writes truth, observation, adjoint and pseudo-inverse of the images at the given positions."""
    truth, measurement = plan.measure(list(positions))
    operator = measurement.operator
    columns = [("truth", truth), ("observation", operator.to_image(measurement.y))]
    if operator.linear:
        columns += [("adjoint", operator.adjoint(measurement.y)), ("pseudo-inverse", operator.pinv(measurement.y))]
    title = f"{plan.task.name} ({plan.identity.suite}, seed {plan.identity.seed})"
    return draw([(name, IMAGES.store(images).cpu()) for name, images in columns], title, path)


def draw(columns: list[tuple[str, Tensor]], title: str, path: Path) -> Path:
    """A picture with one column per (caption, uint8 images [N,C,H,W])."""
    rows, size = len(columns[0][1]), (1.1 * len(columns), 1.1 * len(columns[0][1]) + 0.7)
    with panels(path, rows, len(columns), size, _PADDING) as (figure, axes):
        for number, (caption, images) in enumerate(columns):
            axes[0, number].set_title(caption, fontsize=7)
            for row in range(rows):
                axis = axes[row, number]
                pixels = np.moveaxis(images[row].numpy(), 0, -1)
                axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
                axis.set_axis_off()
        figure.suptitle(title, fontsize=9)
    return path
