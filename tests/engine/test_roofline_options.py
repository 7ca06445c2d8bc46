"""The roofline's options and the layers that are not plain attention: limits that can be told without measuring."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.engine import load_engine
from fleetsim.catalog.link import load_link
from fleetsim.catalog.llm import Llm, load_llm
from fleetsim.catalog.own import calibration_for
from fleetsim.engine.steptime.operators import Chip, Layers
from fleetsim.engine.steptime.roofline import Roofline, RooflineConfig
from fleetsim.scenario.schema import Engine, Parallelism
from fleetsim.testing import step_time_model as checker
from fleetsim.testing.report import Subject

POOLS: dict[str, tuple[str, str, dict[str, int]]] = {
    "plain": ("llama-3.1-8b", "h100-sxm", {}),
    "tp": ("llama-3.1-70b", "h100-sxm", {"tp": 4}),
    "pp": ("llama-3.1-70b", "h100-sxm", {"tp": 2, "pp": 4}),
    "windows": ("gemma-3-27b", "h100-sxm", {}),
    "windows and experts": ("gpt-oss-120b", "h100-sxm", {"tp": 2}),
    "windows and stages": ("gemma-3-12b", "l40s", {"pp": 2}),
    "recurrence": ("qwen3-next-80b-a3b", "h200-sxm", {"tp": 2}),
    "mamba": ("nemotron-h-8b", "h100-sxm", {}),
    "latent attention": ("deepseek-v3", "h200-sxm", {"tp": 8}),
    "sparse attention": ("deepseek-v3.2", "b200-sxm", {"tp": 8}),
    "experts over ranks": ("deepseek-v3", "b200-sxm", {"dp": 8, "ep": 8}),
    "sparse over ranks": ("deepseek-v3.2", "b200-sxm", {"dp": 4, "tp": 2, "ep": 8}),
}

configs = st.builds(
    lambda **options: RooflineConfig.model_validate(options),
    expert_spread=st.sampled_from([0.0, 0.5, 1.5]),
    fuse_all_reduce=st.booleans(),
    graph_padding=st.booleans(),
    async_scheduling=st.booleans(),
    host_per_sequence=st.sampled_from([None, "30 us"]),
    overlap=st.sampled_from([None, 0.3, 1.0]),
    nano_batches=st.sampled_from([None, 2, 4]),
    draft_tokens=st.sampled_from([0, 0, 1, 4]),
    acceptance=st.sampled_from([0.0, 0.7, 1.0]),
)
each_pool = st.sampled_from(sorted(POOLS))
batches = st.integers(1, 300)


def roofline(
    name: str, config: RooflineConfig | None = None, llm: Llm | None = None, kind: str = "vllm", **degrees: int
) -> Roofline:
    """The model of a pool of `POOLS`, or of another LLM or other degrees of parallelism there."""
    named, accelerator, usual = POOLS[name]
    chip = load_accelerator(accelerator)
    parallelism = Parallelism.model_validate(degrees or usual)
    engine = Engine.model_validate({"kind": kind})
    link = load_link(chip.link)
    return Roofline(config or RooflineConfig(), llm or load_llm(named), chip, link, parallelism, engine)


def options(**values: Any) -> RooflineConfig:
    return RooflineConfig.model_validate(values)


def decode_s(m: Roofline, batch: int, ctx: int, group: int = 0) -> float:
    return m.mixed(batch, batch, 0, 0, 0, batch, ctx, group or batch)[0]


def prompt_step(m: Roofline, n: int, cached: int = 0, decodes: int = 0, ctx: int = 0) -> tuple[float, float]:
    tokens = n + decodes
    return m.mixed(tokens, decodes + 1, n * cached + n * (n + 1) // 2, cached + n, 1, decodes, ctx, tokens)


# --- what holds for all of them ---------------------------------------------------------------------------------------


@given(each_pool, configs, batches, st.integers(1, 30_000), st.integers(0, 300))
@settings(deadline=None)
def test_decode_is_mixed_without_prompts(name: str, config: RooflineConfig, batch: int, mean: int, others: int) -> None:
    """Also next to where a line ends, and for several contexts in it."""
    m = roofline(name, config)
    ctx, group = batch * mean, batch + others
    line = m.decode(batch, ctx, group)
    assert ctx < line.ctx_end
    assert line.time_per_ctx_s >= 0
    last = int(min(line.ctx_end, 4.0 * ctx)) - 1
    for at in {ctx, (ctx + max(last, ctx)) // 2, max(last, ctx)}:
        time, energy = m.mixed(batch, batch, 0, 0, 0, batch, at, group)
        assert time == pytest.approx(line.time_s + line.time_per_ctx_s * at, rel=1e-9)
        assert energy == pytest.approx(line.energy_j + line.energy_per_ctx_j * at, rel=1e-9)


@given(each_pool, configs, batches, st.integers(1, 5000), st.integers(1, 3000), st.integers(1, 2000))
@settings(deadline=None)
def test_more_work_never_takes_less(
    name: str, config: RooflineConfig, batch: int, mean: int, n: int, more: int
) -> None:
    m = roofline(name, config)
    ctx = batch * mean
    assert decode_s(m, batch, ctx + more) >= decode_s(m, batch, ctx) * (1 - 1e-12)
    if m._stages == 1:
        assert decode_s(m, batch + more, ctx) >= decode_s(m, batch, ctx) * (1 - 1e-12)
    base = prompt_step(m, n, 0, batch, ctx)
    for other in (
        prompt_step(m, n + more, 0, batch, ctx),
        prompt_step(m, n, more, batch, ctx),
        prompt_step(m, n, 0, batch, ctx + more),
    ):
        assert other[0] >= base[0] * (1 - 1e-12)
        assert other[1] >= base[1] * (1 - 1e-12)


@pytest.mark.parametrize("name", sorted(POOLS))
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"expert_spread": 1.0, "graph_padding": True, "overlap": 0.5},
        {"draft_tokens": 3, "fuse_all_reduce": True, "async_scheduling": True},
        {"draft_tokens": 2, "overlap": 1.0, "host_per_sequence": "10 us"},
        {"overlap": 0.765, "nano_batches": 3, "graph_padding": True},
    ],
    ids=["default", "padded", "speculative", "overlapped", "cut"],
)
def test_the_public_checker(name: str, values: dict[str, Any]) -> None:
    """All of it, but for means over steps: a decode more lets a prompt's pipeline fill, or its verification hide."""
    m = roofline(name, options(**values))
    if m._stages > 1 or m._queries > 1:
        group = (1, 3) if m._coupled else (1,)
        checker._check_lines(Subject("roofline"), m, group)
    else:
        checker.check_step_time_model(m)


# --- windows, sparse attention, recurrence ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["windows", "windows and experts", "windows and stages"])
def test_a_window_beyond_all_contexts_is_full_attention(name: str) -> None:
    llm = load_llm(POOLS[name][0])
    layers = llm.full_layers + llm.window_layers
    full = roofline(name, llm=replace(llm, full_layers=layers, window_layers=0, sliding_window=0))
    wide = roofline(name, llm=replace(llm, sliding_window=10**6))
    narrow = roofline(name)
    for batch, mean in ((1, 100), (7, 5000), (64, 40_000)):
        assert decode_s(wide, batch, batch * mean) == pytest.approx(decode_s(full, batch, batch * mean), rel=1e-12)
        assert wide.decode(batch, batch * mean, batch).time_per_ctx_s == pytest.approx(
            full.decode(batch, batch * mean, batch).time_per_ctx_s
        )
        # both halves of the layers start their kernels once: the prompt's smooth maximum is taken per kind of layer
        assert prompt_step(wide, 500, mean, batch, batch * mean) == pytest.approx(
            prompt_step(full, 500, mean, batch, batch * mean), rel=1e-12
        )
    beyond = 8 * (llm.sliding_window + 1000)
    assert decode_s(narrow, 8, beyond) < decode_s(full, 8, beyond)
    assert prompt_step(narrow, 4000)[0] < prompt_step(full, 4000)[0]


def test_a_line_ends_where_the_mean_context_reaches_the_window() -> None:
    llm = load_llm("gemma-3-27b")
    m, window = roofline("windows"), llm.sliding_window
    inside, outside = m.decode(16, 16 * 10, 16), m.decode(16, 16 * window, 16)
    assert (inside.ctx_end, outside.ctx_end) == (16 * window, float("inf"))
    share = outside.time_per_ctx_s / inside.time_per_ctx_s
    assert share == pytest.approx(llm.full_layers / (llm.full_layers + llm.window_layers))


def test_sparse_attention_reads_top_k_and_scores_all() -> None:
    llm = load_llm("deepseek-v3.2")
    sparse = roofline("sparse attention")
    dense = roofline("sparse attention", llm=replace(llm, sparse_top_k=10**6))
    inside, outside = (sparse.decode(8, 8 * mean, 8) for mean in (100, 2 * llm.sparse_top_k))
    assert inside.ctx_end == 8 * llm.sparse_top_k
    assert 0 < outside.time_per_ctx_s < 0.5 * inside.time_per_ctx_s  # the indexer alone
    for mean, less in ((llm.sparse_top_k, False), (20 * llm.sparse_top_k, True)):
        times = decode_s(sparse, 8, 8 * mean), decode_s(dense, 8, 8 * mean)
        assert times[0] < times[1] if less else times[0] == pytest.approx(times[1])
    assert prompt_step(sparse, 2000, 100_000)[0] < prompt_step(dense, 2000, 100_000)[0]


@pytest.mark.parametrize("name", ["recurrence", "mamba"])
def test_recurrent_layers_cost_the_same_at_every_length(name: str) -> None:
    """A layer that remembers in a state adds time per token, none per token of context."""
    llm = load_llm(POOLS[name][0])
    m, fewer = roofline(name), roofline(name, llm=replace(llm, linear_layers=llm.linear_layers // 2))
    for batch in (1, 32, 256):
        one, half = m.decode(batch, batch, batch), fewer.decode(batch, batch, batch)
        assert one.time_s > half.time_s
        assert one.energy_j > half.energy_j
        assert one.time_per_ctx_s == pytest.approx(half.time_per_ctx_s)
    at_least = 64 * 2 * llm.linear_state_bytes / POOLS[name][2].get("tp", 1)
    seconds = at_least / load_accelerator(POOLS[name][1]).bandwidth_bytes_per_s
    stateless = roofline(name, llm=replace(llm, linear_layers=0))
    assert decode_s(m, 64, 64) - decode_s(stateless, 64, 64) > seconds


# --- experts ----------------------------------------------------------------------------------------------------------


def layers(name: str, spread: float = 0.0) -> Layers:
    llm_name, accelerator, degrees = POOLS[name]
    chip, engine = load_accelerator(accelerator), Engine()
    profile = load_engine("vllm")
    priced = Chip(chip, calibration_for(chip, engine), 1.0)
    parallelism = Parallelism.model_validate(degrees)
    config = options(expert_spread=spread)
    return Layers(load_llm(llm_name), priced, load_link(chip.link), parallelism, engine, profile, config)


@given(
    st.sampled_from(["windows and experts", "recurrence", "latent attention", "experts over ranks"]),
    st.floats(0, 3),
    st.integers(1, 20_000),
    st.sampled_from([1, 2, 4, 8, 16, 64, 128]),
)
@settings(deadline=None)
def test_experts_hit_and_the_busiest_rank(name: str, spread: float, tokens: int, ranks: int) -> None:
    its = layers(name, spread)
    llm = its.llm
    hit = its.hit(tokens)
    assert 0 < hit <= llm.experts * (1 + 1e-12)
    assert hit <= tokens * llm.experts_per_token * (1 + 1e-12)
    assert its.hit(tokens + 1) >= hit
    assert hit <= layers(name).hit(tokens) * (1 + 1e-12)  # uneven routing visits fewer
    busiest = its.busiest(tokens * llm.experts_per_token / ranks, ranks)
    assert 1 <= busiest <= ranks
    assert busiest >= layers(name).busiest(tokens * llm.experts_per_token / ranks, ranks)


def test_even_routing_is_the_formula_of_independent_draws() -> None:
    its = layers("latent attention")
    chosen, experts = its.llm.experts_per_token, its.llm.experts
    for tokens in (1, 30, 1000):
        assert its.hit(tokens) == pytest.approx(experts * (1 - (1 - chosen / experts) ** tokens))
    assert its.hit(1) == pytest.approx(chosen)
    assert its.busiest(1e12, 8) == pytest.approx(1, abs=1e-4)
    assert its.busiest(10, 1) == 1


def test_a_vanishing_spread_is_none() -> None:
    for name in ("latent attention", "experts over ranks"):
        even, nearly, uneven = (roofline(name, options(expert_spread=spread)) for spread in (0.0, 1e-6, 1.5))
        for batch in (1, 16, 200):
            assert decode_s(nearly, batch, batch) == pytest.approx(decode_s(even, batch, batch), rel=1e-6)
        assert decode_s(uneven, 16, 16) != pytest.approx(decode_s(even, 16, 16), rel=1e-3)


# --- pipelines --------------------------------------------------------------------------------------------------------


def test_a_pipeline_with_enough_sequences_is_full_and_one_sequence_walks_through_it() -> None:
    """Full: every stage works on its share of the batch, and kernels of all layers start once per micro-batch."""
    generic = {"kind": "generic", "tp": 1}
    whole = roofline("plain", **generic)
    chip = load_accelerator("h100-sxm")
    link = load_link(chip.link)
    started = 32 * calibration_for(chip, Engine(kind="generic")).efficiency("decode_attention", "bf16").overhead_s
    hidden_bytes = load_llm("llama-3.1-8b").hidden * 2
    for stages in (2, 4):
        cut = roofline("plain", **generic, pp=stages)
        batch = 16 * stages
        sends = stages * link.send_s(16 * hidden_bytes)
        products = decode_s(whole, 16, 0) - attention_s(whole, 16, 0) - head_s(whole, 16) + sends
        attention = attention_s(whole, batch, batch * 500)
        expected = products + head_s(whole, batch) + started + (attention - started) / stages
        assert decode_s(cut, batch, batch * 500) == pytest.approx(expected, rel=1e-9)
        alone = decode_s(whole, 1, 2000) + stages * link.send_s(hidden_bytes)
        assert decode_s(cut, 1, 2000) == pytest.approx(alone, rel=1e-9)
        few = [decode_s(cut, n, 2000 * n) for n in range(1, stages + 1)]
        assert few == sorted(few)
        assert few[-1] < 1.2 * few[0]  # a second sequence rides in another stage


def attention_s(m: Roofline, batch: int, ctx: int) -> float:
    """Time of attention in a step of one whole replica."""
    return m._attention(batch, 0, 0, 0, batch, ctx)[0]


def head_s(m: Roofline, sampled: int) -> float:
    return m._layers.head(sampled).compute_s


# --- options ----------------------------------------------------------------------------------------------------------


def test_graph_padding_computes_the_next_captured_batch() -> None:
    exact, padded = roofline("plain"), roofline("plain", options(graph_padding=True))
    for batch, captured in ((1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16), (100, 104), (256, 256)):
        more = exact._layers.work(captured, True).compute_s - exact._layers.work(batch, True).compute_s
        assert decode_s(padded, batch, 1000) - decode_s(exact, batch, 1000) == pytest.approx(more, abs=1e-15)
    assert prompt_step(padded, 100) == prompt_step(exact, 100)  # steps with prompts are not captured


def test_host_times() -> None:
    profile = load_engine("vllm")
    base, hidden = roofline("plain"), roofline("plain", options(async_scheduling=True))
    given_s = roofline("plain", options(host="3 ms", host_per_sequence="20 us", async_scheduling=True))
    for batch in (1, 64):
        time_s = decode_s(base, batch, 100) - profile.host_s - batch * profile.host_per_sequence_s
        assert decode_s(hidden, batch, 100) == pytest.approx(
            time_s + profile.host_async_s + batch * profile.host_per_sequence_s
        )
        assert decode_s(given_s, batch, 100) == pytest.approx(time_s + 3e-3 + batch * 20e-6)


def test_fused_norms_save_their_launches_where_ranks_reduce() -> None:
    for name, helps in (("tp", True), ("plain", False)):
        apart, fused = roofline(name), roofline(name, options(fuse_all_reduce=True))
        for batch in (1, 100):
            assert (decode_s(fused, batch, 100) < decode_s(apart, batch, 100)) is helps


@given(st.sampled_from(["tp", "windows", "latent attention", "experts over ranks"]), batches, st.integers(1, 20_000))
@settings(deadline=None)
def test_overlap_lies_between_one_by_one_and_the_longest(name: str, batch: int, mean: int) -> None:
    ctx = batch * mean
    none, half, full = (decode_s(roofline(name, options(overlap=share)), batch, ctx) for share in (0.0, 0.5, 1.0))
    assert half == pytest.approx((none + full) / 2)
    assert none / 3 < full <= none


def test_overlap_gains_nothing_where_everything_waits_for_memory() -> None:
    """One sequence reads weights and cache: side by side they share the bandwidth, so that only launches hide."""
    for batch, mean, least, most in ((1, 4000, 0.0, 0.1), (512, 300, 0.2, 0.5)):
        ctx = batch * mean
        m = roofline("plain", options(overlap=1.0), kind="generic")
        gain = 1 - decode_s(m, batch, ctx) / decode_s(roofline("plain", kind="generic"), batch, ctx)
        assert least <= gain < most
        arithmetic_s, bytes_s = m._roofs(batch, batch, 0, 0, 0, batch, ctx, batch)
        assert decode_s(m, batch, ctx) >= max(arithmetic_s, bytes_s)


@given(
    st.sampled_from(sorted(POOLS)),
    st.sampled_from([2, 4]),
    batches,
    st.integers(1, 8000),
    st.integers(0, 3000),
    st.booleans(),
)
@settings(deadline=None)
def test_cutting_a_step_costs_and_its_overlap_is_bounded(
    name: str, parts: int, batch: int, mean: int, n: int, with_prompt: bool
) -> None:
    """Weights are read once per part, so that a cut step without overlap is never shorter."""
    whole, cut = roofline(name), roofline(name, options(nano_batches=parts))
    side = roofline(name, options(nano_batches=parts, overlap=1.0))
    ctx = batch * mean
    for m in (cut, side):
        assert m._parts == parts
    times = [
        prompt_step(m, n + 1, 0, batch, ctx)[0] if with_prompt else decode_s(m, batch, ctx) for m in (whole, cut, side)
    ]
    assert times[1] >= times[0] * (1 - 1e-9)
    assert times[2] <= times[1] * (1 + 1e-9)
    if batch == 1 and not with_prompt:
        assert times[1] == pytest.approx(times[0])  # one sequence cannot be cut


def test_the_nanoflow_engine_is_its_parts() -> None:
    """`engine: {kind: nanoflow}` is the options that its catalogue entry names, and they can be overruled."""
    profile = load_engine("nanoflow")
    named = roofline("tp", kind="nanoflow")
    assert (named._parts, named._overlap) == (profile.nano_batches, profile.overlap) == (2, 0.765)
    plain = roofline("tp", options(nano_batches=1, overlap=0.0), kind="nanoflow")
    host_s = load_engine("vllm").host_s - profile.host_s
    assert decode_s(plain, 64, 64_000) == pytest.approx(decode_s(roofline("tp"), 64, 64_000) - host_s)
    apart = roofline("tp", options(nano_batches=2, overlap=0.0, scale=profile.nano_scale))
    cut = roofline("tp", options(overlap=0.0), kind="nanoflow")
    assert decode_s(cut, 64, 64_000) == pytest.approx(decode_s(apart, 64, 64_000) - host_s)


# --- speculation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proposed", "acceptance", "expected"), [(0, 0.7, 1), (1, 0.5, 1.5), (3, 0.0, 1), (4, 1.0, 5), (2, 0.5, 1.75)]
)
def test_expected_tokens(proposed: int, acceptance: float, expected: float) -> None:
    """Leviathan et al., 2023: (1 - a^(k+1)) / (1 - a)."""
    m = roofline("plain", options(draft_tokens=proposed, acceptance=acceptance))
    assert m._yield == pytest.approx(expected)
    if acceptance < 1:
        assert m._yield == pytest.approx((1 - acceptance ** (proposed + 1)) / (1 - acceptance))


def test_speculation_pays_alone_and_not_in_large_batches() -> None:
    plain, sure, never = (
        roofline("tp", options(**values))
        for values in (
            {},
            {"draft_tokens": 4, "acceptance": 0.8, "draft_cost": 0.02},
            {"draft_tokens": 4, "acceptance": 0.0, "draft_cost": 0.02},
        )
    )
    assert decode_s(sure, 1, 1000) < 0.5 * decode_s(plain, 1, 1000)
    assert decode_s(never, 1, 1000) > decode_s(plain, 1, 1000)
    assert decode_s(never, 512, 512) > 2 * decode_s(plain, 512, 512)  # five times the arithmetic for one token
    verify = plain.mixed(5 * 8, 5 * 8, 0, 0, 0, 8, 8000, 5 * 8)[0]
    expected = (verify + 4 * 0.02 * decode_s(plain, 8, 8000)) / sum(0.8**k for k in range(5))
    assert decode_s(sure, 8, 8000) == pytest.approx(expected, rel=0.05)
    assert prompt_step(sure, 1000) == prompt_step(plain, 1000)
    assert prompt_step(sure, 1000, 0, 8, 8000)[0] > decode_s(sure, 8, 8000)


# --- remarks ----------------------------------------------------------------------------------------------------------


def test_remarks_on_a_measured_chip_and_model_are_few() -> None:
    """H100: only norms and the sampler were profiled elsewhere; more tokens than any fit saw are told once asked for."""
    m = roofline("plain")
    prompt_step(m, 2048, 0, 64, 64_000)
    (told,) = m.remarks()
    assert told == "constants of other chips: elementwise, sampler"
    prompt_step(m, 20_000)
    m.decode(1000, 1000, 1000)
    (_, longer) = m.remarks()
    assert longer.startswith("larger than any measured: ")
    assert "gemm to 20,000 tokens (fitted to 16,384)" in longer
    assert "decode_attention to 1,000 tokens (fitted to 512)" in longer
    assert "prefill" not in longer


def test_remarks_name_kinds_of_layers_that_nobody_measured_as_kernels() -> None:
    for name, what in (
        ("windows", "windows"),
        ("recurrence", "recurrence"),
        ("latent attention", "latent attention"),
        ("sparse attention", "latent attention, sparse attention"),
    ):
        assert f"priced as plain attention and bytes, no kernels measured: {what}" in roofline(name).remarks()


def test_remarks_on_a_chip_and_formats_that_nobody_measured() -> None:
    chip = load_accelerator("mi325x")
    link, eight = load_link(chip.link), Parallelism(tp=8)
    m = Roofline(RooflineConfig(), load_llm("deepseek-v3"), chip, link, eight, Engine())
    others, formats, kinds = m.remarks()
    assert others == (
        "constants of other chips: decode_attention, elementwise, gemm, gemm fp8_block, moe fp8_block, prefill_attention, sampler"
    )
    assert formats == "constants of another number format: gemm fp8_block (of bf16), moe fp8_block (of bf16)"
    assert kinds.endswith("latent attention")


# --- parallelism ------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(["tp", "latent attention", "sparse attention", "windows and experts"]),
    batches,
    st.integers(1, 8000),
    st.integers(1, 4000),
)
@settings(deadline=None)
def test_more_ranks_on_nvlink_are_never_slower_for_big_models(name: str, batch: int, mean: int, n: int) -> None:
    ranks = [roofline(name, tp=tp) for tp in (2, 4, 8)]
    decodes = [decode_s(m, batch, batch * mean) for m in ranks]
    assert decodes == sorted(decodes, reverse=True)
    prompts = [prompt_step(m, n)[0] for m in ranks]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(prompts))
