"""The trainer: an interrupted training equals an unbroken one, and bad state ends in a sentence."""

import io
import json
import os
import signal

import pytest
import torch
from rich.console import Console

from vfmbench import RunConfig, run
from vfmbench.errors import MissingError, UserError
from vfmbench.registry import suites
from vfmbench.training.features import FeatureStage
from vfmbench.training.train import train
from vfmbench.training.trainer import Trainer

from .tiny import stage_of

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

    def dies_at_step_10(batch, ema):
        if batch.step == 10:
            raise RuntimeError("killed")
        return real_loss(batch, ema)

    monkeypatch.setattr(first._stage, "loss", dies_at_step_10)
    with pytest.raises(RuntimeError):
        first.run()
    steps = []
    second = trainer(tmp_path / "killed")
    second.resume()
    second_loss = second._stage.loss
    monkeypatch.setattr(second._stage, "loss", lambda batch, ema: (steps.append(batch.step), second_loss(batch, ema))[1])
    assert torch.equal(parameters(second.run()), unbroken)
    assert steps == [8, 9, 10, 11]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_finishes_the_step_and_resumes_to_the_same_weights(tmp_path, monkeypatch, number):
    unbroken = parameters(trainer(tmp_path / "unbroken").run())
    first = trainer(tmp_path / "stopped")
    real_loss = first._stage.loss

    def interrupted_in_step_6(batch, ema):
        if batch.step == 6:
            os.kill(os.getpid(), number)
        return real_loss(batch, ema)

    monkeypatch.setattr(first._stage, "loss", interrupted_in_step_6)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)["step"] == 7
    second = trainer(tmp_path / "stopped")
    second.resume()
    assert torch.equal(parameters(second.run()), unbroken)


def test_seeds_and_stages_have_their_own_batches(tmp_path, monkeypatch):
    drawn = []
    for seed in (0, 1):
        instance = trainer(tmp_path / str(seed), seed=seed, steps=2)
        real_loss = instance._stage.loss

        def recording(batch, ema, real_loss=real_loss):
            drawn.append(batch.generator.initial_seed())
            return real_loss(batch, ema)

        monkeypatch.setattr(instance._stage, "loss", recording)
        instance.run()
    assert len(set(drawn)) == 4
    assert all(0 <= seed < 2**32 for seed in drawn)


def test_other_options_on_one_directory_are_refused(tmp_path):
    trainer(tmp_path).run()
    with pytest.raises(UserError, match="learning_rate"):
        trainer(tmp_path, learning_rate=2e-3).resume()


def test_a_network_may_have_a_rate_of_its_own(tmp_path):
    """AdamW's first step is the rate itself wherever the gradient is not tiny."""
    stage = stage_of("vfm_float32", tmp_path, steps=1, learning_rate=1e-3, learning_rates={"adapter": 1e-2}, gradient_clip=None)
    last = {"adapter": stage.networks["adapter"].conv_out.weight, "flow": stage.networks["flow"].final_layer.linear.weight}
    before = {name: weight.detach().clone() for name, weight in last.items()}
    Trainer(stage, tmp_path / "run", QUIET).run()
    moved = {name: (weight - before[name]).abs().max().item() for name, weight in last.items()}
    assert moved == pytest.approx({"adapter": 1e-2, "flow": 1e-3}, rel=0.01)


def test_a_rate_of_no_network_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"learning_rates.*adaptor"):
        Trainer(stage_of("vfm_float32", tmp_path, learning_rates={"adaptor": 1e-2}), tmp_path / "run", QUIET)


def test_infinite_loss_is_an_error(tmp_path, monkeypatch):
    instance = trainer(tmp_path)
    monkeypatch.setattr(instance._stage, "loss", lambda *_: (torch.tensor(float("nan"), requires_grad=True), {}))
    with pytest.raises(FloatingPointError, match="step 0"):
        instance.run()


def test_every_stage_of_digits_trains_and_its_weights_can_be_used(tmp_path):
    """A few steps of the whole pipeline from nothing, then a sample from the result."""
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


def test_stage_is_not_resumed_on_other_weights_of_an_earlier_stage(tmp_path):
    suite = suites.get("digits")({})
    few = {"steps": 2, "batch_size": 4}
    train("frozen_adapter", suite, {"frozen_adapter": few}, tmp_path, CPU, False, QUIET)
    manifest = (tmp_path / "manifest.json").read_text()
    train("frozen_adapter", suite, {"frozen_adapter": few}, tmp_path, CPU, False, QUIET)
    assert (tmp_path / "manifest.json").read_text() == manifest
    train("flow", suite, {"flow": few}, tmp_path, CPU, False, QUIET)
    with pytest.raises(UserError, match="another flow weights"):
        train("frozen_adapter", suite, {"frozen_adapter": few}, tmp_path, CPU, False, QUIET)
    arguments = {"task": "denoise", "num_images": 2, "samples": 2, "options": {"weights": {"path": str(tmp_path)}}}
    with pytest.raises(MissingError, match="another flow map"):
        run(RunConfig(method="frozen_adapter", out=tmp_path / "runs", **arguments))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"vfm": {"problems": ["foo"]}}, "foo"),
        ({"vfm": {"architecture": {"adapter": {"chanels": 8}}}}, "vfm.architecture: .*chanels"),
        ({"flow": {"architecture": {"patch_size": 3}}}, "flow.architecture: .*patch_size"),
    ],
)
def test_a_late_stages_mistake_is_found_before_the_first_is_trained(tmp_path, overrides, words):
    with pytest.raises(UserError, match=words):
        train("all", suites.get("digits")({}), overrides, tmp_path / "out", CPU, False, QUIET)
    assert not (tmp_path / "out").exists()


def test_unknown_stage_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="frozen_adapter"):
        train("frozen_adaptor", suites.get("digits")({}), {}, tmp_path, CPU, False, QUIET)
