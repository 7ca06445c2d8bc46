"""What a gateway knows is exactly as old as the scenario says: its own counts, loads, and what caches hold."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator

import fleetsim
from fleetsim.engine.replica import Replica
from fleetsim.errors import PolicyError
from fleetsim.experiment.check import open_workload
from fleetsim.fleet.fleet import Fleet
from fleetsim.fleet.pool import describe_pool
from fleetsim.fleet.probe import PrefillTime
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.plugins import PolicyConfig, allowing_imports
from fleetsim.routing.api import FleetView, Freshness, RequestView
from fleetsim.scenario.load import LoadedScenario, load_mapping
from fleetsim.workload.request import Request
from tests.routing.test_basic import fixed, fleet, steady


class SpyConfig(PolicyConfig):
    seed: int = 0


class Spy:
    """Any replica, and a note of all that the view shows of all of them."""

    Config = SpyConfig
    noted: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, config: SpyConfig, rng: Generator, view: FleetView) -> None:
        self.view = view
        self.board = view.watch_load()
        view.watch_caches()
        self.random = random.Random(config.seed)

    def route(self, request: RequestView) -> int:
        view, board = self.view, self.board
        positions = range(view.count)
        # few replicas, one of them favoured: queues build up and caches overflow
        chosen = self.random.choice((0, 0, 0, 1, 2))
        Spy.noted.append(
            {
                "loads": [
                    (board.waiting[i], board.running[i], board.pending_tokens[i], board.last_prefill_s[i])
                    for i in positions
                ],
                "seconds": list(board.pending_s),
                "kv": [view.kv_used(i) for i in positions],
                "hits": [view.hit_tokens(i, request) for i in positions],
                "cached": view.cached(request, 99),
                "outstanding": list(view.outstanding),
                "at_s": request.arrival_s,
                "known_until_s": view.freshness.horizon_s(request.arrival_s),
                "to": chosen,
            }
        )
        return chosen


ARRIVALS = 400
EVERY_S = 0.02


def scenario(view: dict[str, Any]) -> LoadedScenario:
    """Prompts that share beginnings, on replicas whose caches are too small for them."""
    workload = {
        "requests": ARRIVALS,
        "arrivals": {"process": "deterministic", "rate": f"{1 / EVERY_S} req/s"},
        "prompt_tokens": {"distribution": "lognormal", "mean": 600, "cv": 1.5, "min": 20, "max": 4000},
        "output_tokens": fixed(40),
        "prefixes": {"groups": 12, "tokens": 900},
    }
    base = fleet({"policy": "tests.routing.test_freshness:Spy"}, 3, workload).model_dump(
        mode="json", by_alias=True, exclude_none=True
    )
    base["gateway"]["view"] = view
    base["pools"][0]["engine"] = {"kv": {"capacity_tokens": 16_000, "retain_unmatched": True}}
    return load_mapping(base, {}, Path())


def true_load(replica: Replica) -> tuple[int, int, float]:
    """Counted from the queues themselves."""
    waiting = sum(len(batch.waiting) for batch in replica.batches) + len(replica.inbox)
    running = sum(len(batch.running) for batch in replica.batches)
    used = sum(batch.cache.used for batch in replica.batches)
    return waiting, running, used


def observed(view: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the spy saw at each arrival, and what was so at the time that it should have seen."""
    Spy.noted = []
    truth: list[dict[str, Any]] = []
    with allowing_imports(True):
        loaded = scenario(view)
        requests = list(open_workload(loaded, Streams(7)).requests())
        clock = Clock()
        live = Fleet(loaded.scenario, Path(), clock, Streams(7), lambda request: None, 16)
        side = live.gateway.groups.get(None) or live.gateway._group(None)
        probes = live.gateway._probes

        def note(request: Request) -> None:
            for probe, replica in zip(probes, live.replicas, strict=True):
                assert probe.load(clock.now_s)[:2] == true_load(replica)[:2]
            truth.append(
                {
                    "loads": [
                        (load.waiting, load.running, load.pending_tokens, load.last_prefill_s)
                        for load in (probe.load(clock.now_s) for probe in probes)
                    ],
                    "seconds": [probe.load(clock.now_s).pending_s for probe in probes],
                    "kv": [probe.kv_used(clock.now_s) for probe in probes],
                    "hits": [probe.held_tokens(RequestView(request).reusable(16)) for probe in probes],
                    "outstanding": list(exact.outstanding),
                }
            )

        exact = FleetView(side.entry.view.pools)
        for position, replica in enumerate(live.replicas):
            live.gateway.views[replica.index].append((exact, position))
        freshness = side.entry.view.freshness
        for request in requests:
            at_s = request.arrival_s - 1e-9 if freshness.kind == "exact" else freshness.horizon_s(request.arrival_s)
            # before everything else at that time, and before the arrival where that is at the same time
            clock.at(max(at_s, 0.0), lambda request=request: note(request), 0)  # type: ignore[misc]
        live.feed(open_workload(loaded, Streams(7)))
        clock.run()
    assert len(truth) == len(Spy.noted) == ARRIVALS
    assert all(replica.batches[0].cache.evicted > 100 for replica in live.replicas[:1]), "caches must overflow"
    return Spy.noted, truth


VIEWS = {
    "sampled": {"freshness": "sampled", "period": "173 ms", "own_counts": False},
    "delayed": {"freshness": "delayed", "delay": "111 ms", "own_counts": False},
    "exact": {},
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_router_sees_what_was_so_at_the_stated_time(name: str) -> None:
    """Every figure of every replica at 400 decisions against a look at the replica itself at the time in question."""
    seen, truth = observed(VIEWS[name])
    for at_decision, at_that_time in zip(seen, truth, strict=True):
        assert at_decision["loads"] == at_that_time["loads"]
        assert at_decision["seconds"] == pytest.approx(at_that_time["seconds"], rel=1e-9, abs=1e-12)
        assert at_decision["hits"] == at_that_time["hits"]
        assert at_decision["cached"] == {i: hit for i, hit in enumerate(at_that_time["hits"]) if hit}
        assert at_decision["outstanding"] == at_that_time["outstanding"]
        assert at_decision["kv"] == pytest.approx(at_that_time["kv"])
    assert sum(any(waiting for waiting, *_ in noted["loads"]) for noted in truth) > 50, "queues must build up"
    hits = [sum(noted["hits"]) for noted in truth]
    assert min(hits) == 0 < max(hits)


def test_what_was_sent_since_the_last_report_is_added_to_it() -> None:
    """Own counts exact: a replica's reported queue, plus what went there after the sample."""
    view = {"freshness": "sampled", "period": "173 ms"}
    seen, truth = observed(view)
    added = 0
    for number, (at_decision, at_that_time) in enumerate(zip(seen, truth, strict=True)):
        since = [noted["to"] for noted in seen[:number] if noted["at_s"] >= at_decision["known_until_s"]]
        expected = [load[0] + since.count(i) for i, load in enumerate(at_that_time["loads"])]
        assert [load[0] for load in at_decision["loads"]] == expected
        added += len(since)
    assert added > ARRIVALS


@given(
    events=st.lists(st.tuples(st.floats(0, 10), st.integers(0, 2), st.integers(1, 500)), min_size=1, max_size=40),
    kind=st.sampled_from(["sampled", "delayed"]),
    age_s=st.floats(0.01, 3),
    asked=st.lists(st.floats(0, 14), min_size=1, max_size=10),
)
def test_old_counts_are_the_exact_ones_of_that_time(
    events: list[tuple[float, int, int]], kind: str, age_s: float, asked: list[float]
) -> None:
    clock = [0.0]
    freshness = Freshness(kind, age_s, own_counts=False)
    old = FleetView(["main"] * 3, freshness=freshness, time_s=lambda: clock[0])
    index = old.index_work(10)
    todo: list[tuple[float, int, Any]] = [(t, 1, (p, n)) for t, p, n in events] + [(t, 0, None) for t in asked]
    sent: list[tuple[float, int, int]] = []
    for time_s, _, event in sorted(todo, key=lambda entry: entry[:2]):
        clock[0] = time_s
        if event is not None:
            old.sent(*event)
            sent.append((time_s, *event))
            continue
        old.now_s = time_s
        known = [(p, n) for t, p, n in sent if t < freshness.horizon_s(time_s)]
        assert old.outstanding == [sum(1 for p, _ in known if p == i) for i in range(3)]
        assert index.values == [sum(n for p, n in known if p == i) for i in range(3)]
        assert old.in_flight == len(known)


def test_old_counts_cost_no_events_and_make_queues_uneven(tmp_path: Path) -> None:
    """The shortest queue of a while ago is everybody's choice: the herd makes waits longer, at the same number of arrivals."""
    base = fleet("least-outstanding", 8, {**steady(3000, 260)}).model_dump(
        mode="json", by_alias=True, exclude_none=True
    )
    waits = {}
    for name, view in (
        ("exact", {"freshness": "exact"}),
        ("old telemetry", {"freshness": "sampled", "period": "500 ms"}),
        ("old", {"freshness": "sampled", "period": "500 ms", "own_counts": False}),
    ):
        base["gateway"] = {"router": "least-outstanding", "view": view}
        result = fleetsim.run(base, tmp_path / name, check=True)
        waits[name] = result.summary["ttft_p99_s"]
    assert waits["exact"] == waits["old telemetry"]
    assert waits["old"] > 1.2 * waits["exact"]


def test_view_without_telemetry_says_so() -> None:
    with pytest.raises(PolicyError, match="no telemetry"):
        FleetView(["main"]).watch_load()


@pytest.mark.parametrize(("llm", "accelerator"), [("llama-3.1-8b", "h100-sxm"), ("llama-3.1-8b", "l4")])
def test_predicted_prefill_times_follow_each_chips_step_times(llm: str, accelerator: str) -> None:
    """The quadratic is within 15 % of a prompt's steps added up, on a fast and on a slow chip."""
    base = fleet("random", 1, steady(5)).model_dump(mode="json", by_alias=True, exclude_none=True)
    base["pools"][0] |= {"llm": llm, "accelerator": accelerator}
    config = load_mapping(base, {}, Path()).scenario.pools[0]
    pool = describe_pool(config, 0, Path())
    fitted = PrefillTime(pool.model, 2048)
    assert fitted.error < 0.35
    for tokens, cached in ((3000, 0), (1000, 3000), (12_000, 0), (600, 12_000)):
        whole_s, done = 0.0, 0
        while done < tokens:
            n = min(2048, tokens - done)
            c = cached + done
            whole_s += pool.model.mixed(n, 0, n * c + n * (n + 1) // 2, c + n, 1, 0, 0, n)[0]
            done += n
        assert fitted.seconds(tokens, cached) == pytest.approx(whole_s, rel=0.15)
