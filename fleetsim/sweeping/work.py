"""One run of a study, in whichever process it happens."""

from __future__ import annotations

import gc
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import parent_process

import pyarrow as pa

from fleetsim.errors import FleetsimError
from fleetsim.experiment.run import run
from fleetsim.plugins import allowing_imports
from fleetsim.scenario.load import LoadedScenario
from fleetsim.sweeping.made_with import MadeWith
from fleetsim.sweeping.store import Store, write_json


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a process needs to know about a run; it can be pickled."""

    run: str
    loaded: LoadedScenario
    store: Store
    made_with: MadeWith
    check: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    run: str
    error: str = ""
    """Why it failed; empty if it did not."""
    wall_s: float = 0.0
    """Time that its process had to do with it, reading and writing included."""
    run_s: float = 0.0
    """Of that, what `fleetsim run` would have taken."""
    cpu_s: float = 0.0
    """Processor time of its process meanwhile."""


def perform(assignment: Assignment) -> Ended:
    """Simulate and publish; a failure is written down, not raised."""
    started, cpu_started = time.perf_counter(), time.process_time()
    with _apart_from_the_caller():
        error = _failure(assignment)
        ran = time.perf_counter()
        _tidy()
    cpu_s = time.process_time() - cpu_started
    return Ended(assignment.run, error, time.perf_counter() - started, ran - started, cpu_s)


@contextmanager
def _apart_from_the_caller() -> Iterator[None]:
    """Keep all that a caller in this process holds out of the search for what the run leaves: it may be a hundred times as much."""
    if parent_process() is not None or gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _tidy() -> None:
    """Give back what the run held before the next begins; what a process of a pool has loaded by then stays and is not searched."""
    gc.collect()
    if parent_process() is not None and not gc.get_freeze_count():
        gc.freeze()
    pa.default_memory_pool().release_unused()


def _failure(assignment: Assignment) -> str:
    """Run; why it failed, if it did."""
    try:
        # whoever made the assignment has loaded its policies, with permission where they are import paths
        with assignment.store.run_folder(assignment.run) as out, allowing_imports(True):
            notes = {"made_with": dict(assignment.made_with)}
            result = run(assignment.loaded, out, check=assignment.check, allow_import=True, notes=notes)
            if result.interrupted:
                shutil.rmtree(out)
                raise KeyboardInterrupt
    except Exception as error:  # whatever a policy or the machine does ends its run, not the study
        reason = str(error) if isinstance(error, FleetsimError) else f"{type(error).__name__}: {error}"
        record_failure(assignment, reason or type(error).__name__, traceback.format_exc())
        return reason or type(error).__name__
    assignment.store.remove(failure_name(assignment.run))
    return ""


def failure_name(run: str) -> str:
    """File that says why a run failed."""
    return f"failed/{run}.json"


def record_failure(assignment: Assignment, error: str, trace: str = "") -> None:
    """Write down why a run failed."""
    content = {"run": assignment.run, "error": error, "traceback": trace, "made_with": dict(assignment.made_with)}
    write_json(assignment.store, failure_name(assignment.run), content)
