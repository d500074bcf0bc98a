"""The backbone's stage: how far apart its two times may lie, and what scaling does to the loss."""

import pytest
import torch

from vfmbench.training import flow

from .tiny import batch_of, stage_of


def gaps_at(stage, step, monkeypatch):
    """t - r of the mean-flow samples of a step, and which of them are at t = 1."""
    seen = []
    real = flow.mean_flow_loss

    def spy(network, x, z, t, r, *rest):
        seen.append((t - r, t == 1))
        return real(network, x, z, t, r, *rest)

    monkeypatch.setattr(flow, "mean_flow_loss", spy)
    stage.loss(batch_of(stage, step), {})
    monkeypatch.setattr(flow, "mean_flow_loss", real)
    return seen[0]


@pytest.mark.parametrize(("step", "largest"), [(0, 0.1), (5, 0.55), (10, 1.0), (29, 1.0)])
def test_the_largest_gap_grows_linearly_and_then_stays(tmp_path, monkeypatch, step, largest):
    options = {"steps": 30, "batch_size": 256, "one_step_share": 0.25, "first_gap": 0.1, "gap_growth": 1 / 3}
    gaps, whole = gaps_at(stage_of("flow", tmp_path, **options), step, monkeypatch)
    assert gaps.max().item() == pytest.approx(largest, abs=1e-6)
    assert whole.float().mean().item() == pytest.approx(0.25, abs=0.1)
    # Short gaps are not lengthened.
    assert gaps.min().item() < 0.1
    free = gaps_at(stage_of("flow", tmp_path, **{**options, "gap_growth": 0.0}), step, monkeypatch)[0]
    torch.testing.assert_close(gaps, free.clamp(max=largest), atol=1e-6, rtol=0)


def test_without_adaptive_scaling_the_loss_is_the_mean_of_the_squared_errors(tmp_path):
    unscaled = stage_of("flow", tmp_path, adaptive_power=0.0, flow_matching_share=1.0)
    loss, terms = unscaled.loss(batch_of(unscaled), {})
    assert loss.item() == pytest.approx(terms["flow_matching"].item(), rel=1e-6)
    stage = stage_of("flow", tmp_path, flow_matching_share=1.0)
    scaled = stage.loss(batch_of(stage), {})[0]
    assert scaled.item() == pytest.approx(1, abs=0.02)
