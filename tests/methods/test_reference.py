"""Every option of every objective against stored losses and gradients, in float64."""

import json
from pathlib import Path

import pytest
import torch

from vfmbench.training.batches import Batch

from .reference import CASES, ROWS, SEED, double_precision, stage_of, summary

STORED = json.loads(Path(__file__).with_name("reference.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_the_reference(tmp_path, case):
    with double_precision():
        stage, ema = stage_of(case, tmp_path)
        generator = torch.Generator().manual_seed(SEED)
        batch = Batch.draw(3, len(stage.suite.dataset("train")), ROWS, generator)
        found = summary(stage, *stage.loss(batch, ema))
    assert found["loss"] > 0.9
    assert {name: found[name] for name in STORED[case]} == pytest.approx(STORED[case], rel=1e-12, abs=0)
