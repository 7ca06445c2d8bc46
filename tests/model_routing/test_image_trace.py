"""Adaptive VLM routing of requests with images as a public service had them: ServeGen's multimodal clients.

The collection has no single requests with images: of each client and six hours it has the measured quantiles of text, image and
answer tokens and of images, and the rate by ten minutes. Requests are drawn from these.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fleet.test_moves import column, run, same_in_single_steps

LARGE, SMALL = "qwen2.5-7b", "llama-3.2-3b"
FIELDS = ("text_tokens", "image_tokens", "image_count", "output_tokens")
LEVELS = {
    "q01": 0.01,
    "q05": 0.05,
    "q10": 0.1,
    "q25": 0.25,
    "q50": 0.5,
    "q75": 0.75,
    "q90": 0.9,
    "q95": 0.95,
    "q99": 0.99,
}
REQUESTS = 150


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of the first six hours' clients, at the mean rate of all of them."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    chat = Path(os.environ.get("FLEETSIM_DATA", beside)) / "traces" / "open" / "chat"
    lengths, rates = chat / "servegen_length_quantiles.parquet", chat / "servegen_client_rates.parquet"
    if not (lengths.exists() and rates.exists()):
        pytest.skip("the evaluation data has no lengths and rates of ServeGen's multimodal clients")
    only = [("model", "=", "mm-image"), ("window_s", "=", 0)]
    rows = pq.read_table(lengths, filters=only).to_pylist()
    quantiles = {(row["client"], row["field"]): [row[name] for name in LEVELS] for row in rows}
    shares = {row["client"]: row["client_share"] for row in rows}
    windows = pq.read_table(rates, filters=[("model", "=", "mm-image")]).to_pylist()
    rate = sum(row["rate_rps"] for row in windows) / len({row["window_s"] for row in windows})
    rng = np.random.default_rng(7)
    clients = rng.choice(list(shares), REQUESTS, p=np.array(list(shares.values())) / sum(shares.values())).tolist()
    columns: dict[str, Any] = {field: [] for field in FIELDS}
    for client in clients:
        for field in FIELDS:
            drawn = np.interp(rng.random(), list(LEVELS.values()), quantiles[client, field])
            columns[field].append(max(round(float(drawn)), 0))
    text, pixels, count, answer = (np.array(columns[field]) for field in FIELDS)
    count = np.where(pixels > 0, np.maximum(count, 1), 0)
    pixels = np.maximum(pixels, count)  # a token for each image at least
    table = {
        "arrival_s": np.cumsum(rng.exponential(1.0 / rate, REQUESTS)),
        "prompt_tokens": np.maximum(text, 1) + pixels,
        "output_tokens": np.maximum(answer, 1),
        "images": count,
        "image_tokens": pixels,
    }
    file = tmp_path_factory.mktemp("servegen") / "images.parquet"
    pq.write_table(pa.table(table), file)
    return file


def scenario(trace: Path, router: dict[str, Any]) -> dict[str, Any]:
    """A small and a large model, each with an encoder of its own."""
    pools = [
        {
            "name": name,
            "llm": llm,
            "accelerator": "a100-80",
            "replicas": 2,
            "engine": {"scheduler": {"policy": "vllm-v1"}, "prefix_cache": False},
            "encoder": {"model": "qwen2-vl-vit", "max_images": 4},
        }
        for name, llm in (("small", SMALL), ("large", LARGE))
    ]
    return {
        "schema": 1,
        "name": "screens",
        "seed": 3,
        "workload": {"kind": "trace", "format": "parquet", "path": str(trace)},
        "gateway": {"model_router": router},
        "quality": {
            "models": {
                LARGE: {"ability": 1.5, "price": {"input": 0.5, "output": 1.5}},
                SMALL: {"ability": 0.0, "price": {"input": 0.1, "output": 0.3}},
            },
            "domains": {"clicks": {"difficulty": -0.5, "share": 3.0}, "payments": {"difficulty": 0.5}},
            "judge": {"auc": 0.85, "time": "20 ms"},
        },
        "pools": pools,
    }


def test_adaptive_vlm_on_real_images(images: Path, tmp_path: Path) -> None:
    """In leaps as in single steps; a probe that is turned down computes and encodes the images twice; risky ones are not probed."""
    router = {"policy": "adaptive-vlm", "risky": ["payments"]}
    result = same_in_single_steps(scenario(images, router), tmp_path / "routed")
    table = pq.read_table(images)
    assert result.summary["finished"] == REQUESTS
    assert sum(column(result, "images")) == sum(table["images"].to_pylist()) > REQUESTS / 3
    assert sum(column(result, "image_tokens")) == sum(table["image_tokens"].to_pylist())
    calls, models, prompts = column(result, "calls"), column(result, "model"), column(result, "prompt_tokens")
    assert set(calls) == {1, 2}
    assert all(model == LARGE for count, model in zip(calls, models, strict=True) if count == 2)
    paid = column(result, "call_prompt_tokens")
    assert paid == [count * tokens for count, tokens in zip(calls, prompts, strict=True)]
    risky = [i for i, domain in enumerate(column(result, "domain")) if domain == "payments"]
    assert {(calls[i], models[i]) for i in risky} == {(1, LARGE)}


def test_adaptive_vlm_saves_and_loses_little(images: Path, tmp_path: Path) -> None:
    """Between both models alone: cheaper than the large one, better than the small one."""
    found = {
        name: run(scenario(images, router), tmp_path / name).summary
        for name, router in (
            ("routed", {"policy": "adaptive-vlm"}),
            ("large", {"policy": "single", "model": LARGE}),
            ("small", {"policy": "single", "model": SMALL}),
        )
    }
    assert found["small"]["list_usd"] < found["routed"]["list_usd"] < found["large"]["list_usd"]
    assert found["small"]["quality_mean"] < found["routed"]["quality_mean"]
    assert found["routed"]["quality_mean"] > found["large"]["quality_mean"] - 0.1
