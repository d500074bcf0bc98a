"""What every sampler must hold: its samples are a function of measurement and noise alone, of the right shape, and counted.

>>> from vfmbench.conformance.samplers import examine
>>> from vfmbench.registry import load_suite, samplers
>>> suite = load_suite("digits")
>>> [finding.problem for finding in examine("pinv", samplers.get("pinv"), suite, suite.task("denoise", {}))]
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from vfmbench.conformance.findings import Checks, Finding, Violation, difference, hold
from vfmbench.conformance.trials import Candidate, Trial, few_steps, measure_of, noise_of_a_run
from vfmbench.conformance.watching import other_global_numbers, rows_seen_by_networks
from vfmbench.interfaces import Sampler, Suite, Task
from vfmbench.measurement import Samples
from vfmbench.options import SamplerOptions, validate
from vfmbench.weights.store import WeightStore

_CPU = torch.device("cpu")

# Splits that scores are computed on.
_SCORED_SPLITS = ("validation", "test")


def check_declaration(candidate: Candidate) -> None:
    """Options that are the same when they are written and read again, and weights by name."""
    options, weights = candidate.sampler_class.Options, candidate.sampler_class.weights
    if isinstance(weights, str) or not all(isinstance(name, str) for name in weights):
        raise Violation(f"its weights are {weights!r}, not a tuple of names such as ('flow',), or () for none")
    again = options.model_validate(json.loads(candidate.options.model_dump_json()))
    if again != candidate.options:
        raise Violation("its options change when they are written and read again, so that no run could be resumed")


def check_supports(candidate: Candidate) -> None:
    """`supports` answers with a truth value and a sentence, and loads no weights: a sweep asks it a thousand times."""

    def refuse(*_: object, **__: object) -> None:
        raise Violation("supports() loads weights; it may read their manifest (suite.weights.entry), and load in __init__")

    with mock.patch.object(WeightStore, "load", refuse), mock.patch.object(nn.Module, "load_state_dict", refuse):
        answer = candidate.sampler_class.supports(candidate.task, candidate.suite)
    if not (isinstance(answer, tuple) and list(map(type, answer)) == [bool, str]):
        raise Violation(f"supports() returns {answer!r}, not (whether it can run, the reason or an empty string)")
    if not answer[0] and not answer[1]:
        raise Violation("supports() refuses without a reason")


def check_no_true_image(candidate: Candidate) -> None:
    """It asks the suite for no images that scores are computed on, neither when it is built nor when it samples."""
    given = candidate.suite.dataset

    def dataset(split: str) -> Any:
        if split in _SCORED_SPLITS:
            raise Violation(f"it asks its suite for the {split} images; a sampler may see measurements alone")
        return given(split)

    measure = measure_of(candidate.suite, candidate.task, 2, candidate.device)
    with mock.patch.object(candidate.suite, "dataset", dataset):
        measurement = measure([0, 1])
        candidate.build().sample(measurement, 1, noise_of_a_run(measurement.index, 1))


def check_result(trial: Trial) -> None:
    """Images [B,S,C,H,W] (and what goes with them) that are finite, in the measurement's dtype and on its device."""
    measurement = trial.measure(trial.all_rows)
    samples = trial.draw(measurement)
    if not isinstance(samples, Samples):
        raise Violation(f"sample() returns a {type(samples).__name__}, not vfmbench.measurement.Samples")
    leading = (len(measurement), trial.num_samples)
    results = {
        "images": (samples.images, (*leading, *trial.image_shape)),
        "latents": (samples.latents, (*leading, *trial.latent_shape)),
        "source": (samples.source, (*leading, *trial.latent_shape)),
        "effective_samples": (samples.effective_samples, leading[:1]),
    }
    for name, (value, shape) in results.items():
        if value is None and name != "images":
            continue
        if not isinstance(value, Tensor):
            raise Violation(f"its {name} are of type {type(value).__module__}.{type(value).__name__}, not a torch.Tensor")
        if tuple(value.shape) != shape:
            raise Violation(f"its {name} have the shape {list(value.shape)}, not {list(shape)}")
        if value.device != measurement.y.device:
            raise Violation(f"its {name} are on {value.device}, but the measurement is on {measurement.y.device}")
        if not value.isfinite().all():
            raise Violation(f"its {name} are not finite")
    if samples.images.dtype != measurement.y.dtype:
        raise Violation(f"its images are {samples.images.dtype}, but the measurement is {measurement.y.dtype}")


def check_repeatable(trial: Trial) -> None:
    """The same measurement and noise give the same samples, whatever was drawn before."""
    expected = trial.together
    with other_global_numbers() as used:
        trial.images(trial.measure([0]))
        found = trial.images(trial.measure(trial.all_rows))
    if used:
        why = f"it draws from the global generator of {' and '.join(used)}; take the numbers from `noise`"
    else:
        why = "something that it keeps between calls changes its samples"
    trial.compare(found, expected, f"two calls with the same noise differ by {{}}: {why}")


def check_batch_size(trial: Trial) -> None:
    """A measurement's samples are the same alone and beside others."""
    for row in (0, trial.rows - 1):
        alone = trial.images(trial.measure([row]))
        others = trial.rows - 1
        sentence = f"samples differ by {{}} between a measurement alone and the same one beside {others} others"
        trial.compare(alone, trial.together[[row]], f"{sentence}; reduce over each row by itself")


def check_order(trial: Trial) -> None:
    """A measurement's samples are the same wherever it stands in a batch."""
    order = [*trial.all_rows[2:], *trial.all_rows[:2]]
    moved = trial.images(trial.measure(order))
    trial.compare(moved, trial.together[order], "samples differ by {} when the measurements of a batch change places")


def check_broken_neighbour(trial: Trial) -> None:
    """A measurement's samples are the same beside one that is not a number."""
    measurement = trial.measure(trial.all_rows)
    y = measurement.y.clone()
    y[1] = torch.nan
    kept = [row for row in trial.all_rows if row != 1]
    found = trial.images(replace(measurement, y=y))
    sentence = "samples differ by {} beside a measurement that is not a number: something is reduced over the whole batch"
    trial.compare(found[kept], trial.together[kept], sentence)


def check_measurement_is_left_alone(trial: Trial) -> None:
    """The measurement is not written to: the residuals of a run are computed from it afterwards."""
    measurement = trial.measure(trial.all_rows)
    given = {
        "y": measurement.y,
        "noise_std": measurement.noise_std,
        "label": measurement.label,
        "index": measurement.index,
    }
    before = {name: value.clone() for name, value in given.items()}
    trial.draw(measurement)
    changed = [name for name, value in before.items() if difference(given[name], value)]
    if changed:
        raise Violation(f"sample() writes to the measurement's {' and '.join(changed)}; work on a copy")


def check_evaluations(trial: Trial) -> None:
    """Every row that goes through a network is counted by `meter`."""
    measurement = trial.measure(trial.all_rows)
    trial.sampler.meter.reset()
    with rows_seen_by_networks() as seen:
        trial.draw(measurement)
    counted = sum(count for kind, count in trial.sampler.meter.counts.items() if kind.endswith("_forwards"))
    if counted < seen[0]:
        raise Violation(
            f"networks were given {seen[0]} rows, but its meter counted {counted}; take networks from the suite, or count "
            "their calls by meter.measure(kind, rows)"
        )


DECLARATION_CHECKS: Checks[Candidate] = {
    "its options and weights are declared": check_declaration,
    "supports() answers without loading weights": check_supports,
}
BUILDING_CHECKS: Checks[Candidate] = {"it asks for no true images": check_no_true_image}
RESULT_CHECKS: Checks[Trial] = {"its samples have the right shape, dtype and device, and are finite": check_result}
TRIAL_CHECKS: Checks[Trial] = {
    "the same noise gives the same samples": check_repeatable,
    "samples do not depend on the batch size": check_batch_size,
    "samples do not depend on the order of a batch": check_order,
    "samples do not depend on a broken measurement beside them": check_broken_neighbour,
    "the measurement is left as it is": check_measurement_is_left_alone,
    "evaluations of networks are counted": check_evaluations,
}


def examine(
    name: str,
    sampler_class: type[Sampler],
    suite: Suite,
    task: Task,
    options: Mapping[str, Any] | None = None,
    device: torch.device = _CPU,
) -> Iterator[Finding]:
    """Checks a sampler on one task of a suite, as far as it gets; where it cannot run, the last finding says why.

    Args:
        options: of the method, instead of the suite's for it and `few_steps`.

    Raises UserError for an option that the method does not have.
    """
    place = f"{task.name} of {suite.name}"
    if not (isinstance(sampler_class, type) and issubclass(sampler_class, Sampler)):
        yield Finding(name, place, "it is a sampler", "it is no class derived from vfmbench.interfaces.Sampler")
        return
    if not issubclass(sampler_class.Options, SamplerOptions):
        yield Finding(name, place, "it is a sampler", "its Options are not derived from vfmbench.options.SamplerOptions")
        return
    values = {**suite.defaults.methods.get(name, {}), **few_steps(sampler_class.Options), **(options or {})}
    candidate = Candidate(sampler_class, suite, task, validate(sampler_class.Options, values, "method."), device)
    declared = list(hold(name, place, DECLARATION_CHECKS, candidate))
    yield from declared
    if any(finding.problem or finding.skipped for finding in declared):
        return
    supported, reason = sampler_class.supports(task, suite)
    if not supported:
        yield Finding(name, place, "it can run", skipped=reason)
        return
    measure = measure_of(suite, task, Trial.rows, device)
    trial = Trial(candidate.build, measure, suite.image_shape, suite.latent_shape)
    result = list(hold(name, place, RESULT_CHECKS, trial))
    yield from result
    if any(finding.problem or finding.skipped for finding in result):
        return
    yield from hold(name, place, BUILDING_CHECKS, candidate)
    yield from hold(name, place, TRIAL_CHECKS, trial)
