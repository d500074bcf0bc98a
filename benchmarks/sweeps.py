"""Times what `vfmbench sweep` and `vfmbench status` do without running anything: planning many jobs, reading their states.

    python benchmarks/sweeps.py [--jobs 1000] [--metrics 30]

Prints processor seconds. The runs are made up: a finished run's two JSON files, with as many metrics as asked for.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from vfmbench.errors import Status
from vfmbench.launching import status
from vfmbench.launching.sweep import Sweep, prepare
from vfmbench.results.run_directory import RunStore
from vfmbench.results.schema import MetricRow, MetricSpec, metrics_json

SWEEP = "out: {out}\nfixed: {{num_images: 4}}\ngrid: {{method: [vfm, pinv], task: [denoise, gaussian_deblur], seed: {seeds}}}\n"


def finish(sweep: Sweep, metrics: int) -> None:
    """Writes what status reads of every job and run, as if all had ended well."""
    sweep.record.write_plan(sweep.jobs)
    names = [f"m{number}" for number in range(metrics)]
    rows = [MetricRow(name=name, metric="m", value=1.0, low=0.0, high=2.0, spec=MetricSpec(name=name)) for name in names]
    jobs = sweep.record.folder / "jobs"
    jobs.mkdir()
    for job in sweep.jobs:
        own: dict[str, object] = {"state": "done", "slurm": None, "node": "n", "process": 1, "seconds": 1.0, "runs": [{}]}
        (jobs / f"{job.id}.json").write_text(json.dumps(own))
        directory = job.runs[0].directory
        assert directory is not None
        directory.mkdir(parents=True)
        store = RunStore(directory)
        store.write_provenance({"status": Status.DONE})
        store.paths.metrics.write_bytes(metrics_json(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--metrics", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.yaml"
        path.write_text(SWEEP.format(out=folder, seeds=[*range(arguments.jobs // 4)]))
        start = time.process_time()
        sweep = prepare(path)
        print(f"planning {len(sweep.jobs)} jobs: {time.process_time() - start:.2f} s")
        finish(sweep, arguments.metrics)
        start = time.process_time()
        rows = status.rows(sweep.record)
        status.write_csv(sweep.record, rows)
        print(f"status of {len(rows)} runs with {arguments.metrics} metrics each: {time.process_time() - start:.2f} s")


if __name__ == "__main__":
    main()
