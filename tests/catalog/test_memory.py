"""Memory plans against what engines print at start, and laws of spreading."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.floors import floors
from fleetsim.catalog.llm import load_llm
from fleetsim.catalog.memory import (
    MemoryPlan,
    StageCache,
    cached_tokens,
    fullest_stage,
    kv_bytes_per_token,
    memory_plan,
    parallelisms_that_fit,
    stage_cache,
)
from fleetsim.scenario.schema import Engine, Parallelism


def plan(llm: str, accelerator: str, engine: dict[str, Any] | None = None, **degrees: int) -> MemoryPlan:
    settings = Engine.model_validate(engine or {})
    return memory_plan(load_llm(llm), load_accelerator(accelerator), Parallelism(**degrees), settings)


def test_capacity_that_vllm_prints() -> None:
    """vLLM 0.19, Llama 3.1 8B, RTX 4090, ratio 0.9, 256 sequences: 41,408 tokens [llmservingsim]."""
    engine = {"scheduler": {"policy": "vllm-v1", "max_batched_tokens": 2048, "max_seqs": 256}}
    assert plan("llama-3.1-8b", "rtx-4090", engine).capacity_tokens == pytest.approx(41_408, rel=0.05)


def test_capacity_that_vllm_printed_on_an_80_gb_card() -> None:
    """vLLM pull request 10511, Llama 3 8B, 79.22 GiB x 0.9: 53.29 GiB for the cache [vllm-memory-log]."""
    assert plan("llama-3.1-8b", "h100-sxm").kv_bytes / 2**30 == pytest.approx(53.29, rel=0.05)


def test_parts_add_up() -> None:
    p = plan("llama-3.1-8b", "h100-sxm")
    assert p.usable_bytes == pytest.approx(0.9 * p.total_bytes)
    assert p.weights_bytes + p.activations_bytes + p.runtime_bytes + p.kv_bytes == pytest.approx(p.usable_bytes)
    assert p.capacity_tokens % p.block_tokens == 0
    assert 0 <= p.kv_bytes - p.capacity_tokens * p.kv_bytes_per_token < p.block_tokens * p.kv_bytes_per_token


def test_stated_capacity_wins() -> None:
    assert plan("llama-3.1-8b", "rtx-4090", {"kv": {"capacity_tokens": 41_400}}).capacity_tokens == 41_392


def test_weights_that_do_not_fit() -> None:
    p = plan("llama-3.1-70b", "a10g")
    assert not p.fits
    assert p.capacity_tokens == 0
    assert not plan("llama-3.1-70b", "a10g", {"kv": {"capacity_tokens": 1000}}).fits
    found = parallelisms_that_fit(load_llm("llama-3.1-70b"), load_accelerator("a10g"), Engine())
    assert found
    for parallelism in found:
        assert memory_plan(load_llm("llama-3.1-70b"), load_accelerator("a10g"), parallelism, Engine()).fits
    assert found[0].accelerators == min(p.accelerators for p in found)


def test_key_value_heads_are_divided_then_copied() -> None:
    llm = load_llm("qwen2.5-7b")  # 4 key-value heads
    per_token = [kv_bytes_per_token(llm, Parallelism(tp=tp)) for tp in (1, 2, 4)]
    assert per_token[0] == 2 * per_token[1] == 4 * per_token[2]
    llm = load_llm("llama-3.1-8b")
    assert kv_bytes_per_token(llm, Parallelism(tp=16)) == kv_bytes_per_token(llm, Parallelism(tp=8))


def test_latent_cache_is_copied() -> None:
    llm = load_llm("deepseek-v3")
    assert kv_bytes_per_token(llm, Parallelism(tp=8)) == kv_bytes_per_token(llm, Parallelism())


def test_experts_are_spread_and_attention_is_copied_by_data_parallelism() -> None:
    one = plan("qwen3-30b-a3b", "h100-sxm").weights_bytes
    two = plan("qwen3-30b-a3b", "h100-sxm", dp=2, ep=2).weights_bytes
    llm = load_llm("qwen3-30b-a3b")
    experts = 2 * llm.moe_layers * llm.experts * llm.expert_parameters
    assert one - two == pytest.approx(experts / 2)
    dense = plan("llama-3.1-8b", "h100-sxm").weights_bytes
    assert plan("llama-3.1-8b", "h100-sxm", dp=2).weights_bytes == dense


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]))
def test_more_accelerators_never_hold_more_each(tp: int, pp: int) -> None:
    small = plan("llama-3.1-70b", "h100-sxm", tp=tp, pp=pp)
    assert plan("llama-3.1-70b", "h100-sxm", tp=2 * tp, pp=pp).weights_bytes < small.weights_bytes
    assert plan("llama-3.1-70b", "h100-sxm", tp=tp, pp=2 * pp).weights_bytes < small.weights_bytes


def test_quantisation_makes_room() -> None:
    capacities = [plan("llama-3.1-8b", "rtx-4090", {"weights": w}).capacity_tokens for w in ("bf16", "fp8", "int4")]
    assert capacities == sorted(capacities)
    cache = [plan("llama-3.1-8b", "rtx-4090", {"kv": {"dtype": d}}).capacity_tokens for d in ("bf16", "fp8")]
    assert cache[1] == pytest.approx(2 * cache[0], rel=1e-3)


def test_floors_by_hand() -> None:
    llm, chip = load_llm("llama-3.1-8b"), load_accelerator("h100-sxm")
    found = floors(llm, chip, Parallelism(), Engine())
    assert found.decode_s == pytest.approx(2 * (8.03e9 - 0.525e9) / 3.35e12, rel=0.01)
    assert found.ttft_s(1000) == pytest.approx(1000 * 2 * 6.98e9 / 989.4e12, rel=0.01)
    assert found.ttft_s(1) == found.decode_s == found.tpot_s
    assert floors(llm, chip, Parallelism(tp=4), Engine()).decode_s == pytest.approx(found.decode_s / 4)


def test_cached_tokens_by_hand() -> None:
    full = StageCache(full=10.0, window=0.0, window_tokens=0, state=0.0)
    assert cached_tokens(1000.0, full, 4, 100) == 100
    mixed = StageCache(full=10.0, window=30.0, window_tokens=5, state=0.0)
    assert cached_tokens(400.0, mixed, 4, 100) == 10  # 100 B each: 2.5 tokens within the window
    assert cached_tokens(1000.0, mixed, 4, 100) == 4 * (250 - 150) / 10
    windowed = StageCache(full=0.0, window=10.0, window_tokens=5, state=0.0)
    assert cached_tokens(80.0, windowed, 4, 100) == 8
    assert cached_tokens(200.0, windowed, 4, 100) == 20
    assert cached_tokens(201.0, windowed, 4, 100) == 400  # beyond the window a token costs nothing
    recurrent = StageCache(full=10.0, window=0.0, window_tokens=0, state=50.0)
    assert cached_tokens(1000.0, recurrent, 4, 100) == 80
    assert cached_tokens(200.0, recurrent, 4, 100) == 0


@given(
    st.floats(1.0, 1e3),
    st.floats(0.0, 1e3),
    st.integers(1, 4096),
    st.floats(0.0, 1e5),
    st.integers(1, 64),
    st.floats(1e6, 1e9),
)
def test_cached_tokens_fill_the_room(
    full: float, window: float, window_tokens: int, state: float, sequences: int, room: float
) -> None:
    cache = StageCache(full, window, window_tokens, state)
    context = cached_tokens(room, cache, sequences, 1_000_000) / sequences
    taken = sequences * (full * context + window * min(context, window_tokens) + state)
    assert taken == pytest.approx(room) or (context == 0 and sequences * state >= room)
    assert cached_tokens(room, cache, sequences + 1, 1_000_000) <= sequences * context * (1 + 1e-9)


def test_windows_and_states_in_a_plan() -> None:
    few = {"scheduler": {"policy": "vllm-v1", "max_seqs": 8}}
    many = {"scheduler": {"policy": "vllm-v1", "max_seqs": 256}}
    oss = load_llm("gpt-oss-20b")
    p = plan("gpt-oss-20b", "h100-sxm", few)
    assert p.capacity_tokens == pytest.approx(
        2 * p.kv_bytes / p.kv_bytes_per_token, rel=0.001
    )  # half the layers keep all
    assert p.kv_bytes_per_token == oss.kv_bytes_per_token()
    next_few, next_many = (plan("qwen3-next-80b-a3b", "h200-sxm", e, tp=2) for e in (few, many))
    state = load_llm("qwen3-next-80b-a3b").linear_state_bytes / 2
    assert next_few.state_bytes_per_sequence == pytest.approx(state)
    for p, sequences in ((next_few, 8), (next_many, 256)):
        expected = (p.kv_bytes - sequences * state) / p.kv_bytes_per_token
        assert p.capacity_tokens == pytest.approx(expected, abs=p.block_tokens)


def test_states_are_cut_by_tensor_parallelism() -> None:
    llm = load_llm("nemotron-nano-9b-v2")
    one, four = (stage_cache(llm, Parallelism(tp=tp)) for tp in (1, 4))
    assert one.state == 4 * four.state == llm.linear_state_bytes
    assert one.full == 4 * four.full


@pytest.mark.parametrize(
    ("name", "pp", "moe", "mlp"),
    [("deepseek-v3", 2, 31, 0), ("llama-4-maverick", 2, 12, 12), ("llama-3.1-8b", 4, 0, 8), ("deepseek-v3", 1, 58, 3)],
)
def test_fullest_stage(name: str, pp: int, moe: int, mlp: int) -> None:
    stage = fullest_stage(load_llm(name), pp)
    assert (stage.moe, stage.mlp) == (moe, mlp)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("gpt-oss-20b", 13.76),
        ("gpt-oss-120b", 65.25),
        ("kimi-k2.5", 595),
        ("deepseek-v3", 675),
        ("qwen3-next-80b-a3b", 159),
    ],
)
def test_size_of_a_checkpoint(name: str, gigabytes: float) -> None:
    """Bytes of the published files, scales included, multi-token prediction left out."""
    assert load_llm(name).weight_bytes() / 1e9 == pytest.approx(gigabytes, rel=0.01)
