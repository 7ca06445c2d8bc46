"""Step time from a measured grid: a file of decode steps and prompt steps, interpolated."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from math import floor, isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn

import numpy as np
from mypy_extensions import mypyc_attr

from fleetsim.catalog.accelerator import Accelerator
from fleetsim.catalog.link import Link
from fleetsim.catalog.llm import Llm
from fleetsim.engine.api import Line
from fleetsim.engine.steptime.curves import Grid, Pieces, rising
from fleetsim.engine.steptime.power import PowerConfig, Supply
from fleetsim.engine.steptime.reach import INFINITY, Reach
from fleetsim.errors import DataError, Finding, InputError, nearest
from fleetsim.plugins import ScenarioFile
from fleetsim.scenario.schema import Engine, Parallelism

COLUMNS = ("phase", "tokens", "context", "time_s")
ENERGY = "energy_j"
PHASES = ("decode", "prefill")
MOST_SMOOTHED = 0.2
"""A time that has to be moved by more than this share for times to rise with the work is taken for a mistake."""
MOST_FINDINGS = 10


class TableConfig(PowerConfig):
    """A measured grid."""

    file: ScenarioFile
    """CSV or Parquet file, relative to the scenario, with the columns phase (decode or prefill), tokens, context, time_s and,
    if it was measured, energy_j. A decode row: that many sequences with that mean context each, the new token included. A prefill
    row: one prompt of that many new tokens after that many cached ones. time_s and energy_j are the whole replica's, per step. Each
    phase needs every combination of its tokens and contexts."""
    outside: Literal["extrapolate", "error"] = "extrapolate"
    """Steps beyond the grid: go on along its last cell and say so in the results, or stop the run."""


class Row(NamedTuple):
    """One measured step."""

    place: int
    """Line of a CSV file, row of a Parquet file, from 1."""
    tokens: float
    context: float
    time_s: float
    energy_j: float


@mypyc_attr(allow_interpreted_subclasses=True)
class Table:
    """Measured grid of decode and prompt steps, linear between its points.

    Notes
    -----
    A decode step is linear in the context sum between the measured contexts, so leaps are exact. A step of several
    prompt chunks counts as one prompt with as many new tokens and (query, key) pairs. A step of prompts and decodes
    takes both times less the smallest decode step's, which stands for what every step pays once, and no less than
    either. Times that fall with more work by up to 20 % are smoothed. Below its smallest tokens and contexts the grid
    is flat. With attention data-parallel ranks it describes one rank, whatever the others do.
    """

    Config: ClassVar = TableConfig

    def __init__(
        self,
        config: TableConfig,
        llm: Llm,
        accelerator: Accelerator,
        link: Link,
        parallelism: Parallelism,
        engine: Engine,
    ) -> None:
        supply = Supply(config, llm, accelerator, link, parallelism, engine)
        self.idle_w, self.static_w, self.limit_w = supply.idle_w, supply.static_w, supply.limit_w
        self.frontend_s = supply.frontend_s
        self._supply, self._refuse = supply, config.outside == "error"
        path = Path(config.file)
        phases, metered = read_table(path)
        self._metered = metered and supply.dynamic_w is None
        static_w = self.static_w if self._metered else 0.0
        decode, prefill = phases["decode"], phases["prefill"]
        self._decode_s, self._decode_j = _grids(path, decode, static_w)
        self._prefill_s, self._prefill_j = _grids(path, prefill, static_w)
        self._once_s = self._decode_s.at(0.0, 0.0)
        self._once_j = self._decode_j.at(0.0, 0.0)
        self._pieces: dict[int, Pieces] = {}
        self._context_max = max(row.context for row in decode)
        self._reach = Reach("the table", INFINITY, max(row.tokens for row in decode), self._context_max)
        self._prompt = Reach("the table of prompts", max(row.tokens for row in prefill))
        self._cached_max = max(row.context for row in prefill)
        self._cached = 0.0
        self._name = path.name

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        """The line of a decode step; see `fleetsim.engine.api.StepTimeModel`."""
        self._reach.note(batch, batch, ctx_tokens)
        pieces = self._pieces.get(batch)
        if pieces is None:
            pieces = self._pieces[batch] = self._decodes(batch)
        line = pieces.at(ctx_tokens)
        if self._refuse:
            self._stop_outside()
            line = line._replace(ctx_end=min(line.ctx_end, floor(batch * self._context_max) + 1))
        supply = self._supply
        if self._metered or supply.dynamic_w is not None:
            return line
        _, _, energy_j, slope_j, ctx_end = supply.operators.decode(batch, ctx_tokens, group_tokens)
        return Line(line.time_s, line.time_per_ctx_s, energy_j, slope_j, min(line.ctx_end, ctx_end))

    def mixed(
        self,
        tokens: int,
        sampled: int,
        prefill_pairs: int,
        prefill_ctx_tokens: int,
        prefill_sequences: int,
        decode_batch: int,
        decode_ctx_tokens: int,
        group_tokens: int,
    ) -> tuple[float, float]:
        """Duration [s] and dynamic energy [J] of a step; see `fleetsim.engine.api.StepTimeModel`."""
        time_s = energy_j = 0.0
        if decode_batch:
            line = self.decode(decode_batch, decode_ctx_tokens, group_tokens)
            time_s = line.time_s + line.time_per_ctx_s * decode_ctx_tokens
            energy_j = line.energy_j + line.energy_per_ctx_j * decode_ctx_tokens
        prompt = tokens - decode_batch
        supply = self._supply
        if prompt > 0:
            cached = max(prefill_pairs / prompt - (prompt + 1) / 2, 0.0)
            prompt_s, prompt_j = self._prompts(prompt, cached)
            if decode_batch:
                time_s = max(time_s + prompt_s - self._once_s, time_s, prompt_s)
                energy_j = max(energy_j + prompt_j - self._once_j, energy_j, prompt_j)
            else:
                time_s, energy_j = prompt_s, prompt_j
        elif not decode_batch:
            time_s, energy_j = self._once_s, self._once_j
        if supply.dynamic_w is not None:
            return time_s, supply.dynamic_w * time_s
        if not self._metered:
            _, energy_j = supply.operators.mixed(
                tokens,
                sampled,
                prefill_pairs,
                prefill_ctx_tokens,
                prefill_sequences,
                decode_batch,
                decode_ctx_tokens,
                group_tokens,
            )
        return time_s, energy_j

    def remarks(self) -> Sequence[str]:
        """What a reader of the results should know: steps beyond the table."""
        found = [*self._reach.remarks(), *self._prompt.remarks()]
        if self._cached > self._cached_max:
            found.append(
                f"step times are extrapolated: prompts after up to {self._cached:,.0f} cached tokens, "
                f"the table ends at {self._cached_max:,.0f}"
            )
        return found

    def _decodes(self, batch: int) -> Pieces:
        times = self._decode_s.row(batch)
        dynamic_w = self._supply.dynamic_w
        energies = self._decode_j.row(batch) if dynamic_w is None else [dynamic_w * time_s for time_s in times]
        return Pieces(batch, self._decode_s.columns, times, energies)

    def _prompts(self, prompt: int, cached: float) -> tuple[float, float]:
        self._prompt.note(prompt, 0, 0)
        self._cached = max(self._cached, cached)
        if self._refuse:
            self._stop_outside()
        return self._prefill_s.at(prompt, cached), self._prefill_j.at(prompt, cached)

    def _stop_outside(self) -> None:
        outside = self.remarks()
        if outside:
            text = "; ".join(text.removeprefix("step times are extrapolated: ") for text in outside)
            hint = "measure larger steps, or set engine.step_time.outside to extrapolate"
            raise InputError(Finding(f"a step is outside the measured table: {text}", file=self._name, hint=hint))


def _grids(path: Path, rows: Sequence[Row], static_w: float) -> tuple[Grid, Grid]:
    """Times, and dynamic energies where the table has energies, over tokens and contexts."""
    tokens, contexts = (sorted({row[i] for row in rows}) for i in (1, 2))
    at = {(row.tokens, row.context): row for row in rows}
    table = [[at[t, c] for c in contexts] for t in tokens]
    time = np.array([[row.time_s for row in line] for line in table])
    energy = np.array([[max(row.energy_j - static_w * row.time_s, 0.0) for row in line] for line in table])
    moved = np.abs(rising(time) / time - 1)
    if moved.max() > MOST_SMOOTHED:
        i, j = np.unravel_index(moved.argmax(), moved.shape)
        row = table[int(i)][int(j)]
        message = f"{row.time_s:g} s for {row.tokens:g} tokens at context {row.context:g} does not fit its neighbours"
        hint = "times must not fall with more tokens or longer context; are all in seconds?"
        raise DataError(Finding(message, path="time_s", file=str(path), line=row.place, hint=hint))
    return Grid(tokens, contexts, time), Grid(tokens, contexts, energy)


# --- reading the file -------------------------------------------------------------------------------------------------


def read_table(path: Path) -> tuple[Mapping[str, Sequence[Row]], bool]:
    """Measured steps by phase, and whether their energy was measured.

    Raises
    ------
    DataError
        With the row and column of each mistake.
    """
    columns, records = _read(path)
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        _fail(path, f"columns are missing: {', '.join(missing)}", nearest(missing[0], columns, "columns"))
    metered = ENERGY in columns
    findings: list[Finding] = []
    phases: dict[str, dict[tuple[float, float], Row]] = {phase: {} for phase in PHASES}
    for place, record in records:
        row = _row(path, place, record, metered, findings)
        phase = record["phase"]
        if phase not in PHASES:
            hint = nearest(str(phase), PHASES, "phases")
            findings.append(Finding(f"unknown phase {phase!r}", path="phase", file=str(path), line=place, hint=hint))
        elif row is not None:
            first = phases[phase].setdefault((row.tokens, row.context), row)
            if first is not row:
                message = f"{phase} of {row.tokens:g} tokens at context {row.context:g} is in row {first.place} already"
                findings.append(Finding(message, file=str(path), line=place))
        if len(findings) >= MOST_FINDINGS:
            break
    if not findings:
        for phase, rows in phases.items():
            findings += _holes(path, phase, rows)
    if findings:
        raise DataError(findings)
    return {phase: list(rows.values()) for phase, rows in phases.items()}, metered


def _read(path: Path) -> tuple[Sequence[str], list[tuple[int, Mapping[str, Any]]]]:
    """Names of the columns, and the rows with their places."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            return table.column_names, list(enumerate(table.to_pylist(), start=1))
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="more", restval="")
            rows = [(reader.line_num, row) for row in reader]
            return [name.strip() for name in reader.fieldnames or ()], [
                (place, {str(k).strip(): v for k, v in row.items()}) for place, row in rows
            ]
    except FileNotFoundError:
        names = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        _fail(path, "no such file", nearest(path.name, names, "in that folder"))
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are OSError or ValueError
        _fail(path, f"cannot be read: {error}", "expected a CSV or Parquet file")


def _row(path: Path, place: int, record: Mapping[str, Any], metered: bool, findings: list[Finding]) -> Row | None:
    numbers = []
    for name in (*COLUMNS[1:], *([ENERGY] if metered else [])):
        value = record[name]
        lowest = 0 if name == "context" else 1 if name == "tokens" else None
        try:
            number = float(value.strip() if isinstance(value, str) else value)
        except (TypeError, ValueError):
            number = float("nan")
        if not isfinite(number) or (number <= 0 if lowest is None else number < lowest):
            expected = "a number above 0" if lowest is None else f"a number of at least {lowest}"
            findings.append(Finding(f"expected {expected}, found {value!r}", path=name, file=str(path), line=place))
        numbers.append(number)
    if findings and findings[-1].line == place:
        return None
    return Row(place, numbers[0], numbers[1], numbers[2], numbers[3] if metered else 0.0)


def _holes(path: Path, phase: str, rows: Mapping[tuple[float, float], Row]) -> list[Finding]:
    if not rows:
        return [Finding(f"there are no rows of phase {phase}", path="phase", file=str(path))]
    tokens, contexts = (sorted({key[i] for key in rows}) for i in (0, 1))
    holes = [(t, c) for t in tokens for c in contexts if (t, c) not in rows]
    if not holes:
        return []
    shown = ", ".join(f"{t:g} at {c:g}" for t, c in holes[:3]) + (" …" if len(holes) > 3 else "")
    message = f"{len(holes)} combinations of tokens and context are missing in phase {phase}: {shown}"
    return [Finding(message, file=str(path), hint="the grid needs every combination of its tokens and contexts")]


def _fail(path: Path, message: str, hint: str) -> NoReturn:
    raise DataError(Finding(message, file=str(path), hint=hint))
