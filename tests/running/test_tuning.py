"""`vfmbench tune`: what it chooses, what it writes, and that it can be stopped and repeated."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from vfmbench.baselines.flowdps import FlowDPS
from vfmbench.baselines.reference import PseudoInverse
from vfmbench.cli import main
from vfmbench.config import RunConfig
from vfmbench.errors import MissingError, UserError
from vfmbench.interfaces import MethodGrid
from vfmbench.options import validate
from vfmbench.registry import load_suite, samplers
from vfmbench.results.paths import RunPaths
from vfmbench.running.plan import plan
from vfmbench.running.tuning import TuningOptions, grids_of, tune
from vfmbench.tuned import TunedEntry, tuned_file

GRIDS = files("vfmbench.baselines") / "grids"
EVIDENCE = Path(__file__).parents[2] / "results" / "tuned"

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
    options = {"tuning": {**GRID, **overrides}}
    return tune("digits", None, None, options, folder / "tuned.yaml", folder / "trials.yaml", folder / "runs", workers=1)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    return folder, run_tune(folder)


def test_the_choice_minimises_the_objective_and_comes_with_every_trial(tuned):
    folder, _ = tuned
    chosen, trials = (yaml.safe_load((folder / name).read_text()) for name in ("tuned.yaml", "trials.yaml"))
    assert chosen["suite"] == trials["suite"] == "digits"
    entry, evidence = (content["methods"]["flowdps"]["denoise"] for content in (chosen, trials))
    assert set(entry) == {"options", "at_the_edge_of_the_grid", "weights_sha256"}
    assert entry["options"] == {"steps": 3, "guidance_scale": 1.0, "step_size": 0.5}
    assert entry["at_the_edge_of_the_grid"] == []
    scores = [trial["objective"] for trial in evidence["trials"]]
    assert scores[1] == min(score for score in scores if score is not None)
    assert evidence["grid"] == {"step_size": [0.0, 0.5, 1e30]}
    assert evidence["protocol"] == {"split": "validation", "num_images": 2, "samples": 2, "seed": 0}


def test_a_setting_that_diverges_cannot_be_chosen(tuned):
    trial = tuned[1]["flowdps", "denoise"].evidence["trials"][2]
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
    assert again["flowdps", "denoise"] == first["flowdps", "denoise"]


def test_methods_without_a_name_are_those_with_a_grid_for_the_suite(monkeypatch):
    class Mine(PseudoInverse):
        @classmethod
        def grid(cls, method, suite):
            return MethodGrid(grid={method: (1, 2)}) if suite == "gaussian" else None

    monkeypatch.setitem(samplers._registered, "mine", Mine)
    monkeypatch.setitem(samplers._registered, "renamed", FlowDPS)
    solvers = ["flowchef", "flowdps", "latent_daps", "latent_dps", "mpgd", "psld"]
    for suite, names in (
        ("gaussian", [*solvers[:4], "mine", *solvers[4:]]),
        ("digits", solvers),
        ("photos64", [*solvers, "tikhonov"]),
        ("cifar10", []),
    ):
        tuning = validate(TuningOptions, load_suite("digits").tuning)
        assert list(grids_of(suite, tuning)) == names
    assert grids_of("gaussian", tuning)["mine"].grid == {"mine": (1, 2)}
    own = {"pinv": MethodGrid(grid={"x": (1,)})}
    assert grids_of("digits", tuning.model_copy(update={"methods": own})) == own


@pytest.mark.parametrize("suite", ["digits", "gaussian", "mixture", "photos64"])
def test_every_shipped_grid_is_of_a_method_and_has_its_options(suite):
    tuning = validate(TuningOptions, load_suite(suite).tuning)
    content = yaml.safe_load((GRIDS / f"{suite}.yaml").read_text())["methods"]
    assert list(content) == list(grids_of(suite, tuning))
    for method, grid in grids_of(suite, tuning).items():
        for name, values in grid.grid.items():
            for value in values:
                validate(samplers.get(method).Options, {**grid.fixed, name: value}, "method.")


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


@pytest.mark.parametrize("suite", ["digits", "gaussian", "mixture", "photos64"])
def test_a_shipped_choice_is_one_of_its_trials(suite):
    chosen, trials = (yaml.safe_load(path.read_text())["methods"] for path in (tuned_file(suite), EVIDENCE / f"{suite}.yaml"))
    assert {method: set(tasks) for method, tasks in chosen.items()} == {method: set(tasks) for method, tasks in trials.items()}
    for method, tasks in chosen.items():
        for task, entry in tasks.items():
            assert set(entry) <= set(TunedEntry.model_fields)
            evidence = trials[method][task]
            best = min((trial for trial in evidence["trials"] if trial["objective"] is not None), key=lambda t: t["objective"])
            assert {name: entry["options"][name] for name in evidence["grid"]} == {
                name: best[name] for name in evidence["grid"]
            }


def test_unknown_names_and_suites_without_grids_are_refused(tmp_path):
    with pytest.raises(UserError, match="method to tune 'vfm'"):
        tune("digits", ["vfm"], None, {}, tmp_path / "t.yaml", tmp_path / "u.yaml", tmp_path, workers=1)
    with pytest.raises(UserError, match="no section `tuning`"):
        tune(
            "cifar10",
            None,
            None,
            {"data": {"path": str(tmp_path)}},
            tmp_path / "t.yaml",
            tmp_path / "u.yaml",
            tmp_path,
            workers=1,
        )


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


@pytest.mark.parametrize("name", ["tuned", "trials"])
def test_a_file_that_cannot_be_written_is_refused_before_any_trial(tmp_path, name):
    (tmp_path / f"{name}.yaml").mkdir()
    with pytest.raises(UserError, match=rf"^--{name.replace('tuned', 'out')}: .*{name}\.yaml"):
        run_tune(tmp_path)
    assert not (tmp_path / "runs").exists()


def test_choices_and_trials_are_two_files(tmp_path):
    with pytest.raises(UserError, match=r"^--trials: .* is --out too"):
        tune("digits", None, None, {"tuning": GRID}, tmp_path / "t.yaml", tmp_path / "t.yaml", tmp_path / "runs", workers=1)


def test_the_command_writes_where_the_preset_reads(tmp_path, monkeypatch):
    monkeypatch.setattr("vfmbench.tuned.files", lambda package: tmp_path / package)
    monkeypatch.chdir(tmp_path)
    config = RunConfig(method="tikhonov", task="denoise", preset="tuned", out=tmp_path)
    assert plan(config).identity.method_options["prior_std"] == 0.5
    values = {**GRID, "num_images": 2, "methods": {"tikhonov": {"grid": {"prior_std": [0.3]}}}}
    settings = [word for key, value in values.items() for word in ("--set", f"tuning.{key}={json.dumps(value)}")]
    assert main(["tune", "--workers", "1", *settings]) == 0
    assert plan(config).identity.method_options["prior_std"] == 0.3
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.yaml") if "tuning" not in path.parts}
    assert written == {"vfmbench/baselines/tuned/digits.yaml", "results/tuned/digits.yaml"}
    assert main(["tune", "--workers", "1", *settings, "--out", "mine.yaml"]) == 0
    assert (tmp_path / "results/tuned/mine.yaml").is_file()
