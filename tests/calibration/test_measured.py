"""Kernel tables computed with known constants give them back; wrong tables are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetsim.calibration.calibrate import calibrate
from fleetsim.calibration.gpu_profile import grid, write_table
from fleetsim.calibration.kernels import OFF, predicted_s
from fleetsim.calibration.measured import GROUP, fit_link, is_table, kernels, read_table
from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.link import load_link
from fleetsim.catalog.own import load_own
from fleetsim.errors import DataError, InputError

CHIP = load_accelerator("h100-sxm")
TRUTH: dict[str, dict[str, float]] = {
    "gemm": {"compute_ratio": 0.71, "memory_ratio": 0.83, "overhead_s": 4e-6, "sharpness": 3.0, "width_s": 3e-10},
    "prefill_attention": {
        "compute_ratio": 0.55,
        "memory_ratio": 0.4,
        "overhead_s": 9e-6,
        "sharpness": 1.5,
        "serial_s": 8e-9,
    },
    "decode_attention": {"memory_ratio": 0.78, "overhead_s": 9e-6, "head_s": 3e-9},
    "copy": {"memory_ratio": 0.87, "overhead_s": 2e-6, "sharpness": 3.0},
}


def table(path: Path, quick: bool = True, noise: float = 0.0) -> Path:
    """A table as `fleetsim profile` writes it, of a chip with the constants of TRUTH."""
    rows: list[dict[str, Any]] = [
        {"op": case.op, "format": case.form, **case.shape, "latency_us": 1.0, "gpu": "NVIDIA H100 80GB HBM3"}
        for case in grid(quick, fp8=True)
    ]
    write_table(rows, path)
    unmeasured = read_table(path)
    rng = np.random.default_rng(1)
    for op, constants in TRUTH.items():
        for form in unmeasured.formats(op):
            times = predicted_s(kernels(unmeasured, op, form, CHIP), {**OFF, **constants})
            chosen = [row for row in rows if row["op"] == op and row["format"] == form]
            for row, time_s in zip(chosen, times, strict=True):
                row["latency_us"] = float(time_s * 1e6 * np.exp(noise * rng.standard_normal()))
    link = load_link("nvlink4")
    for ranks in (2, 4, 8):
        for power in range(13, 28, 2):
            start_s = 8e-6 + 0.4e-6 * ranks
            wire_s = 2 * (ranks - 1) / ranks * 2**power / (link.bandwidth_bytes_per_s * 0.6)
            latency_us = (start_s + wire_s + (1e-6 * wire_s) ** 0.5) * 1e6
            rows.append(
                {
                    "op": "all_reduce",
                    "format": "bf16",
                    "num_gpus": ranks,
                    "message_bytes": 2**power,
                    "latency_us": latency_us,
                }
            )
    rows.append({"op": "idle", "format": "bf16", "power_w": 71.0})
    big = {"op": "copy", "format": "bf16", "message_bytes": 2**30, "power_w": 390.0}
    rows.append({**big, "latency_us": 2 * 2**30 / (0.9 * CHIP.bandwidth_bytes_per_s) * 1e6})
    write_table(rows, path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(("noise", "within"), [(0.0, 0.05), (0.03, 0.25)])
def test_constants_come_back(suffix: str, noise: float, within: float, tmp_path: Path) -> None:
    path = table(tmp_path / f"kernels{suffix}", noise=noise)
    assert is_table(path)
    found = calibrate([path], accelerator="h100-sxm")
    by_group = {(one.group, one.form): one for one in found.groups}
    assert set(by_group) == {(GROUP.get(op, op), "bf16") for op in TRUTH} | {("gemm", "fp8")}
    for op in TRUTH:
        one = by_group[GROUP.get(op, op), "bf16"]
        assert one.found.median_error < max(2 * noise, 0.01)
        for name in ("memory_ratio", "overhead_s") if op != "prefill_attention" else ("compute_ratio",):
            assert one.found.constants[name] == pytest.approx(TRUTH[op][name], rel=within), (op, name)
    assert found.link is not None
    assert found.link.bandwidth_ratio == pytest.approx(0.6, rel=0.02)
    assert found.link.latency_s + 2 * found.link.latency_per_rank_s == pytest.approx(8.8e-6, rel=0.05)
    assert found.power["idle"] == 71.0
    assert found.power["memory"] == pytest.approx((390 - CHIP.power.static_w) / 0.9, rel=0.01)


def test_the_file_reads_back(tmp_path: Path) -> None:
    found = calibrate([table(tmp_path / "kernels.parquet")], accelerator="h100-sxm")
    path = tmp_path / "calibration.yaml"
    path.write_text(found.text())
    own = load_own(path)
    gemm = own.groups["gemm"]["bf16"]
    constants = next(one.found.constants for one in found.groups if (one.group, one.form) == ("gemm", "bf16"))
    for name in ("compute_ratio", "memory_ratio", "overhead_s", "sharpness", "width_s"):
        assert getattr(gemm, name) == pytest.approx(constants[name], rel=1e-3)
    eight_bits = own.groups["gemm"]["fp8"]
    assert eight_bits.passes == 1.0
    assert own.groups["prefill_attention"]["bf16"].mixed_memory_ratio == pytest.approx(0.78, rel=0.05)
    assert own.power["idle_w"] == 71.0
    assert own.all_reduce["latency_s"] > 0


def test_too_few_rows_are_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "k.csv"
    lines = ["op,format,m,n,k,latency_us", *(f"gemm,bf16,{m},4096,4096,{10 + m}" for m in range(1, 9))]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="gemm bf16: 8 rows, 16 are needed"):
        calibrate([path], accelerator="h100-sxm")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("op,latency_us\n", "has no rows"),
        ("op,latency_us\ngem,3\n", "row 1, op: unknown kind 'gem'"),
        ("op,format,latency_us\ngemm,fp9,3\n", "row 1, format: unknown format 'fp9'"),
        ("op,m,n,k,latency_us\ngemm,1,2,,3\n", "row 1, k: is missing"),
        ("op,m,n,k,latency_us\ngemm,1,2,x,3\n", "row 1, k: expected a number above 0"),
        ("op,m,n,k,latency_us\ngemm,1,2,3,-3\n", "row 1, latency_us: expected a number above 0"),
    ],
)
def test_wrong_tables(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "k.csv"
    path.write_text(text)
    with pytest.raises(DataError) as told:
        calibrate([path], accelerator="h100-sxm")
    assert message in str(told.value)


def test_a_format_that_the_chip_lacks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a100-80 has no fp8 arithmetic"):
        calibrate([table(tmp_path / "k.csv")], accelerator="a100-80")


def test_a_table_needs_its_accelerator(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs --accelerator"):
        calibrate([table(tmp_path / "k.csv")])


def test_two_ranks_alone_have_one_latency(tmp_path: Path) -> None:
    path = tmp_path / "k.csv"
    rows = [f"all_reduce,2,{2**p},{5 + 2**p / 3e5}" for p in range(13, 27)]
    path.write_text("\n".join(["op,num_gpus,message_bytes,latency_us", *rows]))
    found = fit_link(read_table(path), load_link("nvlink4"))
    assert found is not None
    assert found.latency_per_rank_s == 0.0
    assert found.median_error < 0.05
