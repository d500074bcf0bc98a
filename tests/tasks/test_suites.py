"""Suites over a user's own data: runs with unreadable files, what is written about them, and what is not there yet."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vfmbench import RunConfig
from vfmbench.cli import main
from vfmbench.errors import MissingError, UserError
from vfmbench.registry import forget_suites, suites
from vfmbench.results.run_directory import RunStore
from vfmbench.running.plan import plan
from vfmbench.running.runner import run

SIZE = 16


@pytest.fixture
def pictures(tmp_path):
    """A folder of ten images, of which eight are the test split."""
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    return root


def config(root, tmp_path, **changes):
    values = {"method": "pinv", "task": "denoise", "suite": "folder", "samples": 2, "batch_size": 4, "out": tmp_path / "out"}
    options = {"data": {"path": str(root), "size": SIZE, **changes.pop("data", {})}}
    return RunConfig(**{**values, "options": options, **changes})


def break_images(root, tmp_path, positions):
    files = plan(config(root, tmp_path)).dataset.files
    for position in positions:
        (root / files[position]).write_text("not an image")
    return [files[position] for position in positions]


def document(result):
    return json.loads(result.store.paths.dataset.read_text())


def test_a_broken_file_is_a_failed_row_and_metrics_say_so(capsys, pictures, tmp_path):
    (broken,) = break_images(pictures, tmp_path, [2])
    arguments = ["--set", f"data.path={pictures}", "--set", f"data.size={SIZE}", "--samples", "2", "--batch-size", "4"]
    command = ["--suite", "folder", "--method", "pinv", "--task", "gaussian_deblur", *arguments, "--out", str(tmp_path / "out")]
    assert main(["run", *command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    values = {row["name"]: row for row in printed["metrics"]}
    assert values["psnr"]["n"] == 7
    assert "only 7 of 8 planned images" in values["psnr"]["settings"]
    assert values["seconds_per_sample"]["value"] > 0
    assert all(np.isfinite(value) for value in printed["cost"].values())
    [directory] = (tmp_path / "out" / "folder" / "gaussian_deblur" / "pinv").iterdir()
    store = RunStore(directory)
    records = store.records()
    failed = records[records["status"] == "failed"]
    assert failed[["index", "sample"]].to_numpy().tolist() == [[2, 0], [2, 1]]
    assert failed[["residual", "seconds", "nfe"]].isna().all(axis=None)
    assert len(records) == 16
    written = json.loads(store.paths.dataset.read_text())
    assert written["split"] == "test"
    assert len(written["files"]) == 8
    assert written["files"][2] == broken
    assert written["errors"] == {"count": 1, "messages": [f"{broken}: not an image in a known format"]}
    assert written["sha256"] == printed["identity"]["dataset_sha256"]
    assert broken in store.paths.log.read_text()
    assert store.paths.picture.is_file()


def test_broken_files_change_no_other_result(pictures, tmp_path):
    whole = run(config(pictures, tmp_path, task="inpaint_random"))
    break_images(pictures, tmp_path, [0, 7])
    forget_suites()
    rest = run(config(pictures, tmp_path, task="inpaint_random"))
    assert rest.store.directory != whole.store.directory
    before, after = (result.samples().read("images") for result in (whole, rest))
    np.testing.assert_array_equal(before[1:7], after)


def test_a_resumed_run_tries_failed_images_again(pictures, tmp_path, monkeypatch):
    from vfmbench.tasks.datasets import folders

    real = folders.decode
    calls = []

    def fails_once(file, size):
        calls.append(file.name)
        if len(calls) in (2, 5):
            raise OSError(5, "Input/output error")
        return real(file, size)

    monkeypatch.setattr(folders, "decode", fails_once)
    first = run(config(pictures, tmp_path))
    assert first.metrics().set_index("name").loc["psnr", "n"] == 6
    assert document(first)["errors"]["count"] == 2
    second = run(config(pictures, tmp_path))
    assert second.store.directory == first.store.directory
    assert second.metrics().set_index("name").loc["psnr", "n"] == 8
    assert document(second)["errors"] == {"count": 0, "messages": []}
    records = second.store.records()
    assert (records["status"] == "done").all()
    assert not records.duplicated(["index", "sample"]).any()


def test_nothing_readable_and_too_many_unreadable_files_are_errors(pictures, tmp_path):
    break_images(pictures, tmp_path, range(8))
    with pytest.raises(UserError, match="None of the 8 images"):
        run(config(pictures, tmp_path))
    checked = plan(config(pictures, tmp_path))
    assert json.loads(checked.store.paths.dataset.read_text())["errors"]["count"] == 8
    with pytest.raises(UserError, match=r"data\.max_errors=2"):
        run(config(pictures, tmp_path, data={"max_errors": 2}))


def test_preview_leaves_broken_files_out(capsys, pictures, tmp_path):
    arguments = [
        "preview",
        "--suite",
        "folder",
        "--task",
        "denoise",
        "--set",
        f"data.path={pictures}",
        "--set",
        f"data.size={SIZE}",
    ]
    arguments += ["--out", str(tmp_path / "out")]
    break_images(pictures, tmp_path, [0])
    assert main(arguments) == 0
    assert (tmp_path / "out" / "folder" / "preview-denoise.png").is_file()
    break_images(pictures, tmp_path, range(8))
    assert main(arguments) == 2
    assert "can be decoded" in capsys.readouterr().err


def test_where_the_images_lie_is_no_part_of_the_run(pictures, tmp_path):
    here = plan(config(pictures, tmp_path)).identity
    moved = pictures.rename(tmp_path / "moved")
    assert plan(config(moved, tmp_path)).identity == here
    assert plan(config(moved, tmp_path, data={"max_errors": 3})).identity == here
    assert plan(config(moved, tmp_path, data={"seed": 1})).identity.hash != here.hash
    assert "path" not in here.suite_options


def test_folder_takes_any_size(pictures, tmp_path):
    suite = suites.get("folder")({"data": {"path": str(pictures), "size": 33}})
    assert suite.image_shape == suite.latent_shape == (3, 33, 33)
    assert suite.dataset("test").load([0])[0].shape == (1, 3, 33, 33)
    assert suite.task("gaussian_deblur", {}).options.kernel_size == 7
    with pytest.raises(UserError, match="factor must divide"):
        suite.task("super_resolution", {})


@pytest.mark.parametrize(
    ("suite", "hint"),
    [
        ("folder", "folder has no networks yet"),
        ("cifar10", "cifar10 has no networks yet"),
        ("imagenet256", "weights convert FILE --suite imagenet256"),
    ],
)
def test_suites_without_networks_end_with_exit_code_3(capsys, suite, hint, pictures, tmp_path):
    arguments = ["run", "--suite", suite, "--task", "denoise", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--method", "pinv"]) == 3
    assert "--set data.path=" in capsys.readouterr().err
    built = suites.get(suite)({"data": {"path": str(pictures)}})
    for build in (lambda device: built.backbone(device).flow, lambda device: built.weights.sha256("vfm")):
        with pytest.raises(MissingError, match=hint):
            build(torch.device("cpu"))
    assert len(built.task_names) >= 6
    for task in built.task_names:
        assert built.task(task, {}).options.noise_std == 0.05


def test_vfm_on_a_folder_ends_with_exit_code_3(capsys, pictures, tmp_path):
    arguments = ["--suite", "folder", "--task", "denoise", "--method", "vfm", "--set", f"data.path={pictures}"]
    assert main(["run", *arguments, "--out", str(tmp_path / "out")]) == 3
    assert "no networks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_codec_of_imagenet256_says_how_to_get_it():
    suite = suites.get("imagenet256")({})
    assert suite.latent_shape == (4, 32, 32)
    assert suite.external_names == ["sd_vae", "inception", "dino", "lpips_alex", "lpips_vgg"]
    for look in (suite.codec_sha256, lambda: suite.backbone(torch.device("cpu")).codec):
        with pytest.raises(MissingError, match="vfmbench weights fetch sd_vae"):
            look()
