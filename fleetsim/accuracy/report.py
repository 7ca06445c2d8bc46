"""Every comparison with measurements, as one page: what was reached beside what was aimed at, by chip, model and engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from fleetsim.accuracy import calibrated, energy, operators, runs, served
from fleetsim.accuracy.scatter import scatter
from fleetsim.experiment.replicate import Notice


@dataclass(frozen=True, slots=True)
class Mark:
    """One target: an error that should be reached and the one that is."""

    target: str
    aim: float
    reached: float
    """Both are ratios, not percent."""
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the aim is reached, to the tenth of a percent that the page shows."""
        return round(self.reached, 3) <= self.aim


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the page shows."""

    marks: Sequence[Mark]
    kernels: pd.DataFrame
    collectives: pd.DataFrame
    served: pd.DataFrame
    """Every open point with what was predicted, and its group."""
    runs: pd.DataFrame
    power: pd.DataFrame
    energy: pd.DataFrame


def measure(notice: Notice = lambda _: None) -> Report:
    """Make every comparison; a few minutes on one core."""
    notice("operators")
    kernels, links = operators.kernels(), operators.collectives()
    notice("served points")
    points = served_points()
    notice("whole runs")
    whole = whole_runs()
    notice("power and energy")
    power, joules = energy.power_errors(), energy.energy_errors()
    marks = [*_operator_marks(kernels, links), *_served_marks(points), *_run_marks(whole), *_power_marks(power, joules)]
    return Report(marks, kernels, links, points, whole, power, joules)


# --- comparisons --------------------------------------------------------------------------------------------------------


MOE = ("Qwen3-235B", "gpt-oss", "Kimi", "DeepSeek")


def served_points() -> pd.DataFrame:
    """Open served points: measured and predicted times, by group of model, chip, engine, precision and source."""
    rows = served.open_rows().rename(columns={"tpot_ms": "measured_tpot_ms", "ttft_ms": "measured_ttft_ms"})
    rows = rows.assign(
        tpot_ms=rows.measured_tpot_ms,
        ttft_ms=rows.measured_ttft_ms,
        group=[_group(row) for row in rows.to_dict("records")],
        moe=rows.model.str.contains("|".join(MOE)),
    )
    found = calibrated.predictions(rows)
    again = pd.Series(np.nan, index=rows.index)
    for _, group in rows.groupby("group"):
        if len(group) >= 10:
            again[group.index] = calibrated.calibrated(group)
    return rows.assign(
        predicted_tpot_ms=found.tpot_ms,
        predicted_ttft_ms=found.ttft_ms,
        unfitted_tpot_ms=found.unfitted_tpot_ms,
        calibrated_tpot_ms=again,
    )


def _group(row: Mapping[str, Any]) -> str:
    model = str(row["model"]).split("/")[-1]
    source = "" if row["source"] == "inferencemax" else ", NVIDIA's"
    return f"{model}, {row['system'].split('_')[0].upper()}, {served.engine(row)}, {row['precision']}{source}"


def whole_runs() -> pd.DataFrame:
    """Relative errors of the two open vLLM runs."""
    names = [name for name, row in runs.configurations().iterrows() if len(runs.measured(str(name)))]
    with TemporaryDirectory() as folder:
        return pd.DataFrame([{"run": name, **runs.compared(str(name), Path(folder))} for name in names])


def ape(predicted: pd.Series, measured: pd.Series) -> pd.Series:
    """Absolute relative error of each row."""
    return (predicted / measured - 1).abs()


def below_saturation(points: pd.DataFrame) -> pd.DataFrame:
    """Points whose measured time to first token is a small part of a request's time: nothing waits for room."""
    answer_ms = points.measured_tpot_ms * points.osl_tokens
    return points[points.measured_ttft_ms < 0.2 * answer_ms]


# --- marks --------------------------------------------------------------------------------------------------------------


def _cells(kernels: pd.DataFrame, group: str, forms: Iterable[str]) -> float:
    chosen = kernels[(kernels.group == group) & kernels.format.isin(list(forms))]
    return float(chosen.median_ape.median())


def _operator_marks(kernels: pd.DataFrame, links: pd.DataFrame) -> list[Mark]:
    fresh = kernels[~((kernels.group == "prefill_attention") & (kernels.library == "inside vLLM"))]
    nvlink = links[links.link.str.startswith("nvlink")]
    moe = sorted(set(kernels[kernels.group == "moe"].format))
    return [
        Mark("GEMM bf16, weights over 2x L2", 0.045, _cells(kernels, "gemm", ["bf16"])),
        Mark("GEMM fp8, weights over 2x L2", 0.05, _cells(kernels, "gemm", ["fp8"])),
        Mark("prompt attention, 16 bits", 0.055, _cells(fresh, "prefill_attention", ["bf16"])),
        Mark("decode attention, 16 bits", 0.07, _cells(kernels, "decode_attention", ["bf16"])),
        Mark("all-reduce, NVLink", 0.08, float(nvlink.median_ape.median())),
        Mark("fused experts", 0.12, _cells(kernels, "moe", moe)),
    ]


def _median_of_groups(points: pd.DataFrame, predicted: str, measured: str) -> float:
    errors = points.assign(ape=ape(points[predicted], points[measured])).dropna(subset=["ape"])
    return float(errors.groupby("group").ape.median().median())


def _served_marks(points: pd.DataFrame) -> list[Mark]:
    large = points.groupby("group").filter(lambda rows: len(rows) >= 10)
    dense, moe = large[~large.moe], large[large.moe]
    marks = []
    for name, part, aims in (("dense", dense, (0.07, 0.045)), ("MoE", moe, (0.14, 0.07))):
        bare = _median_of_groups(part, "unfitted_tpot_ms", "measured_tpot_ms")
        pooled = _median_of_groups(part, "predicted_tpot_ms", "measured_tpot_ms")
        fitted = _median_of_groups(part, "calibrated_tpot_ms", "measured_tpot_ms")
        marks.append(Mark(f"served TPOT {name}, nothing fitted to served data", aims[0], bare))
        marks.append(
            Mark(f"served TPOT {name}, the catalogue's engines", aims[0], pooled, "constants shared by all chips")
        )
        marks.append(Mark(f"served TPOT {name}, host and scale by group", aims[1], fitted, "every second row fitted"))
    calm = below_saturation(large)
    marks.append(
        Mark("served TTFT below saturation", 0.12, _median_of_groups(calm, "predicted_ttft_ms", "measured_ttft_ms"))
    )
    return marks


def _run_marks(whole: pd.DataFrame) -> list[Mark]:
    aims = {"tpot": 0.02, "e2e": 0.02, "makespan": 0.02, "ttft": 0.06}
    names = {"tpot": "mean TPOT", "e2e": "mean E2E", "makespan": "makespan", "ttft": "mean TTFT"}
    return [
        Mark(f"vLLM runs: {names[key]}", aim, float(whole[key].abs().max()), "worse run") for key, aim in aims.items()
    ]


def waits_for_its_host(rows: pd.DataFrame) -> pd.Series:
    """Reasoning runs of dense models on one B200: each step takes some 28 ms more than in the same models' chats."""
    return (rows.gpu == "B200") & (rows.num_gpus == 1) & (rows.task == "gpqa") & ~rows.moe


def _power_marks(power: pd.DataFrame, joules: pd.DataFrame) -> list[Mark]:
    watts = ape(power.predicted_w, power.measured_w)
    tokens = ape(joules.predicted_j, joules.measured_j)
    slow = waits_for_its_host(joules)
    note = f"{percent(float(tokens[~joules.moe & ~slow].mean()))} without the {slow.sum()} rows whose host is slow, see below"
    return [
        Mark("power per GPU, dense (MAPE)", 0.07, float(watts[~power.moe].mean())),
        Mark("power per GPU, all (MAPE)", 0.12, float(watts.mean())),
        Mark(
            "energy per output token, dense (MAPE, throughput simulated)", 0.12, float(tokens[~joules.moe].mean()), note
        ),
        Mark("energy per output token, all (MAPE, throughput simulated)", 0.18, float(tokens.mean())),
    ]


# --- page ---------------------------------------------------------------------------------------------------------------


def write(report: Report, page: Path) -> list[Path]:
    """Write the page and its plots beside it; returns the files."""
    page.parent.mkdir(parents=True, exist_ok=True)
    plots = {
        "accuracy-tpot.svg": (
            "Served TPOT, open points",
            "ms",
            _series(report.served, "measured_tpot_ms", "predicted_tpot_ms"),
        ),
        "accuracy-ttft.svg": (
            "Served TTFT below saturation, open points",
            "ms",
            _series(below_saturation(report.served), "measured_ttft_ms", "predicted_ttft_ms"),
        ),
        "accuracy-power.svg": ("Power per GPU", "W", _by_chip(report.power, "measured_w", "predicted_w")),
        "accuracy-energy.svg": ("Energy per output token", "J", _by_chip(report.energy, "measured_j", "predicted_j")),
    }
    files = [page]
    page.write_text(text(report), encoding="utf-8")
    for name, (title, unit, series) in plots.items():
        path = page.with_name(name)
        path.write_text(scatter(title, unit, series), encoding="utf-8")
        files.append(path)
    return files


def _series(points: pd.DataFrame, measured: str, predicted: str) -> list[tuple[str, list[tuple[float, float]]]]:
    names = points.model.str.split("/").str[-1].str.slice(0, 20)
    return [
        (str(name), list(zip(part[measured], part[predicted], strict=True)))
        for name, part in points.dropna(subset=[predicted]).groupby(names)
    ]


def _by_chip(rows: pd.DataFrame, measured: str, predicted: str) -> list[tuple[str, list[tuple[float, float]]]]:
    kinds = rows.gpu + np.where(rows.moe, " MoE", " dense")
    return [(str(name), list(zip(part[measured], part[predicted], strict=True))) for name, part in rows.groupby(kinds)]


def percent(value: float) -> str:
    """A ratio as a table shows it."""
    return "" if value != value else f"{100 * value:.1f} %"


def markdown(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table: first column left, the others right."""
    lines = ["| " + " | ".join(headers) + " |", "|---" + "|--:" * (len(headers) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


def text(report: Report) -> str:
    """The page."""
    return "\n".join(
        [
            HEAD,
            _marks_table(report.marks),
            "",
            OPERATORS,
            _kernel_table(report.kernels),
            "",
            LINKS,
            _link_table(report.collectives),
            "",
            SERVED,
            _served_table(report.served),
            "",
            "![Served TPOT](accuracy-tpot.svg)",
            "![Served TTFT](accuracy-ttft.svg)",
            "",
            WHOLE,
            _run_table(report.runs),
            "",
            POWER,
            _power_table(report.power, report.energy),
            "",
            "![Power](accuracy-power.svg)",
            "![Energy](accuracy-energy.svg)",
            "",
            LIMITS,
        ]
    )


HEAD = """\
# How far the physics is from measurements

Written by `fleetsim accuracy` from published measurements (in the folder that `FLEETSIM_DATA` names); the same command
rebuilds it. APE is |predicted / measured - 1|. Medians are over the cells of a table below, each the median of its rows.

## Aims and what is reached
"""
OPERATORS = """\
## Operators

Constants of `models/calibration`, fitted to one half of the rows and judged here on the other. "unseen" is the error that
the medians of the *other* chips' constants would make: what a chip without measurements gets.
"""
LINKS = """\
## All-reduce

256 B to 256 MiB on 2 to 8 accelerators, best library per size, as an engine chooses inside a captured graph. RTX PRO 6000
is modelled without peer access, as in the whole runs below; the table's machine has it.
"""
SERVED = """\
## Served models

A fixed number of users, each sending its next prompt when the answer ends, all at once at the start; simulated with the
protocol and the launch options of each benchmark, ten prompts per user. Medians of the APE (and of the signed error).
*Unfitted*: kernels, links, launch options and the host time per step of a vLLM run on another chip, nothing else.
*Engine*: the catalogue's constants of `models/engine`, pooled over all chips, models and precisions of an engine, how
unevenly random tokens visit experts, and a quarter more time for prompts under older vLLM on Blackwell. *By group*: host
time and one scale fitted to every second row of the group, judged on the others. TTFT: below saturation only, with the
engine's constants.
"""
WHOLE = """\
## Whole vLLM runs, request by request

300 conversations at about ten per second, arrivals replayed. The host's time per step, the front end's per request and
the agreement of data-parallel ranks were fitted to these two runs; errors of the means.
"""
POWER = """\
## Power and energy

ML.ENERGY, H100 and B200, chat and questions. Power at the measured throughput; energy per output token with the throughput
of the simulation. Power constants were fitted to these rows (docs/energy.md has the errors by family left out).
"""
LIMITS = """\
## What this does not show

- Engine constants were fitted to open served points; the rows of `docs/blind` were predicted without their results.
- Steps with prompts take a quarter longer under vLLM 0.10 to 0.19 on Blackwell than the kernels measured under 0.24: one factor,
  fitted to the TTFT of three open models. With expert parallelism (Kimi K2.5) TTFT is 30 % low even so.
- The protocol of NVIDIA's own points is not published: one prompt per step or so and equal lengths are inferred from their TTFT.
- TTFT under memory pressure is a queue: an error of 5 % in capacity becomes 20 % and more there.
- Reasoning runs of three small dense models on one B200 take 28 ms more per step than the same models' chats, at every batch: a
  busy host, by their power. They are simulated like all others and are most of the dense error of energy per token.
- NVIDIA's DeepSeek points on B200 (8 rows) show one TPOT for every concurrency, which nothing here explains.
"""


def _marks_table(marks: Sequence[Mark]) -> str:
    rows = [(m.target, percent(m.aim), percent(m.reached), "yes" if m.met else "no", m.note) for m in marks]
    return markdown(("target", "aim", "reached", "met", ""), rows)


def _kernel_table(kernels: pd.DataFrame) -> str:
    rows = [
        (r.group, r.chip, r.library, r.format, r.rows, percent(r.median_ape), percent(r.bias), percent(r.unseen_ape))
        for r in kernels.sort_values(["group", "format", "chip", "library"]).itertuples()
    ]
    return markdown(("group", "chip", "library", "format", "rows judged", "median APE", "bias", "unseen"), rows)


def _link_table(links: pd.DataFrame) -> str:
    rows = [(r.chip, r.link, r.rows, percent(r.median_ape), percent(r.bias)) for r in links.itertuples()]
    return markdown(("chip", "link", "rows", "median APE", "bias"), rows)


def _served_table(points: pd.DataFrame) -> str:
    rows = []
    for name, part in points.groupby("group"):
        calm = below_saturation(part)
        measured = part.measured_tpot_ms
        signed = part.predicted_tpot_ms / measured - 1
        late = calm.predicted_ttft_ms / calm.measured_ttft_ms - 1
        rows.append(
            (
                name,
                len(part),
                percent(ape(part.unfitted_tpot_ms, measured).median()),
                f"{percent(ape(part.predicted_tpot_ms, measured).median())} ({100 * signed.median():+.1f})",
                percent(ape(part.calibrated_tpot_ms, measured).median()),
                len(calm),
                f"{percent(late.abs().median())} ({100 * late.median():+.1f})" if len(calm) else "",
            )
        )
    titles = (
        "model, chip, engine, precision",
        "points",
        "TPOT unfitted",
        "TPOT engine",
        "TPOT by group",
        "calm",
        "TTFT",
    )
    return markdown(titles, rows)


def _run_table(whole: pd.DataFrame) -> str:
    keys = ("ttft", "tpot", "e2e", "makespan", "ttft_p90", "e2e_p90")
    rows = [(row["run"], *(f"{100 * row[key]:+.1f} %" for key in keys)) for row in whole.to_dict("records")]
    return markdown(("run", "TTFT", "TPOT", "E2E", "makespan", "TTFT p90", "E2E p90"), rows)


def _power_table(power: pd.DataFrame, joules: pd.DataFrame) -> str:
    rows = []
    for (gpu, moe), part in power.groupby(["gpu", "moe"]):
        same = joules[(joules.gpu == gpu) & (joules.moe == moe)]
        rows.append(
            (
                f"{gpu}, {'MoE' if moe else 'dense'}",
                len(part),
                percent(ape(part.predicted_w, part.measured_w).mean()),
                percent(ape(same.predicted_j, same.measured_j).mean()),
                percent(ape(same.predicted_tokens_per_s, same.measured_tokens_per_s).mean()),
            )
        )
    return markdown(("", "rows", "power MAPE", "energy per token MAPE", "throughput MAPE"), rows)
