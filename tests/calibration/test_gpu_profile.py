"""The grid of kernels, the timing by the host's clock, and the table; kernels on a CPU where torch is installed."""

from __future__ import annotations

import math
import time
from collections import Counter
from pathlib import Path

import pytest

from fleetsim.calibration import gpu_profile
from fleetsim.calibration.gpu_profile import (
    COLUMNS,
    LARGEST_BYTES,
    OPS,
    Case,
    HostTimer,
    at_rest,
    buffers,
    calls_of,
    catalogue_name,
    grid,
    under_load,
    write_table,
)
from fleetsim.calibration.measured import COLUMNS as NEEDED
from fleetsim.calibration.measured import FEWEST, read_table
from fleetsim.catalog.data import names


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
def test_grid_is_enough_for_every_fit(quick: bool, fp8: bool) -> None:
    cases = grid(quick, fp8)
    counts = Counter((case.op, case.form) for case in cases)
    assert min(counts.values()) >= FEWEST
    assert set(counts) == {
        *((op, "bf16") for op in ("gemm", "prefill_attention", "decode_attention", "copy")),
        *([("gemm", "fp8")] if fp8 else []),
    }
    assert len(set((c.op, c.form, *c.shape.items()) for c in cases)) == len(cases)
    for case in cases:
        assert set(NEEDED[case.op]) <= set(case.shape)
        assert set(case.shape) <= set(COLUMNS)
        assert all(size > 0 for size in case.shape.values())


def test_quick_is_a_part() -> None:
    whole, quick = grid(False, True), grid(True, True)
    assert len(quick) < 0.45 * len(whole)


def test_products_can_be_multiplied_in_eight_bits() -> None:
    for case in grid(False, True):
        if case.form == "fp8":
            assert case.shape["n"] % 16 == case.shape["k"] % 16 == 0


def test_decodes_fit_in_memory_and_heads_divide() -> None:
    for case in grid(False, False):
        s = case.shape
        if case.op == "decode_attention":
            assert s["batch"] * s["context"] * s["kv_heads"] * s["head_dim"] * 4 <= LARGEST_BYTES
            assert s["heads"] % s["kv_heads"] == 0


def test_only_what_was_asked_for() -> None:
    assert {case.op for case in grid(True, True, ("copy",))} == {"copy"}
    assert grid(True, True, ("power",)) == []


def test_buffers_exceed_every_cache_but_not_memory() -> None:
    assert buffers(2.0 * 8192 * 8192) * 2.0 * 8192 * 8192 >= 256e6
    assert buffers(1.0) == 24
    assert buffers(1e12) == 2


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-80-pcie"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA B200", "b200-sxm"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("NVIDIA RTX A6000", "a6000"),
        ("Something Else", None),
    ],
)
def test_names(gpu: str, name: str | None) -> None:
    assert catalogue_name(gpu) == name


def test_every_name_is_in_the_catalogue() -> None:
    assert {name for _, name in gpu_profile.NAMES} <= set(names("accelerator"))


def test_host_timer_measures_time() -> None:
    timed = HostTimer().median_us([lambda: time.sleep(2e-3)] * 2)
    assert 2000 <= timed < 20_000


def test_power_is_read_at_rest_and_under_load() -> None:
    calls = Counter[str]()

    def read() -> float:
        calls["read"] += 1
        return 100.0 + calls["ran"] * 1e-9

    row = at_rest(read, settle_s=0.0)
    assert row == {"op": "idle", "format": "bf16", "power_w": 100.0}

    def run() -> None:
        calls["ran"] += 1
        time.sleep(0.01)

    watts = under_load(read, run, loaded_s=0.3)
    assert calls["ran"] > 5
    assert watts == pytest.approx(100.0)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_table_reads_back(suffix: str, tmp_path: Path) -> None:
    rows = [{"op": c.op, "format": c.form, **c.shape, "latency_us": 1.5, "gpu": "X"} for c in grid(True, False)]
    rows.append({"op": "idle", "format": "bf16", "power_w": 70.5, "gpu": "X"})
    path = tmp_path / f"kernels{suffix}"
    write_table(rows, path)
    table = read_table(path)
    assert len(table.rows) == len(rows)
    assert table.formats("gemm") == ["bf16"]
    products = table.chosen("gemm")
    assert products["m"].tolist() == [c.shape["m"] for c in grid(True, False) if c.op == "gemm"]
    assert [watts for _, watts in table.powers("idle")] == [70.5]


def test_ops_of_command_and_module_agree() -> None:
    from fleetsim.cli.profile import OPS as offered

    assert offered == OPS


SMALL = [
    Case("gemm", "bf16", {"m": 16, "n": 64, "k": 32}),
    Case("prefill_attention", "bf16", {"batch": 2, "tokens": 16, "heads": 4, "kv_heads": 4, "head_dim": 16}),
    Case("decode_attention", "bf16", {"batch": 2, "context": 32, "heads": 8, "kv_heads": 2, "head_dim": 16}),
    Case("copy", "bf16", {"message_bytes": 4096}),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.op)
def test_kernels_run_on_a_cpu(case: Case) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: the extra `gpu` has it")
    calls = calls_of(torch, "cpu", case)
    assert len(calls) >= 2
    out = calls[0]()
    assert math.isfinite(HostTimer().median_us(calls[:2]))
    if case.op == "decode_attention":  # each query head attends as if it stood alone
        queries, keys, values = calls[0].args  # type: ignore[attr-defined]
        alone = torch.nn.functional.scaled_dot_product_attention(queries[:, :, :1], keys, values)
        assert torch.allclose(out[:, :, :1].float(), alone.float(), atol=2e-2)
