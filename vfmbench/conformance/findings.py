"""What a check says: nothing where it holds, one sentence where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from vfmbench.errors import MissingError

Subject = TypeVar("Subject")
Checks = Mapping[str, Callable[[Subject], None]]
"""What holds, as a statement about "it" -> the check, which raises `Violation` where it does not."""


class Violation(AssertionError):
    """One sentence: what a part does that the vocabulary (`vfmbench.interfaces`) does not allow."""


@dataclass(frozen=True)
class Finding:
    """One line of an examination.

    Attributes:
        part: name of the sampler or task that was checked.
        place: where, e.g. "TASK of SUITE".
        statement: what should hold.
        problem: what does instead; empty if the statement holds.
        skipped: why it was not checked; empty if it was.
    """

    part: str
    place: str
    statement: str
    problem: str = ""
    skipped: str = ""


def hold(part: str, place: str, checks: Checks[Subject], given: Subject) -> Iterator[Finding]:
    """Makes every check. An error is a problem of the part, but a file that is not on this machine is a reason to skip it."""
    for statement, check in checks.items():
        problem = skipped = ""
        try:
            check(given)
        except Violation as violation:
            problem = str(violation)
        except MissingError as error:
            skipped = str(error)
        except Exception as error:
            problem = f"it fails with {type(error).__name__}: {error}"
        yield Finding(part, place, statement, problem, skipped)


def tried(findings: Iterable[Finding]) -> bool:
    """Whether a part was checked as a whole in some place, with nothing skipped there."""
    findings = list(findings)
    skipped = {finding.place for finding in findings if finding.skipped}
    return any(finding.place not in skipped for finding in findings)


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; infinite between other shapes and beside what is not a number, unless it is in both."""
    if found.shape != expected.shape:
        return float("inf")
    distance = (found.double() - expected.double()).abs()
    distance[found.isnan() & expected.isnan()] = 0
    return float(distance.nan_to_num(float("inf")).max()) if distance.numel() else 0.0
