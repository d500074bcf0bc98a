"""What a sweep file comes to: which runs, which trainings, in which folders."""

import json

import pytest

from vfmbench.errors import Status, UserError
from vfmbench.launching.sweep import prepare
from vfmbench.launching.worker import perform, put_other_weights, silent
from vfmbench.options import parse_values

PLAIN = """\
fixed: {num_images: 4, samples: 2, metrics: [psnr]}
grid:
  - method: [vfm, pinv]
    task: [denoise, gaussian_deblur]
    vfm.steps: [1, 2]
  - method: [pinv]
    task: [denoise]
    seed: [0, 1]
"""
TRAINED = """\
fixed: {num_images: 4, samples: 2, metrics: [psnr]}
grid: {method: [vfm, pinv], task: [denoise], vfm.steps: [1, 2]}
train:
  - stage: vfm
    grid: {alpha: [0.5, 1.0], learning_rate: [1.0e-3, 2.0e-3]}
    fixed: {steps: 2, batch_size: 4}
  - stage: vfm
    grid: {alpha: [0.5], learning_rate: [0.001, 0.003]}
    fixed: {steps: 2, batch_size: 4}
"""
FLOW = """\
fixed: {num_images: 4, samples: 2, metrics: [psnr]}
grid: {method: [latent_dps], task: [denoise]}
train: {stage: flow, fixed: {steps: 2}}
"""


@pytest.fixture
def jobs_of(sweep_of):
    return lambda text: sweep_of(text).jobs


def test_a_methods_keys_concern_only_its_runs_and_equal_runs_occur_once(jobs_of):
    jobs = jobs_of(PLAIN)
    found = [(job.runs[0].config.method, job.runs[0].config.task, job.runs[0].config.seed) for job in jobs]
    steps = [job.runs[0].config.options.get("method", {}).get("steps") for job in jobs]
    vfm = [("vfm", task, 0) for task in ("denoise", "gaussian_deblur") for _ in range(2)]
    pinv = [("pinv", "denoise", 0), ("pinv", "gaussian_deblur", 0), ("pinv", "denoise", 1)]
    assert (found, steps) == (vfm + pinv, [1, 2, 1, 2, None, None, None])
    assert len({job.id for job in jobs}) == len({job.label for job in jobs}) == len(jobs)


def test_one_job_for_each_training_and_one_for_runs_without(jobs_of):
    plain, *trained = jobs_of(TRAINED)
    assert plain.training is None
    assert plain.runs[0].config.method == "pinv"
    options = [(job.training.settings["alpha"], job.training.settings["learning_rate"]) for job in trained]
    assert options == [(0.5, 0.001), (0.5, 0.002), (1.0, 0.001), (1.0, 0.002), (0.5, 0.003)]
    assert all(len(job.runs) == 2 for job in trained)
    for job in trained:
        assert {run.config.options["weights"]["path"] for run in job.runs} == {str(job.training.directory)}
    assert [job.id for job in jobs_of(TRAINED)] == [plain.id, *(job.id for job in trained)]


def test_a_trained_job_runs_resumes_and_is_then_finished(jobs_of, tmp_path, quiet):
    job = jobs_of(TRAINED)[1]
    assert perform(job, tmp_path / "sweep", quiet, silent)
    manifest = json.loads((job.training.directory / "manifest.json").read_text())
    options = manifest["vfm"]["training"]["options"]
    assert {key: options[key] for key in job.training.settings} == dict(job.training.settings)
    again = jobs_of(TRAINED)[1]
    assert again.id == job.id
    assert [run.status for run in again.runs] == [Status.DONE, Status.DONE]
    assert not again.open
    state = json.loads((tmp_path / "sweep" / "jobs" / f"{job.id}.json").read_text())
    assert state["state"] == "done"
    assert [run["directory"] for run in state["runs"]] == [str(run.directory) for run in again.runs]


def test_other_weights_lie_beside_the_trained_ones_unless_they_come_from_the_stage(jobs_of):
    training = jobs_of(FLOW)[0].training
    suite = training.build_suite()
    put_other_weights(suite, training)
    assert set(json.loads((training.directory / "manifest.json").read_text())) == {"features"}
    assert suite.with_weights(training.directory).weights.sha256("features") == suite.weights.sha256("features")


def test_a_run_that_fails_leaves_the_others_of_its_job(jobs_of, tmp_path, quiet, monkeypatch):
    job = jobs_of(TRAINED)[1]
    from vfmbench.launching import worker

    real = worker.execute

    def breaks(checked, update):
        if checked.options.steps == 1:
            raise RuntimeError("no luck")
        return real(checked, update)

    monkeypatch.setattr(worker, "execute", breaks)
    assert not perform(job, tmp_path / "sweep", quiet, silent)
    state = json.loads((tmp_path / "sweep" / "jobs" / f"{job.id}.json").read_text())
    assert (state["state"], state["error"]) == ("failed", "RuntimeError: no luck")
    assert [run["status"] for run in state["runs"]] == ["failed", "done"]


def test_resources_come_from_the_profile_the_sweep_and_the_method(jobs_of):
    text = PLAIN + "profile: gpu\nresources: {default: {minutes: 30}, pinv: {gpus: 0}, train: {cpus: 4}}\n"
    found = {job.runs[0].config.method: job.resources for job in jobs_of(text)}
    assert (found["vfm"].gpus, found["vfm"].minutes, found["vfm"].partition) == (1, 30, "gpu")
    assert (found["pinv"].gpus, found["pinv"].minutes) == (0, 30)
    assert jobs_of(TRAINED + "resources: {train: {cpus: 4}}\n")[1].resources.cpus == 4


def test_many_jobs_are_told_apart(jobs_of):
    grid = f"grid: {{method: [vfm, pinv], task: [denoise, gaussian_deblur], seed: {[*range(25)]}}}\n"
    jobs = jobs_of("fixed: {num_images: 4}\n" + grid)
    assert len(jobs) == len({job.id for job in jobs}) == len({job.runs[0].directory for job in jobs}) == 100


def test_what_has_its_default_makes_no_other_job(jobs_of):
    """As of an option that runs did not have when the job was submitted."""
    [job], [same] = (jobs_of(f"grid: {{method: [pinv], task: [denoise]{more}}}\n") for more in ("", ", precision: [float32]"))
    assert job.id == same.id


def test_values_for_all_runs_replace_those_of_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(PLAIN)
    values = parse_values(["num_images=3", "seed=5", "task.noise_std=0.1"])
    jobs = prepare(file, tmp_path, None, values).jobs
    assert len(jobs) == 6
    assert {(run.config.num_images, run.config.seed) for job in jobs for run in job.runs} == {(3, 5)}
    assert all(run.config.options["task"] == {"noise_std": 0.1} for job in jobs for run in job.runs)
    with pytest.raises(UserError, match="--set takes key=value"):
        parse_values(["num_images"])
