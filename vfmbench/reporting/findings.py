"""What `vfmbench check-sampler` says: what of a part holds, and what does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vfmbench.conformance.findings import Finding, tried


def lines(part: str, findings: Sequence[Finding]) -> Iterator[str]:
    """The part's name and the places that it was checked on; then each statement, and where and how it fails."""
    checked = [finding for finding in findings if not finding.skipped]
    left_out = {finding.place for finding in findings if finding.skipped}
    places = dict.fromkeys(finding.place for finding in checked if finding.place not in left_out)
    yield f"{part}, checked on {', '.join(places) or 'nothing'}:"
    for statement in dict.fromkeys(finding.statement for finding in checked):
        problems: dict[str, list[str]] = {}
        for finding in checked:
            if finding.statement == statement and finding.problem:
                problems.setdefault(finding.problem, []).append(finding.place)
        yield f"  {'NO ' if problems else 'yes'} {statement}"
        for problem, where in list(problems.items())[:2]:
            also = f" (and on {len(where) - 1} more)" if len(where) > 1 else ""
            yield f"      on {where[0]}{also}: {problem}"
        if len(problems) > 2:
            yield f"      and otherwise on {sum(map(len, list(problems.values())[2:]))} more"
    skipped: dict[str, list[str]] = {}
    for finding in findings:
        if finding.skipped:
            skipped.setdefault(finding.skipped, []).append(finding.place)
    for reason, where in skipped.items():
        yield f"  not checked on {', '.join(dict.fromkeys(where))}: {reason}"


def conclusion(file: str, parts: Sequence[Sequence[Finding]]) -> str:
    """One sentence on all parts of a file."""
    checked = [finding for findings in parts for finding in findings if not finding.skipped]
    failed = [finding for finding in checked if finding.problem]
    if failed:
        statements = {(finding.part, finding.statement) for finding in failed}
        return f"{file}: {len(statements)} of what must hold does not; {len(failed)} of {len(checked)} checks failed."
    if not all(map(tried, parts)):
        return f"{file}: some of it could not be checked on any suite that was tried; name one that it is for by --suite."
    return f"{file} holds what it must: {len(checked)} checks passed."
