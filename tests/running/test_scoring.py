"""`vfmbench metrics`: stored samples of a run, and folders of images against torch-fidelity on the same weights."""

import json
import warnings

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageFilter

from vfmbench import RunConfig, registry
from vfmbench.cli import main
from vfmbench.metrics.evaluation import EvaluationSet
from vfmbench.registry import samplers
from vfmbench.results.stored import StoredRun
from vfmbench.running.runner import run


@pytest.fixture
def stored(tmp_path):
    """A finished run of six digits with three samples each, of which only PSNR was computed."""
    config = RunConfig(
        method="vfm", task="denoise", num_images=6, samples=3, batch_size=6, out=tmp_path / "runs", metrics=("psnr",)
    )
    return run(config).results()


@pytest.fixture
def folders(tmp_path):
    """`blurred`, `truth`: eight smooth random images, and the same ones blurred."""
    blurred, truth = tmp_path / "blurred", tmp_path / "truth"
    for folder in (blurred, truth):
        folder.mkdir()
    for number in range(8):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC)
        image.save(truth / f"{number}.png")
        image.filter(ImageFilter.GaussianBlur(4)).save(blurred / f"{number}.png")
    return blurred, truth


def rows_of(store):
    return json.loads(store.paths.metrics.read_text())["metrics"]


def values(rows):
    return {row["name"]: row for row in rows}


def test_metrics_are_added_to_a_run_without_sampling(capsys, stored, tmp_path, monkeypatch):
    other = RunConfig(method="vfm", task="denoise", num_images=6, samples=3, out=tmp_path / "other")
    whole = values(rows_of(run(other).results()))
    before = values(rows_of(stored))
    monkeypatch.setattr(samplers.get("vfm"), "sample", None)
    assert main(["metrics", str(stored.directory), "--metrics", "ssim,crps,fid", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    after = values(document["metrics"])
    assert document["directory"] == str(stored.directory)
    assert after["psnr"] == before["psnr"]
    assert {"ssim", "crps@pixel", "crps@digitnet", "fid@digitnet", "seconds_per_sample"} <= set(after)
    for name in ("ssim", "crps@pixel", "fid@digitnet"):
        assert after[name]["value"] == pytest.approx(whole[name]["value"], rel=1e-6)
    assert {"psnr", "ssim"} <= set(StoredRun.read(stored).per_image)
    provenance = stored.provenance()
    assert provenance["status"] == "done"
    assert [session["images"] for session in provenance["sessions"]] == [6, 0]
    assert provenance["sessions"][1]["metrics"] == ["ssim", "crps", "fid"]
    assert "metrics of 6 stored images: ssim, crps, fid" in stored.paths.log.read_text()


def test_the_table_of_a_run(capsys, stored):
    assert main(["metrics", str(stored.directory), "--metrics", "ssim,lpips"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("ssim" in line and ".." in line for line in lines)
    assert any(line.startswith("missing: lpips: no network is set for these images") for line in lines)


def test_an_unfinished_run_is_scored_as_far_as_it_is(capsys, stored):
    stored.paths.shards()[-1].unlink()
    assert main(["metrics", str(stored.directory), "--metrics", "ssim", "--json"]) == 0
    captured = capsys.readouterr()
    found = values(json.loads(captured.out)["metrics"])
    assert found["ssim"]["n"] == 4
    assert "only 4 of 6 planned images" in found["ssim"]["settings"]
    assert "only 4 of 6 images are stored" in captured.err
    # What was computed of six images cannot stand beside it.
    assert "psnr" not in found
    assert len(StoredRun.read(stored).index) == 4
    for path in stored.paths.shards():
        path.unlink()
    assert main(["metrics", str(stored.directory)]) == 2
    assert "holds no samples yet" in capsys.readouterr().err


def test_other_data_than_the_runs_is_refused(capsys, stored):
    path = stored.paths.config
    content = yaml.safe_load(path.read_text())
    content["identity"]["dataset_sha256"] = "0" * 64
    path.write_text(yaml.safe_dump(content))
    before = stored.metrics()
    assert main(["metrics", str(stored.directory)]) == 2
    assert "test split of digits is not the one that the run was made from" in capsys.readouterr().err
    assert stored.metrics() == before
    del content["identity"]["problem"]
    path.write_text(yaml.safe_dump(content))
    assert main(["metrics", str(stored.directory)]) == 2
    assert "identity.problem is required" in capsys.readouterr().err


def test_a_run_of_another_layout_is_left_alone(capsys, stored):
    path = stored.paths.config
    path.write_text(path.read_text().replace("schema_version: 2", "schema_version: 1"))
    files = sorted(stored.directory.rglob("*"))
    assert main(["metrics", str(stored.directory)]) == 2
    assert "layout 1, this one reads 2" in capsys.readouterr().err
    assert sorted(stored.directory.rglob("*")) == files


def test_a_run_on_a_folder_needs_its_data_and_takes_networks(capsys, folders, random_dino, tmp_path):
    config = RunConfig(
        method="pinv",
        task="denoise",
        suite="folder",
        samples=2,
        options={"data": {"path": str(folders[1]), "size": 32}},
        out=tmp_path / "runs",
        metrics=("psnr", "crps"),
    )
    store = run(config).results()
    assert "curl" in values(rows_of(store))["crps@dino"]["reason"]
    arguments = ["metrics", str(store.directory), "--metrics", "crps"]
    assert main(arguments) == 3
    assert "--set data.path=DIR" in capsys.readouterr().err
    arguments += ["--set", f"data.path={folders[1]}"]
    assert main([*arguments, "--set", f"weights.dino={random_dino}", "--json"]) == 0
    found = values(json.loads(capsys.readouterr().out)["metrics"])
    assert found["crps@dino"]["value"] is not None
    assert "DINO ViT-S/16" in found["crps@dino"]["settings"]
    assert found["crps@inception"]["value"] is None
    assert main([*arguments, "--set", "data.seed=5"]) == 2
    assert "is not the one that the run was made from" in capsys.readouterr().err


def test_a_file_that_is_no_use_ends_a_run_before_it_starts(capsys, folders, tmp_path):
    wrong = tmp_path / "weights.pth"
    wrong.write_text("text")
    arguments = ["run", "--method", "pinv", "--task", "denoise", "--suite", "folder", "--set", f"data.path={folders[1]}"]
    arguments += ["--out", str(tmp_path / "runs")]
    assert main([*arguments, "--set", f"weights.inception={wrong}"]) == 2
    assert "not a file of PyTorch weights" in capsys.readouterr().err
    assert main([*arguments, "--set", "weights.inception=nowhere.pth"]) == 2
    assert "weights.inception: Path does not point to a file, got 'nowhere.pth'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert main(["run", "--method", "pinv", "--task", "denoise", "--set", f"weights.inception={wrong}"]) == 2
    assert "the suite digits has no use for this file" in capsys.readouterr().err


def test_folders_are_scored_and_nothing_is_written(capsys, folders, tmp_path):
    blurred, truth = folders
    files = sorted(tmp_path.rglob("*"))
    arguments = ["metrics", str(blurred), "--reference", str(truth), "--metrics", "psnr,ssim,fid,lpips,residual"]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = values(document["metrics"])
    assert document["num_images"] == 8
    assert document["samples_of_an_image"] == 1
    psnr = []
    for number in range(8):
        a, b = (np.asarray(Image.open(folder / f"{number}.png"), dtype=float) for folder in folders)
        psnr.append(10 * np.log10(255**2 / ((a - b) ** 2).mean()))
    assert found["psnr"]["value"] == pytest.approx(np.mean(psnr), rel=1e-9)
    assert found["psnr"]["low"] < np.mean(psnr) < found["psnr"]["high"]
    assert found["psnr"]["n"] == 8
    for name in ("fid@inception", "fid@dino", "lpips_alex", "lpips_vgg"):
        assert found[name]["value"] is None
        assert "fetch them with: curl -fL" in found[name]["reason"]
    assert "were not stored" in found["residual"]["reason"]
    assert sorted(tmp_path.rglob("*")) == files
    out = tmp_path / "scores.json"
    assert main([*arguments, "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == document
    lines = capsys.readouterr().out.splitlines()
    assert any("psnr" in line and ".." in line for line in lines)
    # The command to copy is in one line.
    assert any(line.startswith("missing: lpips_vgg: ") and line.endswith("vgg16-397923af.pth") for line in lines)


def test_several_samples_of_an_image(capsys, folders, tmp_path):
    blurred, truth = folders
    for path in blurred.glob("*.png"):
        (tmp_path / "drawn" / path.stem).mkdir(parents=True)
        for k, source in enumerate((path, truth / path.name)):
            (tmp_path / "drawn" / path.stem / f"{k}.png").write_bytes(source.read_bytes())
    arguments = ["metrics", str(tmp_path / "drawn"), "--reference", str(truth), "--metrics", "ssim,crps", "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    found = values(document["metrics"])
    assert document["samples_of_an_image"] == 2
    assert found["crps@pixel"]["value"] > 0
    assert found["ssim_mean"]["value"] > 0


def test_a_single_image_is_missing_where_more_are_needed(capsys, folders, random_dino):
    blurred, truth = folders
    for number in range(1, 8):
        (blurred / f"{number}.png").unlink()
        (truth / f"{number}.png").unlink()
    arguments = [
        "metrics",
        str(blurred),
        "--reference",
        str(truth),
        "--metrics",
        "psnr,kid,crps",
        "--features",
        "dino",
        "--json",
    ]
    assert main([*arguments, "--set", f"weights.dino={random_dino}"]) == 0
    found = values(json.loads(capsys.readouterr().out)["metrics"])
    assert found["psnr"]["n"] == 1
    assert (found["psnr"]["low"], found["psnr"]["high"]) == (None, None)
    assert "at least 2" in found["kid@dino"]["reason"]
    assert "at least 2 samples" in found["crps@pixel"]["reason"]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (["--metrics", "psnrr"], 2, ["metric", "'psnr'"]),
        (["--features", "incepton"], 2, ["feature space", "'inception'"]),
        (["--features", "dino"], 3, ["weights.dino", "curl -fL"]),
        (["--set", "weights.incption=x"], 2, ["weights.incption", "'weights.inception'"]),
        (["--set", "weights.inception=nowhere"], 2, ["weights.inception", "nowhere"]),
        (["--set", "data.path=x"], 2, ["data.path", "weights."]),
        (["--out", "/nowhere/scores.json"], 2, ["--out", "cannot write"]),
        (["--device", "cuda"], 2, ["--device cuda"]),
    ],
)
def test_bad_options_are_one_sentence(capsys, folders, monkeypatch, changes, code, words):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["metrics", str(folders[0]), "--reference", str(folders[1]), *changes]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    for word in words:
        assert word in captured.err


def test_folders_that_do_not_match(capsys, folders):
    blurred, truth = folders
    (blurred / "3.png").unlink()
    assert main(["metrics", str(blurred), "--reference", str(truth)]) == 2
    assert "3.png has no image of the same name" in capsys.readouterr().err


def test_what_goes_with_a_reference_and_what_without(capsys, folders, stored):
    assert main(["metrics", str(folders[0])]) == 2
    assert "is no run directory; to score a folder of images, add --reference FOLDER" in capsys.readouterr().err
    for option in (["--features", "dino"], ["--out", "scores.json"]):
        assert main(["metrics", str(stored.directory), *option]) == 2
        assert "goes with --reference" in capsys.readouterr().err


def by_torch_fidelity(folders, weights, **options):
    """Its own metrics of the two folders with the same file of weights; KID from one subset of all images."""
    import torch_fidelity

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch_fidelity.calculate_metrics(
            input1=str(folders[0]),
            input2=str(folders[1]),
            cuda=False,
            kid=True,
            kid_subsets=1,
            kid_subset_size=len(list(folders[0].iterdir())),
            feature_extractor_weights_path=str(weights),
            cache=False,
            save_cpu_ram=True,  # no worker processes
            verbose=False,
            **options,
        )


def by_vfmbench(capsys, folders, weights, metrics):
    arguments = ["metrics", str(folders[0]), "--reference", str(folders[1]), "--features", "inception", "--metrics", metrics]
    assert main([*arguments, "--set", f"weights.inception={weights}", "--json"]) == 0
    return values(json.loads(capsys.readouterr().out)["metrics"])


def test_kid_equals_torch_fidelitys(capsys, folders, random_inception):
    """One subset of all n images is KID's unbiased estimate over all pairs, whatever their order."""
    expected = by_torch_fidelity(folders, random_inception)["kernel_inception_distance_mean"]
    found = by_vfmbench(capsys, folders, random_inception, "kid")["kid@inception"]
    assert found["value"] == pytest.approx(expected, rel=1e-3)
    assert "WARNING: random-inception.pth is NOT the published" in found["settings"]


@pytest.mark.slow
def test_fid_equals_torch_fidelitys(capsys, folders, random_inception):
    expected = by_torch_fidelity(folders, random_inception, fid=True)["frechet_inception_distance"]
    found = by_vfmbench(capsys, folders, random_inception, "fid")["fid@inception"]
    assert found["value"] == pytest.approx(expected, rel=1e-3)
    assert found["n"] == 8


def test_fid_of_the_same_features_equals_torch_fidelitys():
    """More images than features, as in a large study, and without the network."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    class Pixels:
        name, weights_sha256, settings = "pixels", "", ""

        def features(self, images):
            return images.flatten(1).float() / 64

    images = torch.randint(0, 256, (2, 30, 1, 2, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    evaluation = EvaluationSet(
        truth=images[0], samples=images[1, :, None] // 2, feature_spaces={"pixels": Pixels()}, planned=30
    )
    truth, samples = evaluation.features("pixels")
    statistics = [fid_features_to_statistics(features.double()) for features in (truth, samples[:, 0])]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    found = next(value for value in registry.metrics.get("fid")(evaluation) if value.name == "fid@pixels")
    assert found.value == pytest.approx(expected, rel=1e-9)
