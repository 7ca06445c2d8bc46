"""What loads, prefetches and writes cost: closed forms, contention, and the rules by which a prefetch stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fleetsim
from fleetsim.engine.batch import Batch
from fleetsim.engine.gaps import GapHistogram
from fleetsim.engine.kv_tiers.replica_tiers import Place, ReplicaTiers
from fleetsim.engine.kv_tiers.tier import Tier
from fleetsim.engine.replica import Replica
from fleetsim.engine.schedulers.vllm_v1 import VllmV1, VllmV1Config
from fleetsim.errors import ScenarioError
from fleetsim.kernel.clock import Clock
from fleetsim.network.flows import Network
from fleetsim.network.topology import build_graph
from fleetsim.scenario.schema import KvTiers, Scenario
from fleetsim.workload.prefixes import Content
from fleetsim.workload.request import Request

BLOCK_TOKENS = 16
TOKEN_BYTES = 131_072.0
"""Llama 3.1 8B in bf16."""
PCIE = 31.5e9 * 0.787
LAYERS = 32
COPY_S = 10e-6
"""Latency of a copy from the host."""
STORE_S = 5e-4


def fixed(value: int) -> dict[str, Any]:
    return {"distribution": "fixed", "value": value}


def scenario(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "schema": 1,
        "name": "loads",
        "workload": {
            "kind": "synthetic",
            "requests": 60,
            "arrivals": {"process": "deterministic", "rate": "2 req/s"},
            "prompt_tokens": fixed(2000),
            "output_tokens": fixed(4),
            "prefixes": {"groups": 10, "tokens": 1600},
        },
        "pools": [
            {
                "name": "main",
                "llm": "llama-3.1-8b",
                "accelerator": "a100-80",
                "engine": {"kv": {"capacity_tokens": 4096}},
            }
        ],
    }
    return content | changes


class Stage:
    """Replicas of one server on a network, with tiers put together by hand; a step takes 10 ms and 0.1 ms a token."""

    def __init__(self, replicas: int = 1, store_bandwidth: str = "10 GB/s", **tiers: Any) -> None:
        parsed = Scenario.model_validate(
            scenario(network={"store": {"bandwidth": store_bandwidth}})
            | {"pools": [{"name": "m", "llm": "llama-3.1-8b", "accelerator": "a100-80", "replicas": max(replicas, 2)}]}
        )
        self.clock = Clock()
        self.network = Network(self.clock, build_graph(parsed))
        self.store = Tier("store", 1 << 40, BLOCK_TOKENS * TOKEN_BYTES)
        self.finished: dict[int, Request] = {}
        settings = KvTiers.model_validate(tiers)
        self.replicas = [self._replica(i, settings) for i in range(replicas)]

    def _replica(self, index: int, settings: KvTiers) -> Replica:
        model = step_model()
        batch = Batch(100_000, BLOCK_TOKENS, True)
        scheduler = VllmV1(VllmV1Config(max_batched_tokens=8192))
        replica = Replica(index, self.clock, model, scheduler, [batch], GapHistogram(), self._end)
        places = [Place(Tier("host", 100_000, BLOCK_TOKENS * TOKEN_BYTES), "host:0")] if settings.host else []
        if settings.store is not None:
            places.append(Place(self.store, "store", settings.store.limit))
        tiers = ReplicaTiers(settings, self.network, replica, f"gpu:{index}", places, BLOCK_TOKENS, LAYERS)
        replica.tiers = batch.tiers = tiers
        return replica

    def _end(self, request: Request) -> None:
        self.finished[request.id] = request

    def put(self, tier: Tier, number: int, tokens: int) -> None:
        """Let a tier hold the first tokens of a conversation."""
        path = Content(((number, tokens),)).path(BLOCK_TOKENS)
        tier.insert(path, 0, tokens // BLOCK_TOKENS)

    def send(self, number: int, tokens: int, at_s: float = 0.0, replica: int = 0, output: int = 1) -> None:
        request = Request(number, at_s, tokens, output, Content(((number, tokens),)))
        self.clock.at(at_s, lambda: self.replicas[replica].enqueue(request, at_s))

    def host(self, replica: int = 0) -> Tier:
        tiers = self.replicas[replica].tiers
        assert isinstance(tiers, ReplicaTiers)
        return tiers.places[0].tier

    def run(self) -> dict[int, Request]:
        self.clock.run()
        self.network.verify()
        for replica in self.replicas:
            replica.batches[0].verify()
            assert isinstance(replica.tiers, ReplicaTiers)
            for place in replica.tiers.places:
                place.tier.verify()
        return self.finished


class Steps:
    """10 ms a step and 0.1 ms a prompt token."""

    idle_w = static_w = 100.0
    limit_w = 1000.0
    frontend_s = 0.0

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Any:
        from fleetsim.engine.api import Line

        return Line(0.01, 0.0, 1.0, 0.0, float("inf"))

    def mixed(self, tokens: int, *counts: int) -> tuple[float, float]:
        return 0.01 + 1e-4 * tokens, 1.0


def step_model() -> Steps:
    return Steps()


LONG = 64_000
"""Tokens below; 64 more are computed: 16.4 ms."""
LOAD_S = LONG * TOKEN_BYTES / PCIE


def test_a_load_takes_its_bytes_over_pcie() -> None:
    stage = Stage(host={}, overlap=False)
    stage.put(stage.host(), 0, LONG)
    stage.send(0, LONG + 64)
    request = stage.run()[0]
    assert (request.cached_tokens, request.loaded_tokens) == (LONG, LONG)
    assert request.load_s == pytest.approx(LOAD_S + COPY_S)
    assert request.first_token_s == pytest.approx(LOAD_S + COPY_S + 0.0164)


def test_with_overlap_the_layers_of_the_first_step_hide_what_they_can() -> None:
    stage = Stage(host={})
    stage.put(stage.host(), 0, LONG)
    stage.send(0, LONG + 64)
    load_s = LOAD_S + COPY_S
    exposed_s = load_s / LAYERS + (LAYERS - 1) / LAYERS * (load_s - 0.0164)
    assert stage.run()[0].load_s == pytest.approx(exposed_s, rel=1e-3)


def test_a_long_step_hides_all_but_the_first_layer() -> None:
    stage = Stage(host={})
    stage.put(stage.host(), 0, 1600)
    stage.send(0, 1600 + 6400)
    load_s = 1600 * TOKEN_BYTES / PCIE
    assert stage.run()[0].load_s == pytest.approx(load_s / LAYERS + COPY_S, rel=1e-3)
    uses = {(u.source, u.target): u.moved_bytes for u in stage.network.uses()}
    assert uses["switch:0.0", "gpu:0"] == pytest.approx(1600 * TOKEN_BYTES)  # hidden bytes travel too


def test_two_replicas_that_load_at_once_share_the_uplink() -> None:
    """Two A100 behind one PCIe switch: each alone gets 24.8 GB/s, both together 31.5."""
    stage = Stage(replicas=2, host={}, overlap=False)
    for i in range(2):
        stage.put(stage.host(i), i, LONG)
        stage.send(i, LONG + 64, replica=i)
    for request in stage.run().values():
        assert request.load_s == pytest.approx(2 * LONG * TOKEN_BYTES / 31.5e9 + COPY_S)


def test_a_load_from_the_store_is_as_fast_as_the_software_allows() -> None:
    stage = Stage(store={"prefetch": "never", "limit": "5 GB/s"}, overlap=False)
    stage.put(stage.store, 0, 16_000)
    stage.send(0, 16_064)
    request = stage.run()[0]
    assert request.load_s == pytest.approx(16_000 * TOKEN_BYTES / 5e9 + STORE_S, rel=1e-4)


def test_writes_slow_loads_down_no_more_than_their_share() -> None:
    """What is written goes the other way on PCIe and takes nothing from a load."""
    stage = Stage(host={}, overlap=False)
    stage.put(stage.host(), 1, LONG)
    stage.send(0, 8000)
    stage.send(1, LONG + 64, at_s=0.815)  # 0 is done at 0.81 s, and 1 GB of it is written until 0.85 s
    requests = stage.run()
    assert requests[1].load_s == pytest.approx(LOAD_S + COPY_S)
    assert stage.host().written_blocks == 8000 // 16 + 4


def test_a_prefetch_while_queued_hides_the_store() -> None:
    """A long prompt keeps the engine busy for 2.01 s; the second one's 2 GB come from the store meanwhile."""
    stage = Stage(host={}, store={}, overlap=False)
    stage.put(stage.store, 1, 16_000)
    stage.send(0, 8192 + 8192)
    stage.send(1, 16_064, at_s=0.01)
    request = stage.run()[1]
    assert request.loaded_tokens == request.cached_tokens == 16_000
    assert request.load_s == pytest.approx(16_000 * TOKEN_BYTES / PCIE + COPY_S)


@pytest.mark.parametrize(
    ("rule", "wait_s", "tokens"),
    [
        ({"prefetch": "best_effort"}, 0.0, 0),
        ({"prefetch": "wait_complete"}, 16_000 * TOKEN_BYTES / 1e9 + STORE_S, 16_000),
        ({"prefetch": "timeout", "timeout_base": "100 ms", "timeout_per_1024_tokens": "64 ms"}, 1.1, 8384),
    ],
)
def test_when_a_prefetch_stops(rule: dict[str, str], wait_s: float, tokens: int) -> None:
    """At 1 GB/s 16,000 tokens take 2.1 s; within 0.1 s + 64 ms x 15.6 there come 1.1 GB, 8,392 tokens in whole blocks."""
    stage = Stage(host={}, store=rule, overlap=False, store_bandwidth="1 GB/s")
    stage.put(stage.store, 0, 16_000)
    stage.send(0, 16_064)
    request = stage.run()[0]
    assert request.queued_s == 0.0
    assert request.first_scheduled_s == pytest.approx(wait_s, rel=1e-6, abs=1e-9)
    assert request.cached_tokens == tokens


def test_a_request_taken_back_leaves_nothing_behind() -> None:
    stage = Stage(host={}, store={"prefetch": "wait_complete"}, overlap=False)
    stage.put(stage.store, 0, 16_000)
    stage.put(stage.host(), 1, LONG)
    gone: list[int] = []
    for number, tokens in ((0, 16_064), (1, LONG + 64)):
        request = Request(number, 0.0, tokens, 1, Content(((number, tokens),)))
        stage.clock.at(0.0, lambda r=request: stage.replicas[0].enqueue(r, 0.0))  # type: ignore[misc]

        def out(r: Request) -> None:
            if r.carrier is not None:
                r.carrier.release()
            gone.append(r.id)

        stage.clock.at(0.05, lambda r=request: stage.replicas[0].withdraw(r, out))  # type: ignore[misc]
    assert stage.run() == {}
    assert sorted(gone) == [0, 1]
    assert not stage.replicas[0].batches[0].cache.used


# --- whole runs -------------------------------------------------------------------------------------------------------


def with_tiers(tiers: dict[str, Any] | None, **changes: Any) -> Scenario:
    content = scenario(**changes)
    content["pools"][0]["engine"]["kv"]["tiers"] = tiers
    return Scenario.model_validate(content)


def test_a_larger_host_finds_more_and_answers_sooner(tmp_path: Path) -> None:
    """Ten starts of 1,600 tokens: two fit above; written once, all are found below. Tables, summary and tiers agree."""
    alone = fleetsim.run(with_tiers(None), tmp_path / "alone", check=True)
    host = fleetsim.run(with_tiers({"host": {"ratio": 8}}), tmp_path / "host", check=True)
    assert host.summary["prefix_hit_ratio"] > 0.6 > 2 * alone.summary["prefix_hit_ratio"]
    assert host.summary["ttft_mean_s"] < 0.6 * alone.summary["ttft_mean_s"]
    loaded = sum(host.requests()["loaded_tokens"].to_pylist())
    assert host.summary["loaded_tokens"] == loaded > 0
    assert host.summary["kv_host_ratio"] == pytest.approx(loaded / host.summary["prompt_tokens"])
    assert host.summary["kv_store_ratio"] is alone.summary["kv_host_ratio"] is None
    assert alone.summary["loaded_tokens"] == 0


def test_a_store_is_shared_by_replicas(tmp_path: Path) -> None:
    """Round robin sends a start to both replicas in turn: what one computed the other finds in the store."""
    parts = {"network": {"store": {"bandwidth": "20 GB/s"}}, "gateway": {"router": {"policy": "round-robin"}}}
    hits = {}
    for name, tiers in (
        ("host", {"host": {"ratio": 8}}),
        ("store", {"host": {"ratio": 8}, "store": {"prefetch": "wait_complete"}}),
    ):
        content = scenario(**parts)
        content["pools"][0]["engine"]["kv"]["tiers"] = tiers
        content["pools"][0]["replicas"] = 2
        content["workload"]["requests"] = 30
        hits[name] = fleetsim.run(Scenario.model_validate(content), tmp_path / name, check=True).summary
    assert hits["store"]["prefix_hit_ratio"] > 1.2 * hits["host"]["prefix_hit_ratio"]
    assert hits["store"]["kv_store_ratio"] > 0.1


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ({}, "give host, ssd or store"),
        ({"store": {}}, "end in host memory"),
        ({"host": {}, "inclusive": False}, "need write: write_back"),
        ({"host": {}, "page_tokens": 40}, "no multiple of block_tokens 16"),
    ],
)
def test_tiers_that_cannot_be_are_refused(tiers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_tiers(tiers)


def test_tiers_need_a_prefix_cache_and_a_store_must_be_there(tmp_path: Path) -> None:
    content = scenario()
    content["pools"][0]["engine"] = {"prefix_cache": False, "kv": {"tiers": {"host": {}}}}
    with pytest.raises(ValueError, match="need prefix_cache"):
        Scenario.model_validate(content)
    with pytest.raises(ScenarioError, match="the network has no store"):
        fleetsim.run(with_tiers({"store": {"prefetch": "never"}}), tmp_path / "o")
