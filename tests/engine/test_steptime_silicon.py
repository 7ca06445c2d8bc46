"""Measured kernels from the package aiconfigurator-core: read where it is installed, and close to what they were read from."""

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fleetsim
from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.link import load_link
from fleetsim.catalog.llm import Llm, load_llm
from fleetsim.engine.steptime import kernel_tables
from fleetsim.engine.steptime.kernel_tables import PACKAGE, Library, library, versions
from fleetsim.engine.steptime.silicon import Silicon
from fleetsim.errors import DataError, InputError
from fleetsim.scenario.schema import Engine, Parallelism
from fleetsim.testing import check_step_time_model
from tests.engine.test_steptime_affine import scenario

installed = pytest.mark.skipif(
    find_spec(PACKAGE) is None, reason="aiconfigurator-core is not installed: fleetsim[silicon]"
)


def model(
    llm: str | Llm = "llama-3.1-8b",
    accelerator: str = "h100-sxm",
    engine: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **degrees: int,
) -> Silicon:
    chip, settings = load_accelerator(accelerator), Silicon.Config.model_validate(config or {})
    parallelism, described = Parallelism(**degrees), Engine.model_validate(engine or {})
    return Silicon(
        settings, load_llm(llm) if isinstance(llm, str) else llm, chip, load_link(chip.link), parallelism, described
    )


def decode_s(m: Silicon, batch: int, context: int) -> float:
    line = m.decode(batch, batch * context, batch)
    return line.time_s + line.time_per_ctx_s * batch * context


@installed
@pytest.mark.parametrize("framework", ["vllm", "sglang", "trtllm"])
def test_it_passes_the_checker(framework: str) -> None:
    check_step_time_model(Silicon, {"framework": framework})


@installed
def test_an_8b_model_takes_usual_times() -> None:
    """16 GB of weights in 5 to 8 ms alone on an H100; a prompt of 2,048 tokens in 30 to 70 ms; half the weights in fp8."""
    assert 0.005 < decode_s(model(), 1, 1000) < 0.009
    m = model()
    assert 0.03 < m.mixed(2048, 1, 2048 * 2049 // 2, 2048, 1, 0, 0, 2048)[0] < 0.07
    assert 0.5 < decode_s(model(engine={"weights": "fp8"}), 1, 1000) / decode_s(m, 1, 1000) < 0.8
    assert decode_s(model(tp=4), 32, 1000) < 0.6 * decode_s(m, 32, 1000)


@installed
def test_kernels_are_those_of_the_files() -> None:
    """At measured points the functions give the smallest measured time, but for the smoothing that makes them rise."""
    import pyarrow.parquet as pq

    tables = library(load_accelerator("h100-sxm"), "vllm", "")
    newest = versions(tables.folder / "gemm" / "vllm", "gemm_perf")[-1]
    file = tables.folder / "gemm" / "vllm" / newest / "gemm_perf.parquet"
    found = pq.read_table(file, filters=[("gemm_dtype", "=", "bfloat16"), ("n", "=", 4096), ("k", "=", 4096)])
    m, measured = found["m"].to_numpy().astype(float), found["latency"].to_numpy() * 1e-3
    products = tables.product("bf16")
    assert products is not None
    curve = products.curve(4096, 4096)
    off = np.array([curve.at(x) for x in m]) / measured - 1
    assert len(m) > 50
    assert np.median(np.abs(off)) < 0.02
    assert abs(off.mean()) < 0.01


@installed
def test_products_in_fp8_leave_out_the_quantising_that_was_timed_with_them() -> None:
    """64 x 8192 x 8192 on H100 under TensorRT-LLM: 39 µs together, 10 µs of them for two kernels that engines fuse away."""
    import pyarrow.parquet as pq

    tables = library(load_accelerator("h100-sxm"), "trtllm", "1.3.0rc20")
    together = 0.0
    for sign, family, file, shape in (
        (1, "gemm", "gemm_perf", [("gemm_dtype", "=", "fp8"), ("n", "=", 8192)]),
        (-1, "quantize", "computescale_perf", []),
        (-1, "quantize", "scale_matrix_perf", []),
    ):
        path = tables.folder / family / "trtllm" / "1.3.0rc20" / f"{file}.parquet"
        found = pq.read_table(path, filters=[("m", "=", 64), ("k", "=", 8192), *shape])
        together += sign * found["latency"][0].as_py() * 1e-3
    products = tables.product("fp8")
    assert products is not None
    assert products.curve(8192, 8192).at(64) == pytest.approx(together, rel=0.1)
    assert 20e-6 < together < 35e-6


@installed
def test_products_between_the_measured_shapes_scale_with_their_size() -> None:
    products = library(load_accelerator("h100-sxm"), "vllm", "").product("bf16")
    assert products is not None
    at = products.curve(14336, 4096).at(4)
    assert products.curve(12288, 4096).at(4) < at < products.curve(16384, 4096).at(4)
    assert products.curve(2 * 65536, 4096).at(4) == pytest.approx(2 * products.curve(65536, 4096).at(4))


@installed
def test_a_large_batch_reads_the_cache_at_most_at_the_memory_bandwidth() -> None:
    """64 sequences: 131,072 bytes of cache per token of context at 60 to 100 % of the bandwidth."""
    m, chip = model(), load_accelerator("h100-sxm")
    rate = (decode_s(m, 64, 4000) - decode_s(m, 64, 2000)) / (64 * 2000)
    assert 0.6 < 131_072 / chip.bandwidth_bytes_per_s / rate < 1.0


@installed
def test_the_context_bends_lines_where_it_was_measured() -> None:
    m = model()
    ends = [m.decode(8, ctx, 8).ctx_end for ctx in (8, 700, 9000)]
    assert ends[0] < ends[1] < ends[2] < float("inf")
    assert all(end % 8 == 0 for end in ends)


@installed
def test_uneven_prompts_and_cached_tokens_take_more() -> None:
    m, pairs = model(), 2 * (1024 * 1025 // 2)
    even = m.mixed(2048, 2, pairs, 2048, 2, 0, 0, 2048)[0]
    uneven = m.mixed(2048, 2, 2000 * 2001 // 2 + 48 * 49 // 2, 2048, 2, 0, 0, 2048)[0]
    cached = m.mixed(2048, 2, pairs + 2 * 1024 * 8000, 2048 + 16_000, 2, 0, 0, 2048)[0]
    whole = m.mixed(2048, 1, 2048 * 2049 // 2, 2048, 1, 0, 0, 2048)[0]
    assert even < uneven < whole * 1.05
    assert cached > even + 32 * 2 * 1024 * 8000 * 4 * 4096 / 989e12
    few = m.mixed(16, 1, 16 * 17 // 2 + 16 * 30_000, 30_016, 1, 0, 0, 16)[0] - m.mixed(16, 1, 136, 16, 1, 0, 0, 16)[0]
    assert few >= 131_072 * 30_000 / 3.35e12


@installed
def test_windowed_layers_stop_growing() -> None:
    """With all layers windowed, a context of four windows takes as long as one; with half of them, half the growth."""
    whole, window = model(), 2048
    growth = decode_s(whole, 4, 4 * window) - decode_s(whole, 4, window)
    for windowed in (16, 32):
        llm = replace(
            load_llm("llama-3.1-8b"), full_layers=32 - windowed, window_layers=windowed, sliding_window=window
        )
        some = model(llm)
        grown = decode_s(some, 4, 4 * window) - decode_s(some, 4, window)
        assert grown == pytest.approx(growth * (32 - windowed) / 32, rel=1e-9, abs=1e-12)
        assert decode_s(some, 4, window) == pytest.approx(decode_s(whole, 4, window), rel=1e-9)
        check_step_time_model(some)


@installed
def test_what_was_not_measured_is_said() -> None:
    int8 = model(engine={"weights": "int8"})
    assert any("matrix products in int8 are not measured" in text for text in int8.remarks())
    (kernels,) = model().remarks()
    assert kernels.startswith("step times: kernels measured under vllm 0.")
    far = model()
    far.decode(4, 4 * 10_000_000, 4)
    assert any("extrapolated" in text for text in far.remarks())
    assert model(config={"dynamic_power": "100 W"}).decode(4, 400, 4).energy_j > 0


@installed
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: model(accelerator="rtx-4090"), r"no measurements of rtx-4090 under vllm\n.*h100-sxm"),
        (lambda: model(config={"version": "0.1.0"}), r"of vllm 0\.1\.0 or older on h100-sxm\n.*Known versions: 0\.\d+"),
        (lambda: model("deepseek-v3", tp=8), "does not know the attention of deepseek-v3"),
        (lambda: model(engine={"kv": {"dtype": "int8"}}), "no measurements of .* int8"),
    ],
)
def test_what_it_lacks_is_told_with_what_there_is(call: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finder of an environment without the package finds nothing."""
    monkeypatch.setattr(kernel_tables, "PACKAGE", "aiconfigurator_core_that_is_not_there")
    content = scenario()
    content["pools"][0]["engine"]["step_time"] = "silicon"
    with pytest.raises(
        InputError, match=r"needs the package aiconfigurator-core\n    pip install 'fleetsim\[silicon\]'"
    ):
        fleetsim.run(content, out=tmp_path / "out")


def test_newer_files_come_first_and_older_ones_fill_their_gaps(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for version, tokens in (("1.3.0", [1.0]), ("1.3.0rc20", [2.0]), ("1.3.0rc3", [3.0]), ("1.3.0.post1", [4.0])):
        folder = tmp_path / "moe" / "vllm" / version
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"num_tokens": tokens}), folder / "moe_perf.parquet")
    assert versions(tmp_path / "moe" / "vllm", "moe_perf") == ["1.3.0rc3", "1.3.0rc20", "1.3.0", "1.3.0.post1"]
    newest = [float(c["num_tokens"][0]) for c in Library(tmp_path, "vllm", "").read("moe", "moe_perf", ("num_tokens",))]
    assert newest == [4, 1, 2, 3]
    older = Library(tmp_path, "vllm", "1.3.0rc20").read("moe", "moe_perf", ("num_tokens",))
    assert [float(columns["num_tokens"][0]) for columns in older] == [2, 3]


# --- against what others measured -------------------------------------------------------------------------------------

DATA = Path(os.environ.get("FLEETSIM_DATA", Path(__file__).parents[3] / "shared" / "data")) / "reference" / "open"
measured = pytest.mark.skipif(not DATA.is_dir(), reason="measurements are missing: set FLEETSIM_DATA")


def tpot_s(m: Silicon, prompt: int, output: int, batch: int) -> float:
    """Mean time per output token at fixed concurrency: each prompt stalls the batch once per answer."""
    ctx = int(batch * (prompt + output / 2))
    decode, _ = m.mixed(batch, batch, 0, 0, 0, batch, ctx, batch)
    tokens, pairs = prompt + batch - 1, prompt * (prompt + 1) // 2
    others = int(ctx * (batch - 1) / batch)
    stalled, _ = m.mixed(tokens, batch, pairs, prompt, 1, batch - 1, others, tokens)
    return decode + (batch - 1) * max(stalled - decode, 0.0) / output


@installed
@measured
@pytest.mark.parametrize(
    ("llm", "accelerator", "backend", "precision", "bound"),
    [
        ("llama-3.1-70b", "h100-sxm", "vllm", "fp8", 0.09),
        ("llama-3.1-70b", "b200-sxm", "vllm", "fp4", 0.12),
        ("llama-3.1-70b", "b200-sxm", "vllm", "fp8", 0.15),
        ("llama-3.1-70b", "b200-sxm", "trtllm", "fp4", 0.36),
        ("llama-3.1-70b", "b200-sxm", "trtllm", "fp8", 0.11),
        ("qwen3-32b", "h100-sxm", "trtllm", "fp8", 0.10),
        ("qwen3-235b-a22b", "h100-sxm", "trtllm", "fp8", 0.09),
    ],
)
def test_served_points(llm: str, accelerator: str, backend: str, precision: str, bound: float) -> None:
    """Mean TPOT at fixed concurrency, nothing fitted to it: medAPE 5 to 11 %, and 31 % in fp4 under TensorRT-LLM.

    There the measured products include quantising their input, which the package has no times of in fp4: always too
    slow. In fp8 it has, and they are taken off; without that the medians were 9 to 40 % under TensorRT-LLM.
    """
    name = {"llama-3.1-70b": "Llama-3.1-70B", "qwen3-32b": "Qwen3-32B", "qwen3-235b-a22b": "Qwen3-235B"}[llm]
    rows = pd.read_parquet(DATA / "e2e_silicon.parquet")
    rows = rows[(rows.quality_flag == "ok") & (rows["mode"] == "agg") & rows.model.str.contains(name)]
    rows = rows[(rows.system == kernel_tables.SYSTEMS[accelerator]) & (rows.backend == backend)]
    rows = rows[(rows.precision == precision) & rows.concurrency.notna() & (rows.attn_dp.fillna(1) <= 1)]
    off = []
    for degrees, alike in rows.fillna({"moe_ep": 1}).groupby(["tp", "pp", "moe_ep"]):
        tp, pp, ep = (max(int(degree), 1) for degree in degrees)
        m = model(llm, accelerator, {"kind": backend, "weights": precision}, tp=tp, pp=pp, ep=ep)
        for row in alike.itertuples():
            share = 0.9 if row.source == "inferencemax" else 1.0  # lengths are uniform in [0.8, 1] x nominal
            lengths = int(row.isl_tokens * share), int(row.osl_tokens * share)
            off.append(tpot_s(m, *lengths, int(row.concurrency)) * 1e3 / row.tpot_ms - 1)
    assert len(off) > 20
    assert np.median(np.abs(off)) < bound
