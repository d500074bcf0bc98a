"""Run directories with numbers that were chosen, not sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vfmbench.config import RunIdentity
from vfmbench.errors import Status
from vfmbench.interfaces import MetricValue
from vfmbench.results.run_directory import RunStore
from vfmbench.results.stored import StoredRun


@pytest.fixture
def make_run(tmp_path) -> Callable[..., StoredRun]:
    """`make_run(method, values, **identity)`: a stored run with the given metric values, of images 0..n-1 or `index`."""

    def make(
        method: str,
        values: Sequence[MetricValue] = (),
        *,
        options: dict | None = None,
        status: Status = Status.DONE,
        index: Sequence[int] | None = None,
        out: Path = tmp_path,
        **changes,
    ) -> StoredRun:
        n = max((value.n for value in values), default=4)
        fields = {
            "suite": "digits",
            "suite_options": {},
            "dataset_sha256": "d" * 64,
            "split": "test",
            "task": "denoise",
            "problem": "denoise",
            "task_options": {"noise_std": 0.1},
            "method": method,
            "method_options": options or {},
            "plugin_sha256": {},
            "weights_sha256": {},
            "num_images": n,
            "samples": 10,
            "seed": 0,
        }
        identity = RunIdentity(**{**fields, **changes})
        store = RunStore.at(out, identity)
        (store.directory / "samples").mkdir(parents=True)
        store.write_config(identity)
        store.write_provenance({"status": status, "note": ""})
        store.write_metrics({value.name: [value] for value in values}, list(index or range(n)))
        return StoredRun.read(store)

    return make
