"""Every file of the catalogue: loads, cites known sources, and states units that an independent library understands."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pint
import pytest

from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.calibration import GROUPS, calibration_of
from fleetsim.catalog.data import KINDS, catalogue, models_folder, names, read_yaml
from fleetsim.catalog.encoder import load_encoder
from fleetsim.catalog.engine import load_engine
from fleetsim.catalog.grid import load_grid
from fleetsim.catalog.link import load_link
from fleetsim.catalog.llm import load_llm
from fleetsim.catalog.sourced import ASSUMED
from fleetsim.errors import DataError
from fleetsim.units import UNITS, parse

FILES = [path for kind in KINDS for path in catalogue(kind).values()]
SOURCES = read_yaml(models_folder() / "SOURCES.yaml")
LOADERS = {
    "accelerator": load_accelerator,
    "link": load_link,
    "llm": load_llm,
    "encoder": load_encoder,
    "engine": load_engine,
    "grid": load_grid,
}


def cited(value: Any) -> Iterator[tuple[str, str]]:
    """All pairs of source and note in a file."""
    if isinstance(value, dict):
        if isinstance(value.get("source"), str):
            yield value["source"], str(value.get("note", ""))
        for inner in value.values():
            yield from cited(inner)


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_sources_resolve_and_assumptions_are_explained(path: Path) -> None:
    for source, note in cited(read_yaml(path)):
        assert source in SOURCES or source == ASSUMED
        assert source != ASSUMED or note


def test_every_source_is_used_and_complete() -> None:
    used = {source for path in FILES for source, _ in cited(read_yaml(path))}
    assert set(SOURCES) | {ASSUMED} == used
    for entry in SOURCES.values():
        assert set(entry) == {"title", "address", "date"}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in LOADERS for name in names(kind)])
def test_loads(kind: str, name: str) -> None:
    assert LOADERS[kind](name).name == name


WANTED = """
a100-40 a100-40-pcie a100-80 a100-80-pcie a10g a30 l4 l40s a40 a6000 rtx-3090 rtx-4090 rtx-pro-6000 v100 v100-16
h100-sxm h100-pcie h100-nvl h200-sxm b200-sxm b300-sxm gb200 gb300 mi250x mi300x mi325x mi355x gaudi-2 gaudi-3
arc-pro-b60 tpu-v5e tpu-v5p tpu-v6e trainium-2 inferentia-2 ascend-910b ascend-910c sn40l m2-ultra m3-ultra
jetson-agx-orin-64 snapdragon-x-elite lunar-lake-npu
"""


def test_wanted_names_are_there() -> None:
    assert set(WANTED.split()) <= set(names("accelerator"))


UNUSUAL = {
    ("b300-sxm", "int8"): "integer units given up",
    ("gb300", "int8"): "integer units given up",
    ("gaudi-3", "fp8"): "the rate of 16-bit floats",
    ("inferentia-2", "fp8"): "the rate of 16-bit floats",
    ("mi250x", "int8"): "the rate of 16-bit floats",
    ("sn40l", "int8"): "only one rate is published",
}
"""Chips whose narrow types do not run at twice or four times the rate of the wider ones."""


@pytest.mark.parametrize("name", names("accelerator"))
def test_accelerator_is_consistent(name: str) -> None:
    chip = load_accelerator(name)
    power = chip.power
    assert power.idle_w < power.static_w < power.limit_w
    assert chip.price_usd_per_h > 0
    assert 0.9 < chip.memory_bytes / 2**30 / round(chip.memory_bytes / 2**30) < 1.1
    peak = chip.peak_flop_per_s
    for wide, narrow in ((chip.half, "fp8"), ("fp8", "fp4"), (chip.half, "int8")):
        if wide in peak and narrow in peak and (name, narrow) not in UNUSUAL:
            assert 1.9 < peak[narrow] / peak[wide] < 4.1
    calibration = calibration_of(chip)
    for group in GROUPS:
        found = calibration.efficiency(group, "bf16")
        assert 0.05 < found.compute_ratio <= 1.2
        assert 0 < found.overhead_s < 1e-4


WITH_NVLINK = "v100 v100-16 a100-40 a100-80 h100-sxm h100-nvl h200-sxm b200-sxm b300-sxm gb200 gb300"


@pytest.mark.parametrize("name", names("accelerator"))
def test_only_chips_with_nvlink_get_it(name: str) -> None:
    chip = load_accelerator(name)
    assert chip.link.startswith("nvlink") == (name in WITH_NVLINK.split())
    host = {"edge": "unified", "gpu": "nvlink-c2c" if name in ("gb200", "gb300") else "pcie"}
    assert chip.host_link.startswith(host.get(chip.kind, "pcie"))


@pytest.mark.parametrize("name", names("accelerator"))
def test_measured_status_means_a_calibration(name: str) -> None:
    """Measured: step times of this chip, or of one with the same cores, link and power limit."""
    chip = load_accelerator(name)
    measured = chip.calibration in names("calibration")
    if measured and chip.calibration != name:
        like = load_accelerator(chip.calibration)
        measured = (chip.cores, chip.link, chip.power.limit_w) == (like.cores, like.link, like.power.limit_w)
    assert (chip.status == "measured") == measured


def test_published_figures() -> None:
    assert load_accelerator("rtx-4090").peak_flop_per_s["bf16"] == pytest.approx(165.2e12)
    assert load_accelerator("h100-sxm").bandwidth_bytes_per_s == pytest.approx(3.35e12)
    assert load_accelerator("a10g").peak_flop_per_s["bf16"] < load_accelerator("l40s").peak_flop_per_s["bf16"] / 5
    assert load_link("nvlink4").bandwidth_bytes_per_s == pytest.approx(450e9)
    assert load_link("pcie5-x16-staged").effective_bytes_per_s(2) == pytest.approx(16e9, rel=0.01)


PINT = {
    "time": "second",
    "bytes": "byte",
    "bytes/s": "byte / second",
    "power": "watt",
    "energy": "joule",
    "frequency": "hertz",
    "mass": "gram",
}


def test_units_agree_with_pint() -> None:
    registry = pint.UnitRegistry()
    for dimension, base in PINT.items():
        for unit in UNITS[dimension]:
            if unit.endswith("bps") or "µ" in unit or unit.startswith("K"):
                continue
            expression = unit.replace("b/s", "bit/s") if dimension == "bytes/s" and not unit.endswith("bit/s") else unit
            oracle = registry.Quantity(3, expression).to(base).magnitude
            assert parse(f"3 {unit}", dimension) == pytest.approx(oracle, rel=1e-12), unit


UNCONVERTED = ("ratio", "count", "tokens", "sequences", "accelerators", "USD/h", "K/W", "J/K", "C")


@pytest.mark.parametrize("kind", ["accelerator", "link", "engine"])
def test_published_values_agree_with_pint(kind: str) -> None:
    registry = pint.UnitRegistry()
    registry.define("FLOPS = 1 / second")
    for name in names(kind):
        for path, figure in LOADERS[kind](name).sourced.items():
            if figure.unit in UNCONVERTED or path == "cores":
                assert figure.value == figure.published
                continue
            oracle = registry.Quantity(figure.published, figure.unit.replace("Gb/s", "Gbit/s"))
            oracle = oracle.to("byte") if oracle.check("[]") and "B" in figure.unit else oracle
            base = oracle.to_base_units() if not oracle.is_compatible_with("byte") else oracle
            units = {"[mass] * [length] ** 2 / [time] ** 3": "watt", "[time]": "second", "[mass]": "gram"}
            wanted = units.get(str(base.dimensionality))
            if wanted is None:
                wanted = "byte/second" if figure.unit.endswith("/s") else "byte" if "B" in figure.unit else "1/second"
            assert figure.value == pytest.approx(oracle.to(wanted).magnitude, rel=1e-12), (name, path)


@pytest.mark.parametrize(
    ("load", "kind", "wrong", "right"),
    [
        (load_accelerator, "accelerator", "h100_sxm", "h100-sxm"),
        (load_link, "link", "nvlink", "nvlink"),
        (load_llm, "llm", "llama-3.1-8", "llama-3.1-8b"),
    ],
)
def test_unknown_name_suggests(load: Any, kind: str, wrong: str, right: str) -> None:
    with pytest.raises(DataError) as caught:
        load(wrong)
    assert f'unknown {kind} "{wrong}"' in str(caught.value)
    assert right in caught.value.findings[0].hint
