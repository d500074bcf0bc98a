"""Reading files of weights of others: by content, and nothing but tensors and plain values."""

import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from vfmbench.errors import UserError
from vfmbench.weights.reading import read_content

GENERATOR = torch.Generator().manual_seed(0)
STATE = {
    "pos_embed": torch.randn(1, 16, 48, generator=GENERATOR),
    "blocks.0.weight": torch.randn(512, 480, generator=GENERATOR),
}


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_content_decides_and_not_the_suffix(tmp_path, suffix):
    save_file(STATE, tmp_path / f"one{suffix}")
    torch.save(STATE, tmp_path / f"two{suffix}")
    for name in ("one", "two"):
        assert torch.equal(read_content(tmp_path / f"{name}{suffix}")["pos_embed"], STATE["pos_embed"])


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
def test_a_partly_downloaded_file_is_one_clear_error(tmp_path, kind, kept):
    whole, part = tmp_path / "whole", tmp_path / "part.pt"
    if kind == "safetensors":
        save_file(STATE, whole)
    else:
        torch.save(STATE, whole, _use_new_zipfile_serialization=kind == "zip")
    part.write_bytes(whole.read_bytes()[: int(kept * whole.stat().st_size)])
    with pytest.raises(UserError, match=r"part\.pt.*(damaged|part of)"):
        read_content(part)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("was_unpickled",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_objects_are_refused_and_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in {"object.pt": {"ema": STATE, "args": Harmful()}, "module.pt": torch.nn.Linear(2, 2)}.items():
        with pytest.raises(UserError, match=r"pickled objects besides tensors \((posix\.mkdir|nt\.mkdir|torch\.nn.*Linear)\)"):
            read_content(saved(tmp_path / name, content))
    for protocol in (2, 4):
        (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"x": Harmful()}, protocol))
        with pytest.raises(UserError, match=r"plain\.pkl"):
            read_content(tmp_path / "plain.pkl")
    assert not (tmp_path / "was_unpickled").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>Sign in</title>", "or not a file of PyTorch weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "or not a file of PyTorch weights"),
    ],
)
def test_what_holds_no_weights_at_all(tmp_path, content, words):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_content(tmp_path / "a.pt")


def test_plain_values_and_a_command_line_are_read(tmp_path):
    content = {"steps": 7, "args": argparse.Namespace(model="SiT-B/2"), "ema": STATE}
    assert read_content(saved(tmp_path / "a.pt", content))["args"].model == "SiT-B/2"


def test_what_is_no_mapping_or_cannot_be_read(tmp_path):
    for path, words in (
        (tmp_path / "absent.pt", "Cannot read .*No such file"),
        (tmp_path, "Is a directory"),
        (saved(tmp_path / "list.pt", [1, 2]), "holds a list, not a mapping"),
    ):
        with pytest.raises(UserError, match=words):
            read_content(path)
