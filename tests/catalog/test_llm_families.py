"""Configurations of model families, by published sizes; and what is refused rather than read wrongly."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.catalog.architecture import Llm
from fleetsim.catalog.data import locate, read_yaml
from fleetsim.catalog.hugging_face import from_hugging_face
from fleetsim.errors import DataError


def read(**config: Any) -> Llm:
    return from_hugging_face(config, "model", Path("config.json"), "test")


def sizes(layers: int, hidden: int, heads: int, intermediate: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        **more,
    }


SMALL = sizes(8, 512, 8, 2048, 1000, num_key_value_heads=2, max_position_embeddings=32_768)

FAMILIES: dict[str, tuple[float, dict[str, Any]]] = {
    "falcon-7b": (
        6.92e9,
        {
            "model_type": "falcon",
            "hidden_size": 4544,
            "num_hidden_layers": 32,
            "num_attention_heads": 71,
            "vocab_size": 65024,
            "multi_query": True,
            "new_decoder_architecture": False,
        },
    ),
    "falcon-40b": (
        41.3e9,
        {
            "model_type": "falcon",
            "hidden_size": 8192,
            "num_hidden_layers": 60,
            "num_attention_heads": 128,
            "num_kv_heads": 8,
            "vocab_size": 65024,
            "multi_query": True,
            "new_decoder_architecture": True,
        },
    ),
    "opt-6.7b": (
        6.66e9,
        {
            "model_type": "opt",
            "hidden_size": 4096,
            "ffn_dim": 16384,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 50272,
        },
    ),
    "bloom-7b1": (
        7.07e9,
        {"model_type": "bloom", "n_embed": 4096, "n_layer": 30, "num_attention_heads": 32, "vocab_size": 250880},
    ),
    "gpt-neox-20b": (20.55e9, {"model_type": "gpt_neox", **sizes(44, 6144, 64, 24576, 50432)}),
    "starcoder2-3b": (
        3.03e9,
        {"model_type": "starcoder2", **sizes(30, 3072, 24, 12288, 49152, num_key_value_heads=2)},
    ),
    "phi-2": (2.78e9, {"model_type": "phi", **sizes(32, 2560, 32, 10240, 51200)}),
    "command-r-v01": (34.98e9, {"model_type": "cohere", **sizes(40, 8192, 64, 22528, 256000)}),
    "command-r7b": (
        8.03e9,
        {"model_type": "cohere2", **sizes(32, 4096, 32, 14336, 256000, num_key_value_heads=8)},
    ),
    "minitron-8b": (
        8.27e9,
        {"model_type": "nemotron", **sizes(32, 4096, 48, 16384, 256000, num_key_value_heads=8, head_dim=128)},
    ),
    "glm-4-9b-0414": (
        9.4e9,
        {"model_type": "glm4", **sizes(40, 4096, 32, 13696, 151552, num_key_value_heads=2, head_dim=128)},
    ),
    "glm-4-9b": (
        9.4e9,
        {
            "model_type": "chatglm",
            "num_layers": 40,
            "hidden_size": 4096,
            "ffn_hidden_size": 13696,
            "num_attention_heads": 32,
            "multi_query_group_num": 2,
            "kv_channels": 128,
            "padded_vocab_size": 151552,
            "seq_length": 131072,
            "add_qkv_bias": True,
        },
    ),
    "qwen1.5-moe-a2.7b": (
        14.3e9,
        {
            "model_type": "qwen2_moe",
            **sizes(24, 2048, 16, 5632, 151936, num_key_value_heads=16),
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "sliding_window": 32768,
            "use_sliding_window": False,
        },
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_of_a_family(name: str) -> None:
    published, config = FAMILIES[name]
    assert read(**config).parameters_total == pytest.approx(published, rel=0.01)


def test_an_unknown_family_with_the_usual_keys_loads() -> None:
    llm = read(model_type="brand_new", **SMALL)
    assert (llm.full_layers, llm.mlp_layers, llm.kv_heads, llm.window_layers) == (8, 8, 2, 0)


# --- kinds of layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "full", "windowed"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, 0, 8),
        ({"model_type": "mistral", "sliding_window": None}, 8, 0),
        ({"model_type": "mistral"}, 0, 8),
        ({"model_type": "phi3", "sliding_window": 262_144}, 8, 0),
        ({"model_type": "gemma2"}, 4, 4),
        ({"model_type": "gemma3_text", "sliding_window": 1024}, 1, 7),
        ({"model_type": "gemma3_text", "sliding_window": 1024, "_sliding_window_pattern": 4}, 2, 6),
        ({"model_type": "cohere2"}, 2, 6),
        ({"model_type": "qwen2", "sliding_window": 4096}, 8, 0),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 6}, 6, 2),
        ({"model_type": "x", "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 4}, 4, 4),
        ({"model_type": "deepseek_v32", "layer_types": ["deepseek_sparse_attention"] * 8}, 8, 0),
    ],
)
def test_windowed_layers(config: dict[str, Any], full: int, windowed: int) -> None:
    llm = read(**SMALL | config)
    assert (llm.full_layers, llm.window_layers) == (full, windowed)
    assert (llm.sliding_window > 0) == (windowed > 0)


LLAMA4 = {
    **SMALL,
    "model_type": "llama4_text",
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 4096,
    "attention_chunk_size": 1024,
}


def test_llama_4_has_chunks_and_interleaved_experts() -> None:
    llm = read(**LLAMA4, interleave_moe_layer_step=2)
    assert (llm.full_layers, llm.window_layers, llm.sliding_window) == (2, 6, 1024)
    assert (llm.mlp_layers, llm.moe_layers, llm.intermediate, llm.moe_intermediate) == (4, 4, 4096, 2048)
    assert llm.shared_intermediate == 2048
    listed = read(**LLAMA4, no_rope_layers=[1, 1, 1, 1, 1, 1, 1, 0], moe_layers=[7])
    assert (listed.full_layers, listed.window_layers, listed.moe_layers) == (1, 7, 1)
    wrapped = read(model_type="llama4", text_config=LLAMA4, vision_config={"hidden_size": 64})
    assert wrapped.left_out == "vision tower"
    assert wrapped.hidden == 512


MOE = {**SMALL, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}


@pytest.mark.parametrize(
    ("config", "sparse"),
    [
        ({}, 8),
        ({"first_k_dense_replace": 3}, 5),
        ({"decoder_sparse_step": 2}, 4),
        ({"mlp_only_layers": [0, 3]}, 6),
        ({"moe_layer_freq": 2}, 4),
        ({"moe_layer_freq": [0, 0, 1, 1, 1, 1, 1, 1]}, 6),
        ({"mlp_layer_types": ["dense"] * 3 + ["sparse"] * 5}, 5),
    ],
)
def test_layers_with_experts(config: dict[str, Any], sparse: int) -> None:
    llm = read(**MOE, **config)
    assert (llm.moe_layers, llm.mlp_layers) == (sparse, 8 - sparse)


GATED_DELTA_NET = {
    **SMALL,
    "model_type": "qwen3_next",
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_value_head_dim": 32,
}


def test_gated_delta_net_by_hand() -> None:
    llm = read(**GATED_DELTA_NET)
    assert (llm.full_layers, llm.linear_layers, llm.linear_kind) == (2, 6, "gated_delta_net")
    assert llm.attention_gate
    keys, values = 4 * 64, 8 * 32
    assert llm.linear_projections == [(512, 2 * keys + 2 * values + 2 * 8), (values, 512)]
    assert llm.linear_state_values == 8 * 64 * 32 + 3 * (2 * keys + values)
    assert llm.linear_flops_per_token == 7 * 8 * 64 * 32 + 2 * 4 * (2 * keys + values)
    assert llm.linear_state_bytes == 6 * 2 * llm.linear_state_values
    wide = read(**GATED_DELTA_NET, mamba_ssm_dtype="float32")
    assert wide.linear_state_bytes - llm.linear_state_bytes == 6 * 2 * 8 * 64 * 32
    assert llm.kv_bytes_per_token() == 2 * 2 * 2 * 64 * 2  # two full layers


NEMOTRON_H = {
    **SMALL,
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "M-M*-MEM",
    "mamba_num_heads": 16,
    "mamba_head_dim": 64,
    "ssm_state_size": 128,
    "n_groups": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
}


def test_nemotron_h_by_hand() -> None:
    llm = read(**NEMOTRON_H)
    assert (llm.linear_layers, llm.full_layers, llm.mlp_layers, llm.moe_layers) == (4, 1, 2, 1)
    assert not llm.gated
    keys, values = 4 * 128, 16 * 64
    assert llm.linear_projections == [(512, 2 * keys + 2 * values + 16), (values, 512)]
    assert llm.linear_state_values == 16 * 128 * 64 + 3 * (2 * keys + values)
    assert llm.linear_flops_per_token == 5 * 16 * 128 * 64 + 2 * 4 * (2 * keys + values)
    words = ["mamba", "mlp", "mamba", "attention", "mlp", "mamba", "moe", "mamba"]
    without = {key: value for key, value in NEMOTRON_H.items() if key != "hybrid_override_pattern"}
    assert read(**without, layers_block_type=words) == llm


def test_lightning_attention_by_hand() -> None:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    llm = read(**SMALL, **experts, model_type="minimax_m1", attn_type_list=[0, 0, 0, 1] * 2)
    assert (llm.full_layers, llm.linear_layers, llm.moe_layers) == (2, 6, 8)
    assert llm.linear_projections == [(512, 4 * 512), (512, 512)]
    assert llm.linear_state_values == 8 * 64 * 64
    assert llm.linear_flops_per_token == 5 * 8 * 64 * 64


def test_sparse_attention_has_an_indexer() -> None:
    latent = {
        "kv_lora_rank": 64,
        "q_lora_rank": 128,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
    }
    index = {"index_topk": 256, "index_n_heads": 4, "index_head_dim": 32}
    dense, sparse = read(**SMALL, **latent), read(**SMALL, **latent, **index)
    assert (sparse.sparse_top_k, sparse.index_heads, sparse.index_head_dim) == (256, 4, 32)
    added = 128 * 4 * 32 + 512 * 32 + 512 * 4
    assert sparse.parameters_total - dense.parameters_total == 8 * added
    assert sparse.kv_bytes_per_token() - dense.kv_bytes_per_token() == 8 * (32 + 4)
    assert sparse.index_flops_per_pair == 2 * 4 * 32
    assert dense.index_flops_per_pair == 0


# --- quantised checkpoints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantisation", "dtype", "parts", "width"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", "all", 1.0),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}, "fp4", "experts", 0.53125),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, "fp4", "all", 0.5625),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8", "all", 1.0),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4", "all", 0.515625),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "int4", "all", 0.5625),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, "int4", "all", 0.515625),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8", "all", 1.0),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4", "all", 0.53125),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
                "ignore": ["lm_head", "re:.*self_attn.*"],
            },
            "int4",
            "experts",
            0.5625,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
            "all",
            1.0,
        ),
    ],
)
def test_quantised_checkpoints(quantisation: dict[str, Any], dtype: str, parts: str, width: float) -> None:
    llm = read(**MOE, quantization_config=quantisation)
    assert (llm.native_dtype, llm.quantised_parts) == (dtype, parts)
    assert llm.expert_width() == width
    assert llm.plain_width() == (2.0 if parts == "experts" else width)
    experts = llm.moe_layers * llm.experts * llm.expert_parameters
    kept = llm.other_parameters + llm.moe_layers * llm.router_parameters
    assert llm.weight_bytes() == pytest.approx(experts * width + llm.plain_parameters * llm.plain_width() + 2 * kept)
    assert llm.plain_dtype("fp8") == "fp8"


# --- refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "jamba", "attn_layer_period": 8, "mamba_d_state": 16}, "attn_layer_period: stands for Mamba-1"),
        ({"model_type": "falcon_h1", "mamba_d_ssm": 1024}, "mamba_d_ssm: recurrent layers are not known"),
        ({"model_type": "kimi_linear", "linear_attn_config": {"a": 1}}, "linear_attn_config"),
        ({"model_type": "nemotron-nas", "block_configs": [{}]}, "layers of different widths"),
        ({"model_type": "gemma3n_text", "altup_num_inputs": 4}, "several residual streams"),
        ({"model_type": "mllama_text_model", "cross_attention_layers": [3]}, "cross attention"),
        ({"model_type": "deepseek_v4", "compress_ratios": [0, 4]}, "a compressed cache"),
        ({"model_type": "glm_moe_dsa", "indexer_types": ["full", "shared"]}, "share an indexer"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder"),
        ({"model_type": "lfm2", "layer_types": ["conv"] * 8}, "conv"),
        ({"model_type": "new", "layer_types": ["linear_attention"] * 8}, "recurrent layers are not known"),
        ({"model_type": "new", "full_attention_interval": 4}, "layers of different kinds"),
        ({"model_type": "new", "layers_block_type": ["mamba", "attention"] * 4}, "layers of different kinds"),
        ({"model_type": "qwen3", "layer_types": ["full_attention"] * 7}, "expected 8 of"),
        ({"model_type": "x", "layer_types": ["sliding_attention"] * 8}, "how wide the window is"),
        ({**NEMOTRON_H, "hybrid_override_pattern": "M-M*-MXM"}, "'X'"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "quantisation 'aqlm'"),
    ],
)
def test_what_is_not_understood_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(**SMALL | config)
    assert message in str(caught.value)
    assert "config.json" in str(caught.value)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 10**12),
    st.floats(),
    st.text(max_size=3),
    st.lists(
        st.one_of(st.integers(-1, 9), st.text(max_size=2), st.none(), st.lists(st.integers(), max_size=1)), max_size=9
    ),
    st.dictionaries(
        st.sampled_from(["quant_method", "bits", "config_groups", "ignore", "a"]), st.integers(0, 8), max_size=3
    ),
)
CONFIGS = {
    name: read_yaml(locate("llm", name))["config"]
    for name in (
        "gpt-oss-20b",
        "qwen3-next-80b-a3b",
        "nemotron-3-nano-30b-a3b",
        "llama-4-maverick",
        "deepseek-v3.2",
        "kimi-k2.5",
    )
}
KEYS = sorted(
    {key for config in CONFIGS.values() for key in config} | {"moe_layers", "mlp_layer_types", "attn_type_list"}
)


@given(st.sampled_from(sorted(CONFIGS)), st.sampled_from(KEYS), JUNK)
def test_junk_is_a_finding_never_a_crash(name: str, key: str, junk: Any) -> None:
    try:
        llm = read(**CONFIGS[name] | {key: junk})
    except DataError:
        return
    assert llm.weight_bytes() > 0
    assert llm.attention_layers + llm.linear_layers <= llm.layers
