"""Architecture of a language model: its layers, their parameters, and what they cache per token and per sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BITS_PER_VALUE = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "fp4": 4, "int4": 4}
"""Width of each data type [bit]."""

BYTES_PER_VALUE: Mapping[str, float] = {dtype: bits / 8 for dtype, bits in BITS_PER_VALUE.items()}
"""Width of each data type [B], without scales: caches and activations."""

SCALE_BYTES: Mapping[str, float] = {"fp4": 1.0, "int4": 2.0}
"""Size of one scale of quantised weights [B]; those of 8-bit types are per channel or per block of 128 x 128: nothing.

fp4: 8 bits, as in NVFP4 (NVIDIA, "Introducing NVFP4", 2025) and MXFP4 (OCP Microscaling Formats 1.0, section 5.2);
int4: 16 bits, as AWQ and GPTQ checkpoints store them.
"""
SCALE_GROUP: Mapping[str, int] = {"fp4": 16, "int4": 128}
"""Weights that share a scale where a checkpoint does not say: NVFP4 has 16 (MXFP4 32), AWQ and GPTQ 128 by default."""

ACTIVATIONS = "bf16"
"""Data type between layers, of the embedding, of the LM head and of routers, also where other weights are quantised."""


def weight_width(dtype: str, group: int = 0) -> float:
    """Bytes of one weight with its share of a scale; `group` weights share one (0: as usual for the type)."""
    if dtype not in SCALE_BYTES:
        return BYTES_PER_VALUE[dtype]
    return BYTES_PER_VALUE[dtype] + SCALE_BYTES[dtype] / (group or SCALE_GROUP[dtype])


@dataclass(frozen=True, slots=True)
class Llm:
    """A decoder-only model: layers of attention or of a recurrence, with dense or expert feed-forward parts.

    Each layer mixes tokens by full attention, by attention within a window, by a recurrence, or not at all; and has a
    dense feed-forward part, one of experts, or none. Only the counts matter to memory and time.
    """

    name: str
    layers: int
    """All layers, as the publisher counts them."""
    full_layers: int
    """Layers whose attention sees the whole context."""
    mlp_layers: int
    """Layers with a dense feed-forward part."""
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the feed-forward part of dense layers."""
    vocab: int
    window_layers: int = 0
    """Layers whose attention sees `sliding_window` tokens (or a chunk of them)."""
    linear_layers: int = 0
    """Layers with a recurrent state instead of a cache."""
    moe_layers: int = 0
    """Layers with routed experts."""
    dense_first_layers: int = 0
    """Layers before the first one with experts; behind them experts are spread evenly."""
    sliding_window: int = 0
    """Tokens that windowed layers see; 0 if there are none."""
    gated: bool = True
    """Whether the feed-forward part has a gate beside its up projection."""
    tied_embeddings: bool = False
    """Whether the LM head is the embedding."""
    attention_bias: bool = False
    """Whether query, key and value projections add a bias."""
    head_norm: bool = False
    """Whether queries and keys are normalised per head."""
    attention_gate: bool = False
    """Whether the query projection is twice as wide, its other half a gate on the attention's output (Qwen3-Next)."""
    attention: str = "gqa"
    """``gqa`` (grouped queries; also multi-head and multi-query) or ``mla`` (multi-head latent attention)."""
    q_lora_rank: int = 0
    """MLA: width of the compressed query; 0 where it is not compressed."""
    kv_lora_rank: int = 0
    """MLA: width of the compressed key and value, which is what the cache holds."""
    nope_head_dim: int = 0
    """MLA: part of a query head without rotary embedding."""
    rope_head_dim: int = 0
    """MLA: part with it; its key is shared by all heads and cached."""
    v_head_dim: int = 0
    """MLA: width of a value head."""
    sparse_top_k: int = 0
    """Cached tokens that sparse attention reads per query, chosen by an indexer (DeepSeek V3.2); 0 if it is not sparse."""
    index_heads: int = 0
    """Query heads of the indexer."""
    index_head_dim: int = 0
    """Width of an indexer head; one key of it is cached per token and layer."""
    linear_kind: str = ""
    """``mamba2``, ``gated_delta_net`` or ``lightning``; empty if there are no recurrent layers."""
    linear_heads: int = 0
    """Value heads of a recurrent layer, each with a state of `linear_key_dim` x `linear_value_dim`."""
    linear_key_heads: int = 0
    """Key heads (Mamba-2: groups) that the value heads share."""
    linear_key_dim: int = 0
    """Mamba-2: state size."""
    linear_value_dim: int = 0
    linear_conv: int = 0
    """Width in tokens of the convolution before the recurrence; 0 if there is none."""
    linear_state_dtype: str = ACTIVATIONS
    """Data type of the recurrent state; the convolution's inputs are kept as activations."""
    experts: int = 0
    """Routed experts per MoE layer."""
    experts_per_token: int = 0
    moe_intermediate: int = 0
    """Width of one routed expert."""
    shared_intermediate: int = 0
    """Width of the shared experts together."""
    native_dtype: str = "bf16"
    """Data type of the checkpoint's quantised products, or of all if none is."""
    quantised_parts: str = "all"
    """``all`` products of the layers have the native type, or only those of the routed ``experts``."""
    scale_group: int = 0
    """Weights of the checkpoint that share a scale; 0 where it does not say or has none."""
    block_scaled: bool = False
    """Whether 8-bit weights and activations have a scale per block, for which engines have kernels of their own."""
    context_tokens: int = 0
    """Longest context it was made for; 0 if not stated."""
    left_out: str = ""
    """Part of the checkpoint that is not simulated, such as a vision tower; empty if nothing."""
    published_parameters: int = 0
    """Count stated by the publisher; 0 if unknown."""
    published_active_parameters: int = 0
    source: str = ""
    """Key in ``models/SOURCES.yaml``, or the file that was read."""

    # --- layers ---------------------------------------------------------------------------------------------------

    @property
    def is_moe(self) -> bool:
        """Whether it has routed experts."""
        return self.experts > 0

    @property
    def attention_layers(self) -> int:
        """Layers with a cache of keys and values."""
        return self.full_layers + self.window_layers

    # --- attention ------------------------------------------------------------------------------------------------

    @property
    def query_dim(self) -> int:
        """Width of all queries of a token."""
        return self.heads * (self.nope_head_dim + self.rope_head_dim if self.attention == "mla" else self.head_dim)

    @property
    def value_dim(self) -> int:
        """Width of all attention outputs of a token."""
        return self.heads * (self.v_head_dim if self.attention == "mla" else self.head_dim)

    @property
    def attention_parameters(self) -> int:
        """Parameters of one layer's attention, norms left out."""
        if self.attention == "mla":
            return sum(rows * columns for rows, columns, _ in self.mla_projections())
        queries = self.query_dim * (2 if self.attention_gate else 1)
        key_value = 2 * self.kv_heads * self.head_dim
        bias = self.query_dim + key_value if self.attention_bias else 0
        return self.hidden * (queries + key_value) + self.value_dim * self.hidden + bias

    def mla_projections(self) -> list[tuple[int, int, bool]]:
        """Latent attention's projections: width in, width out, and whether tensor parallelism cuts it.

        The output projection is the last; those of the indexer of sparse attention, which every rank holds whole, come
        before it.
        """
        query = self.query_dim
        down = [(self.hidden, self.q_lora_rank, False), (self.q_lora_rank, query, True)]
        return [
            *(down if self.q_lora_rank else [(self.hidden, query, True)]),
            (self.hidden, self.kv_lora_rank + self.rope_head_dim, False),
            (self.kv_lora_rank, self.heads * (self.nope_head_dim + self.v_head_dim), True),
            *((rows, columns, False) for rows, columns in self.index_projections),
            (self.value_dim, self.hidden, True),
        ]

    @property
    def index_projections(self) -> list[tuple[int, int]]:
        """Projections of one layer's indexer: queries, its one key, and a weight per head."""
        if not self.sparse_top_k:
            return []
        queries = (self.q_lora_rank or self.hidden, self.index_heads * self.index_head_dim)
        return [queries, (self.hidden, self.index_head_dim), (self.hidden, self.index_heads)]

    # --- recurrence -----------------------------------------------------------------------------------------------

    @property
    def _linear_widths(self) -> tuple[int, int]:
        """Width of all keys (or queries) and of all values of a recurrent layer."""
        return self.linear_key_heads * self.linear_key_dim, self.linear_heads * self.linear_value_dim

    @property
    def linear_projections(self) -> list[tuple[int, int]]:
        """Matrix products of one recurrent layer: width in and width out; both are cut by tensor parallelism.

        In: queries, keys, values and an output gate as wide as the values, with one number per head for the step size
        (Mamba-2), or two for decay and write strength (gated delta net).
        """
        if not self.linear_layers:
            return []
        keys, values = self._linear_widths
        per_head = {"mamba2": 1, "gated_delta_net": 2, "lightning": 0}[self.linear_kind]
        return [(self.hidden, 2 * keys + 2 * values + per_head * self.linear_heads), (values, self.hidden)]

    @property
    def linear_convolution_width(self) -> int:
        """Channels that the convolution of a recurrent layer runs over: queries, keys and values."""
        keys, values = self._linear_widths
        return 2 * keys + values if self.linear_conv else 0

    @property
    def linear_state_values(self) -> int:
        """Numbers kept per sequence by one recurrent layer: its state and the convolution's last inputs."""
        return self._recurrent_values + self._convolution_values

    @property
    def _recurrent_values(self) -> int:
        return self.linear_heads * self.linear_key_dim * self.linear_value_dim

    @property
    def _convolution_values(self) -> int:
        return self.linear_convolution_width * max(self.linear_conv - 1, 0)

    @property
    def linear_state_bytes(self) -> float:
        """Bytes that one sequence's state takes over all recurrent layers, whatever its length."""
        recurrent = self._recurrent_values * BYTES_PER_VALUE[self.linear_state_dtype]
        return self.linear_layers * (recurrent + self._convolution_values * BYTES_PER_VALUE[ACTIVATIONS])

    @property
    def linear_flops_per_token(self) -> int:
        """Arithmetic of one recurrent layer per token beside its projections: recurrence and convolution.

        Per state value: decay 1, outer product added 2, read-out by the query 2; the delta rule first reads what the
        key would (2 more). T. Dao and A. Gu, "Transformers are SSMs", 2024; S. Yang et al., "Gated delta networks",
        2024. Chunked kernels do more in prefill, in exchange for matrix products.
        """
        if not self.linear_layers:
            return 0
        per_value = 7 if self.linear_kind == "gated_delta_net" else 5
        return per_value * self._recurrent_values + 2 * self.linear_conv * self.linear_convolution_width

    @property
    def linear_layer_parameters(self) -> int:
        """Parameters of one recurrent layer: projections, convolution, and what it has per head or channel."""
        products = sum(rows * columns for rows, columns in self.linear_projections)
        return products + self.linear_conv * self.linear_convolution_width + 3 * self.linear_heads

    # --- parameters -----------------------------------------------------------------------------------------------

    @property
    def projections(self) -> int:
        """Matrices of width hidden x intermediate in a feed-forward part."""
        return 3 if self.gated else 2

    @property
    def dense_mlp_parameters(self) -> int:
        """Parameters of one dense layer's feed-forward part."""
        return self.projections * self.hidden * self.intermediate

    @property
    def expert_parameters(self) -> int:
        """Parameters of one routed expert in one layer."""
        return self.projections * self.hidden * self.moe_intermediate

    @property
    def shared_expert_parameters(self) -> int:
        """Parameters of one layer's shared experts."""
        return self.projections * self.hidden * self.shared_intermediate

    @property
    def router_parameters(self) -> int:
        """Parameters of one layer's router."""
        return self.hidden * self.experts

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding; the LM head has as many."""
        return self.vocab * self.hidden

    @property
    def norm_parameters(self) -> int:
        """Parameters of all norms."""
        latent = self.q_lora_rank + self.kv_lora_rank if self.attention == "mla" else 0
        per_attention = latent + (2 * self.head_dim if self.head_norm else 0)
        parts = self.attention_layers + self.linear_layers + self.mlp_layers + self.moe_layers
        return parts * self.hidden + self.attention_layers * per_attention + self.hidden

    @property
    def mixing_parameters(self) -> int:
        """Parameters of all layers' attention and recurrence."""
        return self.attention_layers * self.attention_parameters + self.linear_layers * self.linear_layer_parameters

    @property
    def plain_parameters(self) -> int:
        """Parameters of all layers beside routed experts, routers and norms."""
        dense = self.mlp_layers * self.dense_mlp_parameters + self.moe_layers * self.shared_expert_parameters
        return self.mixing_parameters + dense

    def _layer_parameters(self, experts: int) -> int:
        per_moe_layer = experts * self.expert_parameters + self.router_parameters
        return self.plain_parameters + self.moe_layers * per_moe_layer

    @property
    def layer_parameters(self) -> int:
        """Parameters of all layers without norms."""
        return self._layer_parameters(self.experts)

    @property
    def other_parameters(self) -> int:
        """Embedding, LM head and norms."""
        return self.embedding_parameters * (1 if self.tied_embeddings else 2) + self.norm_parameters

    @property
    def parameters_total(self) -> int:
        """All parameters."""
        return self.layer_parameters + self.other_parameters

    @property
    def parameters_active(self) -> int:
        """Parameters that one token passes through, embedding included."""
        return self._layer_parameters(self.experts_per_token) + self.other_parameters

    # --- bytes and arithmetic ---------------------------------------------------------------------------------------

    def weights_dtype(self, chosen: str = "auto") -> str:
        """Data type of the quantised products: all of the layers, or their routed experts."""
        return self.native_dtype if chosen == "auto" else chosen.removesuffix("-block")

    def plain_dtype(self, chosen: str = "auto") -> str:
        """Data type of attention, recurrence, dense feed-forward parts and shared experts.

        A model with experts in 4 bits has only those in 4 bits, as published checkpoints do (nvidia/DeepSeek-R1-NVFP4,
        nvidia/Kimi-K2.5-NVFP4, moonshotai/Kimi-K2-Thinking): they are nearly all of the weights.
        """
        only_experts = (
            self.quantised_parts == "experts" if chosen == "auto" else self.is_moe and chosen in ("fp4", "int4")
        )
        return ACTIVATIONS if only_experts else self.weights_dtype(chosen)

    def kv_dtype(self, chosen: str = "auto") -> str:
        """Data type of cached keys and values."""
        return ACTIVATIONS if chosen == "auto" else chosen

    def expert_width(self, chosen: str = "auto") -> float:
        """Bytes per weight of routed experts, scales included."""
        return weight_width(self.weights_dtype(chosen), self.scale_group if chosen == "auto" else 0)

    def plain_width(self, chosen: str = "auto") -> float:
        """Bytes per weight of attention, recurrence, dense feed-forward parts and shared experts, scales included."""
        return weight_width(self.plain_dtype(chosen), self.scale_group if chosen == "auto" else 0)

    def _weight_bytes(self, experts: float, chosen: str) -> float:
        routed = self.moe_layers * experts * self.expert_parameters * self.expert_width(chosen)
        routers = self.moe_layers * self.router_parameters * BYTES_PER_VALUE[ACTIVATIONS]
        return self.plain_parameters * self.plain_width(chosen) + routed + routers

    def weight_bytes(self, dtype: str = "auto") -> float:
        """Bytes of all weights; embedding, LM head, routers and norms stay in 16 bits."""
        return self._weight_bytes(self.experts, dtype) + self.other_parameters * BYTES_PER_VALUE[ACTIVATIONS]

    def layer_bytes_per_token(self, dtype: str = "auto") -> float:
        """Bytes of the layers' weights that one token passes through, norms left out."""
        return self._weight_bytes(self.experts_per_token, dtype)

    @property
    def kv_values_per_token(self) -> int:
        """Numbers cached per token and attention layer, the indexer's left out."""
        if self.attention == "mla":
            return self.kv_lora_rank + self.rope_head_dim
        return 2 * self.kv_heads * self.head_dim

    @property
    def index_bytes_per_token(self) -> float:
        """Bytes that the indexer of sparse attention caches per token and layer: an 8-bit key and its 32-bit scale."""
        return float(self.index_head_dim + 4) if self.sparse_top_k else 0.0

    def kv_bytes_per_token(self, dtype: str = "auto") -> float:
        """Bytes that one token of context takes in the cache, over all layers, while it is within their windows."""
        per_layer = self.kv_values_per_token * BYTES_PER_VALUE[self.kv_dtype(dtype)] + self.index_bytes_per_token
        return self.attention_layers * per_layer

    @property
    def attention_flops_per_pair(self) -> int:
        """Arithmetic per (query, key) pair of one layer: scores and weighted sum."""
        return 2 * (self.query_dim + self.value_dim)

    @property
    def index_flops_per_pair(self) -> int:
        """Arithmetic of one layer's indexer per (query, key) pair."""
        return 2 * self.index_heads * self.index_head_dim if self.sparse_top_k else 0

    @property
    def decode_flops_per_context_token(self) -> int:
        """Arithmetic per cached token of one layer in decode; latent attention works on the compressed cache."""
        if self.attention == "mla":
            return 2 * self.heads * (2 * self.kv_lora_rank + self.rope_head_dim)
        return self.attention_flops_per_pair

    @property
    def flops_per_token(self) -> float:
        """Arithmetic per token of all products and recurrences; attention scores and LM head are left out."""
        recurrent = self.linear_layers * self.linear_flops_per_token
        return 2.0 * self._layer_parameters(self.experts_per_token) + recurrent
