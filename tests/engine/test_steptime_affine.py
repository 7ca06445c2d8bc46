"""Five numbers: the formula, the fit that finds them, and what the results say about steps beyond the fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fleetsim
from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.link import load_link
from fleetsim.catalog.llm import load_llm
from fleetsim.engine.steptime.affine import Affine, fit
from fleetsim.errors import ScenarioError
from fleetsim.scenario.schema import Engine, Parallelism
from fleetsim.testing import check_step_time_model

NUMBERS: dict[str, Any] = {
    "step": "5 ms",
    "prompt_token": "20 us",
    "prompt_pair": "2 ns",
    "context_token": "10 ns",
    "sequence": "30 us",
}


def model(**config: Any) -> Affine:
    chip = load_accelerator("h100-sxm")
    settings = Affine.Config.model_validate(NUMBERS | config)
    return Affine(settings, load_llm("llama-3.1-8b"), chip, load_link(chip.link), Parallelism(tp=2), Engine())


def scenario(**step_time: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "affine",
        "workload": {
            "kind": "synthetic",
            "requests": 20,
            "arrivals": {"process": "poisson", "rate": "5 req/s"},
            "prompt_tokens": {"distribution": "fixed", "value": 700},
            "output_tokens": {"distribution": "fixed", "value": 30},
        },
        "pools": [
            {
                "name": "main",
                "llm": "llama-3.1-8b",
                "accelerator": "h100-sxm",
                "engine": {"step_time": {"model": "affine", **NUMBERS, **step_time}},
            }
        ],
    }


def test_a_step_is_the_sum_of_its_parts_with_one_constant() -> None:
    """10 prompt tokens after 100 (1055 pairs) beside 3 decodes with 600 tokens of context."""
    time_s, _ = model().mixed(13, 4, 1055, 110, 1, 3, 600, 13)
    assert time_s == pytest.approx(5e-3 + 10 * 20e-6 + 1055 * 2e-9 + 600 * 10e-9 + 3 * 30e-6, rel=1e-12)
    line = model().decode(3, 600, 3)
    assert line.time_s + 600 * line.time_per_ctx_s == pytest.approx(5e-3 + 600 * 10e-9 + 3 * 30e-6, rel=1e-12)


def test_powers_are_per_accelerator_and_the_energy_is_the_operators_unless_said() -> None:
    said = model(idle_power="50 W", static_power="100 W", dynamic_power="200 W", limit_power="1.5 kW")
    assert (said.idle_w, said.static_w, said.limit_w) == (100, 200, 3000)
    time_s, energy_j = said.mixed(512, 1, 512 * 513 // 2, 512, 1, 0, 0, 512)
    assert energy_j == pytest.approx(400 * time_s, rel=1e-12)
    catalogue = model()
    assert catalogue.limit_w == 2 * load_accelerator("h100-sxm").power.limit_w
    assert catalogue.mixed(512, 1, 512 * 513 // 2, 512, 1, 0, 0, 512)[1] > 0
    slower = model(step="50 ms")
    assert slower.decode(4, 400, 4).energy_j == catalogue.decode(4, 400, 4).energy_j


@pytest.mark.parametrize("config", [{}, {"dynamic_power": "200 W"}, {"context_token": 0, "prompt_pair": 0}])
def test_it_passes_the_checker(config: dict[str, Any]) -> None:
    check_step_time_model(Affine, NUMBERS | config)


def steps(seed: int, count: int = 300) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    batch = rng.integers(0, 200, count)
    prompt = np.where(rng.random(count) < 0.5, 0, rng.integers(1, 4096, count))
    prompt[batch == 0] += 1
    pairs = prompt * (prompt + 1) // 2
    return prompt, pairs, batch, batch * rng.integers(1, 8000, count)


TRUE = np.array([6e-3, 3e-5, 1.5e-9, 2e-8, 4e-5])


def durations(prompt: Any, pairs: Any, batch: Any, ctx: Any) -> np.ndarray:
    return np.stack([np.ones(len(prompt)), prompt, pairs, ctx, batch], axis=1) @ TRUE


def test_the_fit_finds_the_numbers_that_made_the_steps() -> None:
    rows = steps(1)
    found = fit(*rows, durations(*rows))
    numbers = (found.step_s, found.prompt_token_s, found.prompt_pair_s, found.context_token_s, found.sequence_s)
    np.testing.assert_allclose(numbers, TRUE, rtol=1e-8)
    assert np.abs(found.errors).max() < 1e-9
    assert found.tokens_max == int((rows[0] + rows[2]).max())
    again = Affine.Config.model_validate({k: v for k, v in found.parameters().items() if k != "model"})
    assert again.prompt_pair == pytest.approx(1.5e-9, rel=1e-8)
    assert again.batch_max == rows[2].max()


def test_the_fit_weighs_relative_errors_and_gives_nothing_below_zero() -> None:
    """Times with 5 % of noise; contexts that seem to cost less than nothing."""
    rows = steps(2)
    noise = np.random.default_rng(3).normal(1, 0.05, 300)
    found = fit(*rows, durations(*rows) * noise)
    assert np.sqrt(np.mean(found.errors**2)) == pytest.approx(0.05, abs=0.006)
    assert np.abs(found.errors).max() < 0.25
    cheaper = durations(*rows) - 2.5e-8 * rows[3]
    assert fit(*rows, np.maximum(cheaper, 1e-4)).context_token_s == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [r[:4] for r in rows], "five steps at least, found 4"),
        (lambda rows: [*rows[:4], rows[4][:-1]], "columns of one length"),
        (lambda rows: [*rows[:4], -rows[4]], "above zero"),
        (lambda rows: [-rows[0], *rows[1:]], "not below zero"),
    ],
)
def test_the_fit_refuses_what_cannot_be(change: Any, message: str) -> None:
    rows = steps(4)
    with pytest.raises(ValueError, match=message):
        fit(*change([*rows, durations(*rows)]))


def test_steps_beyond_the_fit_are_listed_with_the_assumptions(tmp_path: Path) -> None:
    result = fleetsim.run(scenario(tokens_max=512, batch_max=1000, context_max=300), out=tmp_path / "out")
    told = [text for text in result.extrapolated if "extrapolated" in text]
    assert len(told) == 2
    assert "main: step times are extrapolated: up to 70" in told[0]
    assert told[0].endswith("tokens per step, the fit ends at 512")
    assert "context per decoding sequence, the fit ends at 300" in told[1]
    known = fleetsim.run(scenario(tokens_max=100_000), out=tmp_path / "known")
    assert not [text for text in known.extrapolated if "extrapolated" in text]


def test_missing_numbers_and_steps_without_time_are_refused(tmp_path: Path) -> None:
    broken = scenario()
    del broken["pools"][0]["engine"]["step_time"]["step"]
    with pytest.raises(ScenarioError, match=r'engine\.step_time\.step: "step" is missing'):
        fleetsim.run(broken, out=tmp_path / "out")
    with pytest.raises(ScenarioError, match="some steps would take no time"):
        fleetsim.run(scenario(step=0, sequence=0), out=tmp_path / "out")
