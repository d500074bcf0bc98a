import io

import pytest
from rich.console import Console

from vfmbench.launching.sweep import prepare


@pytest.fixture
def quiet():
    return Console(file=io.StringIO())


@pytest.fixture
def sweep_of(tmp_path):
    """Text of a sweep file -> the sweep, with its results below tmp_path."""

    def build(text):
        path = tmp_path / "mine.yaml"
        path.write_text(f"out: {tmp_path}\n{text}")
        return prepare(path)

    return build
