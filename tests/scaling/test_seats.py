"""Autoscalers that set how many requests run at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from numpy.random import Generator

from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.api import PoolState
from tests.fleet.test_moves import column, pool, run, same_in_single_steps, scenario


class NarrowConfig(PolicyConfig):
    """How narrow, and until when."""

    seats: int = 2
    until_s: float = 1e9


class Narrow:
    """Keeps all replicas, and lets few requests run for a while."""

    Config: ClassVar = NarrowConfig
    period_s: float = 0.5

    def __init__(self, config: NarrowConfig, rng: Generator, pool: PoolState) -> None:
        self._config, self._pool = config, pool
        self.max_seqs: int | None = None
        self.slots: list[int] = []

    def tick(self) -> int:
        narrow = self._pool.now_s <= self._config.until_s
        self.max_seqs = self._config.seats if narrow else self._pool.max_seqs
        return self._pool.wanted


def narrowed(**config: Any) -> dict[str, Any]:
    one = pool("main", 2) | {"autoscaler": {"policy": f"{__name__}:Narrow", **config}}
    return scenario(pools=[one], run={"interval": "250 ms"})


def most_running(result: Any, from_s: float, to_s: float) -> int:
    rows = result.table("replicas")
    times, running = rows["end_s"].to_pylist(), rows["running"].to_pylist()
    return max(n for time_s, n in zip(times, running, strict=True) if from_s <= time_s < to_s)


def test_no_more_run_than_are_let(tmp_path: Path) -> None:
    result = same_in_single_steps(narrowed(until_s=20.0), tmp_path)
    assert set(column(result, "status")) == {"finished"}
    assert most_running(result, 6.0, 20.0) == 2  # those who ran have ended
    assert most_running(result, 20.6, 30.0) > 2


@pytest.mark.parametrize("seats", [0, 33])
def test_a_limit_must_be_one_that_the_engine_has(seats: int, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="of 1 to 32 run"):
        run(narrowed(seats=seats), tmp_path)


class Late(Narrow):
    """Has nobody for the first seconds; notes what came."""

    seen: ClassVar[list[tuple[int, int]]] = []

    def tick(self) -> int:
        Late.seen.append((self._pool.window.arrivals, self._pool.window.prompt_tokens))
        return 0 if self._pool.now_s < 2.0 else 2


def test_who_waits_for_a_replica_is_counted_once(tmp_path: Path) -> None:
    given = narrowed()
    given["pools"][0] |= {"min_replicas": 0, "autoscaler": f"{__name__}:Late"}
    given["pools"][0]["startup"] = {"weights": "none", "init": "1 s"}
    Late.seen.clear()
    result = run(given, tmp_path)
    arrivals = column(result, "arrival_s")
    assert set(column(result, "status")) == {"finished"}
    assert sum(n for n, _ in Late.seen) == 120
    assert sum(tokens for _, tokens in Late.seen) == sum(column(result, "prompt_tokens"))
    assert Late.seen[2][0] == sum(1.0 < time_s <= 1.5 for time_s in arrivals)  # while nobody is there
