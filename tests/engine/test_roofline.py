"""The roofline: linear in context, one truth for both calls, and the right size."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.catalog.accelerator import Accelerator, load_accelerator
from fleetsim.catalog.calibration import calibration_of
from fleetsim.catalog.engine import load_engine
from fleetsim.catalog.floors import floors
from fleetsim.catalog.link import load_link
from fleetsim.catalog.llm import load_llm
from fleetsim.engine.steptime.operators import smooth_max
from fleetsim.engine.steptime.roofline import Roofline
from fleetsim.scenario.schema import Engine, Parallelism

CASES: list[tuple[str, str, dict[str, int]]] = [
    ("llama-3.1-8b", "h100-sxm", {}),
    ("llama-3.1-8b", "rtx-4090", {}),
    ("llama-3.1-8b", "a10g", {}),
    ("llama-3.1-70b", "h100-sxm", {"tp": 4}),
    ("llama-3.1-70b", "h100-sxm", {"tp": 2, "pp": 2}),
    ("qwen3-32b", "rtx-pro-6000", {"tp": 2}),
    ("qwen3-30b-a3b", "rtx-pro-6000", {"dp": 2, "ep": 2}),
    ("qwen3-235b-a22b", "b200-sxm", {"tp": 4, "ep": 4}),
    ("deepseek-v3", "h200-sxm", {"tp": 8}),
    ("deepseek-v3", "b200-sxm", {"dp": 8, "ep": 8}),
    ("mixtral-8x7b", "mi300x", {}),
    ("qwen2.5-7b", "ascend-910b", {"tp": 8}),
]


def model(
    llm: str,
    accelerator: str | Accelerator,
    engine: dict[str, Any] | None = None,
    scale: float = 1.0,
    **degrees: int,
) -> Roofline:
    chip = load_accelerator(accelerator) if isinstance(accelerator, str) else accelerator
    parallelism = Parallelism(**degrees)
    settings_ = Engine.model_validate(engine or {})
    return Roofline(Roofline.Config(scale=scale), load_llm(llm), chip, load_link(chip.link), parallelism, settings_)


MODELS = {case[:2] + tuple(case[2].items()): model(case[0], case[1], **case[2]) for case in CASES}
each_model = st.sampled_from(sorted(MODELS, key=str)).map(MODELS.__getitem__)


def prompt(n: int, cached: int = 0) -> tuple[int, int]:
    """Pairs and keys of one chunk."""
    return n * cached + n * (n + 1) // 2, cached + n


@given(each_model, st.integers(1, 512), st.integers(1, 4000), st.integers(0, 300))
@settings(deadline=None)
def test_decode_is_mixed_without_prompts(m: Roofline, batch: int, mean: int, others: int) -> None:
    ctx, group = batch * mean, batch + others
    line = m.decode(batch, ctx, group)
    time, energy = m.mixed(batch, batch, 0, 0, 0, batch, ctx, group)
    assert time == pytest.approx(line.time_s + line.time_per_ctx_s * ctx, rel=1e-12)
    assert energy == pytest.approx(line.energy_j + line.energy_per_ctx_j * ctx, rel=1e-12)
    assert ctx < line.ctx_end


@given(each_model, st.integers(1, 300), st.integers(1, 100_000), st.integers(1, 100_000))
@settings(deadline=None)
def test_decode_is_linear_in_context(m: Roofline, batch: int, first: int, second: int) -> None:
    one, two = (m.mixed(batch, batch, 0, 0, 0, batch, ctx, batch) for ctx in (first, second))
    line = m.decode(batch, first, batch)
    assert two[0] - one[0] == pytest.approx(line.time_per_ctx_s * (second - first), rel=1e-6, abs=1e-12)
    assert two[1] - one[1] == pytest.approx(line.energy_per_ctx_j * (second - first), rel=1e-6, abs=1e-9)


@given(each_model, st.integers(1, 4096), st.integers(1, 512), st.integers(0, 20_000), st.integers(0, 256))
@settings(deadline=None)
def test_more_work_never_takes_less(m: Roofline, n: int, more: int, cached: int, decodes: int) -> None:
    def step(n: int, cached: int, ctx: int) -> tuple[float, float]:
        pairs, keys = prompt(n, cached)
        tokens = n + decodes
        return m.mixed(tokens, decodes + 1, pairs, keys, 1, decodes, ctx, tokens)

    base = step(n, cached, decodes * 500)
    for other in (step(n + more, cached, decodes * 500), step(n, cached + more, decodes * 500)):
        assert other[0] >= base[0] * (1 - 1e-12)
        assert other[1] >= base[1] * (1 - 1e-12)
    assert step(n, cached, decodes * 500 + more * min(decodes, 1))[0] >= base[0]


@given(each_model, st.integers(1, 256), st.integers(1, 256))
@settings(deadline=None)
def test_larger_batches_take_longer(m: Roofline, batch: int, more: int) -> None:
    small, large = m.decode(batch, batch, batch), m.decode(batch + more, batch, batch + more)
    assert large.time_s > small.time_s
    assert large.energy_j > small.energy_j
    assert large.time_s / (batch + more) < small.time_s / batch


@pytest.mark.parametrize(("llm", "accelerator", "degrees"), CASES, ids=str)
def test_never_below_the_physical_floor(llm: str, accelerator: str, degrees: dict[str, int]) -> None:
    m = model(llm, accelerator, **degrees)
    bound = floors(load_llm(llm), load_accelerator(accelerator), Parallelism(**degrees), Engine())
    assert m.decode(1, 100, 1).time_s >= bound.tpot_s
    for n in (128, 2048):
        pairs, keys = prompt(n)
        assert m.mixed(n, 1, pairs, keys, 1, 0, 0, n)[0] >= bound.ttft_s(n) / degrees.get("pp", 1)


def test_usual_sizes() -> None:
    """An 8B model in 16 bits: 6 to 9 ms per token alone on an H100, 17 to 22 ms on an RTX 4090, a third in 4 bits."""
    assert 0.006 < model("llama-3.1-8b", "h100-sxm").decode(1, 1000, 1).time_s < 0.009
    assert 0.017 < model("llama-3.1-8b", "rtx-4090").decode(1, 1000, 1).time_s < 0.022
    small = model("llama-3.1-8b", "h100-sxm", {"weights": "int4"}).decode(1, 1000, 1).time_s
    assert small < 0.6 * model("llama-3.1-8b", "h100-sxm").decode(1, 1000, 1).time_s
    pairs, keys = prompt(2048)
    time, _ = model("llama-3.1-8b", "h100-sxm").mixed(2048, 1, pairs, keys, 1, 0, 0, 2048)
    assert 0.03 < time < 0.06


def test_tensor_parallelism_helps_where_the_link_is_fast() -> None:
    times = [model("llama-3.1-70b", "h100-sxm", tp=tp).decode(32, 0, 32).time_s for tp in (2, 4, 8)]
    assert times[0] > 1.5 * times[1] > 1.5 * 1.3 * times[2]
    slow = model("llama-3.1-8b", "rtx-4090", tp=2).decode(128, 0, 128).time_s
    assert slow > model("llama-3.1-8b", "rtx-4090").decode(128, 0, 128).time_s / 2 * 1.3


def test_pipeline_stages_overlap_micro_batches() -> None:
    """Two stages: a step of twice the batch lasts about as long as a whole model's step of one micro-batch."""
    one = model("llama-3.1-8b", "h100-sxm", {"kind": "generic"})
    two = model("llama-3.1-8b", "h100-sxm", {"kind": "generic"}, pp=2)
    assert two.decode(64, 0, 64).time_s == pytest.approx(one.decode(32, 0, 32).time_s, rel=0.05)
    assert two.decode(64, 0, 64).time_per_ctx_s == pytest.approx(one.decode(64, 0, 64).time_per_ctx_s / 2)


def test_ranks_wait_for_the_tokens_of_all() -> None:
    m = MODELS["qwen3-30b-a3b", "rtx-pro-6000", ("dp", 2), ("ep", 2)]
    assert m.decode(8, 800, 500).time_s > m.decode(8, 800, 16).time_s
    assert m.mixed(0, 0, 0, 0, 0, 0, 0, 64)[0] > 0
    dense = model("llama-3.1-8b", "h100-sxm", dp=2)
    assert dense.decode(8, 800, 500) == dense.decode(8, 800, 8)


def test_replica_power_counts_all_accelerators() -> None:
    one, four = model("llama-3.1-70b", "h100-sxm", tp=4), model("llama-3.1-70b", "h100-sxm", tp=2, pp=2)
    power = load_accelerator("h100-sxm").power
    for m in (one, four):
        assert (m.idle_w, m.static_w, m.limit_w) == (4 * power.idle_w, 4 * power.static_w, 4 * power.limit_w)


def test_energy_is_that_of_the_work() -> None:
    """Decode of one sequence: every weight but the embedding is read once, at memory_w per full bandwidth."""
    chip = with_power(active_w=0.0, occupancy_w=0.0)
    per_byte = chip.power.memory_w / chip.bandwidth_bytes_per_s
    llm = load_llm("llama-3.1-8b")
    weights = (llm.weight_bytes() - 2 * llm.embedding_parameters) * per_byte
    for degrees in ({}, {"tp": 2}, {"tp": 8}):
        assert weights < model("llama-3.1-8b", chip, **degrees).decode(1, 1, 1).energy_j < 1.1 * weights
    cache = llm.kv_bytes_per_token() * per_byte
    assert model("llama-3.1-8b", chip).decode(1, 1, 1).energy_per_ctx_j == pytest.approx(cache, rel=0.2)


@pytest.mark.parametrize("degrees", [{}, {"tp": 4}, {"pp": 2}], ids=str)
def test_energy_of_running_and_of_occupied_cores(degrees: dict[str, int]) -> None:
    """active_w times the time of the kernels, the host's left out; occupancy_w times the step, by its tokens."""
    chips = degrees.get("tp", 1) * degrees.get("pp", 1)
    none, active, occupied = (
        model("llama-3.1-8b", with_power(active_w=watts, occupancy_w=more), **degrees)
        for watts, more in ((0.0, 0.0), (100.0, 0.0), (0.0, 100.0))
    )
    host_s = load_engine("vllm").host_s
    half = load_accelerator("h100-sxm").power.half_occupied_tokens
    for batch, ctx in ((1, 1000), (64, 64_000)):
        time_s, energy_j = none.mixed(batch, batch, 0, 0, 0, batch, ctx, batch)
        question = (batch, batch, 0, 0, 0, batch, ctx, batch)
        assert active.mixed(*question)[1] - energy_j == pytest.approx(100 * chips * (time_s - host_s))
        assert occupied.mixed(*question)[1] - energy_j == pytest.approx(100 * chips * time_s * batch / (batch + half))


def with_power(**watts: float) -> Accelerator:
    """An H100 with other powers."""
    chip = load_accelerator("h100-sxm")
    return replace(chip, power=replace(chip.power, **watts))


def test_options() -> None:
    chip = with_power(active_w=0.0, occupancy_w=0.0)
    base = model("llama-3.1-8b", chip, {"kind": "generic"}).decode(8, 0, 8)
    slow = model("llama-3.1-8b", chip, {"kind": "generic"}, scale=2.0).decode(8, 0, 8)
    assert slow.time_s == pytest.approx(2 * base.time_s)
    assert slow.time_per_ctx_s == pytest.approx(2 * base.time_per_ctx_s)
    assert slow.energy_j == base.energy_j
    half = model("llama-3.1-8b", "h100-sxm", {"kind": "generic", "kv": {"dtype": "fp8"}}).decode(8, 0, 8)
    measured = {dtype: calibration_of(chip).efficiency("decode_attention", dtype) for dtype in ("bf16", "fp8")}
    ratio = measured["bf16"].memory_ratio / measured["fp8"].memory_ratio
    assert half.time_per_ctx_s == pytest.approx(base.time_per_ctx_s / 2 * ratio)
    host = model("llama-3.1-8b", "h100-sxm", {"kind": "vllm"}).decode(8, 0, 8)
    assert host.time_s > base.time_s
    assert model("llama-3.1-8b", "h100-sxm").frontend_s > 0


def test_smooth_max() -> None:
    assert smooth_max(1, 2, 3) == pytest.approx(5)
    assert smooth_max(50, 2, 3) == pytest.approx(3, rel=1e-6)
    assert smooth_max(2, 0, 3) == 3
    assert smooth_max(2, 3, 4) == smooth_max(2, 4, 3) == pytest.approx(5)
    assert smooth_max(2, 2, 3, 6) == smooth_max(2, 6, 2, 3) == pytest.approx(7)
    assert smooth_max(3, 5) == 5
    assert smooth_max(2, 0, 0, 0) == 0
