"""The loop of a run: resolve the configuration, sample what is missing, store it, compute metrics on what was stored."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from vfmbench.config import PRESETS, RUN_SECTIONS, RunConfig, RunIdentity, is_preset_file
from vfmbench.errors import MissingError, Status, UserError, unknown_name
from vfmbench.interfaces import Dataset, Sampler, Suite, Task
from vfmbench.measurement import Measurement, Samples
from vfmbench.metrics.compute import compute_metrics, metrics_of_images
from vfmbench.models.execution import Execution, execution_of, with_execution
from vfmbench.models.images import to_float, to_stored
from vfmbench.options import Options, dump, validate
from vfmbench.provenance import environment, now
from vfmbench.randomness import PhiloxNoise, sample_rows, split_seed
from vfmbench.registry import metrics as metric_registry
from vfmbench.registry import samplers, suites
from vfmbench.results.run_directory import RunStore
from vfmbench.running.cost import cost_metrics, measure_cost, summarise
from vfmbench.running.evaluating import MetricNetworks, measured, metric_networks, stored_evaluation
from vfmbench.running.shards import HostCopy, Shard, Shards, ShardWriter, compile_tables, measurement_hashes

Progress = Callable[[int, int], None]

LOG = logging.getLogger("vfmbench")

PRIOR_STREAM = "prior"
"""Noise stream of draws from a method's own prior; figures make the same noise again."""

DIVERGED_ABOVE = 100.0
"""A sample with a pixel (on the scale of [-1, 1]) or latent entry beyond this or not a number has status `diverged`."""


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one. Raises UserError for `cuda` without a CUDA device.

    On CUDA, float32 means float32: torch's convolutions would use TF32, whose products have ten bits.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("--device cuda: no CUDA device is available; use --device cpu or auto.")
    if name == "cpu" or not available:
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


@dataclass(frozen=True)
class Plan:
    """A run whose every name, option and file has been checked; nothing has been computed or written yet."""

    identity: RunIdentity
    store: RunStore
    suite: Suite
    task: Task
    dataset: Dataset
    sampler_class: type[Sampler]
    options: Options
    metric_names: list[str]
    device: torch.device
    batch_size: int
    fresh: bool


@dataclass(frozen=True)
class Run:
    """A run's results as they lie in its directory. `note` says why it was skipped or failed, or what to mind about it."""

    store: RunStore | None
    status: Status
    note: str = ""

    def results(self) -> RunStore:
        """Its directory. Raises UserError for a run that could not even be planned."""
        if self.store is None:
            raise UserError(f"This run is {self.status}: {self.note}")
        return self.store

    def metrics(self) -> pd.DataFrame:
        """A row per metric: value, low, high, n, feature_space, settings, reason."""
        return pd.DataFrame(self.results().metrics())

    def cost(self) -> dict[str, float]:
        """Means per sample: evaluations, seconds, network_seconds, overhead; peak_memory_bytes."""
        return self.results().provenance().get("cost", {})


def plan(config: RunConfig, suite: Suite | None = None) -> Plan:
    """Checks everything that can be wrong with a configuration. Raises UserError or MissingError in one sentence.

    Args:
        suite: the configuration's, where many runs of one suite are planned and it should be read only once.
    """
    for section in config.options:
        if section not in RUN_SECTIONS:
            raise unknown_name("section", section, RUN_SECTIONS)
    sampler_class = samplers.get(config.method)
    lacking = [name for name in ("Options", "weights", "supports", "sample") if not hasattr(sampler_class, name)]
    if lacking:
        raise UserError(f"The method {config.method!r} lacks {', '.join(lacking)}; see vfmbench.interfaces.Sampler.")
    if suite is None:
        suite = suites.get(config.suite)({key: config.options.get(key, {}) for key in ("data", "weights")})
    task = suite.task(config.task, config.options.get("task", {}))
    own = suite.methods.get(config.method, {})
    chosen = {**own, **_preset(sampler_class, config, task, suite), **config.options.get("method", {})}
    options = validate(sampler_class.Options, chosen, "method.")
    if "label" in config.options.get("method", {}) and not suite.num_classes:
        raise UserError(f"method.label: the suite {suite.name} has no classes; leave the option out.")
    metric_names = list(suite.metric_names) or metrics_of_images(metric_registry.names())
    if config.metrics is not None:
        metric_names = list(config.metrics)
    for name in metric_names:
        metric_registry.get(name)
    device = choose_device(config.device)
    execution = Execution(config.precision, config.compile)
    execution.check(device)
    suite = with_execution(suite, execution)
    weights = _weight_hashes(suite, config.split, sampler_class)
    dataset = suite.dataset(config.split)
    num_images = config.num_images or min(suite.num_images, len(dataset))
    if num_images > len(dataset):
        raise UserError(f"--num-images: the {config.split} split of {suite.name} has {len(dataset)} images, not {num_images}.")
    num_samples = config.samples or suite.num_samples
    identity = RunIdentity(
        suite=suite.name,
        suite_options=dict(suite.data_options),
        dataset_sha256=dataset.sha256,
        split=config.split,
        task=task.name,
        problem=task.problem,
        task_options=dump(task.options),
        method=config.method,
        method_options=dump(options),
        plugin_sha256=_plugin_hashes(sampler_class, type(task)),
        weights_sha256=weights,
        num_images=num_images,
        samples=num_samples,
        seed=config.seed,
        precision=config.precision,
    )
    return Plan(
        identity=identity,
        store=RunStore.at(config.out, identity),
        suite=suite,
        task=task,
        dataset=dataset,
        sampler_class=sampler_class,
        options=options,
        metric_names=metric_names,
        device=device,
        batch_size=config.batch_size or suite.batch_size,
        fresh=config.fresh,
    )


def _weight_hashes(suite: Suite, split: str, sampler_class: type[Sampler]) -> dict[str, str]:
    """SHA-256 of the weights that the method needs, by name; the codec's too, where it has any.

    Raises MissingError that names all that is not there at once: data and weights.
    """
    hashes: dict[str, str] = {}
    missing: list[str] = []

    def look(name: str, read: Callable[[], str | None]) -> None:
        try:
            found = read()
        except MissingError as error:
            missing.append(str(error))
        else:
            hashes.update({} if found is None else {name: found})

    for name in sampler_class.weights:
        look(name, suite.codec_sha256 if name == "codec" else partial(suite.weights.sha256, name))
    if sampler_class.weights:
        look("codec", suite.codec_sha256)
    try:
        suite.dataset(split)
    except MissingError as error:
        missing.append(str(error))
    if len(missing) > 1:
        raise MissingError("\n".join([f"{len(missing)} things are missing.", *(f"  - {problem}" for problem in missing)]))
    if missing:
        raise MissingError(missing[0])
    return hashes


def _preset(sampler_class: type[Sampler], config: RunConfig, task: Task, suite: Suite) -> Mapping[str, Any]:
    """The method's options under the preset; none where the method has no presets.

    Raises UserError for a preset or file that does not exist, whether the method has presets or not.
    """
    from_file = is_preset_file(config.preset)
    if from_file and not Path(config.preset).is_file():
        raise UserError(f"--preset: there is no file {config.preset}.")
    if not from_file and config.preset not in PRESETS:
        raise unknown_name("preset", config.preset, [*PRESETS, "FILE.yaml"])
    preset = getattr(sampler_class, "preset", None)
    return {} if preset is None else preset(config.preset, config.method, task, suite)


def _plugin_hashes(*classes: type) -> dict[str, str]:
    """SHA-256 of the source files of classes from outside this package: their code has no version that we know."""
    hashes = {}
    for cls in classes:
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        if file and not cls.__module__.startswith("vfmbench."):
            hashes[cls.__qualname__] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return hashes


def run(config: RunConfig, progress: Progress | None = None) -> Run:
    """Runs one configuration, or what is missing of it, and returns its results.

    Args:
        progress: called as progress(images done, images planned) after every batch.

    Raises UserError before any work starts; KeyboardInterrupt after everything drawn so far has been stored.
    """
    return execute(plan(config), progress)


def execute(plan: Plan, progress: Progress | None = None) -> Run:
    supported, note = plan.sampler_class.supports(plan.task, plan.suite)
    if not supported:
        return Run(plan.store, Status.SKIPPED, f"{plan.identity.method} skips {plan.task.name}: {note}")
    networks = metric_networks(plan.suite, plan.device)
    sampler = plan.sampler_class(plan.suite, plan.options, plan.device)
    store = plan.store
    with store.writing(plan.identity, plan.fresh):
        finished = Shards(store.directory).finished()
        todo = [index for index in range(plan.identity.num_images) if index not in finished]
        # Metrics of a part of the images, from before the run went on, are all stale.
        current = store.metrics() if not todo and store.scored() == Shards(store.directory).evaluable() else []
        names = _stale_metrics(plan.metric_names, current, networks)
        if todo or names or store.provenance().get("status") != Status.DONE:
            with logging_to(store.directory / "log.txt"):
                note = _work(plan, sampler, networks, todo, names, note, progress or (lambda done, total: None))
    return Run(store, Status.DONE, note)


def _work(
    plan: Plan, sampler: Sampler, networks: MetricNetworks, todo: list[int], names: list[str], note: str, progress: Progress
) -> str:
    """Samples the images in `todo`, then computes the metrics `names`; a session in provenance.json says who did it.

    Returns what to mind about the result: `note`, and whether the batch had to be made smaller.
    """
    store, identity = plan.store, plan.identity
    store.write_config(identity)
    earlier = store.provenance()
    sessions = earlier.get("sessions", [])
    session = {
        "started": now(),
        "images": len(todo),
        "batch_size": plan.batch_size,
        "metrics": names,
        "compile": execution_of(plan.suite).compile,
        **environment(plan.device),
    }
    facts = {
        "hash": identity.hash,
        "status": Status.INTERRUPTED,
        "note": note,
        "weights_sha256": identity.weights_sha256,
        "sessions": [*sessions, session],
        **({"cost": earlier["cost"]} if "cost" in earlier else {}),
    }
    store.write_provenance(facts)
    LOG.info("run %s on %s: %d of %d images to sample", identity.hash, plan.device, len(todo), identity.num_images)
    if note:
        LOG.warning("%s", note)
    try:
        session["batch_size"] = sample_images(plan, sampler, todo, len(sessions), progress)
        if session["batch_size"] < plan.batch_size:
            smaller = f"out of memory with {plan.batch_size} samples in a batch; went on with {session['batch_size']}"
            note = _joined(note, smaller)
        records = compile_tables(store, identity)
        note = facts["note"] = _joined(note, _diverged(records))
        evaluation, index = stored_evaluation(store, plan.suite, plan.task, plan.dataset, identity, records, networks)
        values = {name: compute_metrics(evaluation, {name: metric_registry.get(name)}) for name in names}
        store.write_metrics({**values, "cost": cost_metrics(records)}, index)
    except Exception as error:
        session["ended"] = now()
        store.write_provenance({**facts, "status": Status.FAILED, "error": f"{type(error).__name__}: {error}"})
        LOG.exception("failed")
        raise
    finally:
        store.write_dataset(identity, plan.dataset)
    session["ended"] = now()
    store.write_provenance({**facts, "status": Status.DONE, "cost": summarise(records)})
    LOG.info("done")
    return note


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _diverged(records: pd.DataFrame) -> str:
    """How many samples diverged, and how many images metrics therefore leave out; empty if none did."""
    broken = records[records["status"] == Status.DIVERGED]
    if broken.empty:
        return ""
    images = broken["index"].nunique()
    return (
        f"{len(broken)} of {len(records)} samples diverged; the {images} images that they belong to are left out of the metrics"
    )


def _stale_metrics(names: Sequence[str], rows: Sequence[dict[str, Any]], networks: MetricNetworks) -> list[str]:
    """Those of the metrics that are not stored, that broke, or whose feature space is another one or has become available."""

    def fresh(row: dict[str, Any]) -> bool:
        if row.get("broken"):
            return False
        space = row["feature_space"]
        current = None if space is None else getattr(networks.get(space), "weights_sha256", None)
        return row["feature_weights_sha256"] == current

    stored = {row["metric"] for row in rows}
    stale = {row["metric"] for row in rows if not fresh(row)}
    return [name for name in names if name not in stored or name in stale]


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Appends the program's log to a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOG.setLevel(logging.INFO)
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        handler.close()


def measure(plan: Plan, positions: list[int]) -> tuple[Tensor, Measurement]:
    """True images [B,C,H,W] in [-1,1] and their measurement, on the run's device."""
    return measured(plan.task, plan.dataset, plan.identity, positions, plan.device)


def sample_images(plan: Plan, sampler: Sampler, todo: list[int], session: int, progress: Progress) -> int:
    """Samples and stores the images at the given positions, batch by batch; returns the samples in a batch at the end.

    `progress` hears of a batch as soon as it is drawn; all are stored when this returns or is interrupted.
    """
    planned, samples = plan.identity.num_images, plan.identity.samples
    rows, warm, waiting = plan.batch_size, False, list(todo)
    compiled_sizes = set[int]() if execution_of(plan.suite).compile else None
    progress(planned - len(waiting), planned)
    with ShardWriter(Shards(plan.store.directory)) as writer:
        while waiting:
            batch = waiting[: max(1, rows // samples)]
            positions = plan.dataset.readable(batch)
            if positions:
                facts = {"first_batch": float(not warm), "session": session}
                finish = None
                try:
                    if compiled_sizes is not None and len(positions) not in compiled_sizes:
                        # What compiles the networks for this size must not count as the time that a batch takes.
                        _draw(plan, sampler, positions, rows, facts)
                        compiled_sizes.add(len(positions))
                    finish = _draw(plan, sampler, positions, rows, facts)
                except RuntimeError as error:
                    tried = min(rows, len(positions) * samples)
                    if not out_of_memory(error) or tried == 1:
                        raise
                if finish is None:
                    # Results do not depend on the batch size, so the rest of the run takes a smaller one. The error, and with
                    # it the tensors of the batch that did not fit, is gone by now.
                    rows = tried // 2
                    LOG.warning("out of memory; going on with %d samples in a batch", rows)
                    torch.cuda.empty_cache()
                    continue
                # The first batch of a process also pays for allocations and lazy initialisation.
                warm = True
                writer.write(finish)
            del waiting[: len(batch)]
            progress(planned - len(waiting), planned)
    for position, message in plan.dataset.errors.items():
        LOG.warning("image %d left out: %s", position, message)
    return rows


def _draw(plan: Plan, sampler: Sampler, positions: list[int], rows: int, facts: Mapping[str, float]) -> Callable[[], Shard]:
    """All samples of the images at the given positions, at most `rows` in a call of the sampler (for a single image).

    Args:
        facts: what the records say about the batch beside its cost.

    Returns a function that gives the finished shard, to be called in any thread.
    """
    samples = plan.identity.samples
    truth, measurement = measure(plan, positions)
    parts = []
    with measure_cost(sampler.meter, len(positions) * samples, plan.device) as cost:
        for start in range(0, samples, samples if len(positions) > 1 else rows):
            drawn = range(start, samples if len(positions) > 1 else min(samples, start + rows))
            noise = PhiloxNoise(plan.identity.seed, "sampling", *sample_rows(measurement.index, drawn))
            parts.append(sampler.sample(measurement, len(drawn), noise))
    return _shard(plan, sampler, parts, measurement, _fresh(plan, truth, measurement), {**cost, **facts})


def _within_bounds(samples: Samples) -> Tensor:
    """Whether each sample's image and latent are finite and not huge, bool [B,S]."""
    # A decoder can turn an exploding latent into an ordinary image. NaN fails the comparison too.
    tensors = [samples.images] if samples.latents is None else [samples.images, samples.latents]
    return torch.stack([(tensor.flatten(2).abs() <= DIVERGED_ABOVE).all(2) for tensor in tensors]).all(0)


def _fresh(plan: Plan, truth: Tensor, measurement: Measurement) -> Measurement:
    """A second observation of the true images by the same operators, with Gaussian noise of its own."""
    seed = split_seed(plan.identity.split, plan.identity.seed)
    noise = PhiloxNoise(seed, f"fresh observation/{plan.identity.task}", measurement.index)
    normal = noise.normal(measurement.y.shape[1:], draw=0)
    return replace(measurement, y=measurement.operator.forward(truth) + measurement.noise_std * normal)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on any device."""
    # The allocator of a CPU has no exception type of its own.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _shard(
    plan: Plan, sampler: Sampler, parts: list[Samples], measurement: Measurement, fresh: Measurement, cost: dict[str, float]
) -> Callable[[], Shard]:
    """Starts the copies to the host of all that a shard holds; the function returned waits for them and gives the shard.

    Args:
        parts: the sampler's answers, one after the other along the samples.
    """
    finite = torch.cat([_within_bounds(part) for part in parts], 1)
    images = torch.cat([part.images for part in parts], 1)
    samples = images.shape[1]
    stored = to_stored(torch.nan_to_num(images), plan.suite.modality)
    # Residual and likelihood belong to the image that metrics see, after rounding.
    seen = to_float(stored).flatten(0, 1)
    residual = measurement.repeat(samples).normalised_residual(seen).unflatten(0, (-1, samples))
    likelihood = fresh.repeat(samples).log_likelihood(seen).unflatten(0, (-1, samples))
    tensors = {
        "images": stored,
        "index": measurement.index,
        "label": measurement.label,
        "residual": torch.where(finite, residual, torch.nan),
        "log_likelihood": torch.where(finite, likelihood, torch.nan),
    }
    points = plan.suite.modality == "points"
    sources = [part.source for part in parts if part.source is not None]
    optional = {
        "prior": _prior(plan, sampler, measurement, samples) if points else None,
        "source": torch.cat(sources, 1) if points and len(sources) == len(parts) else None,
        "effective_samples": _effective(parts, samples),
    }
    tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    copied, measured_values = HostCopy(tensors), HostCopy({"y": measurement.y})

    def finish() -> Shard:
        return Shard(**copied.wait(), measurement_hash=measurement_hashes(measured_values.wait()["y"]), cost=cost)

    return finish


def _effective(parts: list[Samples], samples: int) -> Tensor | None:
    """Effective number of all samples together, float32 [B], where the parts share what they were drawn from."""
    known = [(part.effective_samples, part.images.shape[1]) for part in parts if part.effective_samples is not None]
    if len(known) < len(parts):
        return None
    shared = torch.stack([1 / effective.double() - 1 / count for effective, count in known]).mean(0)
    return (1 / (1 / samples + shared)).float()


def _prior(plan: Plan, sampler: Sampler, measurement: Measurement, samples: int) -> Tensor | None:
    """One draw from the method's own prior beside each posterior sample, [B,S,C,H,W]; not part of the cost."""
    draw = getattr(sampler, "sample_prior", None)
    if draw is None:
        return None
    rows = sample_rows(measurement.index, range(samples))
    draws = draw(PhiloxNoise(plan.identity.seed, PRIOR_STREAM, *rows))
    # Kept as they are: the metrics of a prior refuse draws that are not finite.
    return to_stored(draws, plan.suite.modality).unflatten(0, (-1, samples))
