"""Runs of a study on a Ray cluster: the same assignments, carried out by the same function, on as many machines as there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fleetsim.errors import Finding, FleetsimError, InputError
from fleetsim.experiment.pool import cores
from fleetsim.experiment.replicate import code_digest
from fleetsim.sweeping.store import manifest_of
from fleetsim.sweeping.work import Assignment, Ended, perform, record_failure

TRIES_AGAIN = 3
"""Times that a run is begun again whose process or machine went away."""
STORE_BYTES = 80_000_000
"""Object store of a cluster started here [bytes]: results go to files, so that little passes through it."""
AHEAD = 2
"""Runs handed to the cluster for each of its processors: more would only wait there."""


@contextmanager
def cluster(address: str | None, jobs: int) -> Iterator[Callable[[Sequence[Assignment]], Iterator[Ended]]]:
    """A cluster that carries out runs, as long as this block.

    Parameters
    ----------
    address : str, optional
        Of a cluster; without it one is started on this machine, and ended afterwards.
    jobs : int
        Processors of a cluster started here; 0: all. Of another cluster: runs at a time; 0: as many as it has processors.

    Raises
    ------
    InputError
        If Ray is not installed, or there is no cluster at the address.
    """
    ray, mine = _cluster(address, jobs)
    try:
        processors = int(ray.cluster_resources().get("CPU", 1))
        at_a_time = jobs if address is not None and jobs else AHEAD * processors
        yield lambda work: _ended(ray, work, at_a_time)
    finally:
        if mine:
            ray.shutdown()


def _cluster(address: str | None, jobs: int) -> tuple[Any, bool]:
    """Ray, connected; and whether this is whose connection it is."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError(Finding("Ray is not installed", "--engine", hint="pip install 'fleetsim[ray]'")) from None
    if ray.is_initialized():
        return ray, False
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        settings |= {"address": "local", "num_cpus": jobs or cores(), "include_dashboard": False}
        settings |= {"object_store_memory": STORE_BYTES}
    try:
        ray.init(**{"address": address, **settings})
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            Finding(f"no Ray cluster: {reason}", f"--address {address}" if address else "--engine")
        ) from None
    return ray, True


def _ended(ray: Any, work: Sequence[Assignment], at_a_time: int) -> Iterator[Ended]:
    remote = ray.remote(num_cpus=1, max_retries=TRIES_AGAIN)(_perform)
    waiting, running = list(reversed(work)), dict[Any, Assignment]()
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                assignment = waiting.pop()
                running[remote.remote(assignment)] = assignment
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            yield _outcome(ray, ready, running.pop(ready))
    finally:
        for left in running:
            ray.cancel(left, force=True)


def _outcome(ray: Any, ready: Any, assignment: Assignment) -> Ended:
    try:
        ended: Ended = ray.get(ready)
    except (ray.exceptions.RayError, FleetsimError) as error:
        reason = " ".join(str(error).split())[:500]
        record_failure(assignment, reason)
        return Ended(assignment.run, reason)
    if not ended.error and manifest_of(assignment.store, assignment.run) is None:
        reason = f"its results are not in {assignment.store}: it must be a folder that all machines share, or an address (s3://…)"
        record_failure(assignment, reason)
        return Ended(assignment.run, reason)
    return ended


def _perform(assignment: Assignment) -> Ended:
    """Carry out an assignment in a process of the cluster, with the same code as here."""
    if code_digest() != assignment.made_with["code"]:
        raise FleetsimError(
            "this machine of the cluster has another version of fleetsim: results would not be comparable"
        )
    return perform(assignment)
