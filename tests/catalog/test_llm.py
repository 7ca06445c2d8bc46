"""Architectures: parameter counts against the publishers', cache sizes by hand, and foreign configurations."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.catalog.data import names
from fleetsim.catalog.hugging_face import from_hugging_face
from fleetsim.catalog.llm import load_llm
from fleetsim.errors import DataError

VOCABULARIES_LEFT_OUT = {
    "gpt-oss-20b": 1,
    "gpt-oss-120b": 1,
    "deepseek-v2-lite": 1,
    "qwen3.5-35b-a3b": 1,
    "glm-4.5-air": 2,
    "glm-5": 2,
    "minimax-m1": 2,
    "minimax-m2": 2,
    "minimax-m2.5": 2,
    "qwen3-next-80b-a3b": 2,
}
"""Publishers that leave the embedding, or it and the LM head, out of the active count."""


@pytest.mark.parametrize("name", names("llm"))
def test_parameters_match_the_published_count(name: str) -> None:
    llm = load_llm(name)
    exact = llm.published_parameters % 1_000_000 > 0
    assert llm.parameters_total == pytest.approx(llm.published_parameters, rel=1e-4 if exact else 0.03)
    active = llm.parameters_active - VOCABULARIES_LEFT_OUT.get(name, 0) * llm.embedding_parameters
    rounded = name == "qwen3-next-80b-a3b"  # its card says 3B: one digit
    assert active == pytest.approx(llm.published_active_parameters, rel=0.09 if rounded else 0.06)
    assert llm.is_moe == (llm.parameters_active < llm.parameters_total)


@pytest.mark.parametrize("name", names("llm"))
def test_every_layer_has_a_kind(name: str) -> None:
    llm = load_llm(name)
    assert llm.attention_layers == llm.full_layers + llm.window_layers
    mixers, feed_forwards = llm.attention_layers + llm.linear_layers, llm.mlp_layers + llm.moe_layers
    if name.startswith("nemotron") and llm.linear_layers:  # a layer is one part
        assert mixers + feed_forwards == llm.layers
    else:
        assert mixers == feed_forwards == llm.layers
    assert (llm.sliding_window > 0) == (llm.window_layers > 0)
    assert (
        bool(llm.linear_kind)
        == bool(llm.linear_projections)
        == bool(llm.linear_state_values)
        == bool(llm.linear_layers)
    )


def test_the_catalogue_is_wide() -> None:
    assert len(names("llm")) >= 60


@pytest.mark.parametrize(
    ("name", "kib"),
    [
        ("llama-3.1-8b", 128),
        ("llama-3.1-70b", 320),
        ("qwen2.5-7b", 56),
        ("qwen3-32b", 256),
        ("qwen3-30b-a3b", 96),
        ("deepseek-v3", 61 * 576 * 2 / 1024),
    ],
)
def test_cache_per_token(name: str, kib: float) -> None:
    llm = load_llm(name)
    assert llm.kv_bytes_per_token() == kib * 1024
    assert llm.kv_bytes_per_token("fp8") == kib * 512


def test_weights_in_other_types() -> None:
    llm = load_llm("llama-3.1-8b")
    assert llm.weight_bytes() == 2 * llm.parameters_total
    assert llm.weight_bytes("fp8") == llm.layer_parameters + 2 * llm.other_parameters
    assert llm.weight_bytes("int4") == llm.layer_parameters * (0.5 + 2 / 128) + 2 * llm.other_parameters
    assert load_llm("deepseek-v3").native_dtype == "fp8"


def test_mixture_of_experts_fields() -> None:
    llm = load_llm("deepseek-v3")
    assert (llm.attention, llm.experts, llm.experts_per_token, llm.mlp_layers, llm.moe_layers) == (
        "mla",
        256,
        8,
        3,
        58,
    )
    assert llm.shared_intermediate == 2048
    mixtral = load_llm("mixtral-8x7b")
    assert (mixtral.experts, mixtral.experts_per_token, mixtral.moe_intermediate, mixtral.mlp_layers) == (
        8,
        2,
        14336,
        0,
    )


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def write(folder: Path, config: object) -> Path:
    path = folder / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def test_config_by_path(tmp_path: Path) -> None:
    path = write(tmp_path, LLAMA)
    llm = load_llm("config.json", tmp_path)
    assert llm.parameters_total == pytest.approx(1.2358e9, rel=1e-3)  # Llama 3.2 1B
    assert load_llm(str(path)) == llm
    assert load_llm(".", tmp_path) == llm
    assert llm.name == tmp_path.name


@pytest.mark.parametrize(
    "removed", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"]
)
def test_missing_key_is_named(tmp_path: Path, removed: str) -> None:
    path = write(tmp_path, {k: v for k, v in LLAMA.items() if k != removed})
    with pytest.raises(DataError) as caught:
        load_llm(str(path))
    assert removed in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected the object"),
        ("{}", "num_hidden_layers"),
        (LLAMA | {"hidden_size": "2048"}, "expected a count"),
        (LLAMA | {"hidden_size": -1}, "expected a count"),
        (LLAMA | {"num_key_value_heads": 7}, "cannot share"),
        (LLAMA | {"num_experts": 4, "num_experts_per_tok": 8}, "cannot visit"),
        (LLAMA | {"num_experts": 4}, "num_experts_per_tok"),
        (LLAMA | {"kv_lora_rank": 512}, "qk_nope_head_dim"),
    ],
)
def test_bad_config(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_llm(str(write(tmp_path, content)))
    assert message in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_llm("nowhere/config.json", tmp_path)


def test_nested_and_foreign_keys(tmp_path: Path) -> None:
    nested = {
        "model_type": "gemma3",
        "text_config": LLAMA | {"model_type": "gemma3_text", "head_dim": 256, "sliding_window": 1024},
    }
    llm = load_llm(str(write(tmp_path, nested)))
    assert (llm.head_dim, llm.tied_embeddings, llm.sliding_window, llm.head_norm) == (256, True, 1024, True)
    gpt2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}
    llm = from_hugging_face(gpt2, "gpt2", tmp_path, "test")
    assert llm.parameters_total == pytest.approx(124e6, rel=0.01)
    assert not llm.gated


@pytest.mark.parametrize(
    ("quantisation", "dtype"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "fp4"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({}, "bf16"),
    ],
)
def test_native_type(tmp_path: Path, quantisation: dict[str, object], dtype: str) -> None:
    assert load_llm(str(write(tmp_path, LLAMA | {"quantization_config": quantisation}))).native_dtype == dtype


def test_sparse_step_and_listed_dense_layers(tmp_path: Path) -> None:
    moe = LLAMA | {"model_type": "qwen2_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512}
    assert from_hugging_face(moe | {"decoder_sparse_step": 2}, "x", tmp_path, "t").moe_layers == 8
    assert from_hugging_face(moe | {"mlp_only_layers": [0, 3]}, "x", tmp_path, "t").mlp_layers == 2


counts = st.integers(1, 64)


@given(counts, counts, st.integers(1, 8), st.integers(1, 8), counts)
def test_parameters_grow_with_every_dimension(layers: int, hidden: int, kv: int, group: int, inter: int) -> None:
    def total(**change: int) -> int:
        sizes = {
            "num_hidden_layers": layers,
            "hidden_size": 16 * hidden,
            "num_attention_heads": kv * group,
            "num_key_value_heads": kv,
            "head_dim": 16,
            "intermediate_size": 16 * inter,
            "vocab_size": 1000,
        }
        return from_hugging_face(sizes | change, "x", Path("x"), "t").parameters_total

    base = total()
    assert total(num_hidden_layers=layers + 1) > base
    assert total(hidden_size=16 * hidden + 16) > base
    assert total(intermediate_size=16 * inter + 16) > base
    assert total(vocab_size=1001) > base
