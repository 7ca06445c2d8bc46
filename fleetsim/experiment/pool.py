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
    """Do something with every item, each in some process: `Workers.each` with workers of its own."""
    with Workers(jobs) as workers:
        yield from workers.each(work, items)


class Workers:
    """Processes that are there as long as this block: warm, so that what they have loaded serves all of their work.

    A process that dies takes only its own item with it: items that were under way then are done again, one at a time, and the one
    at which a process dies again has a `ProcessDiedError`. If the block is left, interrupted or killed, the processes end at once.

    Parameters
    ----------
    jobs : int
        Processes; with one, the work is done in this process.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._processes: _Processes | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._end(orderly=kind is None)

    def _end(self, orderly: bool) -> None:
        if self._processes is not None:
            self._processes.end(orderly)
            self._processes = None

    def each(self, work: Callable[[A], B], items: Sequence[A], most: int | None = None) -> Iterator[Done[B]]:
        """Do something with every item; what is done comes as it ends, errors included.

        Parameters
        ----------
        work : callable
            A function of a module.
        items : sequence
            Its arguments; they are pickled.
        most : int, optional
            Items under way at a time, if not as many as there are processes.
        """
        if self.jobs <= 1:
            yield from _here(work, items)
            return
        waiting = deque(range(len(items)))
        window = self.jobs + AHEAD if most is None or most >= self.jobs else most
        while waiting:
            suspects: list[int] = []
            try:
                yield from self._together(work, items, waiting, window, suspects)
            except GeneratorExit:
                self._end(orderly=False)
                raise
            for index in suspects:
                yield from _alone(work, items, index)

    def _together(
        self, work: Callable[[A], B], items: Sequence[A], waiting: deque[int], window: int, suspects: list[int]
    ) -> Iterator[Done[B]]:
        """Do what waits until nothing does or a process dies; then what was under way is in `suspects`."""
        running: dict[Future[B], int] = {}
        if self._processes is None:
            self._processes = _Processes(self.jobs)
            self._processes.check()
        while waiting or running:
            while waiting and len(running) < window:
                try:
                    running[self._processes.pool.submit(work, items[waiting[0]])] = waiting[0]
                except BrokenProcessPool:
                    break
                waiting.popleft()
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                done = _done(running.pop(future), future)
                if isinstance(done.error, BrokenProcessPool):
                    suspects += sorted([done.index, *running.values()])
                    self._end(orderly=False)
                    return
                yield done


def _here(work: Callable[[A], B], items: Sequence[A]) -> Iterator[Done[B]]:
    for index, item in enumerate(items):
        try:
            done = Done(index, work(item))
        except Exception as error:
            done = Done(index, error=error)
        yield done


def _alone(work: Callable[[A], B], items: Sequence[A], index: int) -> Iterator[Done[B]]:
    processes = _Processes(1)
    try:
        done = _done(index, processes.pool.submit(work, items[index]))
    finally:
        processes.end(orderly=False)
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
    """Spawned processes that live as long as this one holds the other end of a pipe."""

    def __init__(self, jobs: int) -> None:
        context = get_context("spawn")
        self._lifeline, self._held = context.Pipe(duplex=False)
        self.pool = ProcessPoolExecutor(jobs, context, _begin, (self._lifeline,))

    def check(self) -> None:
        """Make sure that processes can begin at all: a script that asks for them while it is imported has none that can."""
        try:
            self.pool.submit(_nothing).result()
        except BrokenProcessPool:
            self.end(orderly=False)
            hint = "in a script, ask for more than one job below `if __name__ == '__main__':`"
            raise ProcessDiedError(f"the processes of the pool end as soon as they begin: {hint}") from None

    def end(self, orderly: bool) -> None:
        """Let them end what they do, or not."""
        if orderly:
            self.pool.shutdown()
        self._held.close()
        self.pool.shutdown(cancel_futures=True)
        self._lifeline.close()


def _nothing() -> None:
    pass


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
