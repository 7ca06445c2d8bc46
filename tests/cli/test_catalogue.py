"""``fleetsim list``, ``show``, ``schema``, ``init`` and ``trace``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from fleetsim.cli.list import KINDS

Call = Callable[..., Result]


@pytest.mark.parametrize("kind", KINDS)
def test_list(kind: str, call: Call) -> None:
    told = json.loads(call("list", kind, "--json").stdout)
    assert told["kind"] == kind
    assert told["items"]
    text = call("list", kind)
    assert text.exit_code == 0
    for item in told["items"]:
        assert item["name"] in text.stdout


def test_list_does_not_fold_when_piped(call: Call) -> None:
    lines = call("list", "accelerators").stdout.splitlines()
    items = json.loads(call("list", "accelerators", "--json").stdout)["items"]
    assert len(lines) == len(items) + 1
    for line, item in zip(lines[1:], items, strict=True):
        assert [cell.strip() for cell in re.split(r"  +", line.strip())] == [*item.values()]


def test_show_llm(call: Call) -> None:
    assert json.loads(call("show", "llm", "llama-3.1-8b", "--json").stdout)["layers"] == 32
    for name in ("llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3"):
        assert "KV per token" in call("show", "llm", name).stdout


def test_show_llm_from_a_hugging_face_config(folder: Path, call: Call) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 1000,
        "max_position_embeddings": 2048,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert json.loads(call("show", "llm", "config.json", "--json").stdout)["layers"] == 2


def test_show_accelerator(call: Call) -> None:
    told = json.loads(call("show", "accelerator", "h100-sxm", "--json").stdout)
    assert told["values"]["memory"]["source"]
    assert "source" in call("show", "accelerator", "h100-sxm").stdout


def test_show_pool(tiny: str, call: Call) -> None:
    pool = json.loads(call("show", "pool", tiny, "--json").stdout)["pools"][0]
    assert pool["fits"] is True
    assert pool["memory"]["capacity_tokens"] > 100_000
    assert pool["max_batch"] == 256
    text = call("show", "pool", tiny).stdout
    assert "main: llama-3.1-8b on 1 x h100-sxm fits" in text
    assert "least TPOT" in text
    small = call("show", "pool", "--llm", "llama-3.1-70b", "--accelerator", "a10g")
    assert "does not fit; would fit: tp 8" in small.stdout
    two = call("show", "pool", "embedded:two-pools", "--pool", "cheap").stdout
    assert "fast:" not in two


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["llm", "lama"], "unknown llm"),
        (["accelerator", "h10"], "unknown accelerator"),
        (["pool", "missing.yaml"], "no such file"),
        (["pool", "embedded:two-pools", "--pool", "cheep"], 'did you mean "cheap"'),
        (["pool", "--llm", "llama-3.1-8b"], "both --llm and --accelerator"),
    ],
)
def test_show_of_the_unknown(args: list[str], message: str, folder: Path, call: Call) -> None:
    result = call("show", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_schema(folder: Path, call: Call) -> None:
    printed = json.loads(call("schema").stdout)
    assert call("schema", "-o", "s.json").stdout == ""
    assert json.loads(Path("s.json").read_text()) == printed


def test_init_writes_a_scenario_that_is_valid_and_never_overwrites(folder: Path, call: Call) -> None:
    assert call("init").stdout == "scenario.yaml\n"
    assert call("validate", "scenario.yaml").exit_code == 0
    (folder / "scenario.yaml").write_text("mine")
    again = call("init")
    assert (again.exit_code, again.stdout) == (2, "")
    assert (folder / "scenario.yaml").read_text() == "mine"
    assert call("init", "no/such/folder/x.yaml").exit_code == 2
    (folder / "sub").mkdir()
    assert call("init", "sub").stdout.strip() == str(Path("sub/scenario.yaml"))


def test_trace_tools(tiny: str, folder: Path, call: Call) -> None:
    assert call("trace", "synth", "azure2023-conv", "a.csv", "--requests", "40", "--seed", "3").exit_code == 0
    figures = json.loads(call("trace", "describe", "a.csv", "--json").stdout)
    assert (figures["format"], figures["requests"]) == ("azure", 40)
    assert "a.csv: azure, 40 requests" in call("trace", "describe", "a.csv").stdout
    report = json.loads(call("trace", "convert", "a.csv", "b.parquet", "--json").stdout)
    assert report["requests"] == 40
    assert "40 requests as mooncake" in call("trace", "convert", "b.parquet", "c.jsonl").stdout
    assert "20 requests as mooncake" in call("trace", "export", tiny, "d.jsonl").stdout
    exported = json.loads(call("trace", "export", "embedded:quickstart", "e.parquet", "--json").stdout)
    assert exported["requests"] == 5000
    assert json.loads(call("trace", "describe", "e.parquet", "--json").stdout)["prefix"]["block_tokens"] == [16]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["describe", "missing.csv"], "missing.csv"),
        (["describe", "tiny.yaml"], "not a trace of a known format"),
        (["convert", "tiny.yaml", "x.parquet"], "not a trace"),
        (["synth", "nothing", "x.csv"], "unknown trace profile"),
        (["synth", "azure2023-conv", "x.foo"], "does not tell the format"),
        (["fetch", "nothing"], "unknown trace"),
        (["fetch", "default"], "embedded:default"),
        (["export", "embedded:multi-turn", "x.csv"], "depend on when the fleet answers"),
        (["export", "missing.yaml", "x.csv"], "no such file"),
    ],
)
def test_trace_tools_refuse(args: list[str], message: str, tiny: str, folder: Path, call: Call) -> None:
    result = call("trace", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert [p.name for p in folder.iterdir()] == ["tiny.yaml"]
