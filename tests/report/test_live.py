"""Watching a run: what is shown, how often, and that it changes nothing."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

import fleetsim
from fleetsim.cli import live
from fleetsim.experiment import watch
from fleetsim.experiment.watch import MOST_SHARE, PERIOD_S, Now, PoolNow
from tests.report.conftest import scenario


class Wall:
    """A clock on the wall that goes on with every look at it."""

    def __init__(self, step_s: float) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


class Passed:
    """A watcher without a fleet: only when it looks."""

    def __init__(self, wall: Wall, cost_s: float) -> None:
        self.times: list[float] = []
        self._watcher = object.__new__(watch.Watcher)
        self._watcher._wall_s, self._watcher._next_s, self._watcher.looks = wall, 0.0, 0
        self._watcher._watch = lambda now: self.times.append(wall.now_s)
        self._watcher.look = lambda: self._cost(wall, cost_s)  # type: ignore[method-assign]
        self.pass_by = self._watcher.pass_by

    @staticmethod
    def _cost(wall: Wall, cost_s: float) -> Now:
        wall.now_s += cost_s
        return Now(0.0, 0, None, ())


@pytest.mark.parametrize("cost_s", [0.0, 0.001, 0.05, 0.5])
def test_at_most_five_looks_a_second_and_two_per_cent_of_the_time(cost_s: float) -> None:
    wall = Wall(0.001)
    passed = Passed(wall, cost_s)
    while wall.now_s < 60.0:
        passed.pass_by()
    looks = len(passed.times)
    assert looks >= 2
    assert looks <= 60.0 / PERIOD_S + 1
    assert looks * cost_s <= MOST_SHARE * wall.now_s + 2 * cost_s


def test_watching_changes_nothing_and_tells_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PERIOD_S", 0.0)
    monkeypatch.setattr(watch, "MOST_SHARE", 1e9)
    given = scenario()
    seen: list[Now] = []
    plain = fleetsim.run(given, out=tmp_path / "plain", check=True)
    watched = fleetsim.run(given, out=tmp_path / "watched", check=True, watch=seen.append)
    for name in ("requests", "replicas", "fleet", "events", "gaps"):
        assert plain.table(name).equals(watched.table(name)), name
    assert plain.events == watched.events
    assert len(seen) >= 5
    assert [now.now_s for now in seen] == sorted(now.now_s for now in seen)
    assert {tuple(pool.name for pool in now.pools) for now in seen} == {("fast", "cheap")}
    fleet = plain.table("fleet").to_pylist()
    for now in seen:
        for pool in now.pools:
            row = next((row for row in fleet if row["end_s"] == now.now_s and row["pool"] == pool.name), None)
            if row is not None:
                assert (pool.running, pool.waiting) == (row["running"], row["waiting"])
                assert pool.power_w == pytest.approx(row["power_w"])
    assert max(pool.running for now in seen for pool in now.pools) > 0
    assert all(0.0 <= pool.kv_used_ratio <= 1.0 for now in seen for pool in now.pools)


def test_goodput_is_that_of_the_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted over the whole run it is the requests within their limits."""
    monkeypatch.setattr(watch, "PERIOD_S", 0.0)
    monkeypatch.setattr(watch, "MOST_SHARE", 1e9)
    monkeypatch.setattr(watch, "WINDOW", 10_000)
    monkeypatch.setattr("fleetsim.output.recorder.FLUSH_ROWS", 8)
    seen: list[Now] = []
    given = scenario(slo={"ttft": "1000 s", "tpot": "1000 s", "attainment": 0.9})
    result = fleetsim.run(given, out=tmp_path / "out", watch=seen.append)
    last = seen[-1]
    count = sum(pool.goodput_per_s for pool in last.pools) * (last.now_s - seen[0].now_s)
    assert result.summary["slo_attainment_ratio"] == 1.0
    assert count == pytest.approx(last.done - seen[0].done, abs=1e-6)


NOW = Now(
    62.0, 1000, 4000, (PoolNow("<chat>[bold]", 3, 120, 7, 0.42, 24.1, 1733.0), PoolNow("b", 1, 0, 0, 0.0, 0.0, 90.0))
)


def test_the_picture_in_a_terminal() -> None:
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=100, color_system=None).print(live._table(NOW))
    text = out.getvalue()
    assert "<chat>[bold]" in text
    assert re.search(r"3\s+120\s+7\s+42%\s+\S+\s+24.1/s\s+1,733 W", text)
    assert "simulated 1:02" in text
    assert "1,000 of 4,000 requests" in text


def test_without_a_terminal_there_are_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LINE_EVERY_S", 0.0)
    with live.looking_on(True) as watching:
        assert watching is not None
        watching(NOW)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        "live: simulated 1:02, 1,000 of 4,000 requests; <chat>[bold]: 3 replicas, 120 running, 7 waiting, KV 42%, "
        "goodput 24.1/s, 1,733 W; b: 1 replicas, 0 running, 0 waiting, KV 0%, goodput 0/s, 90 W\n"
    )
    with live.looking_on(False) as nobody:
        assert nobody is None
