"""Cost of a simulation: events and requests are asserted, times only reported (`pytest --benchmark-enable`).

The cases are those of `fleetsim bench`, made small. How many events a case has depends on its scenario and on the physics,
never on the machine: when a calibration or a rule of the engine moves a count here, put the new one in and say so in the
changelog under [RESULTS]. A count that moves without such a reason is a bug.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleetsim.errors import FleetsimError
from fleetsim.experiment import bench
from fleetsim.experiment.bench import Case, Measured, cases, measure
from fleetsim.plugins import names

REQUESTS = 3000


def case(name: str, **overrides: Any) -> Case:
    """A case of the full set with other values laid over it; `__` stands for a dot."""
    found = next(case for case in (*cases(), *cases(only=("week",))) if case.name == name)
    laid = dict(found.overrides) | {path.replace("__", "."): value for path, value in overrides.items()}
    return replace(found, overrides=tuple(laid.items()))


@pytest.fixture
def without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No evaluation data, wherever the tests run."""
    monkeypatch.setenv("FLEETSIM_DATA", str(tmp_path / "nothing"))


@pytest.mark.usefixtures("without_data")
def test_trace(benchmark: Any, tmp_path: Path) -> None:
    measured = benchmark(lambda: measure(case("trace-default", workload__limit=REQUESTS), tmp_path))
    assert (measured.requests, measured.replicas, measured.output_tokens) == (REQUESTS, 4, 609_260)
    assert measured.events == 13_540
    assert measured.events_per_request < 5
    assert measured.verdict == "STABLE"


@pytest.mark.parametrize(
    ("requests", "output_tokens", "events"), [(1000, 216_049, 3935), (3000, 654_809, 10_913), (9000, 1_958_706, 29_598)]
)
def test_growth_in_requests(benchmark: Any, tmp_path: Path, requests: int, output_tokens: int, events: int) -> None:
    measured = benchmark(lambda: measure(case("million", workload__requests=requests), tmp_path))
    assert (measured.requests, measured.replicas, measured.output_tokens) == (requests, 64, output_tokens)
    assert measured.events == events
    assert measured.events_per_request < 4


@pytest.mark.parametrize(("replicas", "events"), [(10, 9335), (100, 11_215), (1000, 11_930)])
def test_growth_in_replicas(benchmark: Any, tmp_path: Path, replicas: int, events: int) -> None:
    """At most an arrival, an admission, and for most a step or two: no event per replica or token."""
    measured = benchmark(lambda: measure(case(f"replicas-{replicas}", workload__requests=REQUESTS), tmp_path))
    assert (measured.requests, measured.replicas, measured.output_tokens) == (REQUESTS, replicas, 654_809)
    assert measured.events == events
    assert measured.events_per_request < 4


def test_week(benchmark: Any, tmp_path: Path) -> None:
    """Autoscaling costs ticks and nothing per request: nothing runs while nothing happens but the tables' clock."""
    measured = benchmark(lambda: measure(case("week", workload__requests=REQUESTS), tmp_path))
    assert (measured.requests, measured.replicas, measured.output_tokens) == (REQUESTS, 16, 654_809)
    assert measured.events == 12_115
    assert measured.verdict == "STABLE"


def test_counts_do_not_depend_on_what_else_is_done(tmp_path: Path) -> None:
    """A second run in a warm process and one in a fresh process count the same."""
    small = case("million", workload__requests=500)
    runs = [measure(small, tmp_path), measure(small, tmp_path), bench.fresh(small)]
    assert len({(run.requests, run.output_tokens, run.events, run.verdict) for run in runs}) == 1


@pytest.mark.parametrize("queue", ["simpy", "clock"])
@pytest.mark.parametrize("events", [50, 20_000])
def test_floor(benchmark: Any, tmp_path: Path, queue: str, events: int) -> None:
    floor = replace(next(case for case in cases() if case.queue == queue), events=events)
    measured = benchmark(lambda: measure(floor, tmp_path))
    assert measured.events == events
    assert measured.requests is None
    assert measured.events_per_request is None


def test_the_full_set() -> None:
    assert [case.name for case in cases(only=("requests", "replicas", "floor"))] == [
        "requests-10k",
        "requests-100k",
        "million",
        "replicas-10",
        "replicas-100",
        "replicas-1000",
        "floor-simpy",
        "floor-clock",
    ]
    sizes = {name: dict(case(name).overrides)["workload.requests"] for name in ("requests-10k", "million")}
    assert sizes == {"requests-10k": 10_000, "million": 1_000_000}
    assert {case.events for case in cases() if case.queue} == {3_000_000}
    assert [case.name for case in cases(quick=True, only=("requests",))] == ["requests-10k", "million/10"]


def test_the_real_trace_is_taken_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / bench.AZURE
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setenv("FLEETSIM_DATA", str(tmp_path))
    (found,) = cases(only=("trace",))
    assert (found.name, dict(found.overrides)) == ("trace-azure", {"workload.path": str(file)})


def counted(case: Case, events: int, wall_s: float) -> Measured:
    return Measured(case.name, 10, 1, 100, events, "STABLE", wall_s, wall_s, None, False)


def test_floor_runs_as_many_events_as_the_million_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    walls = iter([5.0, 1.0, 3.0, 9.0, 2.0, 4.0])
    asked = []

    def fresh(case: Case) -> Measured:
        asked.append((case.name, case.events))
        return counted(case, 77, next(walls))

    monkeypatch.setattr(bench, "fresh", fresh)
    million, floor, _ = cases(only=("million", "floor"))
    report = bench.bench([million, floor], repeat=3)
    assert asked == [("million", 0)] * 3 + [("floor-simpy", 77)] * 3
    assert [row["wall_s"] for row in report["cases"]] == [3.0, 4.0]
    assert report["cases"][0]["events_per_request"] == 7.7
    assert report["cases"][0]["requests_per_wall_s"] == pytest.approx(10 / 3)


@pytest.mark.parametrize("group", ["routers", "orders"])
def test_policies_are_compared_to_the_plain_run_when_asked_for(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first case is the plain one; each runs, on a scenario that is its own; nobody pays for them who does not ask."""
    asked = cases(quick=True, only=(group,))
    assert not {case.name for case in asked} & {case.name for case in cases()}
    assert asked[0].name in ("router-power-of-two-choices", "order-fcfs")
    for one in asked:
        small = replace(one, overrides=(*one.overrides, ("workload.requests", 60)))
        assert measure(small, tmp_path).requests == 60
    cpu_s = iter([2.0, 3.0, 1.0])
    events = iter([8, 12, 8])
    monkeypatch.setattr(bench, "fresh", lambda case: replace(counted(case, next(events), 1.0), cpu_s=next(cpu_s)))
    rows = bench.bench([*asked[:2], cases(only=("million",))[0]])["cases"]
    assert [row["times_plain"] for row in rows] == [1.0, 1.5, None]
    assert [row["events_times_plain"] for row in rows] == [1.0, 1.5, None]


def test_routers_of_pairs_are_compared_to_a_fleet_that_is_apart_too(tmp_path: Path) -> None:
    """Half of the events are the fleet's, whoever chooses."""
    asked = {case.name: case for case in cases(only=("routers",))}
    plain, apart, xllm = (asked[f"router-{name}"] for name in ("power-of-two-choices", "apart", "xllm"))
    assert (apart.against, xllm.against, plain.against) == (apart.name, apart.name, plain.name)
    counts = []
    for case in (plain, apart, xllm):
        small = replace(case, overrides=(*case.overrides, ("workload.requests", 300)))
        measured = measure(small, tmp_path)
        assert (measured.requests, measured.replicas) == (300, 64)
        counts.append(measured.events)
    assert counts[1] > 1.5 * counts[0]
    assert counts[2] < 1.3 * counts[1]


def test_runs_that_count_differently_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    events = iter([7, 8])
    monkeypatch.setattr(bench, "fresh", lambda case: counted(case, next(events), 1.0))
    with pytest.raises(FleetsimError, match="million: runs of the same seed differ"):
        bench.bench(cases(only=("million",)), repeat=2)


def test_a_case_that_fails_says_why() -> None:
    with pytest.raises(FleetsimError, match=r"^million: .*gateway\.router\.policy: unknown policy"):
        bench.fresh(case("million", gateway__router__policy="nothing"))


def test_peak_of_memory_is_of_this_process() -> None:
    peak = bench.peak_rss_bytes()
    assert peak is None or 5e6 < peak < 1e12


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("linucb-3", 599),
        ("linucb-16", 599),
        ("frugal-gpt-3", 731),
        ("amro-s-3", 1499),
        ("oracle-16", 302),
        ("ttspm", 902),
    ],
)
def test_model_routers(benchmark: Any, tmp_path: Path, name: str, calls: int) -> None:
    """Decisions, feedback, ends that somebody remembers, and an arm that leaves and comes back: as often as the rule says."""
    found = next(case for case in cases(only=("model-routers",)) if case.name == name)
    assert found.policy is not None
    small = replace(found, policy=(*found.policy[:3], 300))
    measured = benchmark(lambda: measure(small, tmp_path))
    assert (measured.requests, measured.events, measured.verdict) == (300, calls, None)
    assert measured.row()["cpu_us_per_request"] == measured.cpu_s / 300 * 1e6


def test_every_model_router_and_budget_is_timed() -> None:
    found = {case.policy[:3] for case in cases(only=("model-routers",)) if case.policy is not None}
    routers = {("model_routers", name, models) for name in names("model_routers") for models in (3, 16)}
    assert found == routers | {("budgets", name, 3) for name in names("budgets")}
