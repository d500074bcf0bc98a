"""Sweep files: what is wrong is said with its line."""

import pytest

from vfmbench.config import RunConfig
from vfmbench.errors import UserError
from vfmbench.launching.definitions import read_sweep
from vfmbench.launching.expansion import RUN_KEYS, expand

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
        (GOOD.replace("grid:", "gird:"), "mine.yaml:2: Unknown key 'gird'. Did you mean 'grid'?"),
        (
            GOOD + "train:\n  - stage: vfm\n    gird: {alpha: [1]}\n",
            "mine.yaml:8: Unknown key 'train.gird'. Did you mean 'train.grid'?",
        ),
        (GOOD.replace("[1, 2]", "[]"), "mine.yaml:5: grid.vfm.steps is empty"),
        ("grid: {}\n", "mine.yaml:1: grid is empty"),
        ("grid: []\n", "mine.yaml:1: grid is empty"),
        ("fixed: {seed: 1}\n", "grid is required"),
        (GOOD.replace("[1, 2]", "1"), "mine.yaml:5: grid.vfm.steps: Input should be a valid list, got 1."),
        (GOOD + "grid: {seed: [1]}\n", "mine.yaml:6: the key 'grid' already stands in line 2."),
        (GOOD + "  - a\n", "mine.yaml:6: not valid YAML"),
        ("- 1\n", "a sweep file must be a mapping"),
        ("name: a/b\n" + GOOD, "mine.yaml:1: name: must consist of letters, digits"),
    ],
)
def test_wrong_file(tmp_path, text, message):
    with pytest.raises(UserError, match=r"mine\.yaml") as caught:
        read_sweep(write(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("task:", "tsk:"), "mine.yaml:4: Unknown key 'tsk'. Did you mean 'task'"),
        (GOOD.replace("vfm.steps", "vmf.steps"), "mine.yaml:5: Unknown section 'vmf'. Did you mean 'vfm'"),
        (GOOD.replace("vfm.steps", "vfm.stps"), "mine.yaml:5: Unknown key 'method.stps'. Did you mean 'method.steps'"),
        (GOOD.replace("[1, 2]", "[1, 0]"), "mine.yaml:5: method.steps"),
        (GOOD.replace("pinv", "pinw"), "mine.yaml:3: Unknown method 'pinw'. Did you mean"),
        (GOOD.replace("denoise", "denoize"), "mine.yaml:4: Unknown task 'denoize'. Did you mean 'denoise'"),
        (GOOD.replace("num_images: 8", "num_images: 0"), "mine.yaml:1: num_images"),
        (GOOD + "train: {stage: vmf}\n", "mine.yaml:6: Unknown training stage of the suite digits 'vmf'. Did you mean 'vfm'"),
        (GOOD + "train:\n  stage: vfm\n  grid:\n    tau: [1]\n", "mine.yaml:9: Unknown key 'vfm.tau'"),
        (GOOD + "train:\n  stage: vfm\n  fixed:\n    steps: 0\n", "mine.yaml:9: vfm.steps"),
        (GOOD + "profile: none\n", "mine.yaml:6: Unknown profile 'none'"),
        (GOOD + "resources:\n  vmf: {cpus: 2}\n", "mine.yaml:7: Unknown resources 'vmf'. Did you mean 'vfm'"),
        (GOOD + "resources:\n  vfm:\n    cpu: 2\n", "mine.yaml:8: Unknown key 'resources.cpu'"),
        (GOOD + "resources:\n  vfm: {cpus: 0}\n", "mine.yaml:7: resources.cpus"),
        (GOOD + "resources:\n  vfm:\n    shards: 3\n", "mine.yaml:8: shards: 3 processes cannot share 1 batches of"),
        (GOOD + "train: {stage: features}\n", "mine.yaml:6: no method of the grid reads the weights features."),
        (GOOD.replace("samples: 2", "suite: digit"), "mine.yaml:1: Unknown suite 'digit'. Did you mean 'digits'"),
        (GOOD.replace("samples: 2", "metrics: [psnr, sssim]"), "mine.yaml:1: Unknown metric 'sssim'. Did you mean 'ssim'"),
        (GOOD.replace("samples: 2", "preset: papr"), "mine.yaml:1: Unknown preset 'papr'. Did you mean 'paper'"),
        (GOOD.replace("samples: 2", "device: gpu"), "mine.yaml:1: device: Input should be 'auto', 'cpu' or 'cuda', got 'gpu'"),
        (GOOD.replace("images: 8", "images: 100000"), "mine.yaml:1: --num-images: the test split of digits has 360 images"),
        (GOOD.replace("samples: 2", "fresh: true"), "mine.yaml:1: Unknown key 'fresh'"),
        (
            GOOD.replace("denoise, ", "") + "  task.kernel_size: [3, 4]\n",
            "mine.yaml:6: gaussian_deblur: kernel_size must be odd, not 4",
        ),
    ],
)
def test_wrong_values(tmp_path, text, message):
    with pytest.raises(UserError, match=r"mine\.yaml") as caught:
        expand(read_sweep(write(tmp_path, text)))
    assert message in str(caught.value)


def expanded(tmp_path, text, **values):
    return expand(read_sweep(write(tmp_path, text)).fixing(values))


def test_the_line_is_that_of_the_wrong_entry_in_the_block_that_has_it(tmp_path):
    """Also where another block has the same key, and where the words of the message stand elsewhere too."""
    blocks = """\
name: denoize
grid:
  - method: [pinv]
    task: [denoise]
  - method:
      - pinv
      - vfm
    task:
      - denoise
      - denoize
"""
    with pytest.raises(UserError, match=r"mine\.yaml:10: Unknown task 'denoize'"):
        expanded(tmp_path, blocks)
    with pytest.raises(UserError, match=r"mine\.yaml:7: Unknown method 'vmf'"):
        expanded(tmp_path, blocks.replace("- vfm", "- vmf"))


def test_a_value_for_all_runs_is_not_blamed_on_the_file(tmp_path):
    for values, message in (
        ({"num_images": 0}, "^--set: num_images: Input should be greater than or equal to 1, got 0"),
        ({"task": "denoize"}, "^--set: Unknown task 'denoize'"),
        ({"tsk": "denoise"}, "^--set: Unknown key 'tsk'"),
    ):
        with pytest.raises(UserError, match=message):
            expanded(tmp_path, GOOD, **values)
    with pytest.raises(UserError, match=r"^Unknown profile 'gpus'\. Did you mean 'gpu'"):
        expand(read_sweep(write(tmp_path, GOOD)).changed(profile="gpus"))


def test_every_option_of_a_run_is_a_key_of_a_sweep(tmp_path):
    """But for the three that a sweep says otherwise or must not take; an option that is added later is one too."""
    assert {*RUN_KEYS} == {*RunConfig.model_fields} - {"options", "out", "fresh"}
    [job] = expanded(
        tmp_path, "grid: {method: [vfm], task: [denoise], precision: [bfloat16], compile: [true], batch_size: [auto]}"
    )
    config = job.runs[0].config
    assert (config.precision, config.compile, config.batch_size) == ("bfloat16", True, None)
    [plain] = expanded(tmp_path, "grid: {method: [vfm], task: [denoise]}")
    assert plain.runs[0].directory != job.runs[0].directory


def test_devices_of_other_machines_are_not_asked_here(tmp_path, monkeypatch):
    """A login node has no GPU, and a job in float16 needs one."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    text = "grid: {method: [vfm], task: [denoise]}\nfixed:\n  precision: float16\n  device: cuda\n"
    sweep = read_sweep(write(tmp_path, text))
    with pytest.raises(UserError, match=r"mine\.yaml:4: --device cuda: no CUDA device"):
        expand(sweep)
    [job] = expand(sweep, elsewhere=True)
    assert job.runs[0].config.precision == "float16"
    with pytest.raises(UserError, match=r"mine\.yaml:3: --precision float16 needs a CUDA device"):
        expand(read_sweep(write(tmp_path, text.replace("  device: cuda\n", ""))))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="Cannot read the sweep file"):
        read_sweep(tmp_path / "none.yaml")
