"""What the checkers of policies that are asked every so often have in common: small fleets under bursts, and one run on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from time import process_time_ns
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from fleetsim.fleet.fleet import Fleet
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.scenario.schema import Scenario
from fleetsim.testing.report import Policy
from fleetsim.workload.request import FINISHED, Request

Answer = TypeVar("Answer")
PERIODS = 40
"""Periods of the policy over which requests arrive."""
_TOLERANCE = 1e-9


class Arrivals(Protocol):
    """What a fleet is fed with."""

    skipped_rows: int

    def requests(self) -> Iterator[Request]:
        """All of them, by arrival."""
        ...

    def released_by(self, request: Request, now_s: float) -> None:
        """Nothing follows from an end."""
        ...


class Bursts:
    """Requests in bursts with pauses, over `PERIODS` periods of the policy.

    Parameters
    ----------
    requests : int
        How many.
    period_s : float
        Period of the policy [s].
    outputs : int
        Changes output lengths only.
    seed : sequence of int
        Changes everything.
    third : str, optional
        Class of every third request; the others have none.
    """

    skipped_rows = 0

    def __init__(
        self, requests: int, period_s: float, outputs: int, seed: Sequence[int] = (), third: str | None = None
    ) -> None:
        rng = np.random.default_rng([*seed, 31])
        gaps = rng.standard_gamma(0.15, requests)
        self._third = third
        self._arrival_s = (PERIODS * period_s / gaps.sum() * np.cumsum(gaps)).tolist()
        self._prompts = np.clip(rng.lognormal(5.0, 1.0, requests), 1, 900).astype(int).tolist()
        lengths = np.random.default_rng([*seed, 32, outputs]).lognormal(6.0, 0.5, requests)
        self._outputs = np.clip(lengths, 250, 1200).astype(int).tolist()

    def requests(self) -> Iterator[Request]:
        """All of them."""
        for i, time_s in enumerate(self._arrival_s):
            klass = None if i % 3 else self._third
            yield Request(i, time_s, self._prompts[i], self._outputs[i], None, -1, 0, klass)

    def released_by(self, request: Request, now_s: float) -> None:
        """Nothing."""


class Trial(Generic[Answer]):
    """One run of a policy on a fleet; what it answered, when requests ended, and what its ticks took.

    Parameters
    ----------
    checked : Policy
        What is under test.
    watch : bool
        Whether to look if the policy changes what it is shown.
    """

    def __init__(self, checked: Policy, watch: bool) -> None:
        self._checked = checked
        self._watch = watch
        self._spent_ns = 0
        self._ticks = 0
        self._clock = Clock()
        self.answers: list[tuple[float, Answer]] = []
        """When, and what."""
        self.ended: list[Request] = []

    def _fleet(self, scenario: Scenario) -> Fleet:
        return Fleet(scenario, Path(), self._clock, Streams(1), self.ended.append, 1)

    def _simulate(self, fleet: Fleet, arrivals: Arrivals, until_s: float, breaks: str, never: str) -> None:
        """Run, with all laws on; `breaks` and `never` complain about what goes wrong and about requests that do not end."""
        with self._checked.complaining(breaks):
            fleet.feed(arrivals)
            self._clock.run(until_s)
            if fleet.in_flight:
                self._checked.fail(f"{fleet.in_flight} requests never end{never}")
            fleet.verify(self._clock.now_s)
        self._checked.decisions += self._ticks

    def _ask(self, tick: Callable[[], Any], facts: Callable[[], Any], changes: str) -> Any:
        """The policy's answer; `changes` complains if it changes the facts."""
        before = facts() if self._watch else None
        self._ticks += 1
        with self._checked.complaining("`tick` failed"):
            start_ns = process_time_ns()
            answer = tick()
            self._spent_ns += process_time_ns() - start_ns
        if before is not None and before != facts():
            self._checked.fail(f"`tick` changes {changes}")
        return answer

    @property
    def us_per_tick(self) -> float:
        """Mean processor time of a tick [µs]."""
        return self._spent_ns / max(self._ticks, 1) / 1e3

    @property
    def first_end_s(self) -> float:
        """When the first request ended."""
        return min((request.end_s for request in self.ended), default=inf)

    def answers_until(self, time_s: float) -> list[tuple[float, Answer]]:
        """Answers before a time."""
        return [answer for answer in self.answers if answer[0] < time_s]

    def knows_lengths(self, other: Trial[Answer]) -> bool:
        """Whether answers differ, before anybody could know, from those of a run with other output lengths."""
        until_s = min(self.first_end_s, other.first_end_s)
        return self.answers_until(until_s) != other.answers_until(until_s)

    def ends_like(self, other: Trial[Answer]) -> bool:
        """Whether requests end at the same replicas and times."""
        mine, theirs = (sorted(trial.ended, key=lambda request: request.id) for trial in (self, other))
        same = [(r.id, r.status, r.replica) for r in mine] == [(r.id, r.status, r.replica) for r in theirs]
        times, others = (np.array([r.end_s for r in each if r.status == FINISHED]) for each in (mine, theirs))
        return same and bool(np.allclose(times, others, rtol=_TOLERANCE, atol=1e-12))


def period_of(checked: Policy, policy: Any) -> float:
    """Period of a policy [s].

    Raises
    ------
    PolicyError
        If it is none.
    """
    period_s = getattr(policy, "period_s", None)
    if not (isinstance(period_s, float | int) and 0.0 < period_s < inf):
        checked.fail(f"its `period_s` is {period_s!r}: expected the seconds between two ticks")
    return float(period_s)


def engine(step_by_step: bool) -> dict[str, Any]:
    """An engine whose cache runs full soon."""
    return {
        "kind": "generic",
        "step_by_step": step_by_step,
        "prefix_cache": False,
        "scheduler": {"policy": "vllm-v1", "max_batched_tokens": 256, "max_seqs": 24},
        "kv": {"block_tokens": 16, "capacity_tokens": 3200},
    }


def slow_engine(period_s: float, step_by_step: bool) -> dict[str, Any]:
    """The same, so slow that requests take a few periods of a policy."""
    step_time = {
        "model": "affine",
        "step": seconds(5e-3 * period_s),
        "prompt_token": seconds(1e-4 * period_s),
        "prompt_pair": seconds(0.0),
        "context_token": seconds(1e-7 * period_s),
        "sequence": seconds(2e-4 * period_s),
    }
    return {**engine(step_by_step), "step_time": step_time}


def seconds(value: float) -> str:
    """A time as scenarios have it."""
    return f"{value!r} s"


def scenario(pools: Sequence[Mapping[str, Any]], router: str, **blocks: Any) -> Scenario:
    """A fleet; its workload stands there for form, since the checker feeds it."""
    lengths = {"distribution": "fixed", "value": 1}
    return Scenario.model_validate(
        {
            "schema": 1,
            "name": "check",
            "workload": {
                "kind": "synthetic",
                "requests": 1,
                "arrivals": {"process": "poisson", "rate": "1 req/s"},
                "prompt_tokens": lengths,
                "output_tokens": lengths,
            },
            "pools": [{"llm": "llama-3.1-8b", "accelerator": "h100-sxm", **pool} for pool in pools],
            "gateway": {"router": router},
            **blocks,
        }
    )
