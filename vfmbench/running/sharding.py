"""One run split over several processes, also of several machines that share a folder.

Each part has a contiguous range of the run's batches, so that every batch, and with it every sample, is the one of the unsplit
run. A part holds only its own folder `parts/<number>-of-<count>/` and writes only its own shards; whoever finishes last holds
the whole directory for a moment and does what is left: tables and metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vfmbench.errors import Status, UserError
from vfmbench.files import BusyError
from vfmbench.provenance import now
from vfmbench.results.paths import PartPaths
from vfmbench.results.shards import Shards
from vfmbench.running.plan import Plan
from vfmbench.running.runner import Run, execute, logging_to, new_session, skipped
from vfmbench.running.sampling import Progress, sample_images


@dataclass(frozen=True)
class Part:
    """Part `number`, from 0, of `count`."""

    number: int
    count: int

    @property
    def folder(self) -> str:
        """Below the run directory."""
        return PartPaths.name(self.number, self.count)


def positions(plan: Plan, part: Part) -> range:
    """The images of a part: whole batches. Raises UserError if there are fewer batches than parts."""
    images, size = plan.identity.num_images, max(1, plan.batch_size // plan.identity.samples)
    batches = -(-images // size)
    if part.count > batches:
        raise UserError(
            f"shards: {part.count} processes cannot share {batches} batches of {size} images; "
            "take fewer of them, or a smaller batch_size."
        )
    first, last = (batches * edge // part.count * size for edge in (part.number, part.number + 1))
    return range(first, min(last, images))


def execute_part(plan: Plan, part: Part, progress: Progress | None = None) -> Run:
    """Samples what is missing of a part; if it was the last one, finishes the run.

    Returns the run, with status `interrupted` as long as other parts are at work.
    """
    if not plan.verdict.supported:
        return skipped(plan)
    with plan.store.writing(plan.identity, False, part.folder):
        _sample_part(plan, part, progress or (lambda done, total: None))
    return merge(plan, part.count)


def _sample_part(plan: Plan, part: Part, progress: Progress) -> None:
    store = plan.store
    stored = set(Shards(store.directory).positions)
    todo = [index for index in positions(plan, part) if index not in stored]
    sessions = store.part(part.folder).get("sessions", [])
    if not todo and sessions:
        return
    # Numbers of sessions tell processes apart in the records; those of other parts lie between this one's.
    number = len(store.provenance().get("sessions", [])) + part.number + part.count * len(sessions)
    session = {"part": part.folder, **new_session(plan, len(todo), [])}
    facts = {"status": Status.INTERRUPTED, "sessions": [*sessions, session]}
    store.write_part(part.folder, facts)
    with logging_to(store.paths.part(part.folder).log):
        session["batch_size"] = sample_images(plan, plan.sampler(), todo, number, _of_part(plan, part, progress))
    session["ended"] = now()
    store.write_part(part.folder, {**facts, "status": Status.DONE})


def _of_part(plan: Plan, part: Part, progress: Progress) -> Progress:
    """Counts the part's images instead of the run's."""
    others = plan.identity.num_images - len(positions(plan, part))

    def report(done: int, planned: int) -> None:
        progress(done - others, planned - others)

    return report


def unfinished_parts(plan: Plan, count: int) -> list[int]:
    """Numbers of the parts that have something left to sample."""
    parts = [Part(number, count) for number in range(count)]
    return [part.number for part in parts if plan.store.part(part.folder).get("status") != Status.DONE]


def merge(plan: Plan, count: int) -> Run:
    """Finishes a run whose parts are all sampled; leaves it alone, with status `interrupted`, as long as one is not."""
    waiting = unfinished_parts(plan, count)
    if waiting:
        return Run(plan.store, Status.INTERRUPTED, f"{count - len(waiting)} of {count} parts are done")
    try:
        with plan.store.writing(plan.identity, False):
            facts = plan.store.provenance()
            sessions = facts.get("sessions", [])
            if not any("part" in session for session in sessions):
                sessions = [*sessions, *_part_sessions(plan, count)]
                plan.store.write_provenance({**facts, "status": Status.INTERRUPTED, "sessions": sessions})
        return execute(plan)
    except BusyError:
        return Run(plan.store, Status.INTERRUPTED, "another process is finishing the run")


def _part_sessions(plan: Plan, count: int) -> list[Mapping[str, Any]]:
    """The parts' sessions by their numbers; a part that was not interrupted as often as another leaves an empty one."""
    parts = [plan.store.part(Part(number, count).folder)["sessions"] for number in range(count)]
    longest = max(len(sessions) for sessions in parts)
    return [sessions[turn] if turn < len(sessions) else {"part": None} for turn in range(longest) for sessions in parts]
