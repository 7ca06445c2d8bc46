"""Measures the kernels of this machine's GPU: products, attention, copies, all-reduce and power (extra `gpu`).

Kernels are timed in captured graphs, as engines launch them, over buffers that together are far larger than the
last-level cache, so that weights come from memory as they do in a model.
"""

from __future__ import annotations

import json
import math
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fleetsim.errors import InputError

COLUMNS = (
    "op",
    "format",
    "m",
    "n",
    "k",
    "batch",
    "tokens",
    "context",
    "heads",
    "kv_heads",
    "head_dim",
    "num_gpus",
    "message_bytes",
    "latency_us",
    "power_w",
    "gpu",
)
"""Columns of the table."""
OPS = ("gemm", "prefill_attention", "decode_attention", "copy", "all_reduce", "power")
"""What can be measured."""
PROJECTIONS = ((6144, 4096), (28672, 4096), (4096, 14336), (10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672))
"""Width and sum length (n, k) of the products of Llama 3.1 8B and 70B."""
HEADS = ((32, 8), (64, 8), (8, 1))
"""Query and key-value heads of the same, and of the larger one cut in eight."""
HEAD_DIM = 128
LARGEST_BYTES = 4e9
"""Cached keys and values of one attention case at most."""
ROTATED_BYTES = 256e6
"""Buffers that a timed loop goes through: several times the largest last-level cache."""
MOST_BUFFERS = 24
GRAPH_S = 2e-3
"""Length of one captured graph, about."""
REPEATS = 7
SETTLE_S, LOADED_S = 2.0, 4.0
"""Time before power is read at rest, and under load."""
NAMES = (
    ("GB300", "gb300"),
    ("GB200", "gb200"),
    ("B300", "b300-sxm"),
    ("B200", "b200-sxm"),
    ("H200", "h200-sxm"),
    ("H100 NVL", "h100-nvl"),
    ("H100 PCIe", "h100-pcie"),
    ("H100", "h100-sxm"),
    ("A100-PCIE-40GB", "a100-40-pcie"),
    ("A100 80GB PCIe", "a100-80-pcie"),
    ("A100-SXM4-40GB", "a100-40"),
    ("A100", "a100-80"),
    ("L40S", "l40s"),
    ("L4", "l4"),
    ("A10G", "a10g"),
    ("A30", "a30"),
    ("A40", "a40"),
    ("A6000", "a6000"),
    ("RTX PRO 6000", "rtx-pro-6000"),
    ("RTX 4090", "rtx-4090"),
    ("RTX 3090", "rtx-3090"),
    ("V100", "v100"),
)
"""Part of a driver's name of a chip, and its name in the catalogue; the first that fits counts."""

Call = Callable[[], object]
Row = dict[str, Any]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """One kernel to time."""

    op: str
    form: str
    shape: Mapping[str, int] = field(default_factory=dict)


def grid(quick: bool, fp8: bool, ops: Sequence[str] = OPS) -> list[Case]:
    """Kernels to time on one GPU; `quick` takes about a quarter of them, enough for every fit."""
    cases: list[Case] = []
    if "gemm" in ops:
        cases += _products(quick, fp8)
    if "prefill_attention" in ops:
        cases += _prefills(quick)
    if "decode_attention" in ops:
        cases += _decodes(quick)
    if "copy" in ops:
        cases += [Case("copy", "bf16", {"message_bytes": 2**p}) for p in range(14, 31)]
    return cases


def _products(quick: bool, fp8: bool) -> Iterator[Case]:
    tokens = (
        (1, 16, 64, 256, 1024, 4096, 16384) if quick else (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384)
    )
    for form in ("bf16", "fp8") if fp8 else ("bf16",):
        for n, k in PROJECTIONS[1:5] if quick else PROJECTIONS:
            for m in tokens:
                yield Case("gemm", form, {"m": m, "n": n, "k": k})


def _prefills(quick: bool) -> Iterator[Case]:
    """Every head has its own keys and values: products of attention do not depend on how many share them."""
    for heads in (32,) if quick else (32, 8):
        for batch in (1, 2, 4):
            for tokens in (128, 512, 1024, 2048, 4096, 8192, 16384):
                if batch * tokens <= 32768:
                    shape = {"batch": batch, "tokens": tokens, "heads": heads, "kv_heads": heads, "head_dim": HEAD_DIM}
                    yield Case("prefill_attention", "bf16", shape)


def _decodes(quick: bool) -> Iterator[Case]:
    for heads, kv_heads in HEADS[:1] if quick else HEADS:
        for batch in (1, 4, 16, 64, 256):
            for context in (256, 1024, 4096, 16384, 65536):
                size = batch * context * 2 * kv_heads * HEAD_DIM * 2
                if size <= LARGEST_BYTES:
                    shape = {
                        "batch": batch,
                        "context": context,
                        "heads": heads,
                        "kv_heads": kv_heads,
                        "head_dim": HEAD_DIM,
                    }
                    yield Case("decode_attention", "bf16", shape)


def buffers(size_bytes: float) -> int:
    """Copies of a kernel's operands that a timed loop goes through."""
    return min(max(math.ceil(ROTATED_BYTES / max(size_bytes, 1.0)), 2), MOST_BUFFERS)


def catalogue_name(gpu: str) -> str | None:
    """Name in the catalogue of a chip by its driver's name."""
    return next((name for part, name in NAMES if part.lower() in gpu.lower()), None)


# --- timing ------------------------------------------------------------------------------------------------------------


class HostTimer:
    """Times calls that return when their work is done, by the clock of the host."""

    def median_us(self, calls: Sequence[Call]) -> float:
        """Median time of one call [us]; the calls are alike and made in turn."""
        calls[0]()
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter_ns()
            for call in calls:
                call()
            times.append((time.perf_counter_ns() - start) / len(calls))
        return statistics.median(times) / 1e3


class GraphTimer:
    """Times kernels in a captured graph, by events of the GPU."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def median_us(self, calls: Sequence[Call]) -> float:
        """Median time of one call [us]; the calls are alike and made in turn."""
        replay, count = self.captured(calls)
        for _ in range(2):
            replay()
        return statistics.median(self._elapsed_ms(replay) for _ in range(REPEATS)) / count * 1e3

    def captured(self, calls: Sequence[Call]) -> tuple[Call, int]:
        """A graph of all the calls, as often as fill `GRAPH_S`: how to launch it, and how many calls it holds."""
        torch = self._torch
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # libraries choose kernels and allocate on the first call: not while capturing
            for call in calls:
                call()
            torch.cuda.synchronize()
            once_ms = self._elapsed_ms(lambda: [call() for call in calls])
        torch.cuda.current_stream().wait_stream(beside)
        rounds = min(max(math.ceil(GRAPH_S * 1e3 / max(once_ms, 1e-3)), 1), 20)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(rounds):
                for call in calls:
                    call()
        return graph.replay, rounds * len(calls)

    def _elapsed_ms(self, call: Call) -> float:
        torch = self._torch
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


# --- kernels -----------------------------------------------------------------------------------------------------------


def calls_of(torch: Any, device: str, case: Case) -> list[Call]:
    """The kernel of a case over several sets of operands on a device."""
    return {
        "gemm": _gemm_fp8 if case.form == "fp8" else _gemm,
        "prefill_attention": _prefill,
        "decode_attention": _decode,
        "copy": _copy,
    }[case.op](torch, device, case.shape)


def _gemm(torch: Any, device: str, shape: Mapping[str, int]) -> list[Call]:
    m, n, k = shape["m"], shape["n"], shape["k"]
    inputs = torch.randn(m, k, dtype=torch.bfloat16, device=device)
    weights = [torch.randn(n, k, dtype=torch.bfloat16, device=device) for _ in range(buffers(2.0 * n * k))]
    return [partial(torch.nn.functional.linear, inputs, weight) for weight in weights]


def _gemm_fp8(torch: Any, device: str, shape: Mapping[str, int]) -> list[Call]:
    m, n, k = shape["m"], shape["n"], shape["k"]
    one = torch.ones((), dtype=torch.float32, device=device)
    inputs = torch.randn(m, k, device=device).to(torch.float8_e4m3fn)
    weights = [torch.randn(n, k, device=device).to(torch.float8_e4m3fn) for _ in range(buffers(1.0 * n * k))]
    product = partial(torch._scaled_mm, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    return [partial(product, inputs, weight.t()) for weight in weights]


def _prefill(torch: Any, device: str, shape: Mapping[str, int]) -> list[Call]:
    size = (shape["batch"], shape["heads"], shape["tokens"], shape["head_dim"])
    count = min(buffers(8.0 * math.prod(size)), 4)
    sets = [[torch.randn(size, dtype=torch.bfloat16, device=device) for _ in range(3)] for _ in range(count)]
    attention = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True)
    return [partial(attention, *operands) for operands in sets]


def _decode(torch: Any, device: str, shape: Mapping[str, int]) -> list[Call]:
    """The query heads that share a key-value head stand where queries of several positions would: the same arithmetic."""
    batch, kv_heads, width = shape["batch"], shape["kv_heads"], shape["head_dim"]
    group = shape["heads"] // kv_heads
    queries = torch.randn(batch, kv_heads, group, width, dtype=torch.bfloat16, device=device)
    size = (batch, kv_heads, shape["context"], width)
    count = buffers(4.0 * math.prod(size))
    sets = [[torch.randn(size, dtype=torch.bfloat16, device=device) for _ in range(2)] for _ in range(count)]
    return [partial(torch.nn.functional.scaled_dot_product_attention, queries, *operands) for operands in sets]


def _copy(torch: Any, device: str, shape: Mapping[str, int]) -> list[Call]:
    size = shape["message_bytes"] // 2
    count = buffers(2.0 * shape["message_bytes"])
    pairs = [[torch.ones(size, dtype=torch.bfloat16, device=device) for _ in range(2)] for _ in range(count)]
    return [partial(to.copy_, source) for to, source in pairs]


# --- several GPUs ------------------------------------------------------------------------------------------------------


def all_reduces(torch: Any, quick: bool, tell: Tell) -> list[Row]:
    """All-reduces over 2, 4, … of the machine's GPUs, one process each."""
    rows: list[Row] = []
    sizes = [2**p for p in range(13, 28, 2 if quick else 1)]
    for ranks in (n for n in (2, 4, 8) if n <= torch.cuda.device_count()):
        tell(f"all-reduce over {ranks} GPUs")
        with tempfile.TemporaryDirectory(prefix="fleetsim-profile-") as folder:
            out = Path(folder, "times.json")
            torch.multiprocessing.spawn(_all_reduce_rank, args=(ranks, sizes, _free_port(), str(out)), nprocs=ranks)
            times = json.loads(out.read_text(encoding="utf-8"))
        rows += [
            {"op": "all_reduce", "format": "bf16", "num_gpus": ranks, "message_bytes": size, "latency_us": latency_us}
            for size, latency_us in zip(sizes, times, strict=True)
        ]
    return rows


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _all_reduce_rank(rank: int, ranks: int, sizes: Sequence[int], port: int, out: str) -> None:
    """One process of an all-reduce: every rank captures and replays the same graphs; the first writes the times."""
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    times = []
    for size in sizes:
        values = torch.zeros(size // 2, dtype=torch.bfloat16, device="cuda")
        for _ in range(3):
            dist.all_reduce(values)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(10):  # the same number on every rank: a rank with more would wait for ever
                dist.all_reduce(values)
        elapsed = []
        for _ in range(REPEATS):
            dist.barrier()
            torch.cuda.synchronize()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            elapsed.append(start.elapsed_time(end) * 1e3 / 10)
        times.append(statistics.median(elapsed))
    if rank == 0:
        Path(out).write_text(json.dumps(times), encoding="utf-8")
    dist.destroy_process_group()


# --- power -------------------------------------------------------------------------------------------------------------


def power_reader(gpu_id: str) -> Callable[[], float] | None:
    """Reads the power of a GPU [W] through the driver's library or its command; None where neither is there."""
    if find_spec("pynvml") is not None:
        import pynvml

        try:
            pynvml.nvmlInit()
            handle = (
                pynvml.nvmlDeviceGetHandleByUUID(gpu_id)
                if "-" in gpu_id
                else pynvml.nvmlDeviceGetHandleByIndex(int(gpu_id))
            )
            pynvml.nvmlDeviceGetPowerUsage(handle)
        except pynvml.NVMLError:
            return None
        return lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "-i", gpu_id]

    def read() -> float:
        return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip())

    try:
        read()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return read


def at_rest(read: Callable[[], float], settle_s: float = SETTLE_S) -> Row:
    """Power of the GPU with nothing running, after a pause."""
    time.sleep(settle_s)
    watts = []
    for _ in range(10):
        watts.append(read())
        time.sleep(0.1)
    return {"op": "idle", "format": "bf16", "power_w": statistics.median(watts)}


def under_load(read: Callable[[], float], run: Call, loaded_s: float = LOADED_S) -> float:
    """Power while `run` (which returns when its work is done) is called over and over: the median of the second half [W]."""
    watts, end_s = [], time.monotonic() + loaded_s
    while time.monotonic() < end_s:
        until_s = time.monotonic() + 0.1
        while time.monotonic() < until_s:
            run()
        watts.append(read())
    return statistics.median(watts[len(watts) // 2 :])


# --- all of it ---------------------------------------------------------------------------------------------------------


def require_gpu() -> Any:
    """The package torch, with a GPU that it can use.

    Raises
    ------
    InputError
        If there is no torch, or no GPU.
    """
    if find_spec("torch") is None:
        raise InputError('needs torch, which is not installed: pip install "fleetsim[gpu]" on the machine with the GPU')
    import torch

    if not torch.cuda.is_available():
        raise InputError(f"torch {torch.__version__} sees no GPU on this machine: run it where the accelerator is")
    return torch


def profile(torch: Any, quick: bool, ops: Sequence[str], tell: Tell) -> tuple[list[Row], list[str]]:
    """Rows of the table, and what could not be measured and why."""
    properties = torch.cuda.get_device_properties(0)
    uuid = getattr(properties, "uuid", None)
    read = power_reader(f"GPU-{uuid}" if uuid is not None else "0") if "power" in ops else None
    rows: list[Row] = []
    failed: list[str] = []
    torch.cuda.init()
    if read is not None:
        tell("power at rest")
        rows.append(at_rest(read))
    elif "power" in ops:
        failed.append("power: neither the package nvidia-ml-py nor nvidia-smi gives it")
    timer = GraphTimer(torch)
    cases = grid(quick, torch.cuda.get_device_capability(0) >= (8, 9), ops)
    for number, case in enumerate(cases, 1):
        if number % 20 == 1:
            tell(f"kernel {number} of {len(cases)}: {case.op} {case.form}")
        try:
            latency_us = timer.median_us(calls_of(torch, "cuda", case))
            rows.append({"op": case.op, "format": case.form, **case.shape, "latency_us": latency_us})
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            failed.append(f"{case.op} {case.form} {dict(case.shape)}: {str(error).splitlines()[0][:120]}")
        torch.cuda.empty_cache()
    if read is not None:
        rows += _metered(torch, timer, read, ops, tell)
    if "all_reduce" in ops and torch.cuda.device_count() > 1:
        rows += all_reduces(torch, quick, tell)
    return [{**row, "gpu": properties.name} for row in rows], failed


def _metered(torch: Any, timer: GraphTimer, read: Callable[[], float], ops: Sequence[str], tell: Tell) -> list[Row]:
    """A large product and a large copy with their power."""
    rows = []
    for case in (
        Case("gemm", "bf16", {"m": 8192, "n": 8192, "k": 8192}),
        Case("copy", "bf16", {"message_bytes": 2**30}),
    ):
        if case.op not in ops:
            continue
        tell(f"power under load: {case.op}")
        calls = calls_of(torch, "cuda", case)
        replay, _ = timer.captured(calls)

        def run(replay: Call = replay) -> None:
            replay()
            torch.cuda.synchronize()

        watts = under_load(read, run)
        latency_us = timer.median_us(calls)
        rows.append({"op": case.op, "format": case.form, **case.shape, "latency_us": latency_us, "power_w": watts})
    return rows


def write_table(rows: Sequence[Row], out: Path) -> None:
    """Write the table as CSV or Parquet, by the name's ending."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    whole = ("m", "n", "k", "batch", "tokens", "context", "heads", "kv_heads", "head_dim", "num_gpus", "message_bytes")
    texts = ("op", "format", "gpu")
    kinds = {name: pa.string() if name in texts else pa.int64() if name in whole else pa.float64() for name in COLUMNS}
    table = pa.table({name: pa.array([row.get(name) for row in rows], kinds[name]) for name in COLUMNS})
    if out.suffix == ".csv":
        pyarrow.csv.write_csv(table, out)
    else:
        pq.write_table(table, out)
