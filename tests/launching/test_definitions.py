"""Sweep files: what is wrong is said with its line."""

import pytest

from vfmbench.errors import UserError
from vfmbench.launching.definitions import read_sweep
from vfmbench.launching.expansion import expand

GOOD = """\
fixed: {num_images: 8, samples: 2}
grid:
  method: [vfm, pinv]
  task: [denoise, gaussian_deblur]
  vfm.steps: [1, 2]
"""


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_name_is_the_files_and_a_block_need_not_be_a_list(tmp_path):
    definition = read_sweep(write(tmp_path, GOOD)).definition
    assert definition.name == "mine"
    assert [list(block) for block in definition.grid] == [["method", "task", "vfm.steps"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("grid:", "gird:"), "line 2: Unknown key 'gird'. Did you mean 'grid'?"),
        (GOOD + "train:\n  - stage: vfm\n    gird: {alpha: [1]}\n", "line 8: Unknown key 'gird'. Did you mean 'grid'?"),
        (GOOD.replace("[1, 2]", "[]"), "line 5: grid.vfm.steps is empty"),
        ("grid: {}\n", "line 1: grid is empty"),
        ("grid: []\n", "line 1: grid is empty"),
        ("fixed: {seed: 1}\n", "grid is required"),
        (GOOD.replace("[1, 2]", "1"), "line 5: grid.vfm.steps: Input should be a valid list, got 1."),
        (GOOD + "grid: {seed: [1]}\n", "line 6: the key 'grid' already stands in line 2."),
        (GOOD + "  - a\n", "line 6: not YAML"),
        ("- 1\n", "a sweep file is a mapping"),
        ("name: a/b\n" + GOOD, "line 1: name: String should match pattern"),
    ],
)
def test_wrong_file(tmp_path, text, message):
    with pytest.raises(UserError, match=r"mine\.yaml") as caught:
        read_sweep(write(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("task:", "tsk:"), "line 4: Unknown key 'tsk'. Did you mean 'task'"),
        (GOOD.replace("vfm.steps", "vmf.steps"), "line 5: Unknown section 'vmf'. Did you mean 'vfm'"),
        (GOOD.replace("vfm.steps", "vfm.stps"), "line 5: Unknown key 'method.stps'. Did you mean 'method.steps'"),
        (GOOD.replace("[1, 2]", "[1, 0]"), "line 5: method.steps"),
        (GOOD.replace("pinv", "pinw"), "line 3: Unknown method 'pinw'. Did you mean"),
        (GOOD.replace("denoise", "denoize"), "line 4: Unknown task 'denoize'. Did you mean 'denoise'"),
        (GOOD.replace("num_images: 8", "num_images: 0"), "line 1: num_images"),
        (GOOD + "train: {stage: vmf}\n", "line 6: Unknown training stage of the suite digits 'vmf'. Did you mean 'vfm'"),
        (GOOD + "train:\n  stage: vfm\n  grid:\n    tau: [1]\n", "line 9: Unknown key 'vfm.tau'"),
        (GOOD + "train:\n  stage: vfm\n  fixed:\n    steps: 0\n", "line 9: vfm.steps"),
        (GOOD + "profile: none\n", "line 6: Unknown profile 'none'"),
        (GOOD + "resources:\n  vmf: {cpus: 2}\n", "line 7: Unknown resources 'vmf'. Did you mean 'vfm'"),
        (GOOD + "resources:\n  vfm:\n    cpu: 2\n", "line 8: Unknown key 'resources.cpu'"),
        (GOOD + "resources:\n  vfm: {cpus: 0}\n", "line 7: resources.cpus"),
        (GOOD + "resources:\n  vfm:\n    shards: 3\n", "line 8: shards: 3 processes cannot share 1 batches of"),
        (GOOD + "train: {stage: features}\n", "line 6: no method of the grid reads the weights features."),
    ],
)
def test_wrong_values(tmp_path, text, message):
    with pytest.raises(UserError, match=r"mine\.yaml") as caught:
        expand(read_sweep(write(tmp_path, text)))
    assert message in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="Cannot read the sweep file"):
        read_sweep(tmp_path / "none.yaml")
