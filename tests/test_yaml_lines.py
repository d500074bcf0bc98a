"""The reader of YAML files that knows the line of everything in them."""

import pytest
from pydantic import Field

from vfmbench.errors import MissingError, UserError
from vfmbench.options import Options
from vfmbench.yaml_lines import read_yaml

TEXT = """\
# a comment
name: mine

grid:
  - vfm.steps: [1, 2]
    task:
      - denoise
      - inpaint_box
shared: &shared {seed: 1}
other:
  <<: *shared
  std: 2
"""


class Block(Options):
    size: int = Field(1, ge=1)


class Schema(Options):
    name: str
    blocks: list[Block] = Field(default_factory=list, min_length=1)
    by_name: dict[str, Block] = Field(default_factory=dict)


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_yaml(path, "test file")

    return read


def test_content_is_what_yaml_says_and_every_place_has_its_line(read):
    file = read(TEXT)
    assert file.content["grid"] == [{"vfm.steps": [1, 2], "task": ["denoise", "inpaint_box"]}]
    assert file.content["other"] == {"seed": 1, "std": 2}
    wanted = {"name": 2, "grid": 4, "grid.0": 5, "grid.0.vfm.steps.1": 5, "grid.0.task": 6, "grid.0.task.1": 8, "other.std": 12}
    assert {place: file.line(place) for place in wanted} == wanted


def test_what_the_file_does_not_hold_has_the_line_of_what_is_above_it(read):
    file = read(TEXT)
    assert (file.line("grid.0.seed"), file.line("other.size.width"), file.line("train"), file.line("")) == (5, 10, None, None)
    # An entry of a list that was left out because it has one entry.
    assert read("grid: {task: [a]}").line("grid.0.task") == 1


def test_errors_name_file_and_line_and_stay_what_they_are(read):
    file = read(TEXT)
    error = file.error("wrong.", "other.std")
    assert (str(error), error.key) == (f"{file.path}:12: wrong.", "other.std")
    located = file.located(MissingError("lost.", "name"))
    assert (str(located), type(located)) == (f"{file.path}:2: lost.", MissingError)
    assert str(file.located(UserError("vague."))) == f"{file.path}: vague."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nsize: 1\n", r"mine\.yaml:2: Unknown key 'size'\. Available: blocks, by_name, name\.$"),
        ("nmae: a\n", r"mine\.yaml:1: Unknown key 'nmae'\. Did you mean 'name' or 'by_name'\?"),
        ("blocks: [{}]\n", r"mine\.yaml: name is required\.$"),
        (
            "name: a\nblocks:\n- {size: 2}\n- siez: 2\n",
            r"mine\.yaml:4: Unknown key 'blocks\.siez'\. Did you mean 'blocks\.size'",
        ),
        ("name: a\nblocks:\n- size: 2\n- size: 0\n", r"mine\.yaml:4: blocks\.size: .*greater than or equal to 1, got 0\."),
        ("name: a\nblocks: []\n", r"mine\.yaml:2: blocks is empty; it takes at least 1\."),
        (
            "name: a\nby_name:\n  x: {}\n  y: {siez: 1}\n",
            r"mine\.yaml:4: Unknown key 'by_name\.y\.siez'\. Did you mean 'by_name\.y\.size'",
        ),
    ],
)
def test_a_block_of_options_is_refused_with_the_line(read, text, message):
    with pytest.raises(UserError, match=message):
        read(text).validate(Schema)


def test_defaults_stand_below_the_file(read):
    assert read("blocks: [{}]").validate(Schema, {"name": "file"}).name == "file"
    assert read("name: own").validate(Schema, {"name": "file"}).name == "own"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"mine\.yaml:3: the key 'a' already stands in line 1\.$"),
        ("x:\n  a: 1\n  a: 2\n", r"mine\.yaml:3: the key 'a' already stands in line 2\.$"),
        ("a: 1\n2: 3\n", r"mine\.yaml:2: keys must be plain names\.$"),
        ("a: 1\n? [b]\n: 2\n", r"mine\.yaml:2: keys must be plain names\.$"),
        ("a: &a [*a]\n", r"mine\.yaml:1: this anchor refers to itself\.$"),
        ("- a\n", r"mine\.yaml: a test file must be a mapping of keys to values, not \['a'\]\.$"),
        ("a: 1\n  b: [\n", r"mine\.yaml:2: not valid YAML: "),
        ("a: 1\n---\nb: 2\n", r"mine\.yaml:\d: not valid YAML: "),
        ("a: !!python/object/apply:os.getcwd []\n", r"mine\.yaml:1: not valid YAML: "),
        ("a: \x01\n", r"mine\.yaml: not valid YAML: "),
        (b"\xff\xfe\xff", r"Cannot read the test file .*mine\.yaml: it is not a text file\.$"),
    ],
)
def test_what_is_no_file_of_options_is_refused(read, text, message):
    with pytest.raises(UserError, match=message):
        read(text)


def test_equal_keys_of_different_mappings_are_no_mistake_and_nothing_is_an_empty_mapping(read):
    assert read("a: {x: 1}\nb: {x: 2}\n").content == {"a": {"x": 1}, "b": {"x": 2}}
    assert read("").content == read("# nothing\n").content == {}


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read the test file .*none\.yaml: No such file or directory\."):
        read_yaml(tmp_path / "none.yaml", "test file")
