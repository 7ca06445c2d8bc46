"""Budgets of keys and values: the books stay exact, leaps equal steps, and memory and time are what the arithmetic says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.catalog.llm import load_llm
from fleetsim.engine.api import Compression
from fleetsim.engine.batch import Batch
from fleetsim.engine.compressions.cake import Cake, CakeConfig
from fleetsim.engine.compressions.epicache import Epicache, EpicacheConfig
from fleetsim.errors import FleetsimError, PolicyError
from fleetsim.fleet.pool import describe_pool
from fleetsim.scenario.schema import Scenario
from fleetsim.workload.request import Request
from tests.engine.test_leaps import assert_same, run_both, workloads

LAYERS = 32


def scenario(compression: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    engine = {
        "prefix_cache": False,
        "scheduler": {"policy": "vllm-v1", "max_batched_tokens": 512, "max_seqs": 64},
        "kv": {"capacity_tokens": 6400, "block_tokens": 16},
    } | changes.pop("engine", {})
    if compression is not None:
        engine = {**engine, "kv": {**engine["kv"], "compression": {"policy": "cake", **compression}}}
    return {
        "schema": 1,
        "name": "compressed",
        "seed": 1,
        "workload": {
            "kind": "synthetic",
            "requests": 100,
            "arrivals": {"process": "poisson", "rate": "20 req/s"},
            "prompt_tokens": {"distribution": "lognormal", "mean": 300, "cv": 1.0, "min": 1, "max": 900},
            "output_tokens": {"distribution": "lognormal", "mean": 150, "cv": 1.0, "min": 1, "max": 500},
        },
        "pools": [{"name": "main", "llm": "llama-3.1-8b", "accelerator": "rtx-4090", "engine": engine}],
    } | changes


@st.composite
def engines(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(["vllm-v1", "vllm-v1", "sarathi", "vllm-v0", "orca"]))
    scheduler: dict[str, Any] = {"policy": name}
    if name == "vllm-v1":
        scheduler |= {
            "max_batched_tokens": draw(st.sampled_from([64, 256, 2048])),
            "max_seqs": draw(st.sampled_from([2, 16, 64])),
            "reserve_whole_prompt": draw(st.booleans()),
        }
    return {
        "scheduler": scheduler,
        "kv": {
            "block_tokens": draw(st.sampled_from([1, 8, 16, 64])),
            "capacity_tokens": draw(st.sampled_from([1600, 2560, 6400, 100_000])),
        },
    }


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    workload=workloads(),
    engine=engines(),
    budget=st.sampled_from([2, 17, 64, 100, 333, 5000]),
    seed=st.integers(0, 10_000),
)
def test_leaps_equal_step_by_step(
    workload: dict[str, Any], engine: dict[str, Any], budget: int, seed: int, tmp_path: Any
) -> None:
    """The books are recounted at every boundary on the way (law 3)."""
    compression = {"budget_tokens": budget, "window_tokens": 1 + budget // 8 if budget > 2 else 1}
    fast, slow = run_both(scenario(compression, workload=workload, engine=engine, seed=seed), tmp_path)
    assert_same(fast, slow)
    columns = [result.requests().sort_by("request_id")["approximate_tokens"].to_pylist() for result in (fast, slow)]
    assert columns[0] == columns[1]


def test_the_comparison_is_not_vacuous(tmp_path: Any) -> None:
    """Requests are compressed while they decode and before, some are preempted, and fewer than without a budget."""
    plain, bounded = (scenario(c) for c in (None, {"budget_tokens": 128}))
    for one in (plain, bounded):
        one["pools"][0]["engine"]["kv"] = {**one["pools"][0]["engine"]["kv"], "capacity_tokens": 1600}
    fast, slow = run_both(bounded, tmp_path / "bounded")
    assert_same(fast, slow)
    table = fast.requests()
    prompt, output = (table[name].to_numpy() for name in ("prompt_tokens", "output_tokens"))
    assert ((prompt < 128) & (prompt + output > 140)).any()
    assert (prompt > 128).any()
    full = fleetsim.run(Scenario.model_validate(plain), out=tmp_path / "plain", check=True)
    assert full.summary["preemptions"] > fast.summary["preemptions"] > 0
    assert full.summary["approximate_tokens"] == 0
    assert fast.summary["makespan_s"] < full.summary["makespan_s"]


def test_approximate_tokens_are_those_that_saw_less_than_all(tmp_path: Any) -> None:
    changes = {"kv": {"capacity_tokens": 100_000}}
    tight = Scenario.model_validate(scenario({"budget_tokens": 200}, engine=changes))
    result = fleetsim.run(tight, out=tmp_path / "run", check=True)
    assert result.summary["preemptions"] == 0
    table = result.requests()
    for prompt, output, found in zip(
        *(table[name].to_pylist() for name in ("prompt_tokens", "output_tokens", "approximate_tokens")), strict=True
    ):
        # token t of the answer (the first comes from the prompt) is computed after prompt + t - 2 others and itself
        assert found == sum(prompt + t - 2 > 200 for t in range(2, output + 1))
    assert result.summary["approximate_tokens"] == sum(table["approximate_tokens"].to_pylist()) > 0


def test_a_budget_that_nobody_reaches_changes_nothing(tmp_path: Any) -> None:
    tables = [
        fleetsim.run(Scenario.model_validate(scenario(c)), out=tmp_path / name).requests()
        for name, c in (("none", None), ("wide", {"budget_tokens": 100_000}))
    ]
    assert tables[0].equals(tables[1])


def batch(capacity_tokens: int, budget: int = 1024, compression: Compression | None = None) -> Batch:
    return Batch(
        capacity_tokens // 16,
        16,
        False,
        compression=compression or Cake(CakeConfig(budget_tokens=budget), LAYERS),
    )


def computed(one: Batch, request: Request) -> int:
    """Compute a prompt in one step; blocks in use meanwhile."""
    one.waiting.append(request)
    assert one.admit(request, request.prompt_tokens, whole=False) == request.prompt_tokens
    used = one.cache.used
    one.decode(1)
    one.finish_chunk(request, request.prompt_tokens)
    one.clear_plan()
    return used


def test_blocks_by_hand() -> None:
    """A prompt in one step takes the budget and one layer, in chunks all of it; then the budget, however long it decodes."""
    one = batch(1_000_000)
    whole = Request(0, 0.0, 131_072, 5000)
    assert computed(one, whole) == -(-((1024 * 31 + 131_072) / 32) // 16) == 318
    assert one.cache.used == 64
    one.decode(4000)
    assert one.cache.used == 64
    one.verify()
    chunked = Request(1, 0.0, 131_072, 5)
    one.waiting.append(chunked)
    assert one.admit(chunked, 131_000, whole=False) == 131_000
    one.decode(1)
    assert not one.finish_chunk(chunked, 131_000)
    one.clear_plan()
    assert one.extend(chunked, 72)
    assert one.cache.used == 64 + 8192
    one.decode(1)
    one.finish_chunk(chunked, 72)
    one.clear_plan()
    assert one.cache.used == 128
    assert one.ctx_tokens == 2048
    one.decode(3)
    one.preempt(chunked)
    assert chunked.approximate_tokens == 3
    assert one.cache.used == 64
    one.verify()


def test_growth_up_to_the_budget() -> None:
    one = batch(10_000, budget=100)
    request = Request(0, 0.0, 90, 50)
    computed(one, request)
    assert (one.cache.used, one.growing, one.steps_until_change(1000)) == (6, 1, 10)
    one.decode(10)
    assert (one.cache.used, one.growing, one.ctx_tokens, one.steps_until_change(1000)) == (7, 0, 100, 39)
    one.verify()
    one.decode(39)
    assert one.pop_finished() is request
    assert request.approximate_tokens == 38  # of the 49, ten fill the budget and one more still sees all of it
    assert (one.cache.used, one.ctx_tokens, one.decoding, one.growing) == (0, 0, 0, 0)
    one.verify()


def test_room_for_more_requests() -> None:
    """Requests at a time grow as context over budget."""
    counts = []
    for budget in (1024, 8192):
        one = batch(131_072, budget=budget)
        request_id = 0
        while True:
            request = Request(request_id, 0.0, 8192, 10)
            one.waiting.append(request)
            if not one.admit(request, 8192, whole=False):
                break
            one.decode(0)
            one.finish_chunk(request, 8192)
            one.clear_plan()
            request_id += 1
        counts.append(request_id)
    assert counts[1] == 131_072 // 8192
    assert counts[0] == pytest.approx(counts[1] * 8192 / 1024, abs=1)


def test_step_time_and_bytes_of_a_long_prompt() -> None:
    """Llama 3.1 8B at 128K and 1,024 kept: 16.8 GB of keys and values become 0.13 GB, a decode step of one half as long."""
    kv_bytes = load_llm("llama-3.1-8b").kv_bytes_per_token("auto")
    assert 128_000 * kv_bytes == pytest.approx(16.8e9, rel=0.01)
    assert 1024 * kv_bytes == pytest.approx(0.134e9, rel=0.01)
    pool = describe_pool(Scenario.model_validate(scenario({})).pools[0], 0, Path())
    steps_s = []
    for tokens in (128_000, 1024):
        line = pool.model.decode(1, tokens + 1, 1)
        steps_s.append(line.time_s + line.time_per_ctx_s * (tokens + 1))
    assert steps_s[0] / steps_s[1] == pytest.approx(2.0, rel=0.15)


def test_refused_beside_what_is_not_modelled() -> None:
    good = scenario({})
    pool = good["pools"][0]
    for changes in (
        {"pools": [{**pool, "engine": {**pool["engine"], "prefix_cache": True}}]},
        {"pools": [{**pool, "role": "prefill"}]},
        {"gateway": {"rebalancer": {"policy": "llumnix"}}},
        {"pools": scenario({"budget_tokens": 32, "window_tokens": 32})["pools"]},
    ):
        with pytest.raises((ValueError, FleetsimError)):
            Scenario.model_validate(good | changes)
    with pytest.raises(PolicyError, match="prefix"):
        Batch(10, 16, True, compression=Cake(CakeConfig(), LAYERS))


# --- EpiCache ---------------------------------------------------------------------------------------------------------


def epicache(**changes: int) -> Epicache:
    return Epicache(EpicacheConfig(**changes), LAYERS)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    workload=workloads(),
    engine=engines(),
    budget=st.sampled_from([2, 17, 64, 100, 333, 5000]),
    block=st.sampled_from([1, 48, 100, 2048]),
    episodes=st.sampled_from([1, 4]),
    seed=st.integers(0, 10_000),
)
def test_epicache_leaps_equal_step_by_step(
    workload: dict[str, Any], engine: dict[str, Any], budget: int, block: int, episodes: int, seed: int, tmp_path: Any
) -> None:
    """The books are recounted at every boundary on the way (law 3)."""
    compression = {
        "policy": "epicache",
        "budget_tokens": budget,
        "block_tokens": block,
        "medoid_tokens": 5,
        "charged_episodes": episodes,
    }
    fast, slow = run_both(scenario(compression, workload=workload, engine=engine, seed=seed), tmp_path)
    assert_same(fast, slow)
    columns = [result.requests().sort_by("request_id")["approximate_tokens"].to_pylist() for result in (fast, slow)]
    assert columns[0] == columns[1]


@given(
    budget=st.integers(2, 60),
    block=st.integers(1, 40),
    medoid=st.integers(0, 9),
    target=st.integers(1, 200),
    chunks=st.lists(st.integers(1, 90), min_size=1),
)
def test_epicache_work_counted_token_by_token(
    budget: int, block: int, medoid: int, target: int, chunks: list[int]
) -> None:
    """However a prompt is cut into chunks, each token attends to what the rule leaves of those before it, and to itself."""
    one = epicache(budget_tokens=budget, block_tokens=block, medoid_tokens=medoid)
    held = pairs = scored = approximate = most = 0
    dropped = False
    for token in range(1, target + 1):
        held += 1
        pairs += held
        approximate += dropped
        most = max(most, held)
        assert most <= one.chunk_room(token) <= token
        if token % block == 0 or token == target:
            if held > budget:
                pairs += sum(held + i for i in range(1, medoid + 1))
                scored += medoid
                dropped = True
            held = min(held, budget)
    assert one.prompt_room(target) >= most
    assert one.approximate(target) == approximate
    found_pairs = found_scored = computed = 0
    while computed < target:
        tokens = min(chunks[computed % len(chunks)], target - computed)
        extra, some, keys = one.chunk_work(computed, tokens, target)
        assert keys >= min(computed + tokens, one.kept_tokens)
        found_scored, found_pairs, computed = found_scored + extra, found_pairs + some, computed + tokens
    assert (found_scored, found_pairs) == (scored, pairs)


def test_epicache_charges_a_pass_for_each_episode() -> None:
    one, four = epicache(), epicache(charged_episodes=4)
    for part in ((0, 2048, 40_000), (30_000, 10_000, 40_000)):
        extra, pairs, keys = one.chunk_work(*part)
        assert four.chunk_work(*part) == (4 * extra + 3 * part[1], 4 * pairs, 4 * keys)


def test_epicache_blocks_by_hand() -> None:
    """Budget and a block while a prompt is computed, in one step or in chunks; then the budget, however long it decodes."""
    one = batch(1_000_000, compression=epicache())
    whole = Request(0, 0.0, 131_072, 5000)
    assert computed(one, whole) == (8192 + 2048) // 16
    assert one.cache.used == 8192 // 16
    # blocks 5 to 64 are computed when some before them are dropped
    assert whole.approximate_tokens == 131_072 - 5 * 2048
    one.decode(4000)
    assert (one.cache.used, one.ctx_tokens) == (512, 8192)
    one.verify()
    chunked = Request(1, 0.0, 40_000, 5)
    one.waiting.append(chunked)
    assert one.wanted_blocks(chunked) == 640
    used = []
    assert one.admit(chunked, 8000, whole=False) == 8000
    while True:
        used.append(one.cache.used - 512)
        one.verify()
        one.decode(1)
        done = one.finish_chunk(chunked, 8000)
        one.clear_plan()
        if done:
            break
        assert one.extend(chunked, 8000)
    assert used == [500, 640, 640, 640, 640]
    assert one.cache.used == 1024
    one.verify()


def test_epicache_holds_a_quarter_to_a_sixth_of_long_conversations(tmp_path: Any) -> None:
    """Where the paper keeps 4 to 6 times less, peak memory falls by 3.2 to 4.8 (3.5 published), and time with it."""
    for tokens, kept, peak in ((32_768, 4.0, 3.2), (49_152, 6.0, 4.8)):
        one = batch(1_000_000, compression=epicache())
        assert tokens / 16 / computed(one, Request(0, 0.0, tokens, 10)) == pytest.approx(peak)
        assert tokens / 16 / one.cache.used == pytest.approx(kept)
    results = []
    for name, compression in (("none", None), ("one", {}), ("four", {"charged_episodes": 4})):
        wanted = scenario(
            None if compression is None else {"policy": "epicache", **compression},
            workload={
                "kind": "synthetic",
                "requests": 6,
                "arrivals": {"process": "closed-loop", "concurrency": 1},
                "prompt_tokens": {"distribution": "fixed", "value": 49_152},
                "output_tokens": {"distribution": "fixed", "value": 100},
            },
            engine={
                "kv": {"capacity_tokens": 60_000},
                "scheduler": {"policy": "vllm-v1", "max_batched_tokens": 2048},
            },
        )
        results.append(fleetsim.run(Scenario.model_validate(wanted), out=tmp_path / name, check=True))
    full, one_pass, four = (result.requests() for result in results)
    first = [(t["first_token_s"].to_numpy() - t["arrival_s"].to_numpy()).mean() for t in (full, one_pass, four)]
    assert first[1] < first[0]
    assert first[2] == pytest.approx(4 * first[1], rel=0.1)
    rest = [(t["end_s"].to_numpy() - t["first_token_s"].to_numpy()).mean() for t in (full, one_pass)]
    assert rest[1] < rest[0]
    assert one_pass["approximate_tokens"].to_pylist() == [49_152 - 5 * 2048 + 99] * 6


def test_epicache_refused_parameters() -> None:
    for changes in ({"budget_tokens": 1}, {"block_tokens": 0}, {"medoid_tokens": -1}, {"charged_episodes": 0}):
        with pytest.raises((ValueError, FleetsimError)):
            Scenario.model_validate(scenario({"policy": "epicache", **changes}))


# --- between turns ----------------------------------------------------------------------------------------------------


def conversations(**changes: Any) -> dict[str, Any]:
    """A few conversations of long turns on two replicas, each tied to one of them."""
    compression = {
        "policy": "epicache",
        "budget_tokens": 128,
        "block_tokens": 64,
        "medoid_tokens": 8,
        "kept_episodes": 4,
    } | changes
    made = scenario(compression, gateway={"router": "session-affinity"})
    made["workload"] = {
        "kind": "synthetic",
        "requests": 80,
        "arrivals": {"process": "poisson", "rate": "4 req/s"},
        "prompt_tokens": {"distribution": "lognormal", "mean": 200, "cv": 1.0, "min": 4, "max": 600},
        "output_tokens": {"distribution": "lognormal", "mean": 60, "cv": 1.0, "min": 1, "max": 200},
        "sessions": {
            "turns": {"distribution": "lognormal", "mean": 5, "cv": 0.5, "min": 2, "max": 9},
            "think_time": "500 ms",
            "max_context_tokens": 3000,
        },
    }
    made["pools"][0]["replicas"] = 2
    return made


def rows_of(result: fleetsim.Result) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        result.requests().sort_by([("session_id", "ascending"), ("turn", "ascending")]).to_pylist()
    )
    return rows


def computed_tokens(result: fleetsim.Result) -> int:
    return sum(result.table("replicas")["prompt_tokens"].to_pylist())


def test_later_turns_load_their_episode_and_compute_what_is_new(tmp_path: Path) -> None:
    result = fleetsim.run(conversations(), out=tmp_path / "kept", check=True)
    rows = rows_of(result)
    before = dict.fromkeys((row["session_id"] for row in rows), 0)
    for row in rows:
        assert row["loaded_tokens"] == before[row["session_id"]] or row["preemptions"]
        assert row["cached_tokens"] == 0
        before[row["session_id"]] = row["prompt_tokens"] + row["output_tokens"] - 1
    plain = fleetsim.run(conversations(kept_episodes=0), out=tmp_path / "plain", check=True)
    assert computed_tokens(result) == computed_tokens(plain) - result.summary["loaded_tokens"]
    assert result.summary["ttft_mean_s"] < plain.summary["ttft_mean_s"]


def test_a_load_takes_the_bytes_of_a_budget_over_the_host_link(tmp_path: Path) -> None:
    from fleetsim.kernel.clock import Clock
    from fleetsim.network.flows import Network
    from fleetsim.network.topology import build_graph

    lonely = conversations(budget_tokens=512, block_tokens=512)
    lonely["workload"]["requests"] = 12
    lonely["workload"]["arrivals"]["rate"] = "0.01 req/s"
    result = fleetsim.run(lonely, out=tmp_path, check=True)
    token_bytes = load_llm("llama-3.1-8b").kv_bytes_per_token("auto")
    network = Network(Clock(), build_graph(Scenario.model_validate(lonely)))
    loads = [row for row in rows_of(result) if row["loaded_tokens"]]
    assert loads
    for row in loads:
        size_bytes = min(row["loaded_tokens"], 512) * token_bytes
        expected_s = network.estimate_s("host:0", f"gpu:{row['replica']}", size_bytes)
        assert row["load_s"] == pytest.approx(expected_s, rel=1e-9)
    written = [
        (4 if not row["turn"] else 1) * min(row["prompt_tokens"] + row["output_tokens"] - 1, 512)
        for row in rows_of(result)
    ]
    read = [min(row["loaded_tokens"], 512) for row in loads]
    last_s = max(row["end_s"] for row in rows_of(result))
    moved = result.summary["network_bytes"] / token_bytes
    assert sum(written) + sum(read) - 4 * 512 <= moved <= sum(written) + sum(read) + 1e-6, last_s


def test_a_wrong_episode_makes_what_it_stands_for_approximate(tmp_path: Path) -> None:
    right, wrong, half = (
        fleetsim.run(conversations(accuracy=accuracy), out=tmp_path / str(accuracy), check=True)
        for accuracy in (1.0, 0.0, 0.5)
    )
    loaded = right.summary["loaded_tokens"]
    assert wrong.summary["approximate_tokens"] - right.summary["approximate_tokens"] == loaded
    assert (
        right.summary["approximate_tokens"] < half.summary["approximate_tokens"] < wrong.summary["approximate_tokens"]
    )
    assert min(row["approximate_tokens"] for row in rows_of(right)) >= 0
    plain = fleetsim.run(conversations(kept_episodes=0), out=tmp_path / "plain", check=True)
    assert right.summary["approximate_tokens"] < plain.summary["approximate_tokens"]  # less is computed


def test_a_full_host_forgets_conversations(tmp_path: Path) -> None:
    token_bytes = load_llm("llama-3.1-8b").kv_bytes_per_token("auto")
    few = fleetsim.run(conversations(host_capacity=f"{3 * 4 * 128 * token_bytes} B"), out=tmp_path / "few", check=True)
    all_of_them = fleetsim.run(conversations(), out=tmp_path / "all", check=True)
    none = fleetsim.run(conversations(host_capacity=f"{100 * token_bytes} B"), out=tmp_path / "none", check=True)
    assert none.summary["loaded_tokens"] < few.summary["loaded_tokens"] < all_of_them.summary["loaded_tokens"]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    engine=engines(),
    budget=st.sampled_from([17, 64, 333]),
    episodes=st.sampled_from([1, 4]),
    room=st.sampled_from([100, 2000, 100_000]),
    think=st.sampled_from(["0 s", "50 ms", "2 s"]),
    seed=st.integers(0, 10_000),
)
def test_between_turns_leaps_equal_step_by_step(
    engine: dict[str, Any], budget: int, episodes: int, room: int, think: str, seed: int, tmp_path: Any
) -> None:
    """With little room on the accelerator requests are preempted, with little on the host conversations are forgotten."""
    made = conversations(
        budget_tokens=budget, kept_episodes=episodes, host_capacity=f"{room * 131_072} B", accuracy=0.7
    )
    own = made["pools"][0]["engine"]
    kv = {**engine["kv"], "compression": own["kv"]["compression"]}
    made["pools"][0]["engine"] = {**own, **engine, "kv": kv}
    made["workload"]["sessions"]["think_time"] = think
    fast, slow = run_both({**made, "seed": seed}, tmp_path)
    assert_same(fast, slow)
    for column in ("approximate_tokens", "loaded_tokens"):
        a, b = (result.requests().sort_by("request_id")[column].to_pylist() for result in (fast, slow))
        assert a == b, column
