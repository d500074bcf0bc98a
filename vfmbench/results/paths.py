"""Where everything of a run lies: the one place that knows the names of its files. Needs no torch, and reads no file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vfmbench.files import LOCK

if TYPE_CHECKING:
    from vfmbench.config import RunIdentity

_PARTS = "parts"
_SHARD = re.compile(r"shard-(\d+)-(\d+)\.safetensors")


@dataclass(frozen=True)
class RunPaths:
    """The files of one run: `<out>/<suite>/<task>/<method>/<hash>/`.

    >>> RunPaths(Path("results/runs/digits/denoise/vfm/0123456789ab")).metrics.name
    'metrics.json'
    """

    directory: Path

    @classmethod
    def of(cls, out: Path, identity: RunIdentity) -> RunPaths:
        return cls(out / identity.suite / identity.task / identity.method / identity.hash)

    @classmethod
    def below(cls, folder: Path) -> Iterator[RunPaths]:
        """The run directories in and below a folder, in order of their paths."""
        for name, folders, _ in os.walk(folder):
            paths = cls(Path(name))
            if paths.exists:
                yield paths
                folders.clear()
            folders.sort()

    @property
    def exists(self) -> bool:
        """Whether the directory is a run's. One of which only parts were sampled so far has no configuration yet."""
        # Unlike Path.exists, these say no of a folder that may not be looked into.
        return os.path.isdir(self.samples) and (os.path.exists(self.config) or os.path.exists(self.lock))

    def written(self) -> list[Path]:
        """Every file of the run but its locks."""
        found = [*self.directory.glob("*.*"), *self.samples.glob("*"), *self.directory.glob(f"{_PARTS}/*/*")]
        return [path for path in found if path.is_file() and path.name != LOCK]

    @property
    def config(self) -> Path:
        """The run's identity, and the version of the layout."""
        return self.directory / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Status, cost, and a session for each process that worked on the run."""
        return self.directory / "provenance.json"

    @property
    def dataset(self) -> Path:
        """The split's hash, the names of its images, and those that could not be decoded."""
        return self.directory / "dataset.json"

    @property
    def measurements(self) -> Path:
        """Hash of each image's measurement."""
        return self.directory / "measurements.json"

    @property
    def records(self) -> Path:
        """A row for each image and sample."""
        return self.directory / "records.parquet"

    @property
    def metrics(self) -> Path:
        """A row for each number; see `vfmbench.results.schema`."""
        return self.directory / "metrics.json"

    @property
    def per_image(self) -> Path:
        """A row for each image that metrics are of, a column for each metric that is a mean over images."""
        return self.directory / "metrics_per_image.parquet"

    @property
    def replicates(self) -> Path:
        """A column for each statistic of the whole set: its values on bootstrap resamples."""
        return self.directory / "metrics_replicates.parquet"

    @property
    def curves(self) -> Path:
        """A row for each image, a column for each metric with a curve: the image's part in it, a list of numbers."""
        return self.directory / "metrics_curves.parquet"

    @property
    def log(self) -> Path:
        return self.directory / "log.txt"

    @property
    def lock(self) -> Path:
        """Held by whoever writes; see `vfmbench.files.locked_directory`."""
        return self.directory / LOCK

    @property
    def samples(self) -> Path:
        """Folder of the shards."""
        return self.directory / "samples"

    def shard(self, first: int, last: int) -> Path:
        """The shard of a batch, by the positions of its first and its last image."""
        return self.samples / f"shard-{first:07d}-{last:07d}.safetensors"

    def shards(self) -> list[Path]:
        """The shards there are, in order of their images."""
        return sorted(path for path in self.samples.glob("*") if _SHARD.fullmatch(path.name))

    def stored_images(self) -> int:
        """Images in the shards there are, by their names; those that could not be read are counted with their batch."""
        spans = [_SHARD.fullmatch(path.name) for path in self.shards()]
        return sum(int(span[2]) - int(span[1]) + 1 for span in spans if span)

    @property
    def picture(self) -> Path:
        """Some of the samples."""
        return self.directory / "grid.png"

    def comparison_picture(self, task: str) -> Path:
        """Samples of several methods, in the folder of the suite."""
        return self.directory.parents[2] / f"compare-{task}.png"

    def preview(self, task: str) -> Path:
        """What the task measures, in the folder of the suite."""
        return self.directory.parents[2] / f"preview-{task}.png"

    def part(self, name: str) -> PartPaths:
        return PartPaths(self.directory / name)


@dataclass(frozen=True)
class PartPaths:
    """What one of several processes that share a run writes about itself."""

    directory: Path

    @staticmethod
    def name(number: int, count: int) -> str:
        """The part's folder, below the run's, which is also the part's name."""
        return f"{_PARTS}/{number}-of-{count}"

    @property
    def facts(self) -> Path:
        """The part's status and sessions."""
        return self.directory / "part.json"

    @property
    def log(self) -> Path:
        return self.directory / "log.txt"
