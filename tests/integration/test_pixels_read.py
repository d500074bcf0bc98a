"""How often pixels of stored samples are read: once by `run`, once by `compare`; only a picture's where nothing is new."""

import pytest

from vfmbench.cli import main
from vfmbench.results.shards import PICTURED, Shards

IMAGES, SAMPLES = 12, 3
SIZE = ["--num-images", str(IMAGES), "--samples", str(SAMPLES), "--batch-size", "12"]
IMAGE = {"digits": 64, "photos64": 3 * 64 * 64, "checkerboard": 2 * 4}


@pytest.fixture
def read(monkeypatch):
    """Bytes of images that were read from files, by run directory."""
    counts, real = {}, Shards._part

    def counting(file, name, rows, samples):
        result = real(file, name, rows, samples)
        if name == "images":
            directory = file.path.parents[1]
            counts[directory] = counts.get(directory, 0) + result.nbytes
        return result

    monkeypatch.setattr(Shards, "_part", staticmethod(counting))
    return counts


@pytest.mark.parametrize(
    ("suite", "task"), [("digits", "gaussian_deblur"), ("photos64", "gaussian_deblur"), ("checkerboard", "first_coordinate")]
)
def test_run_reads_every_pixel_once(read, tmp_path, suite, task):
    command = ["run", "--suite", suite, "--method", "pinv", "--task", task, *SIZE, "--out", str(tmp_path)]
    assert main(command) == 0
    assert list(read.values()) == [IMAGES * SAMPLES * IMAGE[suite]]
    read.clear()
    # Nothing is left to compute; the picture is drawn again.
    assert main(command) == 0
    assert list(read.values()) == [PICTURED * SAMPLES * IMAGE[suite]]


def test_compare_reads_every_pixel_once(read, tmp_path):
    cells = ["--methods", "pinv,adjoint", "--tasks", "denoise"]
    command = ["compare", *cells, *SIZE, "--metrics", "psnr,ssim,crps,fid,calibration,tarp", "--out", str(tmp_path)]
    assert main(command) == 0
    assert list(read.values()) == [IMAGES * SAMPLES * IMAGE["digits"]] * 2
    read.clear()
    assert main(command) == 0
    assert list(read.values()) == [PICTURED * SAMPLES * IMAGE["digits"]] * 2


def test_tables_read_no_pixels(read, tmp_path):
    assert main(["run", "--method", "pinv", "--task", "denoise", *SIZE, "--metrics", "psnr", "--out", str(tmp_path)]) == 0
    read.clear()
    assert main(["table", str(tmp_path)]) == 0
    assert main(["status", str(tmp_path)]) == 0
    assert read == {}
