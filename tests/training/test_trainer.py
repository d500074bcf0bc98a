"""The trainer: an interrupted training equals an unbroken one, and bad state ends in a sentence."""

import io
import json

import pytest
import torch
from rich.console import Console

from vfmbench.interfaces import UserError
from vfmbench.registry import suites
from vfmbench.training.features import FeatureStage
from vfmbench.training.train import train
from vfmbench.training.trainer import Trainer

QUIET = Console(file=io.StringIO())
CPU = torch.device("cpu")
OPTIONS = {"steps": 12, "batch_size": 16, "learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 2, "checkpoint_every": 4}


def trainer(directory, **changes):
    torch.manual_seed(0)
    suite = suites.get("digits")({})
    return Trainer(FeatureStage(suite, FeatureStage.Options(**{**OPTIONS, **changes}), suite.weights, CPU), directory, QUIET)


def parameters(networks):
    return torch.cat([parameter.flatten() for network in networks.values() for parameter in network.parameters()])


def test_killed_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    unbroken = parameters(trainer(tmp_path / "unbroken").run())
    first = trainer(tmp_path / "killed")
    real_loss = first._stage.loss

    def dies_at_step_10(step, *arguments):
        if step == 10:
            raise RuntimeError("killed")
        return real_loss(step, *arguments)

    monkeypatch.setattr(first._stage, "loss", dies_at_step_10)
    with pytest.raises(RuntimeError):
        first.run()
    steps = []
    second = trainer(tmp_path / "killed")
    second_loss = second._stage.loss
    monkeypatch.setattr(second._stage, "loss", lambda step, *rest: (steps.append(step), second_loss(step, *rest))[1])
    assert torch.equal(parameters(second.run()), unbroken)
    assert steps == [8, 9, 10, 11]


def test_interrupt_saves_the_step_it_reached(tmp_path, monkeypatch):
    first = trainer(tmp_path)
    real_loss = first._stage.loss

    def interrupted_at_step_6(step, *arguments):
        if step == 6:
            raise KeyboardInterrupt
        return real_loss(step, *arguments)

    monkeypatch.setattr(first._stage, "loss", interrupted_at_step_6)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 6


def test_other_options_on_one_directory_are_refused(tmp_path):
    trainer(tmp_path).run()
    with pytest.raises(UserError, match="learning_rate"):
        trainer(tmp_path, learning_rate=2e-3).run()
    trainer(tmp_path, learning_rate=2e-3).run(fresh=True)


def test_infinite_loss_is_an_error(tmp_path, monkeypatch):
    instance = trainer(tmp_path)
    monkeypatch.setattr(instance._stage, "loss", lambda *_: (torch.tensor(float("nan"), requires_grad=True), {}))
    with pytest.raises(FloatingPointError, match="step 0"):
        instance.run()


def test_every_stage_of_digits_trains_and_its_weights_can_be_used(tmp_path):
    """A few steps of the whole pipeline from nothing, then a sample from the result."""
    from vfmbench import RunConfig, run

    suite = suites.get("digits")({})
    small = {"steps": 2, "batch_size": 16}
    train("all", suite, {stage: small for stage in suite.training}, tmp_path, CPU, False, QUIET)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert set(manifest) == {"features", "flow", "frozen_adapter", "vfm"}
    assert all(entry["test"] and entry["training"]["options"]["steps"] == 2 for entry in manifest.values())
    result = run(
        RunConfig(
            method="vfm",
            task="denoise",
            num_images=2,
            samples=2,
            out=tmp_path / "runs",
            options={"weights": {"path": str(tmp_path)}},
        )
    )
    assert result.metrics().set_index("name").loc["psnr", "n"] == 2


def test_stage_starts_from_the_suites_weights_and_copies_them(tmp_path):
    suite = suites.get("digits")({})
    train("frozen_adapter", suite, {"frozen_adapter": {"steps": 1, "batch_size": 4}}, tmp_path, CPU, False, QUIET)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["flow"]["sha256"] == suite.weights.sha256("flow")


def test_unknown_stage_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="frozen_adapter"):
        train("frozen_adaptor", suites.get("digits")({}), {}, tmp_path, CPU, False, QUIET)
