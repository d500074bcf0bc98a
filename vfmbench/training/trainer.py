"""The one trainer: loop, micro-batches, processes, schedule, EMA, validation curves, checkpoints that resume exactly.

Longer than other modules because what a checkpoint holds and what a step changes must be read side by side.
"""

from __future__ import annotations

import copy
import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from vfmbench.errors import MissingError, UserError, unknown_name
from vfmbench.files import replace_file
from vfmbench.options import dump
from vfmbench.training.batches import Batch
from vfmbench.training.processes import Processes
from vfmbench.training.stage import Stage

LOG_EVERY = 20


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM only set a flag meanwhile, so that no checkpoint holds half a step; yields the flag's reader."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda number, frame: received.append(number)) for number in signals]
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)


class Trainer:
    """Trains one stage in `directory`: `checkpoint.pt` (resume), `curves.csv`, `curves.png`, and a folder `tensorboard`.

    A row's randomness depends on (seed, step, row) alone, so that a resumed training repeats the uninterrupted one, and a
    training of several processes or micro-batches that of one, up to the order of summation.

    Args:
        console: for progress and messages; the main process alone should have one that prints.
        processes: those that train together; by default this one alone.

    Raises UserError for a batch that cannot be divided evenly.
    """

    def __init__(self, stage: Stage, directory: Path, console: Console, processes: Processes | None = None):
        self._stage, self._directory, self._console = stage, directory, console
        self._processes = processes or Processes(stage.device)
        self._shares = self._processes.shares(stage.options.batch_size, stage.options.accumulate)
        self._options = stage.options
        self._split_size = len(stage.suite.dataset("train"))
        self._rows_at_once = stage.options.batch_size // self._shares[0].parts
        self._networks = stage.networks
        for name in self._options.learning_rates:
            if name not in self._networks:
                raise unknown_name(f"network in {stage.name}.learning_rates", name, self._networks)
        self._ema = {name: copy.deepcopy(network).eval().requires_grad_(False) for name, network in self._networks.items()}
        self._optimisers = {
            name: torch.optim.AdamW(
                [parameter for parameter in network.parameters() if parameter.requires_grad],
                lr=self._rate_of(name),
                betas=(0.9, self._options.adam_beta2),
                weight_decay=self._options.weight_decay,
            )
            for name, network in self._networks.items()
        }
        # A checkpoint belongs to its options, its data and the weights that the stage started from.
        self._identity = {**dump(self._options), **stage.inputs()}
        self._step = 0
        self._seconds = 0.0
        self._rows: list[dict[str, float]] = []
        self._stop = False
        self._board: Any = None

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self._step == self._options.steps

    @property
    def seconds(self) -> float:
        """Wall time of all steps so far, earlier parts of a resumed training included."""
        return self._seconds

    def run(self) -> Mapping[str, nn.Module]:
        """Trains to the last step and returns the EMA networks.

        Ctrl-C and SIGTERM, in whichever process, end the step of all of them, and a checkpoint is saved first.

        Raises FloatingPointError if the loss is not finite.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        if self._options.tensorboard and self._processes.main:
            self._board = self._open_board()
        self._stage.prepare(self._directory.parent, self._rows_at_once, self._processes, self._console)
        for network in self._networks.values():
            network.train()
        try:
            self._train()
        finally:
            self._stage.close()
            if self._board is not None:
                self._board.close()
        return self._ema

    def _open_board(self) -> Any:
        """A writer of TensorBoard curves that go on after the last step; None, and a note, without the package."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            note = "tensorboard=true: not installed, so there is no such folder; pip install 'vfmbench[tensorboard]'."
            self._console.print(note, markup=False, soft_wrap=True)
            return None
        return SummaryWriter(str(self._directory / "tensorboard"), purge_step=self._step + 1)

    def _train(self) -> None:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self._console,
            disable=not self._processes.main,
        ) as progress:
            bar = progress.add_task(self._stage.name, total=self._options.steps, completed=self._step, loss="")
            with _deferred_interrupt() as interrupted:
                while self._step < self._options.steps:
                    terms = self._train_step(interrupted)
                    if self._step % LOG_EVERY == 0 or self._step == self._options.steps:
                        values = self._mean_terms(terms)
                        progress.update(bar, completed=self._step, loss=" ".join(f"{k} {v:.3f}" for k, v in values.items()))
                        self._log(values)
                    if self._step % self._options.validate_every == 0 or self._step == self._options.steps:
                        self._validate()
                    if self._step % self._options.checkpoint_every == 0:
                        self._save()
                    if self._stop and self._step < self._options.steps:
                        self._save()
                        # A launcher ends all processes once one has ended.
                        self._processes.wait()
                        raise KeyboardInterrupt
        self._save()

    def _train_step(self, interrupted: Callable[[], bool]) -> list[dict[str, Tensor]]:
        """One update of all networks; the terms of each micro-batch."""
        start = time.perf_counter()
        for name, optimiser in self._optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = self._scheduled(self._rate_of(name))
            optimiser.zero_grad(set_to_none=True)
        if self._options.loader_threads and self._step + 1 < self._options.steps:
            for batch in self._batches(self._step + 1):
                self._stage.read_ahead(batch.positions)
        low = self._options.precision != "float32"
        losses, terms = [], []
        for batch in self._batches(self._step):
            # The cache would keep half-precision weights that were cast without a graph, and the loss would lose its gradient.
            with torch.autocast(self._stage.device.type, torch.bfloat16, enabled=low, cache_enabled=False):
                loss, own = self._stage.loss(batch, self._ema)
            (loss / len(self._shares)).backward()
            losses.append(loss.detach())
            terms.append(own)
        # One message says how the loss is and whether a process has been told to stop, so that all end at the same step.
        stop = losses[0].new_tensor(float(interrupted()))
        mean_loss, stops = self._processes.mean(torch.stack([torch.stack(losses).mean(), stop])).tolist()
        if not math.isfinite(mean_loss):
            raise FloatingPointError(f"The loss of stage {self._stage.name} is {mean_loss} at step {self._step}.")
        self._stop = stops > 0
        self._processes.average_gradients(self._networks.values())
        for name, network in self._networks.items():
            if self._options.gradient_clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), self._options.gradient_clip)
            self._optimisers[name].step()
        # A young average follows closely, else it would remember the initialisation.
        decay = min(self._options.ema_decay, (1 + self._step) / (10 + self._step))
        for name, network in self._networks.items():
            averaged = [parameter.detach() for parameter in self._ema[name].parameters()]
            torch._foreach_lerp_(averaged, [parameter.detach() for parameter in network.parameters()], 1 - decay)
        self._step += 1
        self._seconds += time.perf_counter() - start
        return terms

    def _batches(self, step: int) -> Iterator[Batch]:
        """This process's micro-batches of a step; every process and micro-batch has the same random numbers."""
        # torch's CPU generator keeps 32 bits of a seed, so the step cannot simply be added to a shifted seed.
        text = f"{self._options.seed}/{self._stage.name}/{step}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
        for share in self._shares:
            generator = torch.Generator().manual_seed(seed)
            yield Batch.draw(step, self._split_size, self._options.batch_size, generator, share, self._processes)

    def _mean_terms(self, terms: list[dict[str, Tensor]]) -> dict[str, float]:
        """The logged terms over all micro-batches and processes."""
        if not terms[0]:
            return {}
        stacked = torch.stack([torch.stack([value.float() for value in own.values()]) for own in terms]).mean(0)
        return dict(zip(terms[0], self._processes.mean(stacked).tolist(), strict=True))

    def _log(self, values: Mapping[str, float]) -> None:
        self._rows.append({"step": self._step, **values})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, self._step)

    def _rate_of(self, network: str) -> float:
        return self._options.learning_rates.get(network, self._options.learning_rate)

    def _scheduled(self, rate: float) -> float:
        """The rate of this step, of a training at `rate`."""
        options = self._options
        if self._step < options.warmup_steps:
            return rate * (self._step + 1) / options.warmup_steps
        if options.schedule == "constant":
            return rate
        done = (self._step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
        return rate * 0.5 * (1 + math.cos(math.pi * done))

    def evaluate(self, networks: Mapping[str, nn.Module], split: str) -> dict[str, float]:
        """The stage's numbers on a split; none, and the reason logged, where weights are missing that only they need."""
        try:
            return self._stage.evaluate(networks, split, self._rows_at_once)
        except MissingError as error:
            self._console.log(f"{self._stage.name}: no numbers on the {split} split: {error}", markup=False)
            return {}

    def _validate(self) -> None:
        # Every process computes them: waiting for one would take as long.
        values = self.evaluate(self._ema, "validation")
        if not values:
            return
        self._log({f"validation/{key}": value for key, value in values.items()})
        numbers = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        self._console.log(f"{self._stage.name} step {self._step}: {numbers}")

    def _save(self) -> None:
        if not self._processes.main:
            return
        state = {
            "options": self._identity,
            "step": self._step,
            "seconds": self._seconds,
            "networks": {name: network.state_dict() for name, network in self._networks.items()},
            "ema": {name: network.state_dict() for name, network in self._ema.items()},
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self._optimisers.items()},
            "rows": self._rows,
        }
        replace_file(self._directory / "checkpoint.pt", lambda path: torch.save(state, path))
        self._write_curves()
        if self._board is not None:
            self._board.flush()

    def resume(self) -> None:
        """Continues from the directory's checkpoint, if there is one, with any number of processes and micro-batches.

        Raises UserError if it belongs to other options, other data or other weights of an earlier stage.
        """
        path = self._directory / "checkpoint.pt"
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, map_location=self._stage.device, weights_only=True)
        wanted = self._identity
        # An option that the checkpoint does not know yet had its default.
        defaults = {
            key: field.get_default(call_default_factory=True) for key, field in type(self._options).model_fields.items()
        }
        found = {**defaults, **state["options"]}
        changed = sorted(key for key in wanted if found.get(key) != wanted[key])
        if changed:
            raise UserError(
                f"{path} was trained with another {', '.join(changed)}; use --fresh to start over, or another --out."
            )
        self._step, self._seconds, self._rows = state["step"], state["seconds"], state["rows"]
        for name in self._networks:
            self._networks[name].load_state_dict(state["networks"][name])
            self._ema[name].load_state_dict(state["ema"][name])
            self._optimisers[name].load_state_dict(state["optimisers"][name])
        if self._step:
            self._console.log(f"{self._stage.name}: resuming at step {self._step}")

    def _write_curves(self) -> None:
        if not self._rows:
            return
        table = pd.DataFrame(self._rows).groupby("step").first()
        table.to_csv(self._directory / "curves.csv")
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        axes = table.interpolate().plot(subplots=True, figsize=(7, 1.6 * table.shape[1]), grid=True, legend=True)
        figure = axes[0].figure
        figure.suptitle(f"{self._stage.name}: {self._step} steps")
        figure.tight_layout()
        figure.savefig(self._directory / "curves.png", dpi=90)
        pyplot.close(figure)
