from dataclasses import replace

import pytest
import torch

from vfmbench.errors import MissingError, UserError
from vfmbench.metrics import evaluation as module


def test_unit_images_and_mean_are_exact(make_set):
    evaluation = make_set(3, 10, noise=0)
    assert torch.equal(evaluation.truth_unit * 255, evaluation.truth.double())
    assert torch.equal(evaluation.samples_unit, evaluation.truth_unit[:, None].expand(-1, 10, -1, -1, -1))
    assert torch.equal(evaluation.mean_unit, evaluation.truth_unit)


def test_blocks_cover_every_image_once(make_set, monkeypatch):
    evaluation = make_set(7, 2)
    monkeypatch.setattr(module, "_BLOCK_VALUES", 3 * evaluation.samples[0].numel())
    sizes = []
    asked = evaluation.per_image(lambda truth, samples: (sizes.append(len(samples)), truth.double().mean((1, 2, 3)))[1])
    assert sizes == []
    assert torch.equal(asked.result(), evaluation.truth.double().mean((1, 2, 3)))
    assert sizes == [3, 3, 1]


def test_features_are_computed_once_in_batches(make_set, pixel_space, monkeypatch):
    monkeypatch.setattr(module, "_FEATURE_BATCH", 5)
    space = pixel_space()
    evaluation = make_set(4, 3, feature_spaces={"pixels": space})
    truth, samples = evaluation.features("pixels")
    assert space.batches == [4, 5, 5, 2]
    assert torch.equal(samples[2, 1], space.features(evaluation.samples[2, 1][None])[0])
    space.batches.clear()
    unit_truth, unit_samples = evaluation.features("pixels", normalised=True)
    assert space.batches == []
    torch.testing.assert_close(unit_samples.norm(dim=-1), torch.ones(4, 3))
    torch.testing.assert_close(unit_truth * truth.norm(dim=1, keepdim=True), truth)


def test_missing_space_gives_its_reason(make_set):
    evaluation = make_set(feature_spaces={"inception": "the weights are not there"})
    with pytest.raises(MissingError, match="the weights are not there"):
        evaluation.features("inception")


def test_broken_features_name_the_image(make_set, pixel_space):
    space = pixel_space()
    space.features = lambda images: torch.zeros(len(images), 2).index_fill_(0, torch.tensor([3]), float("nan"))
    with pytest.raises(UserError, match="true image 3"):
        make_set(feature_spaces={"pixels": space}).features("pixels")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"truth": s.truth.float()}, "uint8"),
        (lambda s: {"truth": s.truth[0]}, r"\[N,C,H,W\]"),
        (lambda s: {"truth": s.truth[:0], "samples": s.samples[:0]}, "at least one"),
        (lambda s: {"samples": s.samples[:, :0]}, "at least one"),
        (lambda s: {"samples": s.samples[:5]}, "do not match"),
        (lambda s: {"samples": s.samples[..., :4]}, "do not match"),
        (lambda _: {"label": torch.zeros(3, dtype=torch.long)}, "labels"),
        (lambda _: {"residual": torch.zeros(3, 4)}, "residuals"),
        (lambda _: {"planned": 11}, "planned"),
    ],
)
def test_sets_that_do_not_fit_are_refused(make_set, change, message):
    evaluation = make_set()
    with pytest.raises(UserError, match=message):
        replace(evaluation, **change(evaluation))
