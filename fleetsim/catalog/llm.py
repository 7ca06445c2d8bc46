"""Architecture of a language model: parameters, cached bytes per token, and where both come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fleetsim.catalog.data import catalogue, locate, read_yaml
from fleetsim.errors import DataError, Finding, nearest

BITS_PER_VALUE = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "fp4": 4, "int4": 4}
"""Width of each data type [bit]."""

BYTES_PER_VALUE: Mapping[str, float] = {dtype: bits / 8 for dtype, bits in BITS_PER_VALUE.items()}
"""Width of each data type [B]. Scales of quantised weights are left out: below one part in sixteen."""

ACTIVATIONS = "bf16"
"""Data type between layers, of the embedding and of the LM head, also where the other weights are quantised."""


@dataclass(frozen=True, slots=True)
class Llm:
    """A decoder-only transformer, dense or with a mixture of experts."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the feed-forward part of dense layers."""
    vocab: int
    gated: bool = True
    """Whether the feed-forward part has a gate beside its up projection."""
    tied_embeddings: bool = False
    """Whether the LM head is the embedding."""
    attention_bias: bool = False
    """Whether query, key and value projections add a bias."""
    head_norm: bool = False
    """Whether queries and keys are normalised per head."""
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
    experts: int = 0
    """Routed experts per MoE layer."""
    experts_per_token: int = 0
    moe_intermediate: int = 0
    """Width of one routed expert."""
    shared_intermediate: int = 0
    """Width of the shared experts together."""
    dense_layers: int = 0
    """Layers without experts, in a model that has some."""
    native_dtype: str = "bf16"
    """Data type of the checkpoint's linear layers."""
    context_tokens: int = 0
    """Longest context it was made for; 0 if not stated."""
    sliding_window: int = 0
    """Tokens that windowed layers see; 0 if none."""
    published_parameters: int = 0
    """Count stated by the publisher; 0 if unknown."""
    published_active_parameters: int = 0
    source: str = ""
    """Key in ``models/SOURCES.yaml``, or the file that was read."""

    # --- parameters -----------------------------------------------------------------------------------------------

    @property
    def is_moe(self) -> bool:
        """Whether it has routed experts."""
        return self.experts > 0

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return self.layers - self.dense_layers if self.is_moe else 0

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
        key_value = 2 * self.kv_heads * self.head_dim
        bias = self.query_dim + key_value if self.attention_bias else 0
        return self.hidden * (self.query_dim + key_value) + self.value_dim * self.hidden + bias

    def mla_projections(self) -> list[tuple[int, int, bool]]:
        """Latent attention's projections: width in, width out, and whether tensor parallelism cuts it."""
        query = self.query_dim
        down = [(self.hidden, self.q_lora_rank, False), (self.q_lora_rank, query, True)]
        return [
            *(down if self.q_lora_rank else [(self.hidden, query, True)]),
            (self.hidden, self.kv_lora_rank + self.rope_head_dim, False),
            (self.kv_lora_rank, self.heads * (self.nope_head_dim + self.v_head_dim), True),
            (self.value_dim, self.hidden, True),
        ]

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
        per_layer = 2 * self.hidden + latent + (2 * self.head_dim if self.head_norm else 0)
        return self.layers * per_layer + self.hidden

    def _linear_parameters(self, experts: int) -> int:
        dense = self.layers - self.moe_layers
        per_moe_layer = experts * self.expert_parameters + self.shared_expert_parameters + self.router_parameters
        mlp = dense * self.dense_mlp_parameters + self.moe_layers * per_moe_layer
        return self.layers * self.attention_parameters + mlp

    @property
    def linear_parameters(self) -> int:
        """Parameters of all layers without norms: what quantisation shrinks."""
        return self._linear_parameters(self.experts)

    @property
    def other_parameters(self) -> int:
        """Embedding, LM head and norms."""
        return self.embedding_parameters * (1 if self.tied_embeddings else 2) + self.norm_parameters

    @property
    def parameters_total(self) -> int:
        """All parameters."""
        return self.linear_parameters + self.other_parameters

    @property
    def parameters_active(self) -> int:
        """Parameters that one token passes through, embedding included."""
        return self._linear_parameters(self.experts_per_token) + self.other_parameters

    # --- bytes and arithmetic ---------------------------------------------------------------------------------------

    def weights_dtype(self, chosen: str = "auto") -> str:
        """Data type of the linear layers."""
        return self.native_dtype if chosen == "auto" else chosen

    def kv_dtype(self, chosen: str = "auto") -> str:
        """Data type of cached keys and values."""
        return ACTIVATIONS if chosen == "auto" else chosen

    def weight_bytes(self, dtype: str = "auto") -> float:
        """Bytes of all weights; embedding, LM head and norms stay in 16 bits."""
        linear = self.linear_parameters * BYTES_PER_VALUE[self.weights_dtype(dtype)]
        return linear + self.other_parameters * BYTES_PER_VALUE[ACTIVATIONS]

    @property
    def kv_values_per_token(self) -> int:
        """Numbers cached per token and layer."""
        if self.attention == "mla":
            return self.kv_lora_rank + self.rope_head_dim
        return 2 * self.kv_heads * self.head_dim

    def kv_bytes_per_token(self, dtype: str = "auto") -> float:
        """Bytes that one token of context takes in the cache, over all layers."""
        return self.layers * self.kv_values_per_token * BYTES_PER_VALUE[self.kv_dtype(dtype)]

    @property
    def attention_flops_per_pair(self) -> int:
        """Arithmetic per (query, key) pair of one layer: scores and weighted sum."""
        return 2 * (self.query_dim + self.value_dim)

    @property
    def decode_flops_per_context_token(self) -> int:
        """Arithmetic per cached token of one layer in decode; latent attention works on the compressed cache."""
        if self.attention == "mla":
            return 2 * self.heads * (2 * self.kv_lora_rank + self.rope_head_dim)
        return self.attention_flops_per_pair

    @property
    def flops_per_token(self) -> float:
        """Arithmetic of all matrix products per token, attention scores and LM head left out."""
        return 2.0 * self._linear_parameters(self.experts_per_token)


def load_llm(name_or_path: str, base_dir: str | Path = ".") -> Llm:
    """Model of the catalogue, or of a Hugging Face ``config.json``.

    Parameters
    ----------
    name_or_path : str
        A name that the catalogue has, else the path of a JSON file or of the folder that holds ``config.json``.
    base_dir : path
        What a relative path starts from.

    Raises
    ------
    DataError
        If the name is unknown, the file is not valid or lacks a key that is needed.
    """
    if name_or_path in catalogue("llm"):
        return _load_catalogued(name_or_path)
    path = Path(base_dir, name_or_path)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        return _load_json(path.resolve())
    hint = nearest(name_or_path, catalogue("llm"), "llms")
    hint += ". A path to a Hugging Face config.json works too"
    raise DataError(Finding(f'unknown llm "{name_or_path}"', hint=hint))


@cache
def _load_catalogued(name: str) -> Llm:
    path = locate("llm", name)
    content = read_yaml(path)
    config, source = content.get("config"), content.get("source")
    if not isinstance(config, dict) or not isinstance(source, str):
        raise DataError(Finding("expected `config` (as in config.json) and its `source`", file=str(path)))
    published = {key: int(content.get(key, {}).get("value", 0)) for key in ("parameters", "active_parameters")}
    return from_hugging_face(
        config, name, path, source, published["parameters"], published["active_parameters"] or published["parameters"]
    )


@cache
def _load_json(path: Path) -> Llm:
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(Finding(f"cannot be read: {error.strerror}", file=str(path))) from error
    except ValueError as error:
        where = {"line": error.lineno, "column": error.colno} if isinstance(error, json.JSONDecodeError) else {}
        raise DataError(Finding(f"not valid JSON: {error}", file=str(path), **where)) from error  # type: ignore[arg-type]
    if not isinstance(config, dict):
        raise DataError(Finding("expected the object of a Hugging Face config.json", file=str(path)))
    name = str(config.get("_name_or_path") or path.parent.name or path.stem)
    return from_hugging_face(config, name, path, str(path))


# --- Hugging Face configuration ---------------------------------------------------------------------------------------

ALIASES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "intermediate": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "vocab": ("vocab_size", "padded_vocab_size"),
    "head_dim": ("head_dim", "kv_channels"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "experts_per_token": ("num_experts_per_tok", "num_experts_per_token", "moe_topk"),
    "moe_intermediate": ("moe_intermediate_size", "expert_ffn_hidden_size"),
    "shared_experts": ("n_shared_experts", "num_shared_experts"),
    "shared_intermediate": ("shared_expert_intermediate_size",),
    "dense_first_layers": ("first_k_dense_replace",),
    "context_tokens": ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"),
    "sliding_window": ("sliding_window",),
}
"""Names that model families give to the same number."""

UNGATED = {"gpt2", "gpt_neox", "gptj", "opt", "bloom", "falcon", "mpt", "phi", "starcoder2", "gpt_bigcode", "nemotron"}
"""Model types whose feed-forward part has no gate."""
BIASED = {"qwen2", "qwen2_moe", "gpt2", "opt", "bloom", "gpt_neox", "phi"}
"""Model types whose query, key and value projections have a bias without saying so."""
HEAD_NORMED = {"qwen3", "qwen3_moe", "gemma3", "gemma3_text", "olmo2"}
"""Model types that normalise queries and keys."""
TIED = {"gemma", "gemma2", "gemma3", "gemma3_text", "gpt2"}
"""Model types that share embedding and LM head unless they say otherwise."""


class _Config:
    """Looks keys up under all their names and remembers which are missing."""

    def __init__(self, config: Mapping[str, Any], file: Path) -> None:
        inner = config.get("text_config")
        self.config = {**config, **inner} if isinstance(inner, dict) else config
        self.file = file
        self.findings: list[Finding] = []

    def number(self, field: str, default: int | None = None) -> int:
        for key in ALIASES[field]:
            value = self.config.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                self.findings.append(Finding(f"expected a count, found {value!r}", path=key, file=str(self.file)))
                return 1
            return value
        if default is None:
            keys = " or ".join(ALIASES[field])
            hint = "Is it the config.json of a decoder-only language model?"
            self.findings.append(Finding(f"needed key is missing: {keys}", file=str(self.file), hint=hint))
            return 1
        return default


def from_hugging_face(
    config: Mapping[str, Any], name: str, file: Path, source: str, published: int = 0, published_active: int = 0
) -> Llm:
    """Architecture from the keys of a Hugging Face ``config.json``.

    Raises
    ------
    DataError
        With every needed key that is missing or is not a count.
    """
    found = _Config(config, file)
    kind = str(found.config.get("model_type", ""))
    hidden, heads, layers = found.number("hidden"), found.number("heads"), found.number("layers")
    experts = found.number("experts", 0)
    intermediate = found.number("intermediate", 4 * hidden if kind in UNGATED else None)
    moe_intermediate = found.number("moe_intermediate", intermediate) if experts else 0
    llm = Llm(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=found.number("kv_heads", heads),
        head_dim=found.number("head_dim", hidden // max(heads, 1)),
        intermediate=intermediate,
        vocab=found.number("vocab"),
        gated=kind not in UNGATED,
        tied_embeddings=bool(found.config.get("tie_word_embeddings", kind in TIED)),
        attention_bias=bool(found.config.get("attention_bias", kind in BIASED)),
        head_norm=kind in HEAD_NORMED,
        experts=experts,
        experts_per_token=found.number("experts_per_token") if experts else 0,
        moe_intermediate=moe_intermediate,
        shared_intermediate=found.number("shared_intermediate", found.number("shared_experts", 0) * moe_intermediate)
        if experts
        else 0,
        dense_layers=_dense_layers(found, layers) if experts else 0,
        native_dtype=_native_dtype(found.config),
        context_tokens=found.number("context_tokens", 0),
        sliding_window=_window(found),
        published_parameters=published,
        published_active_parameters=published_active,
        source=source,
        **_latent(found),
    )
    _plausible(llm, found)
    if found.findings:
        raise DataError(found.findings)
    return llm


def _plausible(llm: Llm, found: _Config) -> None:
    if found.findings:
        return
    for what, value in (("layers", llm.layers), ("hidden", llm.hidden), ("heads", llm.heads), ("vocab", llm.vocab)):
        if value < 1:
            found.findings.append(Finding(f"{what} must be at least 1", path=ALIASES[what][0], file=str(found.file)))
    if llm.kv_heads < 1 or llm.heads % llm.kv_heads:
        message = f"{llm.heads} query heads cannot share {llm.kv_heads} key-value heads"
        found.findings.append(Finding(message, path=ALIASES["kv_heads"][0], file=str(found.file)))
    if llm.experts_per_token > llm.experts:
        message = f"a token cannot visit {llm.experts_per_token} of {llm.experts} experts"
        found.findings.append(Finding(message, path=ALIASES["experts_per_token"][0], file=str(found.file)))


def _latent(found: _Config) -> dict[str, Any]:
    """Fields of multi-head latent attention, if the model has it."""
    config = found.config
    if not config.get("kv_lora_rank"):
        return {}
    keys = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    missing = [key for key in keys if not isinstance(config.get(key), int)]
    if missing:
        found.findings.append(Finding(f"needed keys are missing: {', '.join(missing)}", file=str(found.file)))
        return {}
    return {
        "attention": "mla",
        "q_lora_rank": int(config.get("q_lora_rank") or 0),
        "kv_lora_rank": config["kv_lora_rank"],
        "nope_head_dim": config["qk_nope_head_dim"],
        "rope_head_dim": config["qk_rope_head_dim"],
        "v_head_dim": config["v_head_dim"],
    }


def _dense_layers(found: _Config, layers: int) -> int:
    """Layers without experts: the first few, every n-th, or a list."""
    first = found.number("dense_first_layers", 0)
    step = int(found.config.get("decoder_sparse_step") or found.config.get("moe_layer_freq") or 1)
    listed = {int(index) for index in found.config.get("mlp_only_layers") or ()}
    return sum(1 for i in range(layers) if i < first or i in listed or (i + 1) % step)


def _window(found: _Config) -> int:
    if found.config.get("use_sliding_window") is False:
        return 0
    return found.number("sliding_window", 0)


def _native_dtype(config: Mapping[str, Any]) -> str:
    quantised = config.get("quantization_config") or {}
    method = str(quantised.get("quant_method", "")).lower()
    if method in ("fp8", "fbgemm_fp8"):
        return "fp8"
    if method in ("mxfp4", "nvfp4"):
        return "fp4"
    if method in ("awq", "gptq"):
        return "int8" if quantised.get("bits") == 8 else "int4"
    stated = str(config.get("torch_dtype") or config.get("dtype") or "")
    return {"float16": "fp16", "float32": "fp32"}.get(stated, "bf16")
