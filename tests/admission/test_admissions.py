"""Who is let in: every policy against the checker, by hand, and in whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig, load
from fleetsim.routing.api import ADMIT, Defer, FleetView, Freshness, Reject, RequestView
from fleetsim.testing import check_admission
from fleetsim.testing.station import Station
from fleetsim.workload.request import Request
from tests.fleet.test_moves import column, pool, run, same_in_single_steps, scenario

GOOD: list[tuple[str, dict[str, Any]]] = [
    ("queue-cap", {"per_replica": 8}),
    ("token-bucket", {"rate_per_s": 500.0, "burst": 4000.0, "when_empty": "defer"}),
    ("early-rejection", {"tbt_slo_s": 0.06}),
    ("early-rejection", {"tbt_slo_s": 0.06, "load": "predicted", "decode_s": 2.0, "ttft_slo_s": 1.0}),
    ("slo-shed", {}),
    ("slo-shed", {"when_late": "defer", "holders": 8}),
    ("quota", {"limit": 6, "shares": {"a": 0.7, "b": 0.3}}),
    ("quota", {"limit": 500, "unit": "tokens", "by": "priority", "window_s": 2.0, "other_share": 0.4}),
    ("defer-batch", {"per_replica": 3, "longest_s": 30.0}),
    ("defer-batch", {"per_replica": 3, "kv_below": 0.5}),
]


@pytest.mark.parametrize(("name", "parameters"), GOOD)
def test_the_checker_passes_what_is_offered(name: str, parameters: dict[str, Any]) -> None:
    assert len(check_admission(name, parameters).checks) == 6


class Base:
    """Lets everybody in."""

    Config: ClassVar[type] = PolicyConfig

    def __init__(self, config: PolicyConfig, rng: np.random.Generator, fleet: FleetView) -> None:
        self.fleet, self.rng = fleet, rng

    def decide(self, request: RequestView) -> Any:
        return ADMIT


class Nothing(Base):
    def decide(self, request: RequestView) -> Any:
        return Reject("closed")


class NoReason(Base):
    def decide(self, request: RequestView) -> Any:
        return Reject("")


class ForEver(Base):
    def decide(self, request: RequestView) -> Any:
        return Defer(self.fleet.now_s + 1.0) if request.id == 7 else ADMIT


class Past(Base):
    def decide(self, request: RequestView) -> Any:
        return Defer(self.fleet.now_s)


class Yes(Base):
    def decide(self, request: RequestView) -> Any:
        return True


class Knows(Base):
    def decide(self, request: RequestView) -> Any:
        return ADMIT if request._request.output_tokens < 1000 else Reject("long")


class Meddles(Base):
    def decide(self, request: RequestView) -> Any:
        self.fleet.outstanding[0] += 1
        return ADMIT


class Shared(Base):
    count: ClassVar[list[int]] = [0]

    def decide(self, request: RequestView) -> Any:
        self.count[0] += 1
        return ADMIT if self.count[0] % 3 else Reject("every third")


class Breaks(Base):
    def decide(self, request: RequestView) -> Any:
        return {}["nothing"]


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Nothing, "lets none"),
        (NoReason, "without a reason"),
        (ForEver, "for ever"),
        (Past, "not a time to come"),
        (Yes, "answered True"),
        (Knows, "true output length"),
        (Meddles, "changes the request or the view"),
        (Shared, "same seed"),
        (Breaks, "KeyError"),
    ],
)
def test_the_checker_says_what_is_wrong(policy: type, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        check_admission(policy)


def test_the_base_of_those_is_sound() -> None:
    """So each of them is rejected for its own fault."""
    assert check_admission(Base).policy == "Base"


# --- by hand -------------------------------------------------------------------------------------------------------------


class Door:
    """Two replicas that do what a test says, and a policy before them."""

    def __init__(self, name: str, speed: float = 1000.0, **parameters: Any) -> None:
        self.now_s = 0.0
        self.stations = [Station(speed, 16, lambda: self.now_s) for _ in range(2)]
        self.view = FleetView(["main"] * 2, (), self.stations, Freshness(), lambda: self.now_s)
        policy = load("admissions", name)
        self.policy: Any = policy(policy.Config(**parameters), np.random.default_rng(1), self.view)
        self.number = 0

    def ask(self, prompt_tokens: int = 100, **facts: Any) -> Any:
        self.number += 1
        self.request = Request(self.number, self.now_s, prompt_tokens, 10)
        for name, value in facts.items():
            setattr(self.request, name, value)
        return self.again(self.request)

    def again(self, request: Request) -> Any:
        self.view.now_s = self.now_s
        return self.policy.decide(RequestView(request))

    def send(self, place: int, prompt_tokens: int) -> Request:
        self.number += 1
        request = Request(self.number, self.now_s, prompt_tokens, 10)
        self.view.sent(place, prompt_tokens, request)
        self.stations[place].sent(request)
        return request


def test_who_would_be_late_is_rejected() -> None:
    """A prompt of 100 tokens takes a replica of 1,000 tokens/s 0.1 s, and 1,000 tokens before it one more second and pairs."""
    door = Door("slo-shed")
    assert door.ask(deadline_s=0.2) is ADMIT
    assert isinstance(door.ask(deadline_s=0.09), Reject)
    door.send(0, 1000)
    assert door.ask(deadline_s=0.2) is ADMIT  # the other one is free
    door.send(1, 1000)
    assert isinstance(door.ask(deadline_s=0.2), Reject)
    assert door.ask(deadline_s=1.5) is ADMIT
    assert door.ask() is ADMIT  # no deadline


def test_who_would_be_late_waits_until_there_is_room() -> None:
    door = Door("slo-shed", when_late="defer", retry_s=0.5, longest_s=3.0)
    busy = [door.send(place, 1000) for place in range(2)]
    answer = door.ask(deadline_s=0.2)
    request = door.request
    assert answer == Defer(0.5)
    door.now_s = 0.5
    assert door.again(request) == Defer(1.0)
    for place, other in enumerate(busy):
        door.view.started(place, 1000)
        door.stations[place].started(other)
    assert door.again(request) is ADMIT  # late itself, but nobody waits
    door.send(0, 9000)
    door.send(1, 9000)
    door.now_s = 2.9
    assert door.again(request) == Defer(3.0)
    door.now_s = 3.0
    assert door.again(request) is ADMIT


def test_quotas_of_requests_in_flight() -> None:
    """Four in flight at most: three of a, one of others."""
    door = Door("quota", limit=2, shares={"a": 0.75}, other_share=0.25)
    first = []
    for _ in range(3):
        assert door.ask(tenant="a") is ADMIT
        first.append(door.request)
    assert isinstance(door.ask(tenant="a"), Reject)
    assert door.ask(tenant="b") is ADMIT
    assert isinstance(door.ask(tenant="b"), Reject)
    assert door.ask(tenant="c") is ADMIT
    door.policy.ended(RequestView(first[0]))
    assert door.ask(tenant="a") is ADMIT
    assert isinstance(door.ask(tenant="a"), Reject)


def test_quotas_of_tokens_in_a_window() -> None:
    door = Door("quota", limit=500, shares={"1": 0.5}, other_share=0.1, unit="tokens", by="priority", window_s=10.0)
    assert door.ask(300, priority=1) is ADMIT
    assert isinstance(door.ask(300, priority=1), Reject)
    assert door.ask(200, priority=1) is ADMIT
    assert door.ask(900, priority=0) is ADMIT  # more than a share, but alone
    assert isinstance(door.ask(1, priority=0), Reject)
    door.now_s = 10.0
    assert door.ask(100, priority=0) is ADMIT


def test_batch_work_waits_for_room() -> None:
    door = Door("defer-batch", per_replica=1, retry_s=2.0, longest_s=5.0)
    assert door.ask(klass="batch") is ADMIT
    door.send(0, 100)
    door.send(0, 100)
    assert door.ask(klass="chat") is ADMIT
    assert door.ask(klass="chat", priority=-1) == Defer(2.0)
    request = door.request
    door.now_s = 4.0
    assert door.again(request) == Defer(5.0)
    door.now_s = 5.0
    assert door.again(request) is ADMIT


def test_early_rejection_looks_at_now_or_ahead() -> None:
    """Steps take (200 + batch + 1e-4 context) / 1000 s, prompts of 100 tokens 0.1 s and their pairs, plus 3 ms."""
    now, ahead = (Door("early-rejection", tbt_slo_s=0.2025, load=load, decode_s=1.0) for load in ("now", "predicted"))
    for _ in range(2):
        assert now.ask() is ADMIT
        assert ahead.ask() is ADMIT
    # nobody decodes yet: only the prediction sees what comes; three on two replicas and this one make 2.5 each
    assert ahead.ask() is ADMIT
    assert isinstance(ahead.ask(), Reject)
    for _ in range(5):
        assert now.ask() is ADMIT
    ahead.now_s = 5.0  # all are taken to have ended
    assert ahead.ask() is ADMIT


# --- in whole runs -------------------------------------------------------------------------------------------------------


def test_admissions_in_leaps_and_steps(tmp_path: Path) -> None:
    part = {k: v for k, v in scenario()["workload"].items() if k != "prefixes"}
    part["requests"] = 60
    for i, (name, parameters) in enumerate(GOOD[2:]):
        given = scenario(
            workload={"kind": "mix", "parts": {"chat": {**part, "class": "chat"}, "batch": {**part, "class": "batch"}}},
            classes={"batch": {"priority": -1}},
            slo={"ttft": "300 ms"},
            gateway={"admission": {"policy": name, **parameters}},
            pools=[pool("prefill", 1, "prefill"), pool("main", 2, "mixed")],
        )
        result = same_in_single_steps(given, tmp_path / str(i))
        assert result.summary["finished"] + result.summary["rejected"] == 120


def test_batch_work_waits_in_a_run(tmp_path: Path) -> None:
    part = {k: v for k, v in scenario()["workload"].items() if k != "prefixes"}
    given = scenario(
        workload={"kind": "mix", "parts": {"chat": {**part, "class": "chat"}, "batch": {**part, "class": "batch"}}}
    )
    together = run(given, tmp_path / "together")
    door = {"policy": "defer-batch", "per_replica": 4, "retry_s": 0.2}
    apart = run({**given, "gateway": {"admission": door}}, tmp_path / "apart")
    assert apart.summary["finished"] == together.summary["finished"] == 240
    chat, waits = (
        [
            np.mean([t for t, k in zip(column(r, "ttft_s"), column(r, "class"), strict=True) if k == klass])
            for r in (together, apart)
        ]
        for klass in ("chat", "batch")
    )
    assert chat[1] < chat[0]
    assert waits[1] > waits[0]
