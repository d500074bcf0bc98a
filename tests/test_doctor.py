"""What `vfmbench doctor` finds on a machine that is ready, and on ones that are not."""

import argparse
import json
import socket

import pytest
from rich.console import Console

from vfmbench import doctor
from vfmbench.commands import doctor as command
from vfmbench.doctor import Check, Health, document, examine, ready
from vfmbench.errors import Status
from vfmbench.registry import samplers
from vfmbench.reporting import console


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    return list(examine(tmp_path_factory.mktemp("place") / "results"))


def of(checks, subject):
    return [check for check in checks if check.subject == subject]


def test_a_machine_that_is_ready(checks):
    assert ready(checks)
    subjects = list(dict.fromkeys(check.subject for check in checks))
    assert subjects[:3] == ["Python", "vfmbench", "packages"]
    assert {"torch", "CUDA", "machine", "results", "plugins", "shipped weights", "trial run"} <= set(subjects)
    assert {"external weights", "sd_vae", "Slurm", "variables"} <= set(subjects)
    (trial,) = of(checks, "trial run")
    assert trial.text.endswith("one image of the suite digits: done")
    assert of(checks, "sd_vae")[0].health == Health.NOTE
    assert "digits" in of(checks, "shipped weights")[0].text


def test_the_page_and_the_document(monkeypatch, capsys, checks):
    monkeypatch.setattr(command, "examine", lambda folder: iter(checks))
    monkeypatch.setattr(console, "OUT", Console(width=80))
    assert command.main(argparse.Namespace(json=False)) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("Ready: ")
    assert all(len(line) <= 80 for line in out.splitlines())
    assert command.main(argparse.Namespace(json=True)) == 0
    assert json.loads(capsys.readouterr().out) == document(checks)
    broken = [*checks, Check("results", Health.BROKEN, "cannot be written")]
    monkeypatch.setattr(command, "examine", lambda folder: iter(broken))
    assert command.main(argparse.Namespace(json=False)) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "Not ready: results."


def test_nothing_is_asked_of_the_network(monkeypatch, tmp_path):
    def refuse(*arguments):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert ready(list(examine(tmp_path)))


def test_a_trial_run_that_fails_or_cannot_be_made(monkeypatch):
    from vfmbench.running import runner

    def failing(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(runner, "execute", failing)
    (check,) = doctor._guarded("trial run", doctor._trial_run)
    assert (check.health, check.text) == (Health.BROKEN, "RuntimeError: no such kernel")

    class Skipped:
        status = Status.SKIPPED

    monkeypatch.setattr(runner, "execute", lambda *_: Skipped)
    (check,) = doctor._trial_run()
    assert check.health == Health.BROKEN


def test_a_broken_plugin_is_a_warning(monkeypatch):
    from importlib.metadata import EntryPoint

    point = EntryPoint("not_importable", "no_such_module:Sampler", "vfmbench.samplers")
    monkeypatch.setitem(samplers._entry_points, "not_importable", point)
    found = list(doctor._entry_points())
    assert found[0].health == Health.WARNING
    assert "no_such_module" in found[0].text
    assert found[-1].health == Health.OK


def test_requirements_that_are_not_met(monkeypatch):
    monkeypatch.setattr(
        doctor, "requires", lambda name: ["torch>=999", "no-such-package-here>=1", 'pytest>=999; extra == "dev"']
    )
    (check,) = of(list(doctor._packages()), "packages")
    assert check.health == Health.WARNING
    assert "torch is" in check.text
    assert "needed is >=999" in check.text
    assert "no-such-package-here is not installed" in check.text
    assert "pytest" not in check.text


def test_damaged_weights(monkeypatch, tmp_path):
    from vfmbench.weights import inventory

    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"flow": {"file": "flow.x", "sha256": "0", "architecture": {}}}))
    monkeypatch.setattr(inventory, "shipped_folders", lambda: [folder])
    found = list(doctor._shipped_weights())
    assert found[0].health == Health.WARNING
    assert "digits/flow: Cannot read" in found[0].text


def test_results_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert doctor._disk(file / "results").health == Health.BROKEN
    assert doctor._disk(tmp_path / "a" / "b").health == Health.OK
