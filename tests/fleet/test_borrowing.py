"""Blocks of a request on other replicas: books, costs, and leaps against single steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.fleet.borrowing import query_bytes
from fleetsim.fleet.fleet import Fleet
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.routing.api import Borrow
from fleetsim.scenario.schema import Scenario
from fleetsim.testing import check_rebalancer, check_router
from fleetsim.workload.request import FINISHED, Request
from tests.fleet.test_moves import HERE, MANY, column, pool, run, same_in_single_steps, scenario


def lavish(**options: Any) -> dict[str, Any]:
    return {"rebalancer": {"policy": f"{HERE}:Lavish", **options}}


def test_requests_borrow_memory_while_they_decode(tmp_path: Path) -> None:
    result = same_in_single_steps(scenario(gateway=lavish()), tmp_path)
    assert result.summary["finished"] == 120
    assert result.summary["loans"] > 20
    assert result.summary["loans_recalled"] > 0


@MANY
@given(
    seed=st.integers(0, 1000),
    tokens=st.sampled_from([1600, 3200]),
    prefix_cache=st.booleans(),
    scheduler=st.sampled_from(["vllm-v1", "sarathi", "vllm-v0", "sglang", "orca"]),
    also_moves=st.booleans(),
    dp=st.sampled_from([1, 2]),
    swap=st.booleans(),
)
def test_loans_in_leaps_and_steps(
    seed: int, tokens: int, prefix_cache: bool, scheduler: str, also_moves: bool, dp: int, swap: bool, tmp_path: Path
) -> None:
    engine = {
        "scheduler": {"policy": scheduler},
        "kv": {"capacity_tokens": tokens, "block_tokens": 16, "preemption": {"mode": "swap" if swap else "recompute"}},
        "prefix_cache": prefix_cache,
    }
    pools = [{**pool("main", 3, **engine), "parallelism": {"dp": dp}}]
    same_in_single_steps(scenario(seed=seed, pools=pools, gateway=lavish(also_moves=also_moves)), tmp_path)


def long_prompts(seed: int = 5, longest: int = 9000, **changes: Any) -> dict[str, Any]:
    """Prompts of which some take more than one of three replicas' caches."""
    prompts = {"distribution": "lognormal", "mean": 1200, "cv": 2.0, "min": 1, "max": longest}
    base = scenario(seed=seed, pools=[pool("main", 3)], gateway={"router": {"policy": "infinite-llm"}})
    base["workload"] = {
        **base["workload"],
        "prompt_tokens": prompts,
        "requests": 60,
        "arrivals": {"process": "poisson", "rate": "4 req/s"},
    }
    return {**base, **changes}


def test_prompts_longer_than_a_replica_lie_on_several(tmp_path: Path) -> None:
    result = same_in_single_steps(long_prompts(longest=7000), tmp_path)
    prompts, status = np.array(column(result, "prompt_tokens")), column(result, "status")
    assert (prompts > 3200).sum() > 3
    assert set(status) == {"finished"}
    assert result.summary["loans"] > 3
    assert result.summary["remote_attention_bytes"] > 0


@MANY
@given(
    seed=st.integers(0, 1000),
    prefix_cache=st.booleans(),
    scheduler=st.sampled_from(["vllm-v1", "sarathi", "vllm-v0", "sglang", "orca"]),
    dp=st.sampled_from([1, 2]),
    swap=st.booleans(),
    also_lends=st.booleans(),
    own_ratio=st.sampled_from([0.2, 0.5]),
)
def test_long_prompts_in_leaps_and_steps(
    seed: int,
    prefix_cache: bool,
    scheduler: str,
    dp: int,
    swap: bool,
    also_lends: bool,
    own_ratio: float,
    tmp_path: Path,
) -> None:
    engine = {
        "scheduler": {"policy": scheduler},
        "kv": {"capacity_tokens": 3200, "block_tokens": 16, "preemption": {"mode": "swap" if swap else "recompute"}},
        "prefix_cache": prefix_cache,
    }
    gateway: dict[str, Any] = {
        "router": {"policy": "infinite-llm", "own_ratio": own_ratio},
        "first_token_timeout": "20 s",
    }
    if also_lends:
        gateway |= lavish()
    pools = [{**pool("main", 3, **engine), "parallelism": {"dp": dp}}]
    same_in_single_steps(long_prompts(seed, pools=pools, gateway=gateway), tmp_path)


# --- what loans cost ------------------------------------------------------------------------------------------------------


class OneLoan:
    """Two replicas; the first decodes one request of which half comes to lie on the second at a given time."""

    def __init__(self, blocks: int, beside: int = 0, until_s: float = 30.0) -> None:
        self.clock = Clock()
        given = scenario(pools=[pool("main", 2, kv={"capacity_tokens": 40000, "block_tokens": 16}, prefix_cache=False)])
        self.ended: list[Request] = []
        self.fleet = Fleet(Scenario.model_validate(given), Path(), self.clock, Streams(1), self.ended.append, 1)
        self.gateway = self.fleet.gateway
        self.gateway.moves.follow()
        debtor, creditor = self.fleet.replicas
        self.request = Request(0, 0.0, 20000, 2000)
        self.others = [Request(1 + i, 0.0, 100, 2000) for i in range(beside)]
        for request, replica in [(self.request, debtor), *((other, creditor) for other in self.others)]:
            self.fleet.arrived += 1
            request.replica = replica.index
            self.gateway.moves.by_id[request.id] = request
            replica.enqueue(request, 0.0)
        if blocks:
            self.clock.at(8.0, lambda: self.gateway.lending.borrow(Borrow(0, 0, 1, blocks), self.fleet.replicas))
        self.clock.run(until_s)

    def step_s(self, replica: int) -> float:
        """Duration of the first of the steps under way."""
        return self.fleet.replicas[replica].first_s


def test_a_step_waits_for_attention_elsewhere_and_the_creditor_pays_with_time() -> None:
    lent = OneLoan(600, beside=4, until_s=14.0)
    debtor, creditor = lent.fleet.replicas
    (loan,) = creditor.batches[0].hosted
    assert loan.blocks == 600
    assert loan.serving
    assert lent.request.remote_blocks == 600
    llm = lent.fleet.pools[0].llm
    out_bytes, back_bytes = query_bytes(llm)
    assert (out_bytes, back_bytes) == (32 * 128 * 2, 32 * (128 * 2 + 8))
    network = lent.fleet.network()
    there = network.idle_s("gpu:0", "gpu:1", out_bytes) + network.idle_s("gpu:1", "gpu:0", back_bytes)
    assert loan.terms.wire_s == pytest.approx(llm.layers * there, rel=1e-12)
    # attention over 9,600 tokens reads their keys and values once
    read_s = 9600 * lent.fleet.pools[0].kv_bytes_per_token / 1008e9
    assert read_s < loan.terms.work_s < 2 * read_s
    own = creditor.batches[0].ctx_tokens + 4
    line = creditor.model.decode(4, own, 4)
    assert lent.step_s(1) == pytest.approx(line.time_s + line.time_per_ctx_s * own + loan.terms.work_s, rel=1e-9)
    without_s = debtor._without_context_s(1, 1)
    local = debtor.batches[0].ctx_tokens + 1 - 9600
    floor_s = without_s + loan.terms.wire_s + loan.terms.work_s
    line = debtor.model.decode(1, local, 1)
    assert lent.step_s(0) == pytest.approx(max(floor_s, line.time_s + line.time_per_ctx_s * local), rel=1e-9)


def test_memory_comes_back_when_a_loan_ends() -> None:
    lent = OneLoan(600, beside=2, until_s=400.0)
    assert [request.status for request in lent.ended] == [FINISHED] * 3
    assert not lent.gateway.lending.loans
    assert lent.gateway.lending.loans_begun[1] == 1
    assert all(not batch.cache.used and not batch.hosted for r in lent.fleet.replicas for batch in r.batches)
    copied = 600 * 16 * lent.fleet.pools[0].kv_bytes_per_token
    assert lent.gateway.lending.lent_bytes == pytest.approx(copied)


def test_energy_of_attention_elsewhere_is_charged_once() -> None:
    lent = OneLoan(600, until_s=400.0)
    debtor, creditor = (replica.meter(400.0) for replica in lent.fleet.replicas)
    assert creditor.energy_j == 0.0
    assert creditor.steps == 0
    assert lent.request.energy_j == pytest.approx(debtor.energy_j, rel=1e-9)


def test_a_replica_that_lends_does_not_borrow() -> None:
    """Else two could wait for each other's room for ever."""
    both = OneLoan(600, beside=1, until_s=14.0)
    both.gateway.lending.borrow(Borrow(1, 1, 0, 1), both.fleet.replicas)
    assert len(both.gateway.lending.loans) == 1


def test_engines_that_stop_steps_do_not_lend(tmp_path: Path) -> None:
    pools = [pool("main", 3, prefix_cache=False, scheduler={"policy": "flow-prefill"})]
    result = run(scenario(pools=pools, gateway=lavish()), tmp_path)
    assert result.summary["finished"] == 120
    assert result.summary["loans"] == 0


def test_the_rebalancer_keeps_the_rules() -> None:
    assert check_rebalancer("infinite-llm").checks


def test_the_router_keeps_the_rules() -> None:
    assert check_router("infinite-llm").checks


def test_memory_short_replicas_borrow(tmp_path: Path) -> None:
    """One replica has the long requests, the others have room: with loans its queue is shorter."""
    skewed = scenario(pools=[pool("main", 3, prefix_cache=False)], gateway={"router": f"{HERE}:Skewed"})
    skewed["workload"] = {
        **skewed["workload"],
        "output_tokens": {"distribution": "fixed", "value": 300},
        "arrivals": {"process": "poisson", "rate": "12 req/s"},
        "prefixes": None,
    }
    alone = run(skewed, tmp_path / "alone")
    helped = same_in_single_steps({**skewed, "gateway": {**skewed["gateway"], "rebalancer": "infinite-llm"}}, tmp_path)
    assert helped.summary["loans"] > 5
    assert helped.summary["ttft_mean_s"] < 0.9 * alone.summary["ttft_mean_s"]
