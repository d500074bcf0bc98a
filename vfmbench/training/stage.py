"""What the trainer needs of an objective. Objectives live beside the method that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from rich.console import Console
from torch import Tensor, nn

from vfmbench.interfaces import Suite
from vfmbench.options import Options
from vfmbench.training.batches import Batch, Loader
from vfmbench.training.processes import Processes
from vfmbench.weights.store import WeightStore


class TrainingOptions(Options):
    """Options that every stage shares. Those that only say how the work is done may change between a start and a resumption."""

    architecture: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the trained networks")
    steps: int = Field(ge=1)
    batch_size: int = Field(256, ge=2, description="rows in one step, over all processes and micro-batches")
    accumulate: int = Field(1, ge=1, exclude=True, description="micro-batches of a process in one step, for smaller memory")
    learning_rate: float = Field(1e-4, gt=0)
    learning_rates: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="of single networks by name, where it is another than `learning_rate`"
    )
    warmup_steps: int = Field(0, ge=0)
    schedule: str = Field("constant", pattern="^(constant|cosine)$", description="of the learning rate after the warm-up")
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float | None = Field(1.0, gt=0, description="norm, each network by itself; null: none")
    adam_beta2: float = Field(0.95, gt=0, lt=1)
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the forward passes; weights stay float32")
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    validate_every: int = Field(200, ge=1)
    validate_images: int | None = Field(None, ge=1, description="first images of a split that are evaluated; null: all")
    checkpoint_every: int = Field(100, ge=1)
    loader_threads: int = Field(
        0, ge=0, exclude=True, description="threads of a process that decode the next step's images; 0: for data in memory"
    )
    tensorboard: bool = Field(False, exclude=True, description="also write the curves for TensorBoard, if it is installed")
    seed: int = Field(0, ge=0)


class Stage:
    """One training stage: its networks, loss and evaluation. Subclasses set `networks` before training starts.

    Attributes:
        name: of the stage and of its weight file.
        needs: stages whose weights it starts from.
        judged_by: stages whose weights only `evaluate` uses; it does without them.
        networks: the trained networks by name; each gets its own AdamW optimiser and its own clipping.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    judged_by: ClassVar[tuple[str, ...]] = ()
    Options: ClassVar[type[TrainingOptions]]
    networks: Mapping[str, nn.Module]

    def __init__(self, suite: Suite, options: TrainingOptions, weights: WeightStore, device: torch.device):
        self.suite, self.options, self.weights, self.device = suite, options, weights, device
        self._loader = Loader(suite.dataset("train"), suite.domain, device, options.loader_threads)

    @classmethod
    def check(cls, suite: Suite, options: TrainingOptions) -> None:
        """Cheap checks before any stage is trained. Raises UserError, or TypeError or ValueError for a wrong architecture."""

    @classmethod
    def needed(cls, suite: Suite) -> tuple[str, ...]:
        """Those of `needs` that this suite's stage starts from."""
        return cls.needs

    @classmethod
    def by_rows(cls, options: TrainingOptions) -> bool:
        """Whether the loss is a mean over rows of which each stands for itself; only then may a step be accumulated."""
        return True

    def inputs(self) -> dict[str, str]:
        """SHA-256 of all that the stage starts from: the training split and the weights of earlier stages."""
        hashes = {f"{name} weights": self.weights.sha256(name) for name in self.needed(self.suite)}
        return {"training data": self.suite.dataset("train").sha256, **hashes}

    def prepare(self, out: Path, rows: int, processes: Processes, console: Console) -> None:
        """What is done once before the first step.

        Args:
            out: folder for what the suite's stages may share.
            rows: how many are trained on at a time, so that as many also fit where no gradient is taken.
            processes: those that train together; each calls this.
        """

    def loss(self, batch: Batch, ema: Mapping[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and the terms to log, means over the batch's rows. All randomness comes from the batch.

        Args:
            ema: the averages of `networks`, by the same names; they carry no gradient.
        """
        raise NotImplementedError

    def read_ahead(self, positions: Tensor) -> None:
        """Starts to read the images of a coming batch."""
        self._loader.read_ahead(positions)

    def close(self) -> None:
        """Drops what was read ahead."""
        self._loader.forget()

    def finish(self, ema: Mapping[str, nn.Module]) -> None:
        """What is set once in the averaged networks after the last step."""

    def evaluate(self, ema: Mapping[str, nn.Module], split: str, rows: int) -> dict[str, float]:
        """Numbers of the EMA networks on `split`: drawn as validation curves, and on the test split written to the manifest.

        Args:
            rows: how many images are trained on at a time.

        Raises MissingError where weights are missing that only the evaluation needs.
        """
        raise NotImplementedError

    def manifest(self) -> dict[str, Any]:
        """Manifest fields that loading needs, at least `architecture`."""
        raise NotImplementedError
