"""Several workloads merged by time: each stays what it is alone, and they differ in what they are."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

import fleetsim
from fleetsim.kernel.streams import Streams
from fleetsim.scenario.schema import Workload
from fleetsim.workload.build import build_workload

CHAT = {
    "kind": "synthetic",
    "requests": 300,
    "arrivals": {"process": "poisson", "rate": "3 req/s"},
    "prompt_tokens": {"distribution": "lognormal", "mean": 200, "cv": 1.0, "max": 2000},
    "output_tokens": {"distribution": "lognormal", "mean": 100, "cv": 1.0, "max": 2000},
    "prefixes": {"groups": 3, "tokens": 64},
    "class": "chat",
    "tenant": "anna",
}
BATCH = {**CHAT, "requests": 200, "class": "batch", "tenant": "bert"}
TALK = {**CHAT, "sessions": {"turns": {"distribution": "fixed", "value": 3}, "think_time": "1 s"}, "class": "talk"}
LOOP = {**CHAT, "arrivals": {"process": "closed-loop", "concurrency": 4}, "requests": 60, "class": "loop"}
TRACE = "timestamp,input_length,output_length,hash_ids\n"


def build(folder: Path = Path(), **parts: Any) -> Any:
    config = TypeAdapter(Workload).validate_python({"kind": "mix", "parts": parts})
    return build_workload(config, folder, Streams(7))


def lengths(requests: Any, klass: str) -> list[tuple[float, int, int]]:
    return [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in requests if r.klass == klass]


def test_parts_come_merged_and_labelled() -> None:
    mix = build(chat=CHAT, batch=BATCH)
    found = list(mix.requests())
    assert mix.total == len(found) == 500
    assert all(a.arrival_s <= b.arrival_s for a, b in pairwise(found))
    assert len({r.id for r in found}) == 500
    assert {(r.klass, r.tenant) for r in found} == {("chat", "anna"), ("batch", "bert")}
    assert sum(r.klass == "batch" for r in found) == 200


def test_adding_a_part_changes_no_other() -> None:
    alone = lengths(build(chat=CHAT).requests(), "chat")
    assert alone == lengths(build(chat=CHAT, batch=BATCH).requests(), "chat")
    assert alone == lengths(build(batch=BATCH, chat=CHAT).requests(), "chat")
    assert alone[:200] != lengths(build(chat=CHAT, batch=BATCH).requests(), "batch")


def test_parts_share_no_prefixes() -> None:
    """Group 0 of one part is not group 0 of another."""
    found = list(build(chat=CHAT, batch=BATCH).requests())
    keys = {klass: {r.content.path(16)[0][0] for r in found if r.klass == klass} for klass in ("chat", "batch")}
    assert len(keys["chat"]) == len(keys["batch"]) == 3
    assert not keys["chat"] & keys["batch"]


def test_trace_hashes_are_shared_by_parts_of_the_same_file_only(tmp_path: Path) -> None:
    row = '{"timestamp": %d, "input_length": 1024, "output_length": 5, "hash_ids": [0, 1]}\n'
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(row % 0 + row % 1000)
    part = {"kind": "trace", "format": "mooncake", "path": "a.jsonl"}
    mix = build(tmp_path, one=part, again={**part, "rate_scale": 2.0}, other={**part, "path": "b.jsonl"})
    one, again, other = (next(r for r in mix.requests() if r.id % 3 == k).content.hashes for k in range(3))
    assert one == again
    assert not set(one) & set(other)
    assert mix.block_tokens == {512}


def test_later_turns_are_released_in_their_own_part() -> None:
    """Sessions and closed loops beside an open loop: every follower continues its own session."""
    mix = build(chat=CHAT, talk=TALK, loop=LOOP)
    turns: dict[int, list[Any]] = {}
    waiting = list(mix.requests())
    while waiting:
        request = waiting.pop()
        if request.session >= 0:
            turns.setdefault(request.session, []).append(request)
        for follower in mix.released_by(request, request.arrival_s + 1.0):
            assert (follower.session, follower.turn, follower.klass, follower.tenant) == (
                request.session,
                request.turn + 1,
                request.klass,
                request.tenant,
            )
            assert follower.id % 3 == request.id % 3
            waiting.append(follower)
    told = [request for session in turns.values() for request in session]
    assert len({r.id for r in told}) == len(told) == 300 + 60
    assert {len(s) for s in turns.values() if s[0].klass == "talk"} == {3}
    assert all(len({r.klass for r in session}) == 1 for session in turns.values())


def test_a_run_tells_classes_and_tenants_apart(tmp_path: Path) -> None:
    scenario = {
        "schema": 1,
        "name": "mixed",
        "workload": {"kind": "mix", "parts": {"chat": CHAT, "talk": TALK}},
        "classes": {"chat": {"priority": 5}},
        "tenants": {"anna": {"weight": 2.0}},
        "gateway": {"router": {"policy": "tests.workload.test_mix:Noting"}},
        "pools": [{"name": "main", "llm": "llama-3.1-8b", "accelerator": "h100-sxm"}],
    }
    seen.clear()
    result = fleetsim.run(scenario, out=tmp_path / "out", check=True, allow_import=True)
    assert result.summary["finished"] == 600
    assert {(g["by"], g["value"]) for g in result.groups} >= {("class", "chat"), ("class", "talk")}
    assert seen == {("chat", 5, 2.0), ("talk", 0, 2.0)}


seen: set[tuple[str | None, int, float]] = set()


class Noting(fleetsim.plugins.load("routers", "round-robin")):  # type: ignore[misc]
    """Round robin that notes what the gateway filled in."""

    def route(self, request: Any) -> Any:
        seen.add((request.klass, request.priority, request.weight))
        return super().route(request)


@pytest.mark.parametrize("key", ["class", "tenant"])
def test_labels_of_a_single_workload_spare_what_a_trace_says(tmp_path: Path, key: str) -> None:
    (tmp_path / "t.csv").write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n0,m,10,5,15,API log\n1,m,10,5,15,\n"
    )
    block = {"kind": "trace", "format": "burstgpt", "path": "t.csv", key: "mine"}
    workload = build_workload(TypeAdapter(Workload).validate_python(block), tmp_path, Streams(1))
    found = [(r.klass, r.tenant) for r in workload.requests()]
    assert found == ([("API log", None), ("mine", None)] if key == "class" else [("API log", "mine"), (None, "mine")])
    assert workload.total == 2  # type: ignore[attr-defined]
