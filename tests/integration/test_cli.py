"""The command line as a user meets it: exit codes, one clear sentence for bad input, JSON, kill and resume."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from vfmbench.cli import main
from vfmbench.registry import suites
from vfmbench.results.paths import RunPaths

from ..pictures import is_picture_of

RUN = ["run", "--method", "vfm", "--task", "gaussian_deblur"]
TASKS = ["denoise", "inpaint_random", "inpaint_box", "super_resolution", "gaussian_deblur", "motion_deblur"]


@pytest.fixture
def out(tmp_path):
    return ["--out", str(tmp_path)]


@pytest.mark.parametrize("task", [*TASKS, "super_resolution_x4"])
@pytest.mark.parametrize("method", ["vfm", "frozen_adapter", "pinv"])
def test_every_task_runs(capsys, out, method, task):
    assert main(["run", "--method", method, "--task", task, "--num-images", "4", "--samples", "3", *out]) == 0
    printed = capsys.readouterr().out
    assert "psnr" in printed
    assert "crps@digitnet" in printed


def test_table_shows_value_interval_and_n_in_a_narrow_terminal(capsys, out, monkeypatch):
    arguments = [*RUN, "--num-images", "7", "--samples", "3", *out]
    assert main([*arguments, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    monkeypatch.setattr("vfmbench.reporting.console.OUT", Console(width=80, highlight=False))
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for row in metrics:
        if row["value"] is None:
            assert any(line.startswith("missing: ") and row["name"] in line and line.endswith(row["reason"]) for line in lines)
            continue
        if row["spec"]["occasional"] and row["value"] == 0:
            continue
        line = next(line for line in lines if line.split("│")[1:2] and line.split("│")[1].strip() == row["name"])
        _, value, interval, n, _ = (part.strip() for part in line.strip("│").split("│"))
        assert float(value) == pytest.approx(row["value"], rel=1e-3)
        assert int(n) == row["n"]
        if row["low"] is not None:
            assert [float(part) for part in interval.split("..")] == pytest.approx([row["low"], row["high"]], rel=1e-3)


def test_latent_dps_and_more_steps(capsys, out):
    small = ["--num-images", "3", "--samples", "2", *out]
    assert main(["run", "--method", "latent_dps", "--task", "inpaint_box", "--steps", "5", *small]) == 0
    assert "10 network forwards, 10 network backwards" in capsys.readouterr().out.replace("\n", " ")
    assert main([*RUN, "--steps", "4", *small]) == 0
    assert "4 network forwards" in capsys.readouterr().out.replace("\n", " ")


def test_json_is_one_document_with_intervals(capsys, out):
    assert main([*RUN, "--num-images", "8", "--samples", "3", "--json", *out]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "done"
    for row in document["metrics"]:
        assert {"name", "value", "low", "high", "n", "feature_space", "settings", "reason"} <= set(row)
    values = {row["name"]: row for row in document["metrics"]}
    for name in ("psnr", "ssim", "crps@pixel", "crps@digitnet", "seconds_per_sample"):
        assert values[name]["value"] is not None, values[name]
    assert values["fid@digitnet"]["feature_space"] == "digitnet"
    assert values["fid@digitnet"]["feature_weights_sha256"]


def test_compare_prints_all_methods_and_marks_differences(capsys, out):
    arguments = ["compare", "--methods", "vfm,pinv", "--tasks", "gaussian_deblur", "--num-images", "20", "--samples", "3"]
    assert main([*arguments, *out]) == 0
    printed = capsys.readouterr().out
    assert "vfm" in printed
    row = next(line for line in printed.splitlines() if " psnr " in line)
    assert row.rstrip(" │").endswith("-")
    assert main([*arguments, "--json", *out]) == 0
    assert json.loads(capsys.readouterr().out)["gaussian_deblur"]["pinv"]["status"] == "done"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--method", "vmf", "--task", "gaussian_deblur"], ["method", "'vmf'", "'vfm'"]),
        (["run", "--method", "vfm", "--task", "gausian_deblur"], ["task", "'gaussian_deblur'"]),
        ([*RUN, "--suite", "digit"], ["suite", "'digits'"]),
        ([*RUN, "--metrics", "psnr,sssim"], ["metric", "'ssim'"]),
        ([*RUN, "--set", "method.stepz=3"], ["method.stepz", "'method.steps'"]),
        ([*RUN, "--set", "metod.steps=3"], ["metod.steps", "method.steps"]),
        ([*RUN, "--set", "task.stdd=3"], ["task.stdd", "'task.std'"]),
        ([*RUN, "--set", "task.std=wide"], ["task.std", "number"]),
        ([*RUN, "--set", "task.std=-1"], ["task.std", "greater than 0"]),
        ([*RUN, "--set", "steps"], ["key=value"]),
        ([*RUN, "--set", "task.std=[1"], ["task.std", "YAML"]),
        ([*RUN, "--set", "data.path=x"], ["data.path"]),
        ([*RUN, "--steps", "0"], ["method.steps", "greater than or equal to 1"]),
        ([*RUN, "--num-images", "0"], ["--num-images", "greater than or equal to 1"]),
        ([*RUN, "--num-images", "100000"], ["--num-images", "360"]),
        ([*RUN, "--samples", "0"], ["--samples"]),
        ([*RUN, "--seed", "-1"], ["--seed"]),
        ([*RUN, "--batch-size", "many"], ["--batch-size", "integer"]),
        ([*RUN, "--plugin", "nowhere.py"], ["--plugin", "nowhere.py"]),
        (["compare", "--methods", "vfm,pinw"], ["'pinv'"]),
        (["train", "vmf"], ["training stage", "'vfm'"]),
        (["train", "vfm", "--set", "vfm.alhpa=1"], ["vfm.alhpa", "'vfm.alpha'"]),
        (["train", "vfm", "--set", "vfm.alpha=2"], ["vfm.alpha", "less than or equal to 1"]),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, tmp_path, arguments, words):
    where = tmp_path / "out"
    assert main([*arguments, "--out", str(where)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    for word in words:
        assert word in captured.err
    assert not where.exists()


def test_out_that_is_a_file(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert main([*RUN, "--out", str(file)]) == 2
    assert f"{file} is a file" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder in which nobody may create one")
def test_out_that_cannot_be_written(capsys):
    assert main([*RUN, "--out", "/proc/vfmbench"]) == 2
    assert "cannot write to /proc/vfmbench" in capsys.readouterr().err


def copy_of_weights(tmp_path):
    from vfmbench import assets

    target = tmp_path / "weights"
    target.mkdir()
    for file in (Path(assets.__file__).parent / "digits").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_damaged_and_missing_weights_end_with_exit_code_3(capsys, tmp_path, out):
    weights = copy_of_weights(tmp_path)
    file = weights / "vfm.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    arguments = [*RUN, *out, "--set", f"weights.path={weights}"]
    assert main(arguments) == 3
    assert "damaged" in capsys.readouterr().err
    file.unlink()
    assert main(arguments) == 3
    assert "vfm.safetensors" in capsys.readouterr().err
    (weights / "manifest.json").write_text("{")
    assert main(arguments) == 3
    assert "manifest.json" in capsys.readouterr().err
    assert not (tmp_path / "digits").exists()


def test_missing_feature_weights_cost_only_their_metrics(capsys, tmp_path, out):
    weights = copy_of_weights(tmp_path)
    (weights / "features.safetensors").unlink()
    assert main([*RUN, *out, "--num-images", "4", "--samples", "2", "--json", "--set", f"weights.path={weights}"]) == 0
    values = {row["name"]: row for row in json.loads(capsys.readouterr().out)["metrics"]}
    assert values["psnr"]["value"] is not None
    assert values["fid@digitnet"]["value"] is None
    assert "features.safetensors" in values["fid@digitnet"]["reason"]


PLUGIN = """
from vfmbench import registry
from vfmbench.interfaces import Sampler
from vfmbench.measurement import Samples


class Grey(Sampler):
    def sample(self, measurement, num_samples, noise):
        return Samples(noise.normal(measurement.operator.image_shape, 0).unflatten(0, (-1, num_samples)) * 0)


registry.samplers.register("grey", Grey)
"""


def test_plugin_file_adds_a_sampler(capsys, tmp_path, out):
    plugin = tmp_path / "grey.py"
    plugin.write_text(PLUGIN)
    command = [sys.executable, "-m", "vfmbench", "run", "--plugin", str(plugin), "--method", "grey", "--task", "denoise"]
    result = subprocess.run(
        [*command, "--num-images", "2", "--samples", "2", *out], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    plugin.write_text("1 / 0")
    assert main(["list", "--plugin", str(plugin)]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in ("vfm", "latent_dps", *TASKS, "super_resolution_x4", "digits", "psnr", "frozen_adapter"):
        assert name in printed


def shards_below(folder):
    return [path for run in RunPaths.below(folder) for path in run.shards()]


def wait_for_shards(folder, count, process):
    deadline = time.monotonic() + 180
    while len(shards_below(folder)) < count:
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_process_resumes(tmp_path, how):
    command = [sys.executable, "-m", "vfmbench", "run", "--method", "latent_dps", "--task", "denoise", "--out", str(tmp_path)]
    command += ["--num-images", "12", "--samples", "4", "--batch-size", "4", "--steps", "60", "--metrics", "psnr", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_shards(tmp_path, 2, process)
    process.send_signal(how)
    assert process.wait(20) == (75 if how == signal.SIGTERM else -9)
    shards = {path: path.stat().st_mtime_ns for path in shards_below(tmp_path)}
    assert 2 <= len(shards) < 12
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["metrics"][0]["n"] == 12
    assert len(shards_below(tmp_path)) == 12
    assert all(path.stat().st_mtime_ns == time_before for path, time_before in shards.items())


def test_compare_goes_on_after_a_failing_cell(capsys, out, monkeypatch):
    def fails(self, *_):
        raise RuntimeError("boom")

    monkeypatch.setattr("vfmbench.baselines.reference.Adjoint.reconstruct", fails)
    arguments = ["compare", "--methods", "adjoint,vfm,pinv", "--tasks", "denoise,hdr", "--num-images", "4", "--samples", "2"]
    assert main([*arguments, "--json", *out]) == 1
    cells = json.loads(capsys.readouterr().out)
    assert {task: {method: cell["status"] for method, cell in row.items()} for task, row in cells.items()} == {
        "denoise": {"adjoint": "failed", "vfm": "done", "pinv": "done"},
        "hdr": {"adjoint": "skipped", "vfm": "skipped", "pinv": "skipped"},
    }
    assert "boom" in cells["denoise"]["adjoint"]["note"]
    assert main([*arguments, *out]) == 1
    printed = capsys.readouterr().out
    assert "failed" in printed
    assert "boom" in printed


def test_compare_takes_options_for_one_method_and_yaml_tasks(capsys, tmp_path, out):
    file = tmp_path / "wide.yaml"
    file.write_text("task: gaussian_deblur\noptions: {std: 1.6}\n")
    arguments = [
        "compare",
        "--methods",
        "vfm,latent_dps",
        "--tasks",
        str(file),
        "--num-images",
        "2",
        "--samples",
        "2",
        "--json",
        *out,
    ]
    assert main([*arguments, "--set", "latent_dps.step_size=0.2", "--set", "method.steps=3"]) == 0
    row = json.loads(capsys.readouterr().out)[str(file)]
    assert row["vfm"]["identity"]["method_options"] == {"steps": 3, "projection": False, "label": "true"}
    assert row["latent_dps"]["identity"]["method_options"]["step_size"] == 0.2
    assert "trained on gaussian_deblur with std 1.0 (here 1.6)" in row["vfm"]["note"]


def test_methods_without_networks_run_where_others_lack_weights(capsys, tmp_path, out):
    arguments = [
        "compare",
        "--methods",
        "vfm,pinv",
        "--tasks",
        "denoise",
        "--num-images",
        "2",
        "--samples",
        "2",
        "--json",
        *out,
    ]
    assert main([*arguments, "--set", f"weights.path={tmp_path / 'nowhere'}"]) == 0
    row = json.loads(capsys.readouterr().out)["denoise"]
    assert (row["vfm"]["status"], row["pinv"]["status"]) == ("missing", "done")


def test_a_changed_plugin_is_another_run(tmp_path):
    plugin = tmp_path / "grey.py"
    command = [sys.executable, "-m", "vfmbench", "run", "--plugin", str(plugin), "--method", "grey", "--task", "denoise"]
    command += ["--num-images", "2", "--samples", "2", "--json", "--metrics", "psnr", "--out", str(tmp_path)]
    values = []
    for shade in ("0", "0.5"):
        plugin.write_text(PLUGIN.replace("* 0)", f"* 0 + {shade})"))
        values.append(
            json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["metrics"][0]["value"]
        )
    assert values[0] != values[1]


def readme_blocks(language):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    return [block.split("```")[0] for block in text.split(f"```{language}\n")[1:]]


def test_readmes_sampler_runs(capsys, tmp_path, out):
    [example] = [block for block in readme_blocks("python") if "registry.samplers.register" in block]
    plugin = tmp_path / "my_sampler.py"
    plugin.write_text(example.replace('"langevin"', '"langevin_of_the_readme"'))
    arguments = ["--plugin", str(plugin), "--method", "langevin_of_the_readme", "--task", "inpaint_box"]
    assert main(["run", *arguments, "--num-images", "4", "--samples", "3", *out]) == 0
    assert "psnr" in capsys.readouterr().out


def test_readmes_python_example_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [example] = [block for block in readme_blocks("python") if "vfmbench.run(" in block]
    exec(example, {})
    assert "psnr" in capsys.readouterr().out


def test_task_of_a_users_yaml_file(capsys, tmp_path, out):
    file = tmp_path / "wide_blur.yaml"
    file.write_text("task: gaussian_deblur\noptions: {std: 1.6}\n")
    arguments = ["run", "--method", "vfm", "--task", str(file), "--num-images", "2", "--samples", "2", "--json", *out]
    assert main(arguments) == 0
    identity = json.loads(capsys.readouterr().out)["identity"]
    assert (identity["task"], identity["problem"]) == ("wide_blur", "gaussian_deblur")
    # The suite's own settings are the starting point.
    assert identity["task_options"] | {"std": 1.6, "kernel_size": 7, "noise_std": 0.1} == identity["task_options"]
    assert main([*arguments, "--set", "task.std=2.0"]) == 0
    assert json.loads(capsys.readouterr().out)["identity"]["task_options"]["std"] == 2.0
    file.write_text("task: gaussian_deblur\nnoise: 1\n")
    assert main(arguments) == 2
    assert "wide_blur.yaml:2" in capsys.readouterr().err


def test_adapter_skips_a_problem_it_does_not_know(capsys, out):
    assert main(["run", "--method", "vfm", "--task", "hdr", "--json", *out]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["status"] == "skipped"
    assert "not trained on the problem 'hdr'" in captured.err
    assert (
        main(["run", "--method", "latent_dps", "--task", "hdr", "--steps", "3", "--num-images", "2", "--samples", "2", *out])
        == 0
    )


def test_preview_draws_every_task(capsys, tmp_path, out, figures):
    truth = suites.get("digits")({}).dataset("test").load(range(8))[0].squeeze(1).numpy()
    for task in [*TASKS, "hdr", "phase_retrieval"]:
        assert main(["preview", "--task", task, *out]) == 0
        assert Path(capsys.readouterr().out.strip()) == tmp_path / "digits" / f"preview-{task}.png"
        figure = figures.pop()
        assert is_picture_of(tmp_path / "digits" / f"preview-{task}.png", figure)
        linear = task not in ("hdr", "phase_retrieval")
        titles = ["truth", "observation", *(["adjoint", "pseudo-inverse"] if linear else [])]
        assert [axis.get_title() for axis in figure.axes[: len(titles)]] == titles
        assert len(figure.axes) == 8 * len(titles)
        for row, axis in enumerate(figure.axes[:: len(titles)]):
            np.testing.assert_array_equal(axis.images[0].get_array(), truth[row])
