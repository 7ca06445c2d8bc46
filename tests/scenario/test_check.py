"""Checks of several fields together, against the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fleetsim.errors import Finding, ScenarioError
from fleetsim.experiment.check import check_scenario, check_workload, require_valid
from fleetsim.scenario.load import load_scenario

from .conftest import SMALL

Check = Callable[..., list[Finding]]


@pytest.fixture
def check(write: Callable[..., Path]) -> Check:
    def found(*overrides: str, text: str = SMALL) -> list[Finding]:
        return check_scenario(load_scenario(write(text), overrides))

    return found


def test_small_scenario_is_clean(check: Check) -> None:
    assert check() == []


@pytest.mark.parametrize(
    ("override", "path", "message", "hint"),
    [
        ("pools[0].llm=lama-3.1-8b", "pools[0].llm", 'unknown llm "lama-3.1-8b"', "llama-3.1-8b"),
        ("pools[0].llm=no/such/config.json", "pools[0].llm", "cannot be read", ""),
        ("pools[0].accelerator=h20O", "pools[0].accelerator", 'unknown accelerator "h20O"', "h200-sxm"),
        ("pools[0].link=nvlink9", "pools[0].link", 'unknown link "nvlink9"', "nvlink"),
        ("pools[0].server.nic=roce-40", "pools[0].server.nic", 'unknown link "roce-40"', "roce-400"),
        (
            "pools[0].llm=llama-3.1-70b",
            "pools[0].parallelism",
            "weights need 131.4 GiB",
            "would fit: parallelism {tp: 2}",
        ),
        ("pools[0].llm=llama-3.1-405b", "pools[0].parallelism", "does not fit", "{tp: 8, pp: 2}"),
        ("pools[0].parallelism.tp=3", "pools[0].parallelism.tp", "does not divide the 32 attention heads", ""),
        ("pools[0].parallelism.pp=64", "pools[0].parallelism.pp", "has 32 layers", ""),
        ("pools[0].parallelism.ep=2", "pools[0].parallelism.ep", "no experts", ""),
        ("pools[0].engine.kv.capacity_tokens=8", "pools[0].engine.kv.capacity_tokens", "below one block", ""),
        (
            "pools[0].engine.scheduler.max_batched_tokens=64",
            "pools[0].engine.scheduler.max_batched_tokens",
            "below max_seqs 256",
            "",
        ),
        ("slo.tpot=1 ms", "slo.tpot", "below what physics allows in every pool", ""),
        ("slo.ttft=1 ms", "slo.ttft", "below what physics allows in every pool", ""),
        ("slo.classes={fast: {e2el: 1 ms}}", "slo.classes.fast.e2el", "below what physics allows", ""),
        ("workload.model=qwen3-8b", "workload.model", 'no pool serves "qwen3-8b"', "llama-3.1-8b"),
        ("workload.profile=azure2023", "workload.profile", "unknown trace profile", "azure2023-code"),
        (
            "workload={kind: trace, format: azure, path: nothing.csv}",
            "workload.path",
            "no such file: nothing.csv",
            "scenario.yaml",
        ),
        ("workload={kind: trace, format: azure, path: a/b.csv}", "workload.path", "no such file", "there is no folder"),
        ("workload={kind: trace, format: azure, path: .}", "workload.path", "is a folder", ""),
        ("workload={kind: trace, format: azure, path: 'embedded:none'}", "workload.path", "no embedded trace", ""),
    ],
)
def test_errors(check: Check, override: str, path: str, message: str, hint: str) -> None:
    found = [f for f in check(override) if f.severity == "error"]
    assert [f.path for f in found][:1] == [path], [str(f) for f in found]
    assert message in found[0].message
    assert hint in found[0].hint
    assert found[0].file


@pytest.mark.parametrize(
    ("override", "path", "message"),
    [
        ("pools[0]={accelerator: a100-80, engine: {weights: fp8}}", "pools[0].engine.weights", "no fp8 arithmetic"),
        ("pools[0].parallelism.tp=16", "pools[0].parallelism.tp", "spans nodes of 8"),
        ("workload.prompt_tokens.value=150000", "pools[0].llm", "was made for 131,072"),
        ("pools[0].engine.kv.capacity_tokens=64", "pools[0]", "longer ones fail"),
    ],
)
def test_warnings(check: Check, override: str, path: str, message: str) -> None:
    found = [f for f in check(override) if f.severity == "warning" and f.path == path]
    assert any(message in f.message for f in found)


def test_moe_parallelism(check: Check) -> None:
    base = "pools[0]={llm: qwen3-30b-a3b, parallelism: {dp: 2, ep: %d}}"
    assert [f for f in check(base % 2) if f.severity == "error"] == []
    assert "does not divide tp x dp = 2" in check(base % 3)[0].message


def test_pool_names_are_unique(check: Check) -> None:
    twice = SMALL + "  - {name: main, llm: qwen3-8b, accelerator: h100-sxm}\n"
    found = check(text=twice)
    assert [(f.path, f.line) for f in found] == [("pools[1].name", 15)]


def test_an_slo_that_only_some_pools_miss_is_a_warning(check: Check) -> None:
    second = SMALL + "  - {name: slow, llm: llama-3.1-8b, accelerator: a10g}\n"
    found = check("slo.tpot=15 ms", text=second)
    assert [(f.path, f.severity) for f in found] == [("slo.tpot", "warning")]


def test_a_sliding_window_is_simulated_and_needs_no_warning(write: Callable[..., Path]) -> None:
    config = """{"model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000, "sliding_window": WINDOW}"""
    for window in ("4096", "null"):
        write(config.replace("WINDOW", window), f"{window}.json")
        found = check_scenario(load_scenario(write(), [f"pools[0].llm={window}.json"]))
        assert found == []


def test_all_at_once_errors_first(check: Check) -> None:
    found = check("pools[0].accelerator=h20O", "workload.model=x", "pools[0].link=y")
    assert {f.path for f in found} == {"pools[0].accelerator", "workload.model", "pools[0].link"}


def test_force_turns_physics_into_a_warning(write: Callable[..., Path]) -> None:
    loaded = load_scenario(write(), ["slo.tpot=1 ms"])
    with pytest.raises(ScenarioError):
        require_valid(loaded)
    assert [f.severity for f in require_valid(loaded, force=True)] == ["warning"]
    with pytest.raises(ScenarioError):
        require_valid(load_scenario(write(), ["pools[0].accelerator=x"]), force=True)


def test_workload_is_read_to_its_end(write: Callable[..., Path]) -> None:
    write("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:47,x,1\n", "t.csv")
    loaded = load_scenario(write(), ["workload={kind: trace, format: azure, path: t.csv}"])
    assert check_scenario(loaded) == []
    found = check_workload(loaded)
    assert found[0].line == 3
    assert "'x'" in found[0].message


def test_blocks_of_the_trace_and_of_the_engine(write: Callable[..., Path]) -> None:
    write('{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}\n', "m.jsonl")
    trace = "workload={kind: trace, format: mooncake, path: m.jsonl}"
    for tokens, fits in ((16, True), (512, True), (1024, True), (100, False)):
        loaded = load_scenario(write(), [trace, f"pools[0].engine.kv.block_tokens={tokens}"])
        assert [f.path for f in check_workload(loaded)] == ([] if fits else ["pools[0].engine.kv.block_tokens"])


def test_labels_that_no_request_can_have(check: Check) -> None:
    """Classes and tenants are compared with what the workload's parts say; a trace may name others."""
    found = check(
        "workload.class=chat",
        "classes={chta: {priority: 1}, chat: {}}",
        "slo.classes={batch: {e2el: 1 h}}",
        "tenants={anna: {weight: 2}}",
    )
    assert [(f.path, f.severity) for f in found] == [
        ("classes.chta", "warning"),
        ("slo.classes.batch", "warning"),
        ("tenants.anna", "warning"),
    ]
    assert "did you mean" in found[0].hint.lower()
    assert "set `tenant`" in found[2].hint


def test_orders_that_lack_what_they_sort_by(check: Check) -> None:
    assert [f.hint for f in check("pools[0].engine.order=srpt")] == ["set gateway.predictor"]
    assert check("pools[0].engine.order=srpt", "gateway.predictor=oracle") == []
    assert check("pools[0].engine.order=edf") == []
    (found,) = check("pools[0].engine.order=edf", text=SMALL.replace("ttft: 2 s, ", ""))
    assert (found.path, found.severity) == ("pools[0].engine.order", "warning")
    assert "deadlines" in found.message
    (found,) = check("pools[0].engine={order: priority, scheduler: flow-prefill}")
    assert (found.path, found.severity) == ("pools[0].engine.order", "error")


def test_parts_of_a_mix_are_checked(check: Check) -> None:
    parts = (
        "workload={kind: mix, parts: {bad: {kind: trace, format: azure, path: none.csv}, "
        "worse: {kind: synthetic, requests: 5, profile: azure2023, model: qwen3-8b}}}"
    )
    text = SMALL[: SMALL.index("workload:")] + SMALL[SMALL.index("slo:") :]
    assert [f.path for f in check(parts, text=text)] == [
        "workload.parts.bad.path",
        "workload.parts.worse.profile",
        "workload.parts.worse.model",
    ]


APART = """\
schema: 1
name: apart
workload: {kind: synthetic, requests: 5, arrivals: {process: poisson, rate: 1 req/s},
  prompt_tokens: {distribution: fixed, value: 100}, output_tokens: {distribution: fixed, value: 10}}
pools:
  - {name: a, llm: llama-3.1-8b, accelerator: h100-sxm, role: prefill}
  - {name: b, llm: llama-3.1-8b, accelerator: h100-sxm, role: decode}
"""


def test_pools_for_prompts_and_answers_meet(check: Check) -> None:
    assert check(text=APART) == []
    lonely = check("pools[1].llm=qwen3-14b", text=APART)
    assert [f.message for f in lonely] == [
        "no pool computes answers of llama-3.1-8b",
        "no pool computes prompts of qwen3-14b",
    ]
    formats = check("pools[0].engine.kv.dtype=fp8", text=APART)
    assert len(formats) == 2
    assert "cannot be handed over" in formats[0].message
    assert check("pools[0].role=mixed", text=APART) == []
