"""From stored shards to evaluation sets, and what records say about cost."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from vfmbench.domains import IMAGES
from vfmbench.results.paths import RunPaths
from vfmbench.results.shards import Shard, Shards
from vfmbench.running.cost import cost_metrics
from vfmbench.running.evaluating import stored_evaluation

SUITE = SimpleNamespace(num_classes=10, feature_space_names=(), perceptual_names=(), prior=None, domain=IMAGES)

COST = {
    **{f"{network}_{kind}": 0 for network in ("network", "decoder", "encoder") for kind in ("forwards", "vjps")},
    **{"adapter_forwards": 0, "seconds": 1.0, "network_seconds": 0.5, "first_batch": 0.0},
}


class Dataset:
    """Images whose pixels, and labels, are their positions."""

    def load(self, positions):
        index = torch.tensor(positions)
        return index.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), index


def shard(*index):
    """Two samples of each image: their pixels are 10 times its position plus their own number."""
    positions, numbers = np.array(index), np.arange(2)
    values = 10 * positions[:, None] + numbers
    images = np.broadcast_to(values[..., None, None, None], (*values.shape, 1, 2, 2)).astype(np.uint8)
    residual = (values / 100).astype(np.float32)
    return Shard(images, positions, positions, residual, -residual, [""] * len(index), COST)


def evaluated(directory, shards, broken=()):
    RunPaths(directory).samples.mkdir()
    for part in shards:
        part.residual[np.isin(part.index, broken), 1] = np.nan
        Shards(directory).write(part)
    return stored_evaluation(Shards(directory), SUITE, None, Dataset(), SimpleNamespace(num_images=9), {})


def test_shards_come_in_any_order_and_diverged_images_are_left_out(tmp_path):
    evaluation, kept = evaluated(tmp_path, [shard(6, 7), shard(0, 1, 2), shard(3)], broken=(1, 3))
    assert kept == [0, 2, 6, 7]
    assert evaluation.samples[:][:, :, 0, 0, 0].tolist() == [[0, 1], [20, 21], [60, 61], [70, 71]]
    assert evaluation.samples.dtype == torch.uint8
    assert evaluation.truth[torch.arange(4)][:, 0, 0, 0].tolist() == evaluation.label.tolist() == kept
    torch.testing.assert_close(evaluation.residual[2], torch.tensor([0.6, 0.61]))
    torch.testing.assert_close(evaluation.log_likelihood, -evaluation.residual)
    assert evaluation.planned == 9


def test_without_a_whole_image_there_is_nothing_to_evaluate(tmp_path):
    with pytest.raises(RuntimeError, match="nothing to evaluate"):
        evaluated(tmp_path, [shard(0)], broken=(0,))


def test_cost_metrics_are_means_over_batches_of_every_kind_of_evaluation():
    kinds = ["adapter_forwards", "network_forwards", "network_vjps", "decoder_forwards", "decoder_vjps"]
    batches = [(0, 100, 90, 3, 0), (0, 100, 90, 3, 2)]
    rows = [
        {**dict(zip(kinds, counts, strict=True)), "encoder_forwards": 0, "encoder_vjps": 0, "nfe": 100}
        | {"seconds": 1.0 + number, "network_seconds": 0.5, "first_batch": 0}
        | {"index": number, "sample": 0, "effective_samples": 1.0}
        for number, counts in enumerate(batches)
    ]
    values = {result.row.name: result.row for result in cost_metrics(pd.DataFrame(rows))}
    assert {name: value.value for name, value in values.items()} == {
        "nfe": 100,
        "adapter_forwards": 0,
        "network_vjps": 90,
        "decoder_forwards": 3,
        "decoder_vjps": 1,
        "encoder_forwards": 0,
        "encoder_vjps": 0,
        "seconds_per_sample": 1.5,
    }
    assert values["decoder_vjps"].n == 2


def test_worth_of_samples_is_a_metric_where_a_method_estimates_it(tmp_path):
    RunPaths(tmp_path).samples.mkdir()
    for part in (shard(0, 1), replace(shard(2), effective_samples=np.array([0.5], np.float32))):
        Shards(tmp_path).write(part)
    records = Shards(tmp_path).records(seed=0)
    assert records["effective_samples"].tolist() == [2, 2, 2, 2, 0.5, 0.5]
    assert {result.row.name: result.row.value for result in cost_metrics(records)}["effective_samples"] == pytest.approx(1.5)
