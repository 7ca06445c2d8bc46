"""Paper files in general: what is refused, what metrics and verdicts are, how runs are made and kept."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fleetsim.cli.main import cli
from fleetsim.errors import ScenarioError
from fleetsim.experiment.replicate import Kept
from fleetsim.reproduce.measure import measure
from fleetsim.reproduce.page import page, write_back
from fleetsim.reproduce.paper import Figure, Metric, load_paper
from fleetsim.reproduce.reproduce import Outcome, judged, reproduce, verdict_of, worst

HEAD = """\
# A comment that stays.
paper: {title: T, venue: V, link: L}
setting: S
speed: fast
seeds: 3
scenario:
  workload:
    kind: synthetic
    requests: 60
    arrivals: {process: poisson, rate: 20 req/s}
    prompt_tokens: {distribution: lognormal, mean: 600, cv: 1, max: 4000}
    output_tokens: {distribution: lognormal, mean: 20, cv: 1, min: 1, max: 100}
  pools:
    - {name: a, llm: llama-3.1-8b, accelerator: h100-sxm, replicas: 2}   # two
arms:
  one: {}
  same: {}
  slow: {"pools[0].accelerator": a10g}
figures:
"""
RATIO = "  - {name: R, metric: ttft_mean_s, arm: slow, over: one, published: 3, band: [1.5, 300], source: X}\n"
SAME = "  - {name: Q, metric: e2el_mean_s, arm: same, over: one, published: 1, band: [1, 1], source: X}\n"


def written(folder: Path, figures: str, name: str = "p.yaml", head: str = HEAD) -> Path:
    path = folder / name
    path.write_text(head + figures, encoding="utf-8")
    return path


def run(path: Path, **options: object) -> Outcome:
    (outcome,) = reproduce([load_paper(path)], **options)  # type: ignore[arg-type]
    return outcome


def findings(path: Path) -> str:
    with pytest.raises(ScenarioError) as caught:
        run(path)
    return str(caught.value)


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("speed: fast", "sped: fast", 4, 'did you mean "speed"?'),
        ("arm: slow", "arm: slaw", 20, 'did you mean "slow"?'),
        ("metric: ttft_mean_s", "metric: {column: tftt_s}", 20, 'did you mean "ttft_s"?'),
        ("metric: ttft_mean_s", "metric: {function: stations.exponential}", 20, "no figure function"),
        ("band: [1.5, 300]", "band: [300, 1.5]", 20, "is empty"),
        ("over: one, published: 3, band: [1.5, 300]", "published: 3", 20, "without a band"),
        ('"pools[0].accelerator": a10g', '"pools[0].replicas": many', 18, "whole number"),
        ('"pools[0].accelerator": a10g', '"pools[3].replicas": 2', 18, "pools[3]"),
        ("kind: synthetic", "kind: synthetics", 8, "synthetic"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, old: str, new: str, line: int, said: str) -> None:
    path = written(tmp_path, RATIO)
    path.write_text(path.read_text().replace(old, new))
    told = findings(path)
    assert said in told
    assert f"p.yaml:{line}:" in told


def test_an_unknown_figure_of_the_summary_is_named(tmp_path: Path) -> None:
    assert 'did you mean "ttft_mean_s"?' in findings(written(tmp_path, RATIO.replace("ttft_mean_s", "ttft_meen_s")))


def test_missing_data_skip_the_paper_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETSIM_DATA", str(tmp_path))
    head = HEAD.replace(
        "  one: {}", "  one: {workload: {kind: trace, format: mooncake, path: data:traces/nothing.jsonl}}"
    )
    outcome = run(written(tmp_path, RATIO, head=head))
    assert outcome.verdict == "skipped"
    assert "traces/nothing.jsonl" in outcome.skipped
    assert "FLEETSIM_DATA" in outcome.skipped
    assert "skipped" in page([outcome])


# --- figures and verdicts -----------------------------------------------------------------------------------------------


def figure(**fields: object) -> Figure:
    whole = {"name": "f", "metric": "ttft_mean_s", "arm": "a", "published": 2.0, "source": "s", **fields}
    return Figure.model_validate(whole)


@pytest.mark.parametrize(
    ("fields", "value", "verdict"),
    [
        ({"over": "b", "band": [1.5, 2.5]}, 2.5, "reproduced"),
        ({"over": "b", "band": [1.5, 2.5]}, 1.2, "direction only"),
        ({"over": "b", "band": [1.5, 2.5]}, 0.9, "not reproduced"),
        ({"over": "b", "band": [0.2, 0.8], "published": 0.5}, 0.9, "direction only"),
        ({"over": "b"}, 1.01, "reproduced"),
        ({"over": "b"}, 0.99, "not reproduced"),
        ({"minus": "b", "band": [1, 3]}, 5, "direction only"),
        ({"minus": "b", "band": [1, 3]}, -1, "not reproduced"),
        ({"band": [1, 3]}, 5, "not reproduced"),
        ({"band": [1, 3], "neutral": 0.5}, 5, "direction only"),
        ({"over": "b", "band": [2, 3], "published": "two to three"}, 1.5, "direction only"),
        ({"arm": None, "order": ["a", "b"], "published": "order"}, 0.8, "reproduced"),
        ({"arm": None, "order": ["a", "b"], "published": "order"}, 0.6, "not reproduced"),
    ],
)
def test_verdicts(fields: dict[str, object], value: float, verdict: str) -> None:
    assert verdict_of(figure(**fields), value) == verdict


def test_interval_is_students_over_the_seeds() -> None:
    ours = judged(figure(band=[0, 9]), [1.0, 2.0, 4.0])
    half = 4.302653 * np.std([1, 2, 4], ddof=1) / sqrt(3)
    assert ours.value == pytest.approx(7 / 3, rel=1e-3)
    assert ours.high == pytest.approx(7 / 3 + half, rel=1e-3)
    assert judged(figure(band=[0, 9]), [1.0]).low is None
    assert judged(figure(band=[0, 9]), [1.0, float("nan")]).verdict == "not reproduced"


def test_a_papers_verdict_is_that_of_its_worst_headline_figure(tmp_path: Path) -> None:
    beside = RATIO.replace("published: 3, band: [1.5, 300]", "published: 0.5, headline: false")
    outcome = run(written(tmp_path, RATIO + beside))
    assert [ours.verdict for ours in outcome.ours] == ["reproduced", "not reproduced"]
    assert outcome.verdict == "reproduced"
    assert worst(["reproduced", "not reproduced", "direction only"]) == "not reproduced"


def test_arms_share_their_random_numbers(tmp_path: Path) -> None:
    outcome = run(written(tmp_path, SAME))
    assert outcome.ours[0].value == outcome.ours[0].low == outcome.ours[0].high == 1.0


def test_metrics_of_the_requests_table(tmp_path: Path) -> None:
    head = HEAD.replace("arms:", "  run: {warmup_ratio: 0.5}\narms:")
    path = written(tmp_path, RATIO, head=head)
    metrics = [
        {"column": "e2el_s"},
        {"column": "e2el_s", "quantile": 0.9},
        {"column": "ttft_s", "share_below": 0.05},
        {"column": {"prompt_tokens": 1, "output_tokens": 2}, "total": True},
        {"column": {"prompt_tokens": 1, "output_tokens": 2}, "share": True, "where": {"prompt_tokens": [0, 300]}},
        {"column": "e2el_s", "where": {"pool": "a"}},
        {"column": "e2el_s", "where": {"pool": "b"}},
        {"summary": "ttft_mean_s"},
        {"column": "ttft_s"},
    ]
    values = list(measure(path, "one", 1, [Metric.model_validate(m) for m in metrics]).values())
    import fleetsim

    result = fleetsim.run(load_paper(path).loaded("one", 1, {}, {}), tmp_path / "out")
    rows = result.requests().to_pandas().sort_values("arrival_s")
    late = rows[30:]
    service = rows.prompt_tokens + 2 * rows.output_tokens
    expected = [
        late.e2el_s.mean(),
        late.e2el_s.quantile(0.9),
        (late.ttft_s <= 0.05).mean(),
        service.sum(),
        service[rows.prompt_tokens < 300].sum() / service.sum(),
        late.e2el_s.mean(),
        None,
        late.ttft_s.mean(),
        late.ttft_s.mean(),
    ]
    assert values == [None if e is None else pytest.approx(e) for e in expected]
    assert 0 < expected[2] < 1
    assert 0 < expected[4] < 1


def test_capacity_is_where_the_formula_of_the_queue_says(tmp_path: Path) -> None:
    """M/D/1 with service 0.1 s: the mean time in the system is 0.2 s at 2/3 of its capacity."""
    outcome = run(written(tmp_path, "", head=QUEUE))
    assert outcome.verdict == "reproduced", outcome.ours


def test_capacity_of_the_only_class_is_that_of_all(tmp_path: Path) -> None:
    short = QUEUE.replace("requests: 5000", "requests: 200").replace("seeds: 4", "seeds: 1")
    ours = [
        run(written(tmp_path, "", head=short.replace("e2el_mean_s", limited))).ours
        for limited in ("e2el_mean_s", "class.chat.e2el_mean_s")
    ]
    assert ours[0] == ours[1]
    assert 5 < ours[0][0].value < 8


def test_an_unknown_class_of_a_capacity_is_named(tmp_path: Path) -> None:
    told = findings(written(tmp_path, "", head=QUEUE.replace("e2el_mean_s", "class.chit.e2el_mean_s")))
    assert 'did you mean "chat"?' in told


QUEUE = """\
paper: {title: T, venue: V, link: L}
setting: S
seeds: 4
scenario:
  workload: {kind: trace, format: parquet, path: made:t, class: chat}
  pools:
    - name: p
      llm: llama-2-13b
      accelerator: a100-80
      engine:
        kind: generic
        prefix_cache: false
        scheduler: {policy: vllm-v1, max_seqs: 1, max_batched_tokens: 512}
        step_time: {model: affine, step: 100 ms, prompt_token: 0 s, prompt_pair: 0 s, context_token: 0 s, sequence: 0 s}
traces:
  t: {function: stations.fixed, requests: 5000, rate: 1, prompt_tokens: 512, output_tokens: 1}
arms: {one: {}}
figures:
  - name: C
    metric: {capacity: {path: workload.rate_scale, low: 5, high: 8, at_most: {e2el_mean_s: 0.2}, tolerance: 0.01}}
    arm: one
    published: 6.667
    band: [6.5, 6.8]
    source: Pollaczek-Khinchine
"""


# --- runs ---------------------------------------------------------------------------------------------------------------


def test_finished_runs_are_kept_and_others_are_made(tmp_path: Path) -> None:
    path, kept = written(tmp_path, RATIO), Kept(tmp_path / "kept")
    told: list[str] = []
    first = run(path, kept=kept, notice=told.append)
    assert len(told) == 6
    again = run(path, kept=kept, notice=told.append)
    assert len(told) == 6
    assert again.ours == first.ours
    path.write_text(path.read_text().replace("requests: 60", "requests: 61"))
    run(path, kept=kept, notice=told.append)
    assert len(told) == 12


def test_several_processes_give_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, RATIO)
    assert run(path, jobs=2).ours == run(path, jobs=1).ours


# --- files and the command ----------------------------------------------------------------------------------------------


def test_writing_back_changes_nothing_but_our_figures(tmp_path: Path) -> None:
    path = written(tmp_path, RATIO)
    before = path.read_text().splitlines()
    outcome = run(path)
    assert outcome.differs
    write_back(outcome)
    after = path.read_text()
    assert "# A comment that stays." in after
    assert "# two" in after
    assert [line for line in before if line not in after.splitlines()] in ([], before[-1:])
    again = run(path)
    assert not again.differs
    assert again.file.paper.figures[0].ours == outcome.ours[0]
    write_back(again)
    assert path.read_text() == after


def test_the_command_writes_page_and_figures_and_can_be_strict(tmp_path: Path) -> None:
    path, out = written(tmp_path, RATIO), tmp_path / "docs" / "page.md"

    def call(*options: str) -> tuple[int, str]:
        found = CliRunner().invoke(cli, ["reproduce", str(path), "--fresh", *options])
        return found.exit_code, found.stdout

    assert call("--strict")[0] == 1
    assert call("--write", "--out", str(out))[0] == 0
    assert call("--strict")[0] == 0
    assert "| [p](#p) | R | 3 | 1.5–300 |" in out.read_text()
    before = out.read_text()
    assert call("--recorded", "--out", str(out))[0] == 0
    assert out.read_text() == before
    report = json.loads(call("--json")[1])
    (paper,) = report["papers"]
    assert paper["verdict"] == "reproduced"
    assert paper["figures"][0]["seeds"] == 3


def test_an_unknown_paper_is_answered_with_the_nearest() -> None:
    found = CliRunner().invoke(cli, ["reproduce", "power-of-tow"])
    assert found.exit_code == 2
    assert 'did you mean "power-of-two"?' in found.stderr
