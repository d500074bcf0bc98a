"""`vfmbench check-sampler FILE`: whether the samplers and tasks of a plugin hold what the harness relies on."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import torch

from vfmbench import registry
from vfmbench.conformance import samplers, tasks
from vfmbench.conformance.findings import Finding, tried
from vfmbench.errors import EXIT_FAILED, UserError
from vfmbench.interfaces import Suite, Task
from vfmbench.options import parse_overrides
from vfmbench.reporting import console
from vfmbench.reporting.findings import conclusion, lines
from vfmbench.running.plan import choose_device

# A suite of larger images takes minutes, and is tried only if it is named.
_MOST_NUMBERS = 1024


def main(options: argparse.Namespace) -> int:
    known = {*registry.samplers.names(), *registry.tasks.names()}
    registry.load_plugin(options.file)
    new_samplers = [name for name in registry.samplers.names() if name not in known]
    new_tasks = [name for name in registry.tasks.names() if name not in known]
    if not new_samplers and not new_tasks:
        raise UserError(
            f"{options.file} registers no sampler and no task; end it with vfmbench.registry.samplers.register(NAME, CLASS)."
        )
    values = parse_overrides(options.overrides, ["method"]).get("method", {})
    device = choose_device(options.device)
    suites = _suites(options.suite)
    findings = []
    for part, found in (
        *((name, _of_task(name, suites, device)) for name in new_tasks),
        *((name, _of_sampler(name, suites, new_tasks, values, device)) for name in new_samplers),
    ):
        own = list(found)
        for line in lines(part, own):
            console.OUT.print(line, soft_wrap=True, markup=False)
        findings.append(own)
    console.OUT.print(conclusion(options.file, findings), soft_wrap=True, markup=False)
    return 0 if all(map(_holds, findings)) else EXIT_FAILED


def _holds(findings: list[Finding]) -> bool:
    return tried(findings) and not any(finding.problem for finding in findings)


def _suites(name: str | None) -> list[Suite]:
    """The one that was asked for, else all of small images."""
    if name is not None:
        return [registry.load_suite(name)]
    built = map(registry.load_suite, registry.suites.load_all())
    return [suite for suite in built if math.prod(suite.image_shape) <= _MOST_NUMBERS]


def _of_task(name: str, suites: list[Suite], device: torch.device) -> Iterator[Finding]:
    for suite in suites:
        task = _task(suite, name)
        if isinstance(task, UserError):
            yield Finding(name, f"images of {suite.name}", "it fits", skipped=str(task))
        else:
            yield from tasks.examine(suite, task, device)


def _of_sampler(
    name: str, suites: list[Suite], new_tasks: list[str], values: dict[str, object], device: torch.device
) -> Iterator[Finding]:
    sampler_class = registry.samplers.get(name)
    for suite in suites:
        for task_name in (*suite.task_names, *new_tasks):
            task = _task(suite, task_name)
            if not isinstance(task, UserError):
                yield from samplers.examine(name, sampler_class, suite, task, values, device)


def _task(suite: Suite, name: str) -> Task | UserError:
    """The task, or why the suite cannot have it."""
    try:
        return suite.task(name, {})
    except UserError as error:
        return error
