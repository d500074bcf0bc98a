"""Options blocks: what is wrong with one is a sentence, and the key that it is about."""

import pickle

import pytest
from pydantic import Field

from vfmbench.errors import MissingError, UserError, about
from vfmbench.options import FolderName, Options, SamplerOptions, parse_overrides, parse_values, validate


class Block(Options):
    size: int = Field(ge=1)
    width_of_all: float = 1.0
    name: FolderName = "x"


def refused(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value), caught.value.key


@pytest.mark.parametrize(
    ("values", "prefix", "message", "key"),
    [
        ({"size": 0}, "task.", "task.size: Input should be greater than or equal to 1, got 0.", "task.size"),
        ({"size": 1, "width_of_all": "x"}, "--", "--width-of-all: Input should be a valid number", "width_of_all"),
        ({"siez": 1}, "", "Unknown key 'siez'. Did you mean 'size'? Available: name, size, width_of_all.", "siez"),
        (
            {"siez": 1},
            "a.",
            "Unknown key 'a.siez'. Did you mean 'a.size'? Available: a.name, a.size, a.width_of_all.",
            "a.siez",
        ),
        ({}, "task.", "task.size is required.", "task.size"),
        ({"size": 1, "name": "../up"}, "", "name: must consist of letters, digits, '_', '.' and '-'", "name"),
        ({"size": 1, "width_of_all": float("nan")}, "", "width_of_all: Input should be a finite number", "width_of_all"),
    ],
)
def test_a_mistake_names_the_field_what_is_allowed_and_its_key(values, prefix, message, key):
    found = refused(validate, Block, values, prefix)
    assert found[0].startswith(message)
    assert found[1] == key


def test_many_mistakes_are_cut_short():
    message, key = refused(validate, Block, {letter: 1 for letter in "abcde"} | {"size": 1})
    assert message.count("Unknown key") == 3
    assert message.endswith(" And 2 more.")
    assert key == "a"


def test_a_sampler_without_options_takes_none():
    assert validate(SamplerOptions, {}) == SamplerOptions()
    assert refused(validate, SamplerOptions, {"steps": 1}, "method.") == (
        "Unknown key 'method.steps'. Available: none.",
        "method.steps",
    )


def test_values_are_yaml_and_overrides_go_by_section():
    assert parse_values(["a=1", "b.c=[x, 2.5]", "d=", "a=null"]) == {"a": None, "b.c": ["x", 2.5], "d": None}
    assert parse_overrides(["task.std=1.5", "task.kernel.size=3"], ["task"]) == {"task": {"std": 1.5, "kernel.size": 3}}
    assert refused(parse_values, ["num_images"]) == ("--set takes key=value, got 'num_images'.", None)
    assert refused(parse_values, ["a.b=[1"]) == ("--set a.b: '[1' is not a YAML value.", "a.b")
    message, key = refused(parse_overrides, ["tsk.std=1"], ["task", "data"])
    assert message == "--set 'tsk.std': keys begin with one of task., data.. Did you mean 'task.std'?"
    assert key == "tsk.std"


def test_errors_are_about_the_option_in_whose_reading_they_arise_unless_they_know_better():
    with pytest.raises(UserError) as caught, about("task"):
        raise MissingError("not here")
    assert caught.value.key == "task"
    with pytest.raises(UserError) as caught, about("task"):
        raise UserError("must be odd", "task.size")
    assert caught.value.key == "task.size"
    # A job's error travels from one process to another.
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.key) == ("must be odd", "task.size")
