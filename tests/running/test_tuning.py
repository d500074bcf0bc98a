"""`vfmbench tune`: what it chooses, what it writes, and that it can be stopped and repeated."""

import pytest
import yaml

from vfmbench.config import RunConfig
from vfmbench.errors import MissingError, UserError
from vfmbench.results.paths import RunPaths
from vfmbench.running.plan import plan
from vfmbench.running.tuning import tune

# The last step size throws every sample out of range.
GRID = {
    "num_images": 2,
    "samples": 2,
    "objective": ["crps_fair@pixel"],
    "metrics": ["crps", "psnr", "residual"],
    "tasks": ["denoise"],
    "methods": {"flowdps": {"fixed": {"steps": 3, "guidance_scale": 1.0}, "grid": {"step_size": [0.0, 0.5, 1e30]}}},
}


def run_tune(folder, **overrides):
    return tune("digits", None, None, {"tuning": {**GRID, **overrides}}, folder / "tuned.yaml", folder / "runs", workers=1)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    return folder, run_tune(folder)


def test_the_choice_minimises_the_objective_and_comes_with_every_trial(tuned):
    folder, _ = tuned
    content = yaml.safe_load((folder / "tuned.yaml").read_text())
    entry = content["methods"]["flowdps"]["denoise"]
    assert content["suite"] == "digits"
    assert entry["options"] == {"steps": 3, "guidance_scale": 1.0, "step_size": 0.5}
    assert entry["at_the_edge_of_the_grid"] == []
    scores = [trial["objective"] for trial in entry["trials"]]
    assert scores[1] == min(score for score in scores if score is not None)
    assert entry["protocol"] == {"split": "validation", "num_images": 2, "samples": 2, "seed": 0}


def test_a_setting_that_diverges_cannot_be_chosen(tuned):
    trial = tuned[1]["flowdps", "denoise"]["trials"][2]
    assert trial["objective"] is None
    assert "problem" in trial


def test_tuning_again_runs_nothing_and_writes_the_same(tuned):
    folder, first = tuned

    def written():
        shards = [path for run in RunPaths.below(folder / "runs") for path in run.shards()]
        return {path: path.stat().st_mtime_ns for path in shards}

    before = written()
    again = run_tune(folder)
    assert written() == before != {}
    assert again["flowdps", "denoise"]["options"] == first["flowdps", "denoise"]["options"]


def test_a_run_takes_the_tuned_options_and_its_own_go_first(tuned, tmp_path):
    preset = str(tuned[0] / "tuned.yaml")
    config = RunConfig(method="flowdps", task="denoise", preset=preset, options={"method": {"steps": 7}}, out=tmp_path)
    assert plan(config).identity.method_options["step_size"] == 0.5
    assert plan(config).identity.method_options["steps"] == 7
    with pytest.raises(MissingError, match="vfmbench tune --suite digits --method flowdps --task inpaint_box"):
        plan(RunConfig(method="flowdps", task="inpaint_box", preset=preset, out=tmp_path))


def test_a_tuned_file_of_another_suite_is_refused(tuned, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text((tuned[0] / "tuned.yaml").read_text().replace("suite: digits", "suite: cifar10"))
    with pytest.raises(UserError, match="tuned for the suite 'cifar10'"):
        plan(RunConfig(method="flowdps", task="denoise", preset=str(other), out=tmp_path))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"methods": {"flowdps": {"grid": {"step": [1.0]}}}}, "method.step"),
        ({"methods": {"flowdps": {"grid": {"step_size": [-1.0]}}}}, "method.step_size"),
        ({"tasks": ["deblur"]}, "Unknown task 'deblur'"),
        ({"samples": 1}, "tuning.samples"),
        ({"images": 3}, "tuning.images"),
    ],
)
def test_bad_settings_are_refused_before_any_trial(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        run_tune(tmp_path, **overrides)
    assert not (tmp_path / "runs").exists()


def test_unknown_names_and_suites_without_grids_are_refused(tmp_path):
    with pytest.raises(UserError, match="method to tune 'vfm'"):
        tune("digits", ["vfm"], None, {}, tmp_path / "t.yaml", tmp_path, workers=1)
    with pytest.raises(UserError, match="no section `tuning`"):
        tune("cifar10", None, None, {"data": {"path": str(tmp_path)}}, tmp_path / "t.yaml", tmp_path, workers=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("suite: cifar10\nmethods: {}\n", r"^--out: .*tuned\.yaml belongs to the suite 'cifar10', not 'digits'\."),
        ("suite: digits\n", r"tuned\.yaml: methods is required\."),
        (
            "suite: digits\nmethods:\n  flowdps:\n    denoise: {option: {}}\n",
            r"tuned\.yaml:4: methods\.flowdps\.denoise\.options is",
        ),
        ("suite: [digits\n", r"tuned\.yaml:\d: not valid YAML"),
    ],
)
def test_a_file_that_is_no_place_for_what_is_tuned_is_refused_before_any_trial(tmp_path, text, message):
    (tmp_path / "tuned.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        run_tune(tmp_path)
    assert not (tmp_path / "runs").exists()
