"""Tasks from a user's YAML file."""

import pytest
import torch

from vfmbench.errors import UserError
from vfmbench.tasks.problems import Denoise, GaussianDeblur
from vfmbench.tasks.task_file import load_task_file

PROBLEMS = {"denoise": Denoise, "gaussian_deblur": GaussianDeblur}
GOOD = """\
# a mild blur
name: light_blur
task: gaussian_deblur
options:
  kernel_size: 5
  std: 1.5
"""


@pytest.fixture
def load(tmp_path):
    def load(text, overrides=None, shape=(1, 8, 8)):
        (tmp_path / "mine.yaml").write_text(text)
        return load_task_file(tmp_path / "mine.yaml", shape, overrides or {}, PROBLEMS, {})

    return load


def test_a_file_becomes_a_task(load):
    task = load(GOOD)
    assert (task.name, task.condition) == ("light_blur", "gaussian_deblur")
    assert (task.options.kernel_size, task.options.std, task.options.noise_std) == (5, 1.5, 0.05)
    index = torch.arange(2)
    images = torch.zeros(2, 1, 8, 8)
    builtin = GaussianDeblur((1, 8, 8), GaussianDeblur.Options(kernel_size=5, std=1.5))
    assert torch.equal(task.measure(images, index, index, 0).y, builtin.measure(images, index, index, 0).y)


@pytest.mark.parametrize("text", ["task: denoise\n", "task: denoise\noptions:\n", "task: denoise\noptions: {}\n"])
def test_name_and_options_are_optional(load, text):
    task = load(text)
    assert (task.name, task.options) == ("mine", Denoise.Options())


def test_overrides_replace_the_files_options(load):
    options = load(GOOD, {"std": 0.5, "noise_std": 0}).options
    assert (options.kernel_size, options.std, options.noise_std) == (5, 0.5, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: denoise\nnoise: 3\n", r"mine\.yaml:2: Unknown key 'noise'.*Available: name, options, task"),
        ("task: denoise\n\noption: {}\n", r"mine\.yaml:3: Unknown key 'option'\. Did you mean 'options'\?"),
        ("name: x\ntask: denois\n", r"mine\.yaml:2: Unknown task 'denois'\. Did you mean 'denoise'\?"),
        ("task: [1, 2]\n", r"mine\.yaml:1: task: Input should be a valid string, got \[1, 2\]"),
        ("name: x\n", r"mine\.yaml: task is required, one of denoise, gaussian_deblur"),
        (GOOD.replace("std:", "sdt:"), r"mine\.yaml:6: Unknown key 'options\.sdt'\. Did you mean 'options\.std'\?"),
        (GOOD.replace("1.5", "-1.5"), r"mine\.yaml:6: options\.std: .*greater than 0, got -1\.5"),
        (GOOD.replace("1.5", "wide"), r"mine\.yaml:6: options\.std: .*number.*, got 'wide'"),
        (GOOD.replace("size: 5", "size: 4"), r"mine\.yaml:5: light_blur: kernel_size must be odd, not 4"),
        (GOOD + "  std: 2\n", r"mine\.yaml:7: the key 'std' already stands in line 6"),
        (GOOD + "task: denoise\n", r"mine\.yaml:7: the key 'task' already stands in line 3"),
        ("task: denoise\noptions: [1]\n", r"mine\.yaml:2: options: Input should be a valid dictionary, got \[1\]"),
        ("task: denoise\nname: 3\n", r"mine\.yaml:2: name: Input should be a valid string, got 3"),
        ("task: denoise\n1: 2\n", r"mine\.yaml:2: keys must be plain names"),
        ("task: denoise\n? [a]\n: 2\n", r"mine\.yaml:2: keys must be plain names"),
        ("- denoise\n", "must be a mapping"),
        ("denoise\n", "must be a mapping"),
        ("", "task is required"),
        ("task: denoise\n  x: [\n", r"mine\.yaml:2: not valid YAML"),
        ("task: !!python/object/apply:os.getcwd []\n", r"mine\.yaml:1: not valid YAML"),
        ("task: denoise\n---\ntask: denoise\n", r"mine\.yaml:\d+: not valid YAML"),
    ],
)
def test_mistakes_are_named_with_their_line(load, text, message):
    with pytest.raises(UserError, match=message):
        load(text)


def test_a_wrong_override_is_not_blamed_on_the_file(load):
    with pytest.raises(UserError, match=r"^Unknown key 'task\.sdt'\. Did you mean 'task\.std'"):
        load(GOOD, {"sdt": 1})
    with pytest.raises(UserError, match=r"^task\.std: Input should be greater than 0, got 0"):
        load(GOOD, {"std": 0})
    with pytest.raises(UserError, match=r"^light_blur: kernel_size must be odd, not 4"):
        load(GOOD, {"kernel_size": 4})


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read the task file .*missing\.yaml: No such file"):
        load_task_file(tmp_path / "missing.yaml", (1, 8, 8), {}, PROBLEMS, {})
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"Cannot read the task file .*binary\.yaml: it is not a text file"):
        load_task_file(tmp_path / "binary.yaml", (1, 8, 8), {}, PROBLEMS, {})


def test_suite_defaults_lie_below_the_files_options(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("task: gaussian_deblur\noptions: {std: 2.0}\n")
    defaults = {"gaussian_deblur": {"std": 1.0, "kernel_size": 7, "noise_std": 0.1}}
    options = load_task_file(path, (1, 8, 8), {"noise_std": 0.2}, PROBLEMS, defaults).options
    assert (options.std, options.kernel_size, options.noise_std) == (2.0, 7, 0.2)


def test_name_must_be_fit_for_a_folder(load):
    with pytest.raises(UserError, match=r"mine\.yaml:1: name: must consist of letters"):
        load("name: ../up\ntask: denoise\n")
