"""Chips against sources other than the ones their files cite, and what only some chips have."""

import os
from pathlib import Path

import pandas as pd
import pytest

from fleetsim.catalog import accelerator
from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.calibration import calibration_of
from fleetsim.catalog.data import locate, names
from fleetsim.catalog.floors import floors
from fleetsim.catalog.link import load_link
from fleetsim.catalog.llm import load_llm
from fleetsim.engine.steptime.roofline import Roofline
from fleetsim.errors import DataError
from fleetsim.scenario.schema import Engine, Parallelism

DATA = Path(os.environ.get("FLEETSIM_DATA", Path(__file__).parents[3] / "shared" / "data"))
SPECS = DATA / "reference" / "open" / "aic_system_specs.parquet"
TOLERANCE = 0.03

SYSTEMS = {
    "a100-80": "a100_sxm",
    "a100-80-pcie": "a100_pcie",
    "a30": "a30",
    "b200-sxm": "b200_sxm",
    "b300-sxm": "b300_sxm",
    "arc-pro-b60": "b60",
    "gb200": "gb200",
    "gb300": "gb300",
    "h100-pcie": "h100_pcie",
    "h100-sxm": "h100_sxm",
    "h200-sxm": "h200_sxm",
    "l4": "l4",
    "l40s": "l40s",
    "rtx-pro-6000": "rtx_pro_6000_server",
}
"""Chips of aiconfigurator's table of systems, by their name there."""
DIFFERENT = {
    ("l4", "memory"): "nominal there; error correction takes a sixteenth, and the driver its share",
    ("arc-pro-b60", "fp8"): "its matrix units know no 8-bit floats: the table repeats the 16-bit rate",
}
"""Where the two disagree, and why."""


@pytest.mark.skipif(not SPECS.exists(), reason=f"no measurements at {SPECS.parent}: set FLEETSIM_DATA")
@pytest.mark.parametrize("name", SYSTEMS)
def test_agrees_with_aiconfigurator(name: str) -> None:
    row = pd.read_parquet(SPECS).set_index("system").loc[SYSTEMS[name]]
    chip = load_accelerator(name)
    ours = {
        "bandwidth": chip.bandwidth_bytes_per_s / 1e9,
        "memory": chip.memory_bytes / 2**30,
        "power": chip.power.limit_w,
        **{dtype: flops / 1e12 for dtype, flops in chip.peak_flop_per_s.items()},
    }
    theirs = {"bandwidth": row.mem_bw_GBps, "memory": row.mem_capacity_GiB, "power": row.power_W}
    theirs |= {"bf16": row.bf16_TFLOPS, "fp8": row.fp8_TFLOPS, "fp4": row.fp4_TFLOPS, "int8": row.int8_TOPS}
    stated = {key for key, value in theirs.items() if value == value}
    assert {(name, key) for key in stated ^ set(ours)} <= set(DIFFERENT)
    for key in stated & set(ours):
        agrees = ours[key] == pytest.approx(theirs[key], rel=TOLERANCE)
        assert agrees != ((name, key) in DIFFERENT), (key, ours[key], theirs[key])


SECOND = {
    "a40": (
        "sysrqmts.com/gpus/compare/nvidia-a40-pcie-vs-nvidia-quadro-rtx-6000",
        {"bandwidth": 695.8, "power": 300, "cores": 84, "base": 1305, "boost": 1740, "l2": 6},
    ),
    "a6000": (
        "sysrqmts.com/gpus/compare/nvidia-rtx-a6000-vs-nvidia-tesla-p40",
        {"bandwidth": 768, "power": 300, "cores": 84, "base": 1410, "boost": 1800, "l2": 6, "memory": 48},
    ),
    "a100-40-pcie": (
        "sysrqmts.com/gpus/compare/nvidia-a100-pcie-vs-nvidia-tesla-v100-pcie-16-gb",
        {"bandwidth": 1555, "power": 250, "cores": 108, "base": 765, "boost": 1410, "l2": 40, "memory": 40},
    ),
    "rtx-3090": (
        "cpu-gpu.alldbin.com/graphics-card-comparison/GeForce-RTX-3090-and-Tesla-M40-comparison.html",
        {"bandwidth": 936.2, "power": 350, "base": 1400, "boost": 1700, "memory": 24},
    ),
    "b200-sxm": ("github.com/pytorch/ao/pull/4002", {"bandwidth": 7672, "memory": 178.35, "cores": 148}),
    "b300-sxm": ("glennklockwood.com/garden/processors/B300", {"bf16": 2250, "fp8": 4500}),
    "gb300": ("oxmaint.com/sap-integration/on-prem-ai/gb300-nvl72-specs-industrial-ai", {"per_node": 72}),
    "arc-pro-b60": (
        "technical.city/en/video/Iris-Xe-Graphics-96EU-vs-Arc-Pro-B60",
        {"bandwidth": 456, "power": 200, "base": 2000, "boost": 2400, "memory": 24},
    ),
    "mi300x": ("aiwiki.ai/wiki/amd_instinct_mi355x", {"bandwidth": 5300, "power": 750, "memory": 192}),
    "mi325x": (
        "awesomeagents.ai/hardware/amd-mi325x",
        {"bandwidth": 6000, "power": 1000, "memory": 256, "bf16": 1307.4, "fp8": 2614.9, "cores": 304},
    ),
    "mi355x": (
        "tomshardware.com/pc-components/gpus/amds-instinct-mi355x-accelerator-will-consume-1-400-watts",
        {"bandwidth": 8000, "power": 1400, "memory": 288, "fp4": 20100 / 2},
    ),
    "gaudi-2": (
        "pcguia.pt/2024/04/nvidia-e-amd-tem-um-novo-rival-no-mercado-de-ia-a-intel",
        {"bandwidth": 2450, "power": 600, "memory": 96, "bf16": 432, "cores": 24},
    ),
    "gaudi-3": (
        "yobitel.com/knowledge-base/intel-gaudi-3",
        {"bandwidth": 3700, "power": 900, "memory": 128, "bf16": 1835, "fp8": 1835},
    ),
    "tpu-v5p": ("blog.easecloud.io/ai-cloud/llm-throughput-with-google-tpu-v5p", {"bf16": 459, "memory": 95}),
    "tpu-v6e": ("awesomeagents.ai/hardware/google-tpu-v6e-trillium", {"bandwidth": 1600, "memory": 32}),
    "sn40l": ("servethehome.com/?p=79981", {"l2": 520, "memory": 64, "cores": 1040}),
    "ascend-910c": ("techpowerup.com/335749/huawei-prepares-6-nm-ascend-920c-accelerator", {"bandwidth": 3200 / 2}),
    "m2-ultra": ("beebom.com/apple-m2-ultra", {"bandwidth": 800, "cores": 76}),
    "m3-ultra": ("mjtsai.com/blog/2025/03/05/apple-m3-ultra", {"cores": 80}),
    "lunar-lake-npu": (
        "tomshardware.com/pc-components/cpus/intel-unwraps-lunar-lake-architecture",
        {"int8": 48, "l2": 8, "cores": 6},
    ),
    "snapdragon-x-elite": ("theregister.com/2024/04/10/intel_lunar_lake_npu", {"int8": 45}),
}
"""A second page per chip, read 2026-11-21, that the files do not cite: GB/s, W, GB, MB, MHz, TFLOPS, dense, one die."""


@pytest.mark.parametrize("name", SECOND)
def test_agrees_with_a_second_page(name: str) -> None:
    address, theirs = SECOND[name]
    chip = load_accelerator(name)
    ours = {
        "bandwidth": chip.bandwidth_bytes_per_s / 1e9,
        "power": chip.power.limit_w,
        "cores": chip.cores,
        "base": chip.clock.base_hz / 1e6,
        "boost": chip.clock.boost_hz / 1e6,
        "l2": chip.l2_bytes / 1e6,
        "memory": chip.memory_bytes / 2**30,
        "per_node": chip.per_node,
        **{dtype: flops / 1e12 for dtype, flops in chip.peak_flop_per_s.items()},
    }
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, rel=TOLERANCE), (address, key)


PER_CLOCK = {
    "v100": ("fp16", 1024),
    "v100-16": ("fp16", 1024),
    "a100-40": ("bf16", 2048),
    "a100-80": ("bf16", 2048),
    "a100-80-pcie": ("bf16", 2048),
    "a30": ("bf16", 2048),
    "jetson-agx-orin-64": ("bf16", 2048),
    "a10g": ("bf16", 512),
    "rtx-3090": ("bf16", 512),
    "rtx-4090": ("bf16", 512),
    "a40": ("bf16", 1024),
    "a6000": ("bf16", 1024),
    "l4": ("bf16", 1024),
    "l40s": ("bf16", 1024),
    "rtx-pro-6000": ("bf16", 1024),
    "arc-pro-b60": ("bf16", 2048),
    "h100-sxm": ("bf16", 4096),
    "h100-pcie": ("bf16", 4096),
    "h200-sxm": ("bf16", 4096),
    "mi250x": ("bf16", 1024),
    "mi300x": ("bf16", 2048),
    "mi325x": ("bf16", 2048),
    "mi355x": ("bf16", 4096),
    "m2-ultra": ("bf16", 256),
    "m3-ultra": ("bf16", 256),
    "lunar-lake-npu": ("int8", 4096),
}
"""Dense operations per clock and core, from the architecture white papers; half on GeForce and A10G, which add in 32 bits."""


@pytest.mark.parametrize("name", PER_CLOCK)
def test_peak_is_cores_times_clock(name: str) -> None:
    dtype, per_clock = PER_CLOCK[name]
    chip = load_accelerator(name)
    assert chip.cores * per_clock * chip.clock.boost_hz == pytest.approx(chip.peak_flop_per_s[dtype], rel=0.01)


def test_a_chip_without_bf16_computes_in_fp16() -> None:
    chip = load_accelerator("v100")
    assert "peak.bf16" not in chip.sourced
    assert chip.peak_flop_per_s["bf16"] == chip.peak_flop_per_s["fp16"] == pytest.approx(125e12)
    assert {chip.arithmetic(dtype) for dtype in ("bf16", "fp16", "fp8", "int4")} == {"fp16"}
    assert calibration_of(chip).efficiency("gemm", "fp16").compute_ratio > 0


def test_a_slower_unit_is_not_used() -> None:
    """Blackwell Ultra's integer units are 15 times slower than its 16-bit ones."""
    assert load_accelerator("b300-sxm").arithmetic("int8") == "bf16"
    assert load_accelerator("b200-sxm").arithmetic("int8") == "int8"
    assert load_accelerator("gaudi-3").arithmetic("fp8") == "fp8"


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("  bf16:", "  tf32:", "peak: bf16 (or fp16) is missing"),
        ("network: roce-100", "network: rose-100", 'network: unknown link "rose-100". did you mean "roce-100"?'),
        ("network: roce-100\n", "", "network: expected text, found None"),
        ("kind: npu", "kind: rdu", "kind: expected gpu or npu or tpu or edge, found 'rdu'"),
        ("  hbm:\n    capacity", "  hbm:\n    size", "tiers.hbm.capacity: is missing"),
        ("tiers:\n  sram:", "clock:\n  bost: {}\ntiers:\n  sram:", 'clock.bost: unknown key. did you mean "boost"?'),
    ],
)
def test_mistakes_are_named(
    right: str, wrong: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = locate("accelerator", "sn40l").read_text()
    assert right in text
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace(right, wrong))
    monkeypatch.setattr(accelerator, "locate", lambda kind, name: file)
    with pytest.raises(DataError) as caught:
        accelerator.load_accelerator.__wrapped__("mine")
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_tiers_go_from_fast_to_large() -> None:
    tiers = load_accelerator("sn40l").tiers
    assert [tier.name for tier in tiers] == ["sram", "hbm", "ddr"]
    assert [t.capacity_bytes for t in tiers] == sorted(t.capacity_bytes for t in tiers)
    assert [t.bandwidth_bytes_per_s for t in tiers] == sorted((t.bandwidth_bytes_per_s for t in tiers), reverse=True)
    assert tiers[0].capacity_bytes == pytest.approx(520e6)


@pytest.mark.parametrize("name", names("accelerator"))
def test_memory_tiers_hold_the_main_memory(name: str) -> None:
    chip = load_accelerator(name)
    assert not chip.tiers or any(t.bandwidth_bytes_per_s == chip.bandwidth_bytes_per_s for t in chip.tiers)
    assert chip.l2_bytes < chip.memory_bytes / 50
    assert chip.clock.base_hz <= (chip.clock.boost_hz or chip.clock.base_hz)


@pytest.mark.parametrize("name", names("accelerator"))
def test_links_are_ordered(name: str) -> None:
    """Peers in a node are reached at least as fast as other nodes; edge chips have no peers of their own."""
    chip = load_accelerator(name)
    inside, outside = (load_link(link).bandwidth_bytes_per_s for link in (chip.link, chip.network))
    assert chip.kind == "edge" or inside > outside or chip.link.startswith("pcie")
    assert (chip.host_link == "unified") == (chip.kind == "edge")


@pytest.mark.parametrize("name", names("accelerator"))
def test_every_chip_computes_a_step(name: str) -> None:
    """Decoding 8 sequences of Llama 3.1 8B takes longer than reading its weights at the published bandwidth."""
    chip, llm = load_accelerator(name), load_llm("llama-3.1-8b")
    model = Roofline(Roofline.Config(), llm, chip, load_link(chip.link), Parallelism(), Engine())
    time_s, energy_j = model.mixed(8, 8, 0, 0, 0, 8, 8000, 8)
    assert time_s > floors(llm, chip, Parallelism(), Engine()).decode_s
    assert chip.power.idle_w < energy_j / time_s <= chip.power.limit_w


def test_catalogue_covers_every_class() -> None:
    chips = [load_accelerator(name) for name in names("accelerator")]
    assert {chip.kind for chip in chips} == {"gpu", "npu", "tpu", "edge"}
    vendors = {"nvidia", "amd", "intel", "google", "aws", "huawei", "sambanova", "apple", "qualcomm"}
    assert {chip.vendor for chip in chips} == vendors
    assert len(chips) >= 40
