"""Independent work in a pool of warm processes, none of which outlives whoever asked for it."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from fleetsim.errors import FleetsimError

A = TypeVar("A")
B = TypeVar("B")

AHEAD = 2
"""Items handed to the pool beyond one per process, so that no process waits for the next."""


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProcessDiedError(FleetsimError):
    """A process ended before its work was done."""


@dataclass(frozen=True, slots=True)
class Done(Generic[B]):
    """An item that ended: with a value or with an error."""

    index: int
    """Which item."""
    value: B | None = None
    error: BaseException | None = None

    def result(self) -> B:
        """The value; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


def each(work: Callable[[A], B], items: Sequence[A], jobs: int) -> Iterator[Done[B]]:
    """Do something with every item, each in some process; what is done comes as it ends, errors included.

    A process that dies takes only its own item with it: items that were under way then are done again, one at a time, and the
    one at which a process dies again has a `ProcessDiedError`. If the caller stops asking, is interrupted or killed, the
    processes end at once.

    Parameters
    ----------
    work : callable
        A function of a module.
    items : sequence
        Its arguments; they are pickled.
    jobs : int
        Processes; with one, the work is done in this process.
    """
    if jobs <= 1 or len(items) <= 1:
        yield from _here(work, items)
        return
    waiting = deque(range(len(items)))
    while waiting:
        suspects: list[int] = []
        yield from _together(work, items, waiting, min(jobs, len(waiting)), suspects)
        for index in suspects:
            yield from _alone(work, items, index)


def _here(work: Callable[[A], B], items: Sequence[A]) -> Iterator[Done[B]]:
    for index, item in enumerate(items):
        try:
            done = Done(index, work(item))
        except Exception as error:
            done = Done(index, error=error)
        yield done


def _together(
    work: Callable[[A], B], items: Sequence[A], waiting: deque[int], jobs: int, suspects: list[int]
) -> Iterator[Done[B]]:
    """Do what waits until nothing does or a process dies; then what was under way is in `suspects`."""
    running: dict[Future[B], int] = {}
    with _Processes(jobs) as pool:
        while waiting or running:
            while waiting and len(running) < jobs + AHEAD:
                try:
                    running[pool.submit(work, items[waiting[0]])] = waiting[0]
                except BrokenProcessPool:
                    break
                waiting.popleft()
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                done = _done(running.pop(future), future)
                if isinstance(done.error, BrokenProcessPool):
                    suspects += [done.index, *running.values()]
                    suspects.sort()
                    return
                yield done
            if not ended:  # broken before anything was handed over
                raise ProcessDiedError("the processes of the pool end as soon as they begin")


def _alone(work: Callable[[A], B], items: Sequence[A], index: int) -> Iterator[Done[B]]:
    with _Processes(1) as pool:
        done = _done(index, pool.submit(work, items[index]))
    if isinstance(done.error, BrokenProcessPool):
        message = "its process died, alone as well: killed from outside, out of memory, or a crash in compiled code"
        done = Done(index, error=ProcessDiedError(message))
    yield done


def _done(index: int, future: Future[B]) -> Done[B]:
    try:
        return Done(index, future.result())
    except Exception as error:
        return Done(index, error=error)


class _Processes:
    """Spawned processes that live as long as the other end of a pipe is open: in this block, in this process."""

    def __init__(self, jobs: int) -> None:
        context = get_context("spawn")
        self._lifeline, self._held = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(jobs, context, _begin, (self._lifeline,))

    def __enter__(self) -> ProcessPoolExecutor:
        return self._pool

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            self._pool.shutdown()
        self._held.close()
        self._pool.shutdown(cancel_futures=True)
        self._lifeline.close()


def _begin(lifeline: Connection) -> None:
    """What a process of the pool does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; whoever asked decides what it means
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    """End this process when nobody holds the other end any more."""
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(0)
