"""Requests with images: encoded where the prompt is computed or elsewhere, at exact times, and leaps against single steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.errors import InputError
from fleetsim.experiment.check import check_scenario
from fleetsim.fleet.pool import describe_pool
from fleetsim.scenario import schema
from fleetsim.scenario.load import load_mapping
from fleetsim.scenario.schema import Scenario
from tests.engine.test_leaps import assert_same, run_both

ENCODER = {"model": "qwen2-vl-vit", "max_images": 4}
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def pool(name: str, role: str = "mixed", encoder: Any = None, **more: Any) -> dict[str, Any]:
    engine = {"scheduler": {"policy": "vllm-v1"}, "prefix_cache": False, **more.pop("engine", {})}
    found = {"name": name, "llm": "qwen2.5-7b", "accelerator": "a100-80", "role": role, "engine": engine, **more}
    return found if encoder is None else {**found, "encoder": encoder}


SPLITS: dict[str, list[dict[str, Any]]] = {
    "all": [pool("all", encoder=ENCODER, replicas=2)],
    "EP-D": [pool("prompts", "prefill", ENCODER), pool("answers", "decode")],
    "ED-P": [pool("prompts", "prefill"), pool("answers", "decode", ENCODER)],
    "E-P-D": [pool("images", "encode", ENCODER), pool("prompts", "prefill"), pool("answers", "decode")],
    "E-PD": [pool("images", "encode", ENCODER), pool("text", replicas=2)],
}


def workload(**more: Any) -> dict[str, Any]:
    return {
        "kind": "synthetic",
        "requests": 60,
        "arrivals": {"process": "gamma", "rate": "8 req/s", "burstiness": 0.5},
        "prompt_tokens": {"distribution": "lognormal", "mean": 60, "cv": 0.8, "min": 1, "max": 500},
        "output_tokens": {"distribution": "lognormal", "mean": 60, "cv": 0.8, "min": 1, "max": 300},
        "images": {
            "tokens": {"distribution": "lognormal", "mean": 400, "cv": 0.7, "min": 16, "max": 2000},
            "per_request": {"distribution": "quantiles", "values": [1, 1, 2, 6]},
            "share": 0.7,
        },
        **more,
    }


def scenario(pools: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"schema": 1, "name": "images", "seed": 4, "workload": workload(), "pools": pools, **more}


def run(tree: dict[str, Any], out: Path) -> fleetsim.Result:
    return fleetsim.run(Scenario.model_validate(tree), out=out, check=True)


def one_request(**more: Any) -> dict[str, Any]:
    fixed = lambda tokens: {"distribution": "fixed", "value": tokens}  # noqa: E731
    return workload(
        requests=1,
        arrivals={"process": "deterministic", "rate": "1 req/s"},
        prompt_tokens=fixed(50),
        output_tokens=fixed(5),
        images={"tokens": fixed(300), "per_request": fixed(2)},
        **more,
    )


# --- exact times ------------------------------------------------------------------------------------------------------


def test_a_request_alone(tmp_path: Path) -> None:
    """Front end, pass over both images, prompt of text and images: nothing between them on one replica."""
    result = run(scenario([pool("all", encoder=ENCODER)], workload=one_request()), tmp_path / "out")
    (row,) = result.requests().to_pylist()
    site = describe_pool(schema.Pool.model_validate(pool("all", encoder=ENCODER)), 0, tmp_path)
    encode_s, _ = site.encode_time(2, 600)
    assert (row["images"], row["image_tokens"], row["prompt_tokens"]) == (2, 600, 650)
    assert row["encode_start_s"] == pytest.approx(row["arrival_s"] + site.model.frontend_s)
    assert row["encode_s"] == pytest.approx(encode_s)
    assert row["queued_s"] == row["first_scheduled_s"] == row["encode_end_s"]
    prompt_s, _ = site.model.mixed(650, 1, 650 * 651 // 2, 650, 1, 0, 0, 650)
    assert row["first_token_s"] == pytest.approx(row["encode_end_s"] + prompt_s)
    assert row["encode_replica"] == row["replica"] == 0


def test_embeddings_travel(tmp_path: Path) -> None:
    """Encoded elsewhere, 600 embeddings of 3,584 values cross the network before the prompt can begin."""
    result = run(scenario(SPLITS["E-PD"], workload=one_request()), tmp_path / "out")
    (row,) = result.requests().to_pylist()
    assert (row["encode_replica"], row["replica"]) == (0, 1)
    assert row["queued_s"] > row["encode_end_s"]
    assert result.summary["network_bytes"] == pytest.approx(600 * 3584 * 2)


def test_three_parts_of_a_request_on_three_replicas(tmp_path: Path) -> None:
    rows = run(scenario(SPLITS["E-P-D"]), tmp_path / "out").requests().to_pylist()
    seen = {row["encode_replica"] for row in rows if row["images"]}
    assert seen == {0}
    assert {(row["prefill_replica"], row["replica"]) for row in rows if row["output_tokens"] > 1} == {(1, 2)}
    assert all(row["encode_replica"] is None and row["encode_s"] is None for row in rows if not row["images"])


def test_decode_replicas_encode_for_prompts_elsewhere(tmp_path: Path) -> None:
    rows = run(scenario(SPLITS["ED-P"]), tmp_path / "out").requests().to_pylist()
    assert {row["encode_replica"] for row in rows if row["images"]} == {1}
    assert {row["prefill_replica"] for row in rows if row["output_tokens"] > 1} == {0}


def test_encoding_holds_decodes_back_and_stages_do_less(tmp_path: Path) -> None:
    """A burst of images: at once they hold decodes back for as long as eight of them take, in stages for one or two."""
    gaps = {}
    images = {"tokens": {"distribution": "fixed", "value": 1000}}
    burst = {"process": "gamma", "rate": "6 req/s", "burstiness": 0.1}
    for order in ("first", "last"):
        pools = [pool("all", encoder={**ENCODER, "max_images": 8, "order": order, "max_wait": "10 s"})]
        tree = scenario(pools, workload=workload(arrivals=burst, images=images))
        gaps[order] = pc.quantile(run(tree, tmp_path / order).requests()["itl_max_s"], 0.9).to_pylist()[0]
    assert gaps["last"] < 0.8 * gaps["first"]


def test_images_are_encoded_together_up_to_a_limit(tmp_path: Path) -> None:
    """A burst of ten images: passes of four, four and two."""
    tree = scenario(
        [pool("all", encoder=ENCODER)],
        workload=one_request() | {"requests": 10, "arrivals": {"process": "deterministic", "rate": "100000 req/s"}},
    )
    tree["workload"]["images"] = {"tokens": {"distribution": "fixed", "value": 300}}
    rows = run(tree, tmp_path / "out").requests().to_pylist()
    passes = sorted({row["encode_start_s"] for row in rows})
    sizes = [sum(row["encode_start_s"] == start for row in rows) for start in passes]
    assert max(sizes) == 4
    assert sum(sizes) == 10


def test_requests_that_are_given_up_meanwhile(tmp_path: Path) -> None:
    """Time-outs strike while requests wait for the encoder, are in it, or their embeddings travel: all books still add up."""
    for split, pools in SPLITS.items():
        tree = scenario(
            pools,
            workload=workload(requests=120, arrivals={"process": "poisson", "rate": "60 req/s"}),
            gateway={"timeout": "700 ms"},
        )
        result = run(tree, tmp_path / split)
        assert result.summary["timed_out"] > 5
        late = result.requests().filter(pc.equal(result.requests()["status"].cast(pa.string()), "timed_out"))
        assert pc.sum(late["energy_j"]).as_py() > 0.0


def test_a_horizon_in_the_middle(tmp_path: Path) -> None:
    tree = scenario(SPLITS["E-P-D"], workload=workload(arrivals={"process": "poisson", "rate": "100 req/s"}))
    for horizon in ("180 ms", "300 ms", "1 s"):
        result = run({**tree, "run": {"horizon": horizon}}, tmp_path / horizon.replace(" ", ""))
        assert result.summary["unfinished"] > 0


def test_a_fleet_without_encoder_refuses_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pool encodes them"):
        run(scenario([pool("text")]), tmp_path / "out")


# --- what may be said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ([pool("text")], "no pool encodes them"),
        ([pool("images", "encode", ENCODER)], "no pool computes prompts"),
        ([pool("images", "encode", {"model": "qwen2-vl-vitt"}), pool("text")], "qwen2-vl-vit"),
        ([pool("a", encoder=ENCODER), pool("b", encoder={"model": "clip-vit-l-14-336"})], "different encoders"),
        ([pool("images", "encode", ENCODER), pool("prompts", "prefill")], "no pool computes answers"),
    ],
)
def test_impossible_combinations_are_found(pools: list[dict[str, Any]], message: str) -> None:
    found = [str(finding) for finding in check_scenario(load_mapping(scenario(pools)))]
    assert any(message in text for text in found), found


def test_an_encode_pool_needs_an_encoder() -> None:
    with pytest.raises(InputError, match="needs an encoder"):
        load_mapping(scenario([pool("images", "encode"), pool("text")]))


def test_an_encoder_takes_memory(tmp_path: Path) -> None:
    plain, seeing = (
        describe_pool(schema.Pool.model_validate(pool("all", encoder=encoder)), 0, tmp_path).capacity_blocks
        for encoder in (None, ENCODER)
    )
    token_bytes = 28 * 2 * 4 * 128 * 2
    assert (plain - seeing) * 16 * token_bytes == pytest.approx(675_215_360 * 2, rel=0.01)


# --- traces -----------------------------------------------------------------------------------------------------------


def trace(path: Path, **columns: list[Any]) -> dict[str, Any]:
    count = 4
    table = {"arrival_s": [0.1 * i for i in range(count)], "prompt_tokens": [900] * count, "output_tokens": [3] * count}
    pq.write_table(pa.table({**table, **columns}), path)
    return {"kind": "trace", "format": "parquet", "path": str(path)}


def test_images_of_a_trace(tmp_path: Path) -> None:
    given = trace(tmp_path / "trace.parquet", images=[0, 1, 2, 1], image_tokens=[0, 600, 800, 900])
    rows = run(scenario([pool("all", encoder=ENCODER)], workload=given), tmp_path / "out").requests().to_pylist()
    assert [(row["images"], row["image_tokens"]) for row in rows] == [(0, 0), (1, 600), (2, 800), (1, 900)]
    assert {row["prompt_tokens"] for row in rows} == {900}


def test_a_trace_that_counts_images_only(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
        "2024-10-15 12:00:00.000,2,900,5\n2024-10-15 12:00:01.000,0,300,5\n2024-10-15 12:00:02.000,3,700,5\n"
    )
    given = {"kind": "trace", "format": "azure", "path": str(path)}
    with pytest.raises(InputError, match="tokens_per_image"):
        run(scenario([pool("all", encoder=ENCODER)], workload=given), tmp_path / "none")
    known = {**given, "tokens_per_image": 256}
    rows = run(scenario([pool("all", encoder=ENCODER)], workload=known), tmp_path / "out").requests().to_pylist()
    assert [(row["images"], row["image_tokens"]) for row in rows] == [(2, 512), (0, 0), (3, 699)]


def test_bad_image_columns_are_told(tmp_path: Path) -> None:
    given = trace(tmp_path / "trace.parquet", images=[0, 1, -2, 1], image_tokens=[0, 1000, 800, 0])
    with pytest.raises(InputError) as caught:
        run(scenario([pool("all", encoder=ENCODER)], workload=given), tmp_path / "out")
    text = str(caught.value)
    assert "image_tokens: 1000 is not between 0 and the prompt's 900 tokens" in text
    assert "images: -2" in text
    assert "images: 1 images with 0 image_tokens" in text


def test_the_number_of_images_does_not_change_the_text(tmp_path: Path) -> None:
    """Images come from a random stream of their own: lengths of text and answers are those of the workload without them."""
    seen = run(scenario(SPLITS["all"]), tmp_path / "seen").requests().sort_by("request_id")
    blind = (
        run(scenario(SPLITS["all"], workload=workload(images=None)), tmp_path / "blind")
        .requests()
        .sort_by("request_id")
    )
    text = np.array(seen["prompt_tokens"]) - np.array(seen["image_tokens"])
    assert text.tolist() == blind["prompt_tokens"].to_pylist()
    assert seen["output_tokens"].to_pylist() == blind["output_tokens"].to_pylist()


# --- leaps ------------------------------------------------------------------------------------------------------------


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    encoder = {
        "model": draw(st.sampled_from(["qwen2-vl-vit", "qwen2.5-vl-vit", "clip-vit-l-14-336"])),
        "max_images": draw(st.sampled_from([1, 3, 8])),
        "order": draw(st.sampled_from(["first", "last"])),
        "step_target": draw(st.sampled_from(["20 ms", "50 ms", "200 ms"])),
        "max_wait": draw(st.sampled_from(["0 s", "200 ms", "5 s"])),
    }
    scheduler = draw(st.sampled_from(["vllm-v1", "vllm-v0", "sarathi", "flow-prefill", "sglang", "xllm-colocation"]))
    engine: dict[str, Any] = {
        "scheduler": {"policy": scheduler},
        "prefix_cache": draw(st.booleans()),
        "kv": {
            "block_tokens": draw(st.sampled_from([1, 16])),
            "capacity_tokens": draw(st.sampled_from([12_000, 60_000])),
        },
    }
    if draw(st.integers(0, 3)) == 0:
        engine["kv"]["preemption"] = {"mode": "swap", "capacity": "8 GB"}
    split = draw(st.sampled_from([*SPLITS, "all"]))
    pools = [{**p, "engine": engine, **({"encoder": encoder} if "encoder" in p else {})} for p in SPLITS[split]]
    gateway: dict[str, Any] = {}
    if split in ("all", "E-PD"):
        routers = ["least-outstanding", "join-shortest-queue", "power-of-two-choices", "xllm"]
        gateway["router"] = draw(st.sampled_from(routers))
    if draw(st.integers(0, 3)) == 0:
        gateway["timeout"] = draw(st.sampled_from(["900 ms", "3 s"]))
    process = draw(
        st.sampled_from(
            [
                {"process": "gamma", "rate": "12 req/s", "burstiness": 0.3},
                {"process": "poisson", "rate": "4 req/s"},
                {"process": "closed-loop", "concurrency": 7, "think_time": "100 ms"},
            ]
        )
    )
    images = {
        "tokens": {
            "distribution": "lognormal",
            "mean": draw(st.sampled_from([80, 500])),
            "cv": 0.8,
            "min": 4,
            "max": 1500,
        },
        "per_request": {"distribution": "quantiles", "values": [1, draw(st.integers(1, 5))]},
        "share": draw(st.sampled_from([0.3, 1.0])),
    }
    return {
        "schema": 1,
        "name": "generated",
        "seed": draw(st.integers(0, 10_000)),
        "slo": {"ttft": "1 s", "tpot": "50 ms"},
        "workload": workload(arrivals=process, images=images),
        "gateway": gateway,
        "pools": pools,
    }


@settings(max_examples=30, deadline=None, suppress_health_check=QUIET)
@given(tree=scenarios())
def test_leaps_equal_step_by_step(tree: dict[str, Any], tmp_path: Path) -> None:
    compare(tree, tmp_path)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=QUIET)
@given(tree=scenarios())
def test_leaps_equal_step_by_step_at_length(tree: dict[str, Any], tmp_path: Path) -> None:
    compare(tree, tmp_path)


def compare(tree: dict[str, Any], tmp_path: Path) -> None:
    fast, slow = run_both(tree, tmp_path)
    assert_same(fast, slow)
    a, b = (result.requests().sort_by("request_id") for result in (fast, slow))
    assert a["encode_replica"].to_pylist() == b["encode_replica"].to_pylist()
    for name in ("encode_start_s", "encode_end_s"):
        x, y = (np.array(table[name].to_pylist(), dtype=float) for table in (a, b))
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_comparison_is_not_vacuous(tmp_path: Path) -> None:
    fast, slow = run_both(scenario(SPLITS["E-PD"]), tmp_path)
    assert_same(fast, slow)
    assert fast.events < 0.7 * slow.events
    assert fast.requests()["encode_end_s"].null_count < 60


@pytest.mark.parametrize("at", ["prefill", "decode"])
def test_xllm_says_where_images_are_encoded(at: str, tmp_path: Path) -> None:
    """Four instances that can do everything, two of each role: encoded where the prompt, or the answer, is computed."""
    tree = scenario(
        [pool("all", encoder={**ENCODER, "order": "last"}, replicas=4)],
        gateway={"router": {"policy": "xllm", "encode_at": at, "flips": False}},
    )
    rows = run(tree, tmp_path / "out").requests().to_pylist()
    seen = [row for row in rows if row["images"] and row["output_tokens"] > 1]
    assert seen
    where = "prefill_replica" if at == "prefill" else "replica"
    assert all(row["encode_replica"] == row[where] for row in seen)
