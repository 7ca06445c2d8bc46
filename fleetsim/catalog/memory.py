"""What a replica's accelerators hold: weights, activations, runtime, and room for the KV cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.engine import EngineProfile, load_engine
from fleetsim.catalog.llm import ACTIVATIONS, BYTES_PER_VALUE, Llm
from fleetsim.scenario.schema import Engine, Parallelism

FP4_TILE = 256
"""What kernels for 4-bit experts pad the model's width to: 2,880 becomes 3,072 in gpt-oss (vLLM ``quantization/mxfp4.py``).

vLLM 0.10 and 0.11 also padded the experts' own width: 2 % more.
"""

DEGREES = (1, 2, 4, 8, 16, 32)
"""Tensor and pipeline degrees that `parallelisms_that_fit` tries."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on the fullest accelerator of a replica, and the tokens that one data-parallel rank can cache."""

    total_bytes: float
    """Memory that the driver reports."""
    usable_bytes: float
    """Share of it that the engine may use."""
    weights_bytes: float
    activations_bytes: float
    """Peak of a forward pass and of the sampler, as engines measure it at start."""
    runtime_bytes: float
    """Driver context, libraries, captured graphs, communication buffers."""
    kv_bytes: float
    """What remains for the cache; below zero if it does not fit."""
    kv_bytes_per_token: float
    """Of one accelerator, while the token is within the window of windowed layers."""
    state_bytes_per_sequence: float
    """Of one accelerator, for recurrent layers; 0 if there are none."""
    block_tokens: int
    capacity_tokens: int
    """Tokens that one data-parallel rank can cache, in whole blocks."""

    @property
    def fits(self) -> bool:
        """Whether the weights leave room for at least one cached block."""
        return self.weights_bytes < self.usable_bytes and self.capacity_tokens >= self.block_tokens


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers of each kind on the fullest pipeline stage."""

    full: int
    window: int
    linear: int
    mlp: int
    moe: int


def fullest_stage(llm: Llm, pp: int) -> Stage:
    """Layers of each kind on one of `pp` pipeline stages: kinds are spread evenly, dense first layers are on another.

    Each kind is rounded up by itself, as no engine says where it cuts a mixture of them.
    """
    layers = math.ceil(llm.layers / pp)

    def share(count: int, among: int) -> int:
        return min(count, math.ceil(count * layers / max(among, 1)))

    moe = share(llm.moe_layers, llm.layers - llm.dense_first_layers)
    feed_forwards = share(llm.mlp_layers + llm.moe_layers, llm.layers)
    return Stage(
        full=share(llm.full_layers, llm.layers),
        window=share(llm.window_layers, llm.layers),
        linear=share(llm.linear_layers, llm.layers),
        mlp=min(llm.mlp_layers, feed_forwards - moe),
        moe=moe,
    )


def layer_kv_bytes_per_token(llm: Llm, parallelism: Parallelism, dtype: str = "auto") -> float:
    """Cache of one token in one attention layer on one accelerator [B].

    Tensor parallelism divides the key-value heads until each rank has one, then copies them; a latent cache (MLA) has
    no heads to divide and is copied, and so are the keys of an indexer.
    """
    values = llm.kv_values_per_token
    if llm.attention != "mla":
        values = 2 * llm.head_dim * math.ceil(llm.kv_heads / parallelism.tp)
    return values * BYTES_PER_VALUE[llm.kv_dtype(dtype)] + llm.index_bytes_per_token


@dataclass(frozen=True, slots=True)
class StageCache:
    """Bytes that a sequence takes on one accelerator of the fullest pipeline stage."""

    full: float
    """Per token, in layers that keep every token."""
    window: float
    """Per token within the window, in windowed layers."""
    window_tokens: int
    state: float
    """Per sequence, in recurrent layers; their heads are cut by tensor parallelism."""


def stage_cache(llm: Llm, parallelism: Parallelism, dtype: str = "auto") -> StageCache:
    """What a sequence takes on one accelerator; pipeline stages hold their own layers."""
    stage = fullest_stage(llm, parallelism.pp)
    per_layer = layer_kv_bytes_per_token(llm, parallelism, dtype)
    state = llm.linear_state_bytes / max(llm.linear_layers, 1) * stage.linear / parallelism.tp
    return StageCache(stage.full * per_layer, stage.window * per_layer, llm.sliding_window, state)


def kv_bytes_per_token(llm: Llm, parallelism: Parallelism, dtype: str = "auto") -> float:
    """Cache of one token on one accelerator [B], while the token is within the window of windowed layers."""
    cache = stage_cache(llm, parallelism, dtype)
    return cache.full + cache.window


def _plain_parameters(llm: Llm, stage: Stage, tp: int) -> float:
    """Parameters beside routed experts, routers and norms on one accelerator of a stage."""
    replicated = 0.0
    attention = llm.attention_parameters / tp
    if llm.attention == "mla":
        cut = sum(rows * columns for rows, columns, divided in llm.mla_projections() if divided)
        replicated = llm.attention_parameters - cut
        attention = cut / tp
    elif tp > llm.kv_heads:
        attention += 2 * llm.hidden * llm.head_dim * (1 - llm.kv_heads / tp)
    parameters = (stage.full + stage.window) * (attention + replicated)
    parameters += stage.linear * llm.linear_layer_parameters / tp
    return parameters + (stage.mlp * llm.dense_mlp_parameters + stage.moe * llm.shared_expert_parameters) / tp


def weight_bytes_per_accelerator(llm: Llm, parallelism: Parallelism, dtype: str = "auto") -> float:
    """Weights on the fullest accelerator [B].

    Attention, recurrent and dense layers, embedding and LM head are cut by tensor parallelism and copied by data
    parallelism; experts are spread over all tp x dp accelerators of a stage, whole (ep) or cut.
    """
    tp, pp = parallelism.tp, parallelism.pp
    stage = fullest_stage(llm, pp)
    experts = stage.moe * llm.experts * llm.expert_parameters / (tp * parallelism.dp)
    if llm.is_moe and llm.weights_dtype(dtype) == "fp4":
        experts *= math.ceil(llm.hidden / FP4_TILE) * FP4_TILE / llm.hidden
    products = _plain_parameters(llm, stage, tp) * llm.plain_width(dtype) + experts * llm.expert_width(dtype)
    vocabulary = llm.embedding_parameters / tp
    ends = vocabulary if llm.tied_embeddings or pp > 1 else 2 * vocabulary
    kept = ends + llm.norm_parameters / pp + stage.moe * llm.router_parameters
    return products + kept * BYTES_PER_VALUE[ACTIVATIONS]


def activation_bytes(llm: Llm, parallelism: Parallelism, engine: Engine, profile: EngineProfile) -> float:
    """Peak of intermediate tensors on one accelerator [B].

    The larger of a full step through the widest layer (residual, input, its norm, and feed-forward tensors) and of the
    sampler working on a full batch of logits: the two are never alive together. vLLM's logs of Llama 3.1 8B with 20,000
    and 29,000 tokens per step give three tensors of the hidden width (issue 10517).
    """
    tokens = _reserved(engine, "max_batched_tokens", profile.max_batched_tokens)
    sequences = min(_reserved(engine, "max_seqs", profile.max_seqs), tokens)
    moe_tokens = tokens * parallelism.dp
    dense = tokens * llm.projections * max(llm.intermediate, llm.shared_intermediate) / parallelism.tp
    routed = moe_tokens * llm.experts_per_token * (llm.projections * llm.moe_intermediate / parallelism.tp + llm.hidden)
    layer = 3 * tokens * llm.hidden + (max(routed, dense) if llm.is_moe else dense)
    sampler = sequences * llm.vocab * profile.sampler_bytes_per_logit
    return max(layer * BYTES_PER_VALUE[ACTIVATIONS], sampler)


def suspended_bytes_per_token(llm: Llm, parallelism: Parallelism) -> float:
    """What one token of a step that was stopped between two operators keeps on each accelerator beside its cache [B].

    The residual, which tensor parallelism does not cut, and the widest output of an operator that the next one reads: queries, keys
    and values, or gate and up projections (of a token's experts). Steps stop anywhere, so the widest is kept free for each.
    """
    attention = llm.query_dim + llm.kv_values_per_token
    dense = (llm.projections - 1) * max(llm.intermediate, llm.shared_intermediate)
    routed = (llm.projections - 1) * llm.experts_per_token * llm.moe_intermediate
    return (llm.hidden + max(attention, dense, routed) / parallelism.tp) * BYTES_PER_VALUE[ACTIVATIONS]


def _reserved(engine: Engine, name: str, default: int) -> int:
    value = getattr(engine.scheduler.config, name, None)
    return value if isinstance(value, int) else default


def cached_tokens(room_bytes: float, stage_bytes: StageCache, sequences: int, longest_tokens: int) -> float:
    """Tokens of context that fit when `sequences` share the memory evenly.

    A sequence of `c` tokens takes ``full * c + window * min(c, W) + state`` bytes: layers with full attention keep every
    token, windowed layers the last `W`, recurrent layers one state. How many tokens fit thus depends on how many
    sequences they belong to; the most that may run at once is the cautious choice, since it has the most windows and
    states. Where no layer keeps every token, a sequence is at most `longest_tokens` long.
    """
    cache = stage_bytes
    share = room_bytes / sequences - cache.state
    if share <= 0:
        return 0.0
    inside = share / (cache.full + cache.window) if cache.full + cache.window else float("inf")
    if not cache.window or inside <= cache.window_tokens:
        context = inside
    else:
        context = (share - cache.window * cache.window_tokens) / cache.full if cache.full else float("inf")
    return sequences * (min(context, longest_tokens) if context == float("inf") else context)


def memory_plan(
    llm: Llm, accelerator: Accelerator, parallelism: Parallelism, engine: Engine, encoder_bytes: float = 0.0
) -> MemoryPlan:
    """Division of each accelerator's memory, and the capacity of the KV cache.

    ``engine.kv.capacity_tokens`` replaces the computed capacity where it is given. `encoder_bytes` are the weights of an encoder
    of images on each accelerator.

    Notes
    -----
    ``tests/catalog/test_memory_logs.py`` compares this with what vLLM prints at start for several models and cards.
    """
    profile = load_engine(engine.kind)
    weights = weight_bytes_per_accelerator(llm, parallelism, engine.weights) + encoder_bytes
    activations = activation_bytes(llm, parallelism, engine, profile)
    runtime = profile.runtime_bytes + (profile.runtime_parallel_bytes if parallelism.accelerators > 1 else 0.0)
    usable = accelerator.memory_bytes * engine.kv.memory_ratio
    kv = usable - weights - activations - runtime
    cache = stage_cache(llm, parallelism, engine.kv.dtype)
    sequences = _reserved(engine, "max_seqs", profile.max_seqs)
    block = engine.kv.block_tokens
    blocks = math.floor(cached_tokens(max(kv, 0.0), cache, sequences, llm.context_tokens) / block)
    if engine.kv.capacity_tokens is not None:
        blocks = engine.kv.capacity_tokens // block
    return MemoryPlan(
        total_bytes=accelerator.memory_bytes,
        usable_bytes=usable,
        weights_bytes=weights,
        activations_bytes=activations,
        runtime_bytes=runtime,
        kv_bytes=kv,
        kv_bytes_per_token=cache.full + cache.window,
        state_bytes_per_sequence=cache.state,
        block_tokens=block,
        capacity_tokens=blocks * block,
    )


def parallelisms_that_fit(llm: Llm, accelerator: Accelerator, engine: Engine) -> list[Parallelism]:
    """Smallest spreads with room for weights and at least one full step's tokens, fewest accelerators first.

    Tensor degrees stay within a node and divide the query heads; pipeline stages come on top.
    """
    profile = load_engine(engine.kind)
    wanted = max(_reserved(engine, "max_batched_tokens", profile.max_batched_tokens), engine.kv.block_tokens)
    free = engine.model_copy(update={"kv": engine.kv.model_copy(update={"capacity_tokens": None})})
    found = []
    for tp in (degree for degree in DEGREES if degree <= accelerator.per_node and llm.heads % degree == 0):
        for pp in (degree for degree in DEGREES if degree <= llm.layers):
            candidate = Parallelism(tp=tp, pp=pp)
            if memory_plan(llm, accelerator, candidate, free).capacity_tokens >= wanted:
                found.append(candidate)
                break
    return sorted(found, key=lambda p: (p.accelerators, p.pp))
