"""Where the time of a request goes: its parts add up, and are the same in leaps and in single steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.plots.digest import BANDS, COLUMNS, PARTS, RequestDigest, floats, parts_of, parts_to_first
from tests.fleet.test_moves import pool, scenario

COLUMNS_OF_PARTS = ("prefill_s", "transfer_s", "decode_s", "stall_s")


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    """Prompts and answers apart, or one pool that preempts for lack of blocks, by recomputing or by swapping."""
    requests = draw(st.integers(30, 90))
    base = scenario(seed=draw(st.integers(0, 1000)))
    base["workload"] = {
        "kind": "synthetic",
        "requests": requests,
        "arrivals": {"process": "gamma", "rate": f"{draw(st.sampled_from([10, 40, 100]))} req/s", "burstiness": 0.4},
        "prompt_tokens": {"distribution": "lognormal", "mean": 250, "cv": 1.0, "min": 1, "max": 1200},
        "output_tokens": {"distribution": "lognormal", "mean": 90, "cv": 1.0, "min": 1, "max": 400},
    }
    if draw(st.booleans()):
        pools = [pool("prefill", draw(st.integers(1, 2)), "prefill"), pool("decode", 1, "decode")]
        pools[0]["kv_transfer"] = draw(st.sampled_from(["serial", "layerwise"]))
    else:
        pools = [pool("main", draw(st.integers(1, 2)), "mixed")]
        pools[0]["engine"]["kv"]["preemption"] = {"mode": draw(st.sampled_from(["recompute", "swap"]))}
    return base | {"pools": pools}


def values_of(result: fleetsim.Result) -> dict[str, np.ndarray[Any, Any]]:
    batch = result.requests().sort_by("request_id").combine_chunks().to_batches()[0]
    return {name: floats(batch, name) for name in COLUMNS}


@given(scenarios())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_add_up_in_leaps_as_in_steps(tmp_path: Path, given: dict[str, Any]) -> None:
    steps = [{**p, "engine": {**p["engine"], "step_by_step": True}} for p in given["pools"]]
    fast = values_of(fleetsim.run(given, out=tmp_path / "leaps", check=True))
    slow = values_of(fleetsim.run(given | {"pools": steps}, out=tmp_path / "steps", check=True))
    done = ~np.isnan(fast["e2el_s"])
    for name in COLUMNS_OF_PARTS:
        np.testing.assert_allclose(fast[name], slow[name], rtol=1e-9, atol=1e-9, err_msg=name)
        assert (fast[name][done] >= -1e-12).all(), name
    np.testing.assert_allclose(sum(parts_of(fast))[done], fast["e2el_s"][done], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sum(parts_to_first(fast))[done], fast["ttft_s"][done], rtol=1e-9, atol=1e-12)


def test_a_transfer_between_replicas_is_told_apart_from_decoding(tmp_path: Path) -> None:
    """One request alone: its keys and values travel for their bytes over the bandwidth, and nothing else stalls it."""
    base = scenario(pools=[pool("prefill", 1, "prefill"), pool("decode", 1, "decode")])
    base["workload"] = {
        "kind": "synthetic",
        "requests": 1,
        "arrivals": {"process": "poisson", "rate": "1 req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": 1000},
        "output_tokens": {"distribution": "fixed", "value": 50},
    }
    result = fleetsim.run(base, out=tmp_path / "out", check=True)
    row = result.requests().to_pylist()[0]
    assert row["transfer_s"] > 0
    assert row["stall_s"] == 0
    # the second token waits for the transfer and its step; all other gaps are single steps
    steps_s = row["decode_s"] / 49
    assert abs(row["itl_max_s"] - row["transfer_s"] - steps_s) < 0.1 * steps_s
    assert result.summary["network_bytes"] > 0


def test_a_preempted_request_stalls(tmp_path: Path) -> None:
    base = scenario(pools=[pool("main", 1, "mixed")])
    result = fleetsim.run(base, out=tmp_path / "out", check=True, overrides={"workload.arrivals.rate": "200 req/s"})
    assert result.summary["preemptions"] > 0
    rows = result.requests().to_pylist()
    for row in rows:
        if not row["preemptions"]:
            assert row["stall_s"] == 0, row
    assert sum(row["stall_s"] for row in rows) > 0


def test_bands_are_means_around_percentiles() -> None:
    """Against a plain computation over all requests, sorted; buckets of 1 % shift a band by at most a bucket."""
    rng = np.random.default_rng(3)
    count = 20_000
    arrival = np.sort(rng.uniform(0, 100, count))
    queue, prefill, decode = (rng.lognormal(mean, 0.8, count) for mean in (-3, -2, 0.5))
    queued, scheduled = arrival + 0.01, arrival + 0.01 + queue
    first = scheduled + prefill
    end = first + decode
    nothing = np.zeros(count)
    columns = {
        "arrival_s": arrival, "encode_s": np.full(count, np.nan), "queued_s": queued, "first_scheduled_s": scheduled,
        "first_token_s": first, "end_s": end, "load_s": nothing, "return_s": nothing, "prefill_s": prefill,
        "transfer_s": nothing, "decode_s": decode, "stall_s": nothing, "slo_met": nothing, "ttft_s": first - arrival,
        "tpot_s": decode / 100, "e2el_s": end - arrival, "output_tokens": nothing + 101,
    }  # fmt: skip
    batch = pa.RecordBatch.from_pydict(columns)
    digest = RequestDigest(110.0)
    for start in range(0, count, 3000):
        digest.add(batch.slice(start, 3000))
    table = digest.parts_table("all").to_pylist()
    order = np.argsort(columns["e2el_s"])
    for band, (low, high) in BANDS.items():
        members = order[int(low * count) : int(high * count)]
        for part, values in (("queue", queue), ("prefill", prefill), ("decode", decode)):
            told = next(r["seconds"] for r in table if (r["by"], r["band"], r["part"]) == ("e2el", band, part))
            assert abs(told / values[members].mean() - 1) < 0.05, (band, part)
    for part in PARTS:
        mean = next(r["seconds"] for r in table if (r["by"], r["band"], r["part"]) == ("e2el", "mean", part))
        exact = {"queue": queue.mean(), "prefill": prefill.mean(), "decode": decode.mean(), "gateway": 0.01}.get(
            part, 0.0
        )
        assert abs(mean - exact) < 1e-9
