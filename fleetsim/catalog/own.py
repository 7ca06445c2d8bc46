"""Calibration files of one's own (`engine.calibration` in a scenario), laid over what the catalogue knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.calibration import Calibration, Efficiency, calibration_of, read_groups
from fleetsim.catalog.data import read_yaml
from fleetsim.catalog.engine import EngineProfile, load_engine
from fleetsim.catalog.link import Link
from fleetsim.catalog.sourced import Record, Sourced
from fleetsim.scenario.schema import Engine

ENGINE = {
    "host": ("host_s", "time"),
    "host_async": ("host_async_s", "time"),
    "host_per_sequence": ("host_per_sequence_s", "time"),
    "host_data_parallel": ("host_data_parallel_s", "time"),
    "eager_per_layer": ("eager_layer_s", "time"),
    "frontend": ("frontend_s", "time"),
    "scale": ("scale", "ratio"),
}
"""Field of `EngineProfile` and dimension of each key that a file may set under ``engine``."""
LINK = {"bandwidth_ratio": "ratio", "contention": "ratio"}
START = {"latency": "latency_s", "latency_per_rank": "latency_per_rank_s", "chunk": "chunk_s"}
"""Keys under ``link``: those of the link itself, and those of its all-reduce."""
POWER = ("idle", "static", "compute", "memory")
"""Keys under ``power``, in W; see `fleetsim.catalog.accelerator.Power`."""


@dataclass(frozen=True, slots=True)
class Own:
    """What a calibration file says; whatever it leaves out stays as the catalogue has it."""

    engine: Mapping[str, float]
    """Fields of `EngineProfile`."""
    groups: Mapping[str, Mapping[str, Efficiency]]
    """Efficiencies of operator groups by number format."""
    link: Mapping[str, float]
    """Fields of `Link`."""
    all_reduce: Mapping[str, float]
    """Fields of `Link.all_reduce`."""
    power: Mapping[str, float]
    """Fields of `Power`."""
    sourced: Mapping[str, Sourced]
    """Every number but those of the operator groups with its unit and source."""


NOTHING = Own({}, {}, {}, {}, {}, {})


def load_own(path: str | Path) -> Own:
    """Content of a calibration file.

    Raises
    ------
    DataError
        If it cannot be read or is not valid: unknown keys, wrong units, no source.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError:
        content = b""  # reading it says why
    return _read(file, content)


@lru_cache(maxsize=4)
def _read(file: Path, content: bytes) -> Own:  # noqa: ARG001
    """What a file says, read once as long as its content stays: a user may write it anew in the same session."""
    record = Record(read_yaml.__wrapped__(file), file)
    record.known.add("about")
    engine = {field: v for key, (field, d) in ENGINE.items() if (v := _optional(record, "engine", key, d)) is not None}
    groups = read_groups(record.part("accelerator")) if "accelerator" in record.content else {}
    link = {key: v for key, d in LINK.items() if (v := _optional(record, "link", key, d)) is not None}
    starts = {f: v for key, f in START.items() if (v := _optional(record, "link", key, "time")) is not None}
    power = {f"{key}_w": v for key in POWER if (v := _optional(record, "power", key, "power")) is not None}
    if engine.get("scale") == 0:
        record.find("engine.scale", "must be above 0: it multiplies the accelerators' time")
    if link.get("bandwidth_ratio") == 0:
        record.find("link.bandwidth_ratio", "must be above 0")
    record.finish()
    return Own(engine, groups, link, starts, power, dict(record.sourced))


def _optional(record: Record, section: str, key: str, dimension: str) -> float | None:
    if section not in record.content:
        record.known.add(section)
        return None
    part = next((part for part in record.parts if part.path == section), None) or record.part(section)
    part.known.add(key)
    return part.quantity(key, dimension) if key in part.content else None


def own_of(engine: Engine) -> Own:
    """The calibration file that an engine names, whose path is whole (`Engine.located`); nothing where it names none."""
    return NOTHING if engine.calibration is None else load_own(engine.calibration)


def engine_profile(engine: Engine) -> EngineProfile:
    """Overheads of an engine: those of its kind, with what its calibration file says instead.

    Raises
    ------
    DataError
        If a file is not valid.
    """
    profile, own = load_engine(engine.kind), own_of(engine)
    if not own.engine:
        return profile
    sourced = {key: own.sourced.get(f"engine.{key}", value) for key, value in profile.sourced.items()}
    return replace(profile, sourced=sourced, **own.engine)  # type: ignore[arg-type]


def calibration_for(accelerator: Accelerator, engine: Engine, kernels: str | None = None) -> Calibration:
    """Efficiencies of an accelerator: first those of the calibration file, then the catalogue's.

    Parameters
    ----------
    kernels : str, optional
        Engine whose kernels are meant, where it is not the engine's own kind.
    """
    known = calibration_of(accelerator, kernels or load_engine(engine.kind).kernels)
    own = own_of(engine)
    if not own.groups:
        return known
    return Calibration(known.name, own.groups, (replace(known, fallbacks=()), *known.fallbacks))


def link_for(link: Link, engine: Engine) -> Link:
    """A link with what the calibration file says instead; its all-reduce alone is measured by `fleetsim profile`."""
    own = own_of(engine)
    if not own.link and not own.all_reduce:
        return link
    sourced = {key: own.sourced.get(f"link.{key}", value) for key, value in link.sourced.items()}
    return replace(link, all_reduce=replace(link.all_reduce, **own.all_reduce), sourced=sourced, **own.link)  # type: ignore[arg-type]


def accelerator_for(accelerator: Accelerator, engine: Engine) -> Accelerator:
    """An accelerator with the power that the calibration file says instead."""
    own = own_of(engine)
    if not own.power:
        return accelerator
    sourced = {
        key: own.sourced.get(key, value) if key.startswith("power.") else value
        for key, value in accelerator.sourced.items()
    }
    return replace(accelerator, power=replace(accelerator.power, **own.power), sourced=sourced)  # type: ignore[arg-type]
