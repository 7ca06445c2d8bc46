"""From measurements of one's own to a calibration file that a scenario can name."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from fleetsim.calibration.engine_fit import Constant, EngineFit, Errors, Server, fit_engine, quantities
from fleetsim.calibration.kernels import OFF
from fleetsim.calibration.measured import (
    Fitted,
    FittedLink,
    Table,
    fit_groups,
    fit_link,
    is_table,
    power,
    read_table,
    sections,
)
from fleetsim.calibration.runs import Run, read_runs
from fleetsim.catalog.accelerator import Accelerator, load_accelerator
from fleetsim.catalog.calibration import GROUPS, calibration_of
from fleetsim.catalog.link import Link, load_link
from fleetsim.catalog.own import load_own
from fleetsim.errors import DataError, Finding, InputError
from fleetsim.scenario.load import LoadedScenario

HEADER = "# Written by `fleetsim calibrate`; a scenario names it as `engine: {calibration: FILE}`."


@dataclass
class Calibrated:
    """What was found, and the content of the file that says it."""

    content: dict[str, Any]
    """Sections of the calibration file."""
    engine: EngineFit | None = None
    runs: Sequence[Run] = ()
    groups: Sequence[Fitted] = ()
    link: FittedLink | None = None
    power: Mapping[str, float] = field(default_factory=dict)
    skipped: Sequence[str] = ()
    """What had too few rows."""

    def text(self) -> str:
        """The file."""
        out = io.StringIO()
        yaml = YAML()
        yaml.width = 4096
        yaml.dump(_styled(self.content), out)
        return f"{HEADER}\n{out.getvalue()}"


def _styled(value: Any) -> Any:
    """Mappings as YAML writes them best: a quantity on one line."""
    if not isinstance(value, Mapping):
        return value
    styled = CommentedMap((key, _styled(child)) for key, child in value.items())
    if "value" in value:
        styled.fa.set_flow_style()
    return styled


def calibrate(
    files: Sequence[Path],
    scenario: LoadedScenario | None = None,
    accelerator: str | None = None,
    link: str | None = None,
    concurrency: int | None = None,
    rate_per_s: float | None = None,
) -> Calibrated:
    """Fits what the files show: kernel tables an accelerator's constants, runs of a server its engine's.

    Parameters
    ----------
    files : sequence of Path
        Kernel tables of `fleetsim profile`, results of benchmark tools, request logs.
    scenario : LoadedScenario, optional
        Describes the server that was measured; runs need it.
    accelerator, link : str, optional
        Names in the catalogue of what kernel tables measured; default: what the scenario's pool has.
    concurrency, rate_per_s : optional
        How the client of every run sent, where its file does not say.

    Raises
    ------
    InputError
        If a file, the scenario or a name cannot be used, or something needed is not given.
    """
    tables = [read_table(file) for file in files if is_table(file)]
    runs = [run for file in files if not is_table(file) for run in read_runs(file, concurrency, rate_per_s)]
    result = Calibrated({})
    if tables:
        chip, wire = _measured_parts(scenario, accelerator, link)
        for table in tables:
            _fit_table(result, table, chip, wire)
        if not result.content:
            hint = "; ".join(result.skipped) or "they have rows of no kind that is fitted"
            raise DataError(Finding("has too few rows to fit anything", file=str(tables[0].file), hint=hint))
    if runs:
        if scenario is None:
            message = "is a run of a server: which one? give --scenario FILE, a scenario with that server as its pool"
            raise InputError(Finding(message, file=str(runs[0].file)))
        _fit_runs(result, runs, scenario)
    result.content = {"about": _about(result, files, tables), **result.content}
    return result


def _measured_parts(
    scenario: LoadedScenario | None, accelerator: str | None, link: str | None
) -> tuple[Accelerator, Link]:
    pool = scenario.scenario.pools[0] if scenario is not None else None
    name = accelerator or (pool.accelerator if pool else None)
    if name is None:
        raise InputError(
            "a kernel table needs --accelerator NAME (`fleetsim list accelerators`), or a --scenario that has it"
        )
    chip = load_accelerator(name)
    return chip, load_link(link or (pool.link if pool and pool.link else chip.link))


def _fit_table(result: Calibrated, table: Table, chip: Accelerator, wire: Link) -> None:
    fits, skipped = fit_groups(table, chip, _known(table, chip))
    result.groups, result.skipped = [*result.groups, *fits], [*result.skipped, *skipped]
    source = table.file.name
    groups = result.content.setdefault("accelerator", {}) if fits else {}
    for group, forms in sections(fits, source).items():
        groups.setdefault(group, {}).update(forms)
    found = fit_link(table, wire)
    if found is not None:
        result.link = found
        values = {
            "bandwidth_ratio": (found.bandwidth_ratio, "ratio"),
            "latency": (found.latency_s * 1e6, "us"),
            "latency_per_rank": (found.latency_per_rank_s * 1e6, "us"),
            "chunk": (found.chunk_s * 1e6, "us"),
        }
        result.content["link"] = {key: _quantity(value, unit, source) for key, (value, unit) in values.items()}
    watts = power(table, chip)
    if watts:
        result.power = watts
        result.content["power"] = {key: _quantity(value, "W", source) for key, value in watts.items()}


def _quantity(value: float, unit: str, source: str) -> dict[str, Any]:
    return {"value": float(f"{value:.4g}"), "unit": unit, "source": source}


def _known(table: Table, chip: Accelerator) -> dict[str, dict[str, float]]:
    """The catalogue's constants of everything in a table."""
    calibration = calibration_of(chip)
    known: dict[str, dict[str, float]] = {}
    for op, group in {**{g: g for g in GROUPS}, "copy": "elementwise"}.items():
        for form in table.formats(op):
            efficiency = calibration.efficiency(group, form)
            known[f"{group}.{form}"] = {k: getattr(efficiency, k, OFF[k]) for k in OFF}
    return known


def _fit_runs(result: Calibrated, runs: Sequence[Run], scenario: LoadedScenario) -> None:
    with Server(scenario, result.content) as server:
        found = fit_engine(server, runs)
        result.engine, result.runs = found, runs
        kept = server.sections
    fitted = {c.name: c.value for c in found.constants if c.fitted}
    notes = {c.name: f"fitted, standard error {shown(c.name, c.error)}" for c in found.constants if c.fitted}
    source = ", ".join(dict.fromkeys(run.file.name for run in runs))
    result.content = {key: value for key, value in kept.items() if key != "about"}
    result.content["engine"] = {**kept.get("engine", {}), **quantities(fitted, source, notes)}


def shown(name: str, value: float) -> str:
    """A constant of the engine for people."""
    return f"{value:.3g}" if name == "scale" else f"{value * 1e3:.3g} ms"


def _about(result: Calibrated, files: Sequence[Path], tables: Sequence[Table]) -> dict[str, Any]:
    about: dict[str, Any] = {"files": [file.name for file in files]}
    if result.engine is not None:
        fit = result.engine
        about["valid_up_to"] = {
            "batch": fit.batch_max,
            "prompt_tokens": fit.prompt_tokens_max,
            "context_tokens": fit.context_tokens_max,
        }
        about["median_error_before"] = _medians(fit.before)
        about["median_error"] = _medians(fit.after)
        about["p90_error"] = {name: round(error.p90, 4) for name, error in fit.after.items()}
        about["not_identifiable"] = [constant.name for constant in fit.constants if not constant.fitted]
    if tables:
        about["kernel_rows"] = sum(len(table.rows) for table in tables)
    return about


def _medians(errors: Mapping[str, Errors]) -> dict[str, float]:
    return {name: round(error.median, 4) for name, error in errors.items()}


def why_not(constant: Constant, engine: EngineFit) -> str:
    """Why a constant was left as it was."""
    if engine.figures <= sum(c.fitted for c in engine.constants):
        return f"not identifiable: {engine.figures} figures give at most {engine.figures} constants; add runs at other loads"
    error = (
        "does not show"
        if constant.error == float("inf")
        else f"would be known to ± {shown(constant.name, constant.error)} only"
    )
    return f"not identifiable: {error}; add runs at other loads"


def write(result: Calibrated, out: Path, force: bool) -> None:
    """Write the file and read it back.

    Raises
    ------
    InputError
        If it exists and `force` is off, or cannot be written.
    """
    try:
        with out.open("w" if force else "x", encoding="utf-8") as file:
            file.write(result.text())
    except FileExistsError:
        raise InputError(Finding("exists already: choose another --out, or --force", file=str(out))) from None
    except OSError as error:
        raise InputError(Finding(f"cannot be written: {error.strerror}", file=str(out))) from None
    load_own(out)
