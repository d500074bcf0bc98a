"""A converter from outside the package: found by the layout of a file, given its own options, and listed with its files."""

import json
from types import SimpleNamespace

import pytest
import torch
from pydantic import Field

from vfmbench import registry
from vfmbench.errors import UserError
from vfmbench.weights.conversion import convert
from vfmbench.weights.converters import ConversionOptions, Converted, Convertible
from vfmbench.weights.inventory import convertible_statuses
from vfmbench.weights.store import WeightStore

SUITE = SimpleNamespace(name="mine")


class Doubling:
    """Files of one tensor `gain`."""

    class Options(ConversionOptions):
        factor: float = Field(2.0, gt=0)

    options = Options
    convertibles = (Convertible("a gain", "MIT", "https://example.org/gain.pt", "mine", "gain"),)

    def lacks(self, content):
        return "" if "gain" in content else "no gain"

    def convert(self, path, content, suite, options):
        tensors = {"net.gain": options.factor * content["gain"]}
        return Converted("gain", tensors, {"architecture": {"net": {}}}, {"factor": options.factor})


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(registry.converters, "_registered", {})
    registry.converters.register("doubling", Doubling())
    torch.save({"gain": torch.tensor([1.5])}, tmp_path / "gain.pt")
    return tmp_path / "gain.pt"


def test_it_is_found_by_the_layout_and_its_notes_are_kept(source, tmp_path):
    written = convert(source, tmp_path / "weights", SUITE, {"factor": 4, "licence": "MIT"})
    assert WeightStore(tmp_path / "weights", "").load("gain").part("net")["gain"].tolist() == [6.0]
    entry = json.loads((tmp_path / "weights" / "manifest.json").read_text())["gain"]
    assert (entry["source"]["converter"], entry["source"]["factor"], entry["source"]["licence"]) == ("doubling", 4.0, "MIT")
    assert "factor: 4.0" in written.report()


def test_its_own_options_are_checked_before_anything_is_written(source, tmp_path):
    with pytest.raises(UserError, match=r"convert\.factr.*Did you mean 'convert\.factor'"):
        convert(source, tmp_path / "weights", SUITE, {"factr": 1})
    assert not (tmp_path / "weights").exists()


def test_its_files_are_listed(source):
    assert "https://example.org/gain.pt" in [status.convertible.source for status in convertible_statuses()]


def test_a_file_of_no_known_layout_says_what_each_converter_misses(source, tmp_path):
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt holds no gain; no SiT: .*It has: other\."):
        convert(tmp_path / "other.pt", tmp_path / "weights", SUITE, {})
