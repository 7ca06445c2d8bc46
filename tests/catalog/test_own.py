"""`engine.calibration`: what a file says replaces the catalogue's, the rest stays; mistakes are told with their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.calibration import calibration_of
from fleetsim.catalog.engine import load_engine
from fleetsim.catalog.link import load_link
from fleetsim.catalog.own import accelerator_for, calibration_for, engine_profile, link_for, load_own
from fleetsim.errors import DataError, ScenarioError
from fleetsim.experiment.check import require_valid
from fleetsim.experiment.run import run
from fleetsim.fleet.pool import describe_pool
from fleetsim.scenario.load import load_mapping
from fleetsim.scenario.schema import Engine

WHOLE = """\
about: {files: [bench.json], anything: {goes: here}}
accelerator:
  gemm:
    bf16: {compute_ratio: 0.5, memory_ratio: 0.6, overhead: 7 us, sharpness: 2, source: kernels.parquet}
engine:
  host: {value: 5, unit: ms, source: bench.json}
  frontend: {value: 0.5, unit: s, source: assumed, note: a guess}
  scale: {value: 1.5, unit: ratio, source: bench.json}
link:
  bandwidth_ratio: {value: 0.5, unit: ratio, source: kernels.parquet}
  latency: {value: 20, unit: us, source: kernels.parquet}
power:
  idle: {value: 99, unit: W, source: kernels.parquet}
"""


def scenario(**engine: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "own",
        "workload": {
            "kind": "synthetic",
            "requests": 20,
            "arrivals": {"process": "closed-loop", "concurrency": 2},
            "prompt_tokens": {"distribution": "fixed", "value": 100},
            "output_tokens": {"distribution": "fixed", "value": 10},
        },
        "pools": [{"name": "main", "llm": "llama-3.1-8b", "accelerator": "h100-sxm", "engine": engine}],
    }


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    (tmp_path / "own.yaml").write_text(WHOLE)
    return Engine(calibration="own.yaml").located(tmp_path)


def test_every_section_is_laid_over_the_catalogue(engine: Engine) -> None:
    profile, known = engine_profile(engine), load_engine("vllm")
    assert (profile.host_s, profile.frontend_s, profile.scale) == (0.005, 0.5, 1.5)
    assert (profile.runtime_bytes, profile.max_seqs) == (known.runtime_bytes, known.max_seqs)
    assert profile.sourced["host"].source == "bench.json"
    assert profile.sourced["frontend"].is_assumed
    chip = load_accelerator("h100-sxm")
    calibration = calibration_for(chip, engine)
    assert calibration.efficiency("gemm", "bf16").overhead_s == pytest.approx(7e-6)
    assert calibration.efficiency("moe", "bf16") == calibration_of(chip).efficiency("moe", "bf16")
    assert calibration.efficiency("sampler", "bf16") == calibration_of(chip).efficiency("sampler", "bf16")
    link, wire = link_for(load_link("nvlink4"), engine), load_link("nvlink4")
    assert (link.bandwidth_ratio, link.latency_s) == (0.5, pytest.approx(20e-6))
    assert (link.gather, link.send, link.latency_per_rank_s) == (wire.gather, wire.send, wire.latency_per_rank_s)
    assert accelerator_for(chip, engine).power.idle_w == 99
    assert accelerator_for(chip, engine).power.limit_w == chip.power.limit_w


def test_without_a_file_nothing_changes() -> None:
    plain, chip = Engine(), load_accelerator("h100-sxm")
    assert engine_profile(plain) is load_engine("vllm")
    assert calibration_for(chip, plain) is calibration_of(chip, "vllm")
    assert accelerator_for(chip, plain) is chip
    assert link_for(load_link("nvlink4"), plain) is load_link("nvlink4")


def test_a_run_uses_it_and_finds_it_beside_the_scenario(tmp_path: Path, engine: Engine) -> None:
    before = run(load_mapping(scenario(), (), tmp_path), tmp_path / "a").summary
    loaded = load_mapping(scenario(calibration="own.yaml"), (), tmp_path)
    result = run(loaded, tmp_path / "b")
    assert result.summary["tpot_mean_s"] - before["tpot_mean_s"] > 0.004
    assert result.summary["ttft_mean_s"] > 0.5
    assert "engine vllm.frontend = 0.5 s" in result.assumptions
    pool = describe_pool(loaded.scenario.pools[0], 0, tmp_path)
    assert pool.accelerator.power.idle_w == 99


def test_a_file_written_anew_is_read_anew(tmp_path: Path, engine: Engine) -> None:
    assert engine_profile(engine).host_s == 0.005
    (tmp_path / "own.yaml").write_text("engine: {host: {value: 6, unit: ms, source: bench.json}}")
    assert engine_profile(engine).host_s == 0.006


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engine: {hots: {value: 1, unit: ms, source: x}}", 'engine.hots: unknown key. did you mean "host"?'),
        ("engin: {}", "engin: unknown key"),
        ("engine: {host: {value: 1, unit: GB, source: x}}", "engine.host: "),
        ("engine: {host: 1 ms}", "engine.host: expected {value, unit, source}"),
        ("engine: {host: {value: 1, unit: ms}}", "engine.host: has no source"),
        ("engine: {host: {value: 1, unit: ms, source: assumed}}", "engine.host: is assumed without a note"),
        ("engine: {scale: {value: 0, unit: ratio, source: x}}", "engine.scale: must be above 0"),
        ("engine: 3", "engine: expected a mapping"),
        ("link: {latency: {value: -1, unit: us, source: x}}", "link.latency: expected a number not below 0"),
        ("accelerator: {gem: {}}", "accelerator.gem: unknown key"),
        (
            "accelerator: {gemm: {bf16: {compute_ratio: 1, source: x}}}",
            "accelerator.gemm.bf16.memory_ratio: is missing",
        ),
        ("power: {peak: {value: 1, unit: W, source: x}}", "power.peak: unknown key"),
        ("a: [", "own.yaml:"),
    ],
)
def test_mistakes_are_told(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as told:
        load_own(path)
    assert message in str(told.value)
    assert "own.yaml" in str(told.value)


@pytest.mark.parametrize("text", [None, "engine: {hots: 1}"])
def test_validate_names_the_field(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ScenarioError) as told:
        require_valid(load_mapping(scenario(calibration="own.yaml"), (), tmp_path))
    assert [finding.path for finding in told.value.findings] == ["pools[0].engine.calibration"]
