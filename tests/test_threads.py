"""Threads are settled before torch is imported, in every process, and never against the user."""

import json
import os
import subprocess
import sys

import pytest

from vfmbench import threads

PRINT = "import vfmbench, json, os; from vfmbench import threads; print(json.dumps(threads.in_force()))"


def in_a_process(code: str = PRINT, **variables: str) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key not in threads.VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, **variables}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_waiting_threads_sleep():
    found = in_a_process()
    assert found["OMP_WAIT_POLICY"] == "passive"
    assert int(found["GOMP_SPINCOUNT"]) < 300_000  # libgomp's own


@pytest.mark.parametrize(
    "set_by_user", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "200"}, {"OMP_NUM_THREADS": "5"}]
)
def test_what_the_user_has_set_stays(set_by_user):
    found = in_a_process(**set_by_user)
    assert {name: found[name] for name in set_by_user} == set_by_user
    if "OMP_NUM_THREADS" not in set_by_user:
        assert "OMP_WAIT_POLICY" not in found or set_by_user.get("OMP_WAIT_POLICY") == found["OMP_WAIT_POLICY"]


def test_a_torch_that_was_there_first_is_told():
    assert "no effect" in in_a_process("import torch; " + PRINT)["settled"]
    assert "settled" not in in_a_process()


def test_importing_the_package_imports_no_torch():
    assert in_a_process("import vfmbench, sys, json; print(json.dumps({'torch': 'torch' in sys.modules}))") == {"torch": False}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n1:memory:/docker/x\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({}, None),
    ],
)
def test_quotas_of_containers(tmp_path, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads._quota(tmp_path) == quota


def test_there_is_at_least_one_core():
    assert 1 <= threads.usable_cores() <= (os.cpu_count() or 1)


def test_workers_share_the_cores_and_keep_what_the_user_asked_for(monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    for asked, workers, expected in (("", 2, 4), ("", 16, 1), ("2", 2, 2), ("64", 2, 4), ("4,2", 2, 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert threads.of_a_worker(workers) == expected
