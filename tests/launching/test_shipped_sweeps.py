"""The sweep files of slurm/ against what they say they do."""

from pathlib import Path

from vfmbench.launching.definitions import read_sweep
from vfmbench.launching.expansion import expand
from vfmbench.options import validate
from vfmbench.registry import suites
from vfmbench.running.plan import plan
from vfmbench.running.tuning import TuningOptions, grids_of, trials_of

SWEEPS = Path(__file__).parents[2] / "slurm"


def test_the_sweep_of_photos64s_trials_is_what_tuning_runs():
    """Equal identities are equal directories, so that `vfmbench tune` finds the sweep's runs done."""
    suite = suites.get("photos64")({})
    tuning = validate(TuningOptions, suite.tuning, "tuning.")
    jobs = expand(read_sweep(SWEEPS / "tune_photos64.yaml"))
    swept = {plan(run.config, suite).identity.model_dump_json() for job in jobs for run in job.runs}
    tuned = {
        plan(trial.config, suite).identity.model_dump_json()
        for method, grid in grids_of("photos64", tuning).items()
        for task in tuning.tasks
        for trial in trials_of("photos64", method, grid, task, tuning, {}, Path("results/runs"))
    }
    assert swept == tuned
    assert len(tuned) == 5 * (4 * 4 + 2 * 5 + 9)
