"""The command line against the options that it is made of."""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from vfmbench.cli import build_parser, main
from vfmbench.commands.arguments import COMMANDS, add_fields
from vfmbench.commands.common import run_configs
from vfmbench.config import RunConfig, RunIdentity

IDENTITY = {
    "method": "vfm",
    "task": "denoise",
    "suite": "digits",
    "split": "test",
    "seed": 0,
    "num_images": 3,
    "samples": 2,
    "problem": "denoise",
    "suite_options": {},
    "dataset_sha256": "d",
    "task_options": {},
    "method_options": {"steps": 1},
    "plugin_sha256": {},
    "weights_sha256": {"vfm": "w"},
}


def flags_of(command):
    """The arguments of a command by the first of their names."""
    parser = build_parser(command)
    [choices] = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {action.option_strings[0]: action for action in choices[command]._actions if action.option_strings}


def configs(*words):
    options = build_parser("run").parse_args(["run", *words])
    return run_configs(options, [(options.method, options.task)])


def test_every_option_of_a_run_is_a_flag_with_its_description_and_default():
    flags = flags_of("run")
    assert "--set" in flags
    for name, field in RunConfig.model_fields.items():
        if name != "options":
            flag = flags["--" + name.replace("_", "-")]
            assert field.description
            assert flag.help.startswith(field.description)
            assert flag.required == field.is_required()
    assert flags["--device"].choices == ("auto", "cpu", "cuda")
    assert flags["--seed"].help.endswith("(default: 0)")


def test_without_flags_a_run_is_what_it_is_in_python():
    assert configs("--method", "vfm", "--task", "denoise") == [RunConfig(method="vfm", task="denoise", options={"method": {}})]


def test_flags_reach_the_run():
    words = (
        "--method vfm --task t --precision bfloat16 --compile --batch-size 8 --num-images 3 --out here --metrics a,b --fresh"
    )
    [config] = configs(*words.split(), "--steps", "2", "--set", "task.std=1.5")
    assert config == RunConfig(
        method="vfm",
        task="t",
        precision="bfloat16",
        compile=True,
        batch_size=8,
        num_images=3,
        out=Path("here"),
        metrics=("a", "b"),
        fresh=True,
        options={"method": {"steps": 2}, "task": {"std": 1.5}},
    )
    assert configs("--method", "vfm", "--task", "t", "--batch-size", "auto")[0].batch_size is None


def test_an_option_that_is_added_is_a_flag():
    class More(RunConfig):
        temperature: float = Field(1.0, gt=0, description="of the 100% prior")
        kind: Literal["soft", "hard"] | None = Field(None, description="how")
        cached: bool = Field(True, description="keep it")
        folders: tuple[Path, ...] = Field((), description="where")

    parser = argparse.ArgumentParser()
    add_fields(parser, More, ["temperature", "kind", "cached", "folders", "compile"])
    given = vars(parser.parse_args(["--temperature", "0.5", "--kind", "hard", "--no-cached"]))
    assert given == {"temperature": "0.5", "kind": "hard", "cached": False, "folders": (), "compile": False}
    assert More(method="m", task="t", **given).temperature == 0.5
    assert "of the 100% prior (default: 1.0)" in parser.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args(["--kind", "firm"])


def test_an_option_that_is_added_keeps_the_hashes_of_stored_runs():
    """The hash is what it was before there was a choice of precision; an option that has its default adds nothing to it."""
    assert RunIdentity(**IDENTITY).hash == "c27b1cbb8b97"
    assert RunIdentity(**IDENTITY).model_dump() == IDENTITY
    half = RunIdentity(**IDENTITY, precision="bfloat16")
    assert half.model_dump() == {**IDENTITY, "precision": "bfloat16"}
    assert half.hash == "d909d0c4986e"


def test_every_command_has_its_module_and_its_help(capsys):
    for command in COMMANDS:
        assert callable(importlib.import_module(f"vfmbench.commands.{command.replace('-', '_')}").main)
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert f"usage: vfmbench {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["run", "--metod", "vfm"],
        ["tune", "--workers", "0"],
        ["figure", "sweep", "--help"],
    ],
)
def test_help_and_mistyped_words_need_no_torch(words):
    code = f"""if True:
        import sys
        from vfmbench.cli import main
        try:
            main({words})
        except SystemExit as end:
            print("ended with", end.code, "torch" in sys.modules, "pandas" in sys.modules)
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mistyped = "--metod" in words or "0" in words
    assert result.stdout.splitlines()[-1] == f"ended with {2 if mistyped else 0} False False"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tune", "--workers", "0"], "argument --workers: takes a whole number of at least 1, got '0'"),
        (["sweep", "x.yaml", "--workers", "two"], "argument --workers: takes a whole number of at least 1, got 'two'"),
        (["bench", "--largest-batch", "0"], "argument --largest-batch: takes a whole number of at least 1, got '0'"),
        (["run", "--method", "vfm"], "the following arguments are required: --task"),
        (["run", "--method", "vfm", "--task", "t", "--device", "gpu"], "argument --device: invalid choice: 'gpu'"),
    ],
)
def test_words_that_no_command_takes_end_with_exit_code_2(capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert message in capsys.readouterr().err
