"""metrics.json: what is written is read again, and other layouts and damaged files are told apart."""

import json
import math
import subprocess
import sys

import pytest
from pydantic import ValidationError

from vfmbench.errors import UserError
from vfmbench.results.schema import (
    HIGHER,
    LOWER,
    METRICS_VERSION,
    Direction,
    MetricRow,
    MetricSpec,
    Section,
    UnreadableMetrics,
    metrics_json,
    read_metrics,
    towards,
)

SPEC = MetricSpec(name="psnr", section=Section.RECONSTRUCTION, direction=HIGHER, position=10, domains=("images",))


def test_rows_survive_the_file(tmp_path):
    coverage = MetricSpec(name="interval_coverage", section=Section.CALIBRATION, direction=towards(), version=3)
    rows = [
        MetricRow(name="psnr", metric="psnr", value=17.0, low=16.5, high=17.5, n=4, settings="dB", spec=SPEC),
        MetricRow(name="psnr@x", metric="psnr", value=math.inf, reason="exact", spec=SPEC),
        MetricRow(
            name="interval_coverage@pixel", metric="calibration", value=0.5, target=0.9, spec=coverage, source_sha256="a"
        ),
    ]
    path = tmp_path / "metrics.json"
    path.write_bytes(metrics_json(rows))
    found = read_metrics(path)
    assert found == rows
    assert found[0].direction == HIGHER
    assert found[1].value is None
    assert str(found[2].direction) == "→ 0.9"
    # JSON has no infinity, and other programs must be able to read the file.
    json.loads(path.read_text(), parse_constant=pytest.fail)


def test_no_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.json") == []


def test_another_layout_names_the_way_out(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"schema_version": 2, "metrics": [{"name": "psnr", "value": 1.0}]}')
    with pytest.raises(UnreadableMetrics, match=rf"layout 2, this one reads {METRICS_VERSION}\); `vfmbench metrics "):
        read_metrics(path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", f'{{"schema_version": {METRICS_VERSION}, "metrics": [{{"name": "psnr"}}]}}']
)
def test_damaged_files_are_told(tmp_path, content):
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("direction", "text"), [(HIGHER, "↑"), (LOWER, "↓"), (towards(1.0), "→ 1"), (towards(9 / 11), "→ 0.818")]
)
def test_directions_as_text(direction, text):
    assert str(direction) == text


def test_scores():
    assert HIGHER.score(3.0) == 3.0
    assert HIGHER.is_better(1.0)
    assert not LOWER.is_better(1.0)
    assert towards(1.0).score(0.7) == pytest.approx(0.3)
    assert towards(1.0).is_better(-0.1)
    with pytest.raises(ValidationError, match="has no target"):
        Direction(kind="higher", target=1.0)


def test_rows_of_a_table():
    zero = MetricRow(name="x", metric="cost", value=0.0, spec=MetricSpec(name="x", section=Section.COST, occasional=True))
    assert not zero.has_row
    assert zero.model_copy(update={"value": 1.0}).has_row
    assert MetricRow(name="psnr", metric="psnr", value=0.0, spec=SPEC).has_row
    assert not MetricRow(name="psnr", metric="psnr", value=None, spec=SPEC).has_row
    unplaced = MetricRow(name="mine", metric="mine", value=1.0, spec=MetricSpec(name="mine"))
    assert MetricRow(name="psnr", metric="psnr", value=0.0, spec=SPEC).place < unplaced.place < zero.place


def test_needs_no_torch():
    code = "import sys, vfmbench.results.schema; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
