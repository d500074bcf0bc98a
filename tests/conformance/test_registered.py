"""Every registered sampler and task, on small suites of images and of points; a new one is checked without being named here."""

from functools import cache

import pytest

from vfmbench.conformance import samplers as of_samplers
from vfmbench.conformance import tasks as of_tasks
from vfmbench.conformance.findings import tried
from vfmbench.errors import UserError
from vfmbench.registry import load_suite, samplers, tasks

SUITES, LARGER = ("digits", "checkerboard"), "photos64"

# What makes a method quick whose cost is not its number of steps.
QUICK = {"source_reweighting": {"pool": 64, "particles": 2}}


def task_of(suite_name, name):
    try:
        return load_suite(suite_name).task(name, {})
    except UserError as error:
        pytest.skip(str(error))


@cache
def findings_of(name, suite_name):
    """On the first task of the suite that the sampler can run on, and why it cannot on those before."""
    suite, findings = load_suite(suite_name), []
    for task_name in suite.task_names:
        findings += of_samplers.examine(name, samplers.get(name), suite, suite.task(task_name, {}), QUICK.get(name))
        if tried(findings):
            break
    return findings


def problems(findings):
    return [f"on {finding.place}, {finding.statement}: {finding.problem}" for finding in findings if finding.problem]


@pytest.mark.parametrize("suite_name", SUITES)
@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler_holds_what_it_must(name, suite_name):
    findings = findings_of(name, suite_name)
    assert not problems(findings)
    if not tried(findings):
        pytest.skip("; ".join(dict.fromkeys(finding.skipped for finding in findings if finding.skipped)))


@pytest.mark.parametrize("name", samplers.names())
def test_no_sampler_goes_unchecked(name):
    """What can run on no small suite is checked on a larger one."""
    if not any(tried(findings_of(name, suite_name)) for suite_name in SUITES):
        findings = findings_of(name, LARGER)
        assert not problems(findings)
        assert tried(findings), findings


@pytest.mark.parametrize("suite_name", SUITES)
@pytest.mark.parametrize("name", tasks.names())
def test_every_task_holds_what_it_must(name, suite_name):
    findings = list(of_tasks.examine(load_suite(suite_name), task_of(suite_name, name)))
    assert len(findings) == len(of_tasks.TASK_CHECKS)
    assert not problems(findings)
