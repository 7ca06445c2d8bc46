"""Reads a Hugging Face ``config.json`` into an architecture, or says what in it is not understood."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleetsim.catalog.architecture import ACTIVATIONS, Llm
from fleetsim.errors import DataError, Finding

ALIASES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "intermediate": ("intermediate_size_mlp", "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "vocab": ("padded_vocab_size", "vocab_size"),
    "head_dim": ("head_dim", "attention_head_dim", "kv_channels"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "experts_per_token": ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk"),
    "moe_intermediate": ("moe_intermediate_size", "expert_ffn_hidden_size"),
    "shared_experts": ("n_shared_experts", "num_shared_experts"),
    "shared_intermediate": (
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "shared_intermediate_size",
    ),
    "dense_first_layers": ("first_k_dense_replace", "moe_layer_start_index"),
    "context_tokens": ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"),
    "sliding_window": ("sliding_window", "attention_chunk_size"),
    "window_pattern": ("sliding_window_pattern", "_sliding_window_pattern"),
    "full_interval": ("full_attention_interval",),
    "linear_heads": ("linear_num_value_heads", "mamba_num_heads"),
    "linear_key_heads": ("linear_num_key_heads", "n_groups", "mamba_num_groups"),
    "linear_key_dim": ("linear_key_head_dim", "ssm_state_size", "mamba_state_dim"),
    "linear_value_dim": ("linear_value_head_dim", "mamba_head_dim"),
    "linear_conv": ("linear_conv_kernel_dim", "conv_kernel"),
    "sparse_top_k": ("index_topk",),
    "index_heads": ("index_n_heads",),
    "index_head_dim": ("index_head_dim",),
}
"""Names that model families give to the same number."""

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gemma3_text": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 131072,
    },
    "gemma2": {"head_dim": 256, "sliding_window": 4096, "sliding_window_pattern": 2},
    "gemma": {"head_dim": 256},
    "cohere2": {"sliding_window": 4096, "sliding_window_pattern": 4},
    "llama4_text": {
        "head_dim": 128,
        "num_key_value_heads": 8,
        "attention_chunk_size": 8192,
        "no_rope_layer_interval": 4,
        "interleave_moe_layer_step": 1,
        "n_shared_experts": 1,
    },
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    "gpt_oss": {"head_dim": 64, "sliding_window": 128, "sliding_window_pattern": 2},
    "qwen2": {"use_sliding_window": False},
    "qwen2_moe": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False, "head_dim": 128},
    "qwen3_moe": {"use_sliding_window": False, "head_dim": 128},
    "qwen3_next": {"full_attention_interval": 4, "attn_output_gate": True},
    "qwen3_5": {"full_attention_interval": 4, "attn_output_gate": True},
    "qwen3_5_moe": {"full_attention_interval": 4, "attn_output_gate": True},
    "nemotron_h": {"conv_kernel": 4, "n_groups": 8},
    "starcoder2": {"num_key_value_heads": 2},
}
"""What the family's class assumes where a configuration is silent (transformers 4.57, ``configuration_*.py``)."""

SAME_AS = {
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
    "qwen3_5_text": "qwen3_5",
    "qwen3_5_moe_text": "qwen3_5_moe",
    "minimax_text_01": "minimax",
    "minimax_m1": "minimax",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
"""Model types that are read like another one."""
UNGATED = {
    "gpt2",
    "gpt_neox",
    "gptj",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "phi",
    "starcoder2",
    "gpt_bigcode",
    "nemotron",
} | {"nemotron_h"}
"""Model types whose feed-forward part has no gate and, where they do not say, is four times as wide as the model."""
BIASED = {"qwen2", "qwen2_moe", "gpt2", "opt", "bloom", "gpt_neox", "phi", "starcoder2", "gpt_oss"}
"""Model types whose query, key and value projections have a bias without saying so."""
HEAD_NORMED = {"qwen3", "qwen3_moe", "qwen3_next", "qwen3_5", "qwen3_5_moe", "gemma3_text", "olmo2"}
"""Model types that normalise queries and keys without saying so."""
TIED = {"gemma", "gemma2", "gemma3_text", "gpt2", "opt", "bloom", "falcon", "cohere", "cohere2", "starcoder2"}
"""Model types that share embedding and LM head unless they say otherwise."""
LINEAR_KINDS = {
    "qwen3_next": "gated_delta_net",
    "qwen3_5": "gated_delta_net",
    "qwen3_5_moe": "gated_delta_net",
    "nemotron_h": "mamba2",
    "minimax": "lightning",
}
"""Recurrence of the model types that have one."""

MOST_LAYERS = 10_000
"""More are taken for a mistake."""

WRAPPED = ("text_config", "llm_config", "language_config")
"""Keys under which multimodal models keep the language model's configuration."""
TOWERS = ("vision_config", "audio_config", "speech_config", "vision_tower")

NOT_UNDERSTOOD: Mapping[str, str] = {
    "is_encoder_decoder": "an encoder beside the decoder",
    "block_configs": "layers of different widths",
    "linear_attn_config": "a recurrence that is not known",
    "attn_layer_period": "Mamba-1 layers",
    "altup_num_inputs": "several residual streams",
    "num_kv_shared_layers": "layers that share a cache",
    "hidden_size_per_layer_input": "embeddings per layer",
    "cross_attention_layers": "cross attention",
    "global_head_dim": "attention heads that differ between layers",
    "num_global_key_value_heads": "attention heads that differ between layers",
    "swa_num_key_value_heads": "attention heads that differ between layers",
    "swa_head_dim": "attention heads that differ between layers",
    "hybrid_layer_pattern": "attention heads that differ between layers",
    "compress_ratios": "a compressed cache",
    "conv_L_cache": "convolution layers",
    "rwkv": "a recurrence that is not known",
    "time_mix_extra_dim": "a recurrence that is not known",
    "zero_expert_num": "experts that compute nothing",
    "index_share_pattern": "layers that share an indexer",
    "indexer_types": "layers that share an indexer",
}
"""Keys that change memory and time in a way that is not simulated, and what they stand for."""

MIXERS: Mapping[str, str] = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "window",
    "chunked_attention": "window",
    "linear_attention": "linear",
    "deepseek_sparse_attention": "full",
}
"""Entries of `layer_types`."""
MIXER_NUMBERS: Mapping[int, str] = {0: "linear", 1: "full"}
"""Entries of `attn_type_list` (MiniMax)."""
HYBRID_PARTS: Mapping[str, tuple[str, str]] = {
    "M": ("linear", "none"),
    "*": ("full", "none"),
    "-": ("none", "mlp"),
    "E": ("none", "moe"),
    "mamba": ("linear", "none"),
    "attention": ("full", "none"),
    "mlp": ("none", "mlp"),
    "moe": ("none", "moe"),
}
"""Nemotron-H: each layer is one part, named by a letter or a word."""

EXPERT_STEPS = ("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_interval")
"""Keys that give experts to the last of every n layers."""
METHODS: Mapping[str, tuple[str, int, int]] = {
    "fp8": ("fp", 8, 0),
    "fbgemm_fp8": ("fp", 8, 0),
    "mxfp4": ("fp", 4, 32),
    "nvfp4": ("fp", 4, 16),
}
"""Quantisations by name: kind, bits, and how many weights share a scale; others say it themselves."""
KEPT = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules")
"""Keys that list what a quantised checkpoint keeps in 16 bits."""

DTYPES = {"float16": "fp16", "float32": "fp32", "bfloat16": "bf16"}


class _Config:
    """Looks keys up under all their names and remembers what is missing or not understood."""

    def __init__(self, config: Mapping[str, Any], file: Path) -> None:
        inner: Mapping[str, Any] = next((config[key] for key in WRAPPED if isinstance(config.get(key), dict)), {})
        self.config = {**config, **inner}
        if "tie_word_embeddings" in config:  # the wrapper's word counts: it holds the LM head
            self.config["tie_word_embeddings"] = config["tie_word_embeddings"]
        stated = str(self.config.get("model_type", ""))
        self.kind = SAME_AS.get(stated, stated)
        self.defaults = DEFAULTS.get(self.kind, {})
        self.file = file
        self.findings: list[Finding] = []

    def find(self, message: str, key: str = "", hint: str = "") -> None:
        """Note what is wrong."""
        self.findings.append(Finding(message, path=key, file=str(self.file), hint=hint))

    def get(self, key: str, default: Any = None) -> Any:
        """Value of one key, else what the family assumes, else `default`."""
        value = self.config[key] if key in self.config else self.defaults.get(key)
        return default if value is None else value

    def count(self, key: str, default: int = 0) -> int:
        """Count under one key, else what the family assumes, else `default`."""
        return self._as_count(key, self.get(key, default))

    def items(self, key: str) -> list[Any]:
        """Words and numbers listed under a key; empty if it is absent."""
        value = self.get(key, [])
        if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
            return value
        self.find(f"expected a list of words or numbers, found {value!r}", key)
        return []

    def part(self, key: str) -> Mapping[str, Any]:
        """Object under a key; empty if it is absent."""
        value = self.get(key, {})
        if isinstance(value, dict):
            return value
        self.find(f"expected an object, found {value!r}", key)
        return {}

    def _as_count(self, key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.find(f"expected a count, found {value!r}", key)
            return 1
        return value

    def number(self, field: str, default: int | None = None) -> int:
        """Count under any of the field's names; what the family assumes where all are absent."""
        names = ALIASES[field]
        content = self.config if any(key in self.config for key in names) else self.defaults
        for key in names:
            if content.get(key) is not None:
                return self._as_count(key, content[key])
        if default is None:
            keys = " or ".join(names)
            self.find(f"needed key is missing: {keys}", hint="Is it the config.json of a decoder-only language model?")
            return 1
        return default


def from_hugging_face(
    config: Mapping[str, Any], name: str, file: Path, source: str, published: int = 0, published_active: int = 0
) -> Llm:
    """Architecture from the keys of a Hugging Face ``config.json``.

    Raises
    ------
    DataError
        With every needed key that is missing or is not a count, and with everything known to change memory and time
        that is not simulated.
    """
    found = _Config(config, file)
    _refuse_what_is_not_understood(found)
    hidden, heads, layers = found.number("hidden"), found.number("heads"), _layers(found)
    head_dim = found.number("head_dim", hidden // max(heads, 1))
    mixers, feed_forwards = _mixers(found, layers), _feed_forwards(found, layers)
    window = _window(found) if "window" in mixers else 0
    llm = Llm(
        name=name,
        layers=layers,
        full_layers=mixers.count("full") + (0 if window else mixers.count("window")),
        window_layers=mixers.count("window") if window else 0,
        sliding_window=window,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(found, heads),
        head_dim=head_dim,
        vocab=found.number("vocab"),
        gated=found.kind not in UNGATED,
        tied_embeddings=bool(found.get("tie_word_embeddings", found.kind in TIED)),
        attention_bias=any(found.get(key) for key in ("attention_bias", "qkv_bias", "add_qkv_bias"))
        or (found.kind in BIASED and found.get("attention_bias", True)),
        head_norm=bool(found.get("use_qk_norm", found.kind in HEAD_NORMED)),
        attention_gate=bool(found.get("attn_output_gate", False)),
        context_tokens=found.number("context_tokens", 0),
        left_out=", ".join(key.replace("_config", " tower") for key in TOWERS if found.get(key)),
        published_parameters=published,
        published_active_parameters=published_active,
        source=source,
        **_widths(found, feed_forwards, hidden),
        **_latent(found),
        **_recurrence(found, mixers.count("linear"), heads, head_dim),
        **_quantisation(found, "moe" in feed_forwards),
    )
    _plausible(llm, found)
    if found.findings:
        raise DataError(tuple(dict.fromkeys(found.findings)))
    return llm


def _layers(found: _Config) -> int:
    layers = found.number("layers")
    if layers <= MOST_LAYERS:
        return layers
    found.find(f"expected at most {MOST_LAYERS:,} layers, found {layers:,}", ALIASES["layers"][0])
    return 1


def _refuse_what_is_not_understood(found: _Config) -> None:
    hint = "Nothing is better than a wrong answer: this family is not simulated yet"
    for key, meaning in NOT_UNDERSTOOD.items():
        if found.get(key):
            found.find(f"stands for {meaning}, which is not simulated", key, hint)
    if found.kind in LINEAR_KINDS:
        return
    for key in ("hybrid_override_pattern", "layers_block_type", "attn_type_list", "full_attention_interval"):
        value = found.get(key)
        if value and not (isinstance(value, list) and all(item in (1, "attention") for item in value)):
            found.find(f"layers of different kinds are not known for model_type {found.kind!r}", key, hint)
    for key in found.config:
        if key.startswith(("ssm_", "mamba_", "rwkv_", "linear_num_")) and found.config[key]:
            found.find(f"recurrent layers are not known for model_type {found.kind!r}", key, hint)


def _plausible(llm: Llm, found: _Config) -> None:
    if found.findings:
        return
    for what, value in (("layers", llm.layers), ("hidden", llm.hidden), ("heads", llm.heads), ("vocab", llm.vocab)):
        if value < 1:
            found.find(f"{what} must be at least 1", ALIASES[what][0])
    if llm.kv_heads < 1 or llm.heads % llm.kv_heads:
        message = f"{llm.heads} query heads cannot share {llm.kv_heads} key-value heads"
        found.find(message, ALIASES["kv_heads"][0])
    if llm.experts_per_token > llm.experts:
        message = f"a token cannot visit {llm.experts_per_token} of {llm.experts} experts"
        found.find(message, ALIASES["experts_per_token"][0])


# --- layers ------------------------------------------------------------------------------------------------------------


def _mixers(found: _Config, layers: int) -> list[str]:
    """How each layer mixes tokens: ``full``, ``window``, ``linear`` or ``none``."""
    hybrid = _hybrid_parts(found, layers)
    if hybrid:
        return [mixer for mixer, _ in hybrid]
    for key, names in (("layer_types", MIXERS), ("attn_type_list", MIXER_NUMBERS)):
        listed = found.items(key)
        if listed:
            return _listed(found, key, listed, names, layers)
    every = found.number("full_interval", 0)
    if every:
        return ["linear" if (i + 1) % every else "full" for i in range(layers)]
    if not _window(found):
        return ["full"] * layers
    rotary = found.items("no_rope_layers")
    if rotary and len(rotary) == layers:  # Llama 4: layers with rotary embedding see a chunk
        return ["window" if value else "full" for value in rotary]
    every = found.count("no_rope_layer_interval") or found.number("window_pattern", 0)
    if every:
        return ["window" if (i + 1) % every else "full" for i in range(layers)]
    first = found.count("max_window_layers") if found.get("use_sliding_window") else 0
    return ["window" if i >= first else "full" for i in range(layers)]


def _hybrid_parts(found: _Config, layers: int) -> list[tuple[str, str]]:
    """Mixer and feed-forward part of each layer of Nemotron-H, where a layer is one of both; empty for others."""
    key = "hybrid_override_pattern" if found.get("hybrid_override_pattern") else "layers_block_type"
    if found.kind != "nemotron_h":
        return []
    pattern = found.get(key) if isinstance(found.get(key), str) else found.items(key)
    if not pattern:
        found.find("needed key is missing: which part each layer is", key)
        return []
    unknown = sorted({str(part) for part in pattern if part not in HYBRID_PARTS})
    if unknown or len(pattern) != layers:
        found.find(f"expected {layers} of {', '.join(HYBRID_PARTS)}; found {len(pattern)}, {unknown} not known", key)
        return []
    return [HYBRID_PARTS[part] for part in pattern]


def _listed(found: _Config, key: str, listed: list[Any], names: Mapping[Any, str], layers: int) -> list[str]:
    unknown = sorted({str(kind) for kind in listed if kind not in names})
    if unknown or len(listed) != layers:
        known = ", ".join(str(name) for name in names)
        found.find(f"expected {layers} of {known}; found {len(listed)}, {unknown} not known", key)
        return ["full"] * layers
    mixers = [names[kind] for kind in listed]
    if "linear" in mixers and found.kind not in LINEAR_KINDS:
        found.find(f"recurrent layers are not known for model_type {found.kind!r}", key)
    if "window" in mixers and not found.number("sliding_window", 0):
        found.find("windowed layers are listed, but not how wide the window is", "sliding_window")
    return mixers


def _window(found: _Config) -> int:
    """Tokens that windowed layers see; 0 if there are none or the window is no narrower than the context."""
    if found.get("use_sliding_window") is False:
        return 0
    window, context = found.number("sliding_window", 0), found.number("context_tokens", 0)
    return 0 if 0 < context <= window else window


def _feed_forwards(found: _Config, layers: int) -> list[str]:
    """Feed-forward part of each layer: ``mlp``, ``moe`` or ``none``."""
    hybrid = _hybrid_parts(found, layers)
    if hybrid:
        return [part for _, part in hybrid]
    if not found.number("experts", 0):
        return ["mlp"] * layers
    chosen = found.items("moe_layers") or _with_experts(found, layers)
    return ["moe" if i in chosen else "mlp" for i in range(layers)]


def _with_experts(found: _Config, layers: int) -> list[int]:
    """Layers with experts: all but the first few, every n-th, or those of a list."""
    types = found.items("mlp_layer_types")
    if types:
        return [i for i, kind in enumerate(types) if kind == "sparse"]
    if isinstance(found.get("moe_layer_freq"), list):
        return [i for i, sparse in enumerate(found.items("moe_layer_freq")) if sparse]
    every = found.count("moe_layer_freq", 1) or 1
    step = next((found.count(key) for key in EXPERT_STEPS if found.get(key)), 1) or 1
    dense, first = found.items("mlp_only_layers"), found.number("dense_first_layers", 0)
    return [i for i in range(first, layers) if i not in dense and not (i + 1) % step and not i % every]


def _kv_heads(found: _Config, heads: int) -> int:
    if found.get("multi_query") and not found.get("new_decoder_architecture"):  # Falcon 7B, StarCoder
        return 1
    if found.kind == "falcon" and not found.get("new_decoder_architecture"):
        return heads
    return found.number("kv_heads", heads)


# --- widths ------------------------------------------------------------------------------------------------------------


def _widths(found: _Config, feed_forwards: list[str], hidden: int) -> dict[str, Any]:
    """Feed-forward parts and experts."""
    dense, sparse = feed_forwards.count("mlp"), feed_forwards.count("moe")
    default = 4 * hidden if found.kind in UNGATED else 0 if sparse and not dense else None
    intermediate = found.number("intermediate", default)
    fields: dict[str, Any] = {"mlp_layers": dense, "moe_layers": sparse, "intermediate": intermediate}
    if sparse:
        width = found.number("moe_intermediate", found.count("intermediate_size", intermediate))
        if not width:
            found.find(f"needed key is missing: {ALIASES['moe_intermediate'][0]}")
        fields |= {
            "dense_first_layers": found.number("dense_first_layers", 0),
            "experts": found.number("experts"),
            "experts_per_token": found.number("experts_per_token"),
            "moe_intermediate": width,
            "shared_intermediate": found.number("shared_intermediate", found.number("shared_experts", 0) * width),
        }
    return fields


def _latent(found: _Config) -> dict[str, Any]:
    """Fields of multi-head latent attention, if the model has it, and of its sparse form."""
    if not found.get("kv_lora_rank"):
        return {}
    keys = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    missing = [key for key in keys if not isinstance(found.get(key), int)]
    if missing:
        found.find(f"needed keys are missing: {', '.join(missing)}")
        return {}
    fields = {
        "attention": "mla",
        "q_lora_rank": found.count("q_lora_rank"),
        "kv_lora_rank": found.get("kv_lora_rank"),
        "nope_head_dim": found.get("qk_nope_head_dim"),
        "rope_head_dim": found.get("qk_rope_head_dim"),
        "v_head_dim": found.get("v_head_dim"),
    }
    if found.number("sparse_top_k", 0):
        fields |= {key: found.number(key) for key in ("sparse_top_k", "index_heads", "index_head_dim")}
    return fields


def _recurrence(found: _Config, layers: int, heads: int, head_dim: int) -> dict[str, Any]:
    """Fields of recurrent layers, if the model has some."""
    if not layers or found.kind not in LINEAR_KINDS:
        return {}
    kind = LINEAR_KINDS[found.kind]
    fields: dict[str, Any] = {"linear_layers": layers, "linear_kind": kind}
    if kind == "lightning":
        same = {"linear_heads": heads, "linear_key_heads": heads}
        return fields | same | {"linear_key_dim": head_dim, "linear_value_dim": head_dim}
    names = ("linear_heads", "linear_key_heads", "linear_key_dim", "linear_value_dim", "linear_conv")
    fields |= {name: found.number(name) for name in names}
    stated = found.get("mamba_ssm_dtype") or found.get("mamba_ssm_cache_dtype")
    return fields | {"linear_state_dtype": DTYPES.get(str(stated), ACTIVATIONS)}


# --- quantised checkpoints ----------------------------------------------------------------------------------------------


def _quantisation(found: _Config, sparse: bool) -> dict[str, Any]:
    """Data type of the checkpoint, which parts have it, and how many weights share a scale."""
    content = found.part("quantization_config")
    dtype, group = _quantised_dtype(found, content)
    if dtype is None:
        stated = str(found.get("torch_dtype") or found.get("dtype") or "")
        return {"native_dtype": DTYPES.get(stated, ACTIVATIONS)}
    experts_only = sparse and any("attn" in str(content.get(key)) for key in KEPT)
    blocks = dtype == "fp8" and bool(content.get("weight_block_size"))
    parts = "experts" if experts_only else "all"
    return {"native_dtype": dtype, "scale_group": group, "quantised_parts": parts, "block_scaled": blocks}


def _quantised_dtype(found: _Config, content: Mapping[str, Any]) -> tuple[str | None, int]:
    method = str(content.get("quant_method") or content.get("quant_algo") or "").lower()
    if not method:
        return None, 0
    if method == "modelopt":
        method = str(content.get("quant_algo", "")).lower()
    if method == "compressed-tensors":
        groups = content.get("config_groups")
        weights = _first_weights(groups if isinstance(groups, dict) else {})
        kind = "fp" if weights.get("type") == "float" else "int"
        bits, group = weights.get("num_bits"), weights.get("group_size")
    else:
        kind, bits, group = METHODS.get(method, ("int", content.get("bits") or content.get("w_bit"), 0))
        group = group or content.get("group_size") or content.get("q_group_size")
    if method in ("bitsandbytes", "bnb"):
        bits, group = (4, 64) if content.get("load_in_4bit") else (8, 0)
    if bits not in (4, 8):
        message = f"quantisation {method!r} with {bits} bits is not known"
        found.find(message, "quantization_config", "Remove it and choose `engine.weights` instead")
        return None, 0
    return f"{kind}{bits}", group if isinstance(group, int) and group > 0 else 0


def _first_weights(groups: Mapping[str, Any]) -> Mapping[str, Any]:
    """What compressed-tensors says of the weights of its first group."""
    first = next(iter(groups.values()), None)
    weights = first.get("weights") if isinstance(first, dict) else None
    return weights if isinstance(weights, dict) else {}
