"""Who carries out the runs of a study: processes of this machine, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from fleetsim.experiment.pool import Workers, cores
from fleetsim.sweeping.memory import Guard, free_bytes, need_bytes
from fleetsim.sweeping.work import Assignment, Ended, perform, record_failure

Engine = Literal["local", "ray"]
CarryOut = Callable[[Sequence[Assignment]], Iterator[Ended]]
"""Carries out assignments; tells how each ends, in the order in which they do."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to do a sweep."""

    jobs: int = 0
    """Processes; 0: one per core."""
    engine: Engine = "local"
    address: str | None = None
    """Of a Ray cluster; none: one on this machine."""
    shard: tuple[int, int] = (1, 1)
    """Only every n-th run, from the i-th."""
    fresh: bool = False
    """Do everything again."""
    keep_old: bool = False
    """Keep finished runs that were made by other code or from other files."""
    memory_bytes: float | None = None
    """What all processes together may use; none: what is free."""
    check: bool = False
    """Check the laws of the simulation in every run."""
    allow_import: bool = False
    """Let scenarios name policies by import path."""

    @property
    def processes(self) -> int:
        """Processes of this machine; on a cluster, more than one."""
        return self.jobs or cores() if self.engine == "local" else max(2, self.jobs)


@contextmanager
def crew(options: Options) -> Iterator[CarryOut]:
    """Somebody who carries out runs, as long as this block: what is warm stays warm between one list of runs and the next."""
    if options.engine == "ray":
        from fleetsim.sweeping.ray_engine import cluster

        with cluster(options.address, options.jobs) as on_ray:
            yield on_ray
        return
    with Workers(options.processes) as workers:
        yield lambda work: _on_this_machine(workers, work, options.memory_bytes)


def _on_this_machine(workers: Workers, work: Sequence[Assignment], memory_bytes: float | None) -> Iterator[Ended]:
    """How the runs end, those first that would not fit into memory."""
    free = memory_bytes if memory_bytes is not None else free_bytes()
    most = None
    if free is not None:
        guard = Guard(free)
        needs = {one.run: need_bytes(one.loaded) for one in work}
        for one in work:
            if refusal := guard.refusal(needs[one.run]):
                record_failure(one, refusal)
                yield Ended(one.run, refusal)
        work = [one for one in work if not guard.refusal(needs[one.run])]
        most = guard.jobs([needs[one.run] for one in work], workers.jobs)
    for done in workers.each(perform, work, most):
        if done.error is not None:
            record_failure(work[done.index], str(done.error))
            yield Ended(work[done.index].run, str(done.error))
        else:
            yield done.result()
