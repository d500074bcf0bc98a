"""Names of files and folders, which others than this program read too; and that reading results needs no torch."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import vfmbench.results
from vfmbench.files import locked_directory
from vfmbench.results.paths import PartPaths, RunPaths


def test_files_have_the_names_of_the_contract(tmp_path):
    paths = RunPaths(tmp_path / "digits" / "denoise" / "vfm" / "0123456789ab")
    named = [paths.config, paths.provenance, paths.dataset, paths.measurements, paths.records, paths.metrics, paths.per_image]
    assert [path.name for path in named] == [
        "config.yaml",
        "provenance.json",
        "dataset.json",
        "measurements.json",
        "records.parquet",
        "metrics.json",
        "metrics_per_image.parquet",
    ]
    assert {path.parent for path in named} == {paths.directory}
    assert paths.shard(6, 11).relative_to(paths.directory) == Path("samples/shard-0000006-0000011.safetensors")
    assert (paths.picture.name, paths.log.name) == ("grid.png", "log.txt")
    assert paths.comparison_picture("denoise") == tmp_path / "digits" / "compare-denoise.png"
    assert paths.preview("denoise") == tmp_path / "digits" / "preview-denoise.png"
    assert paths.part(PartPaths.name(0, 2)).facts.relative_to(paths.directory) == Path("parts/0-of-2/part.json")


def make(directory, config=True):
    paths = RunPaths(directory)
    paths.samples.mkdir(parents=True)
    if config:
        paths.config.touch()
    return paths


def test_runs_below_a_folder(tmp_path):
    runs = [make(tmp_path / name) for name in ("b/2", "a/3", "a/1")]
    with locked_directory(tmp_path / "c"):
        begun = make(tmp_path / "c", config=False)
    (tmp_path / "d" / "samples").mkdir(parents=True)
    # What lies inside a run is not searched.
    make(runs[0].samples / "inner")
    assert list(RunPaths.below(tmp_path)) == [runs[2], runs[1], runs[0], begun]
    assert list(RunPaths.below(runs[0].directory)) == [runs[0]]
    assert list(RunPaths.below(tmp_path / "nowhere")) == []


def test_shards_are_counted_by_their_names(tmp_path):
    paths = make(tmp_path)
    assert paths.stored_images() == 0
    for first, last in ((6, 10), (0, 5)):
        paths.shard(first, last).touch()
    paths.shard(11, 20).with_suffix(".unreadable").touch()
    assert paths.shards() == [paths.shard(0, 5), paths.shard(6, 10)]
    assert paths.stored_images() == 11


def test_written_files_are_all_but_the_locks(tmp_path):
    with locked_directory(tmp_path, PartPaths.name(0, 2)):
        paths = make(tmp_path)
        files = {paths.config, paths.shard(0, 5), paths.part(PartPaths.name(0, 2)).log}
        for path in files:
            path.touch()
        assert set(paths.written()) == files


def loaded(modules):
    """Which heavy packages are there after an import of the modules."""
    code = f"import sys, {', '.join(modules)}; print(*sorted({{'torch', 'pandas', 'scipy'}} & set(sys.modules)))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_reading_results_needs_no_torch():
    modules = [f"vfmbench.results.{module.name}" for module in pkgutil.iter_modules(vfmbench.results.__path__)]
    assert len(modules) > 8
    assert "torch" not in loaded(modules)
    # A table starts without what takes longer to import than the table takes.
    assert loaded(["vfmbench.commands.table"]) == []
