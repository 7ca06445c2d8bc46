"""Measured grids: exact at their points, linear between, honest beyond; bad files are told row by row."""

import csv
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.link import load_link
from fleetsim.catalog.llm import load_llm
from fleetsim.engine.steptime.curves import Curve, Grid, Pieces
from fleetsim.engine.steptime.table import Table, read_table
from fleetsim.errors import DataError, InputError
from fleetsim.scenario.schema import Engine, Parallelism
from fleetsim.testing import check_step_time_model
from tests.engine.test_steptime_affine import scenario

BATCHES, CONTEXTS = (1, 4, 16, 64), (16, 128, 1024, 8192)
PROMPTS, CACHED = (16, 256, 2048), (0, 1024, 8192)
HEADER = ["phase", "tokens", "context", "time_s"]


def decode_s(batch: float, context: float) -> float:
    return 5e-3 + 3e-5 * batch + 1e-8 * batch * context * (1.5 if context > 1000 else 1)


def prompt_s(tokens: float, cached: float) -> float:
    return 6e-3 + 2e-5 * tokens + 1e-9 * tokens * (cached + tokens / 2)


def rows(energy: bool = False) -> list[list[Any]]:
    found: list[list[Any]] = [["decode", b, c, decode_s(b, c)] for b, c in product(BATCHES, CONTEXTS)]
    found += [["prefill", n, c, prompt_s(n, c)] for n, c in product(PROMPTS, CACHED)]
    return [[*row, 700 * row[3]] for row in found] if energy else found


def write(path: Path, lines: Iterable[list[Any]], header: list[str] | None = None) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header or HEADER, *lines])
    return path


def model(path: Path, **config: Any) -> Table:
    chip = load_accelerator("h100-sxm")
    settings_ = Table.Config.model_validate({"file": str(path), **config})
    return Table(settings_, load_llm("llama-3.1-8b"), chip, load_link(chip.link), Parallelism(), Engine())


def decode(m: Table, batch: int, ctx: int) -> float:
    line = m.decode(batch, ctx, batch)
    return line.time_s + line.time_per_ctx_s * ctx


def prompt(m: Table, n: int, cached: int, batch: int = 0, ctx: int = 0) -> float:
    return m.mixed(n + batch, 1 + batch, n * cached + n * (n + 1) // 2, cached + n, 1, batch, ctx, n + batch)[0]


def test_measured_points_are_met_and_steps_between_are_linear(tmp_path: Path) -> None:
    m = model(write(tmp_path / "t.csv", rows()))
    for batch, context in product(BATCHES, CONTEXTS):
        assert decode(m, batch, batch * context) == pytest.approx(decode_s(batch, context), rel=1e-12)
    for n, cached in product(PROMPTS, CACHED):
        assert prompt(m, n, cached) == pytest.approx(prompt_s(n, cached), rel=1e-12)
    between = (decode_s(4, 128) + decode_s(16, 128)) / 2
    assert decode(m, 10, 1280) == pytest.approx(between, rel=1e-12)
    assert decode(m, 4, 4 * 576) == pytest.approx((decode_s(4, 128) + decode_s(4, 1024)) / 2, rel=1e-12)


def test_beyond_the_grid_the_last_cell_goes_on_and_before_it_nothing_changes(tmp_path: Path) -> None:
    m = model(write(tmp_path / "t.csv", rows()))
    slope = (decode_s(4, 8192) - decode_s(4, 1024)) / (8192 - 1024)
    assert decode(m, 4, 4 * 20_000) == pytest.approx(decode_s(4, 8192) + slope * (20_000 - 8192), rel=1e-9)
    assert decode(m, 4, 4) == decode_s(4, 16)
    assert prompt(m, 1, 0) == prompt_s(16, 0)
    assert prompt(m, 4096, 0) == pytest.approx(prompt_s(2048, 0) * 2 - (prompt_s(0, 0) + 1e-9 * 2048 * 128), rel=0.02)
    assert len(m.remarks()) == 2


def test_a_step_of_prompts_and_decodes_pays_once_for_what_every_step_pays(tmp_path: Path) -> None:
    m = model(write(tmp_path / "t.csv", rows()))
    both = prompt(m, 256, 0, 16, 16 * 1024)
    assert both == pytest.approx(prompt_s(256, 0) + decode_s(16, 1024) - decode_s(1, 16), rel=1e-9)
    assert both > max(prompt_s(256, 0), decode_s(16, 1024))


def test_energy_is_what_was_measured_less_static_power(tmp_path: Path) -> None:
    m = model(write(tmp_path / "t.csv", rows(energy=True), [*HEADER, "energy_j"]))
    line = m.decode(4, 512, 4)
    time_s = line.time_s + 512 * line.time_per_ctx_s
    assert line.energy_j + 512 * line.energy_per_ctx_j + m.static_w * time_s == pytest.approx(700 * time_s, rel=1e-9)
    fixed = model(tmp_path / "t.csv", dynamic_power="100 W").decode(4, 512, 4)
    assert fixed.energy_j + 512 * fixed.energy_per_ctx_j == pytest.approx(100 * time_s, rel=1e-9)


@pytest.mark.parametrize("energy", [False, True])
@pytest.mark.parametrize("config", [{}, {"dynamic_power": "150 W"}])
def test_it_passes_the_checker(energy: bool, config: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", rows(energy), [*HEADER, "energy_j"] if energy else None)
    check_step_time_model(Table, {"file": str(path), **config})


@pytest.mark.parametrize("seed", range(5))
def test_scattered_measurements_pass_the_checker_too(seed: int, tmp_path: Path) -> None:
    """Times with 4 % of scatter fall here and there; the model's do not."""
    rng = np.random.default_rng(seed)
    scattered = [[*row[:3], row[3] * rng.normal(1, 0.04)] for row in rows()]
    check_step_time_model(Table, {"file": str(write(tmp_path / "t.csv", scattered))})


def test_parquet_and_a_grid_of_one_point_are_read(tmp_path: Path) -> None:
    lines = rows()
    columns = {name: [line[i] for line in lines] for i, name in enumerate(HEADER)}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    csv_path = write(tmp_path / "t.csv", lines)
    assert {phase: [row[1:] for row in found] for phase, found in read_table(tmp_path / "t.parquet")[0].items()} == {
        phase: [row[1:] for row in found] for phase, found in read_table(csv_path)[0].items()
    }
    one = model(write(tmp_path / "one.csv", [["decode", 8, 100, 0.01], ["prefill", 64, 0, 0.02]]))
    assert decode(one, 3, 999) == 0.01
    assert prompt(one, 10, 0) == 0.02


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=5, unique=True).map(sorted),
    st.lists(st.integers(1, 9000), min_size=1, max_size=6, unique=True).map(sorted),
    st.integers(0, 2**32),
    st.integers(1, 4000),
    st.integers(1, 40_000),
)
@settings(deadline=None)
def test_pieces_are_the_grid(rows_: list[int], columns: list[int], seed: int, batch: int, context: int) -> None:
    """The line at a context sum gives the grid's value there; grids never fall, also beyond their ends."""
    values = np.random.default_rng(seed).uniform(0.5, 1.5, (len(rows_), len(columns)))
    grid = Grid(rows_, columns, values)
    row = grid.row(batch)
    pieces = Pieces(batch, grid.columns, row, [0.0] * len(row))
    for ctx in {batch * context, batch * context + 1, *(batch * c for c in columns)}:
        line = pieces.at(ctx)
        assert ctx < line.ctx_end
        assert line.time_s + line.time_per_ctx_s * ctx == pytest.approx(grid.at(batch, ctx / batch), rel=1e-9)
        assert line.time_s + line.time_per_ctx_s * ctx == pytest.approx(
            Curve(grid.columns, row).at(ctx / batch), rel=1e-9
        )
    assert grid.at(batch + 1, context) >= grid.at(batch, context) * (1 - 1e-12)
    assert grid.at(batch, context + 1) >= grid.at(batch, context) * (1 - 1e-12)


# --- bad files --------------------------------------------------------------------------------------------------------

Change = Callable[[list[list[Any]]], Any]
BAD: list[tuple[str, Change, str]] = [
    ("no-number", lambda r: r[2].__setitem__(3, "fast"), r"t\.csv:4  time_s: expected a number above 0, found 'fast'"),
    ("not-positive", lambda r: r[0].__setitem__(3, 0), r"t\.csv:2  time_s: expected a number above 0, found '0'"),
    ("nan", lambda r: r[0].__setitem__(3, "nan"), r"time_s: expected a number above 0, found 'nan'"),
    ("negative", lambda r: r[1].__setitem__(2, -1), r"t\.csv:3  context: expected a number of at least 0, found '-1'"),
    ("short-row", lambda r: r[5].pop(), r"t\.csv:7  time_s: expected a number above 0, found ''"),
    ("phase", lambda r: r[0].__setitem__(0, "decod"), r'unknown phase \'decod\'\n    did you mean "decode"\?'),
    ("twice", lambda r: r.append(list(r[0])), r"t\.csv:27  decode of 1 tokens at context 16 is in row 2 already"),
    ("hole", lambda r: r.pop(3), r"1 combinations of tokens and context are missing in phase decode: 1 at 8192"),
    ("no-prompts", lambda r: r.__delitem__(slice(16, None)), "there are no rows of phase prefill"),
    ("other-unit", lambda r: r[6].__setitem__(3, r[6][3] * 1e3), r"t\.csv:\d+  time_s: .* does not fit its neighbours"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_rows_are_told_with_their_place(change: Change, message: str, tmp_path: Path) -> None:
    lines = rows()
    change(lines)
    with pytest.raises(DataError, match=message):
        model(write(tmp_path / "t.csv", lines))


def test_files_that_are_no_tables_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="columns are missing: time_s"):
        model(write(tmp_path / "a.csv", rows(), ["phase", "tokens", "context", "seconds"]))
    with pytest.raises(DataError, match=r'no such file\n    did you mean "a\.csv"'):
        model(tmp_path / "b.csv")
    (tmp_path / "c.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"c\.parquet  cannot be read"):
        model(tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        model(tmp_path / "d.csv")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(DataError, match="columns are missing: phase"):
        model(tmp_path / "empty.csv")


# --- in a scenario ----------------------------------------------------------------------------------------------------


def in_file(folder: Path, **step_time: Any) -> Path:
    """A scenario file beside its table."""
    import json

    content = scenario()
    content["pools"][0]["engine"]["step_time"] = {"model": "table", "file": "tables/t.csv", **step_time}
    (folder / "tables").mkdir(exist_ok=True)
    (folder / "scenario.yaml").write_text(json.dumps(content), encoding="utf-8")
    return folder / "scenario.yaml"


def test_the_file_is_found_from_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = in_file(tmp_path)
    write(tmp_path / "tables" / "t.csv", rows())
    monkeypatch.chdir("/")
    result = fleetsim.run(path, out=tmp_path / "out", check=True)
    assert result.summary["finished"] == 20
    assert "extrapolated" not in str(result.extrapolated)


def test_a_bad_file_is_told_where_the_scenario_names_it(tmp_path: Path) -> None:
    path = in_file(tmp_path)
    with pytest.raises(InputError, match=r"pools\[0\]\.engine\.step_time: t\.csv: no such file"):
        fleetsim.run(path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_steps_outside_are_reported_or_refused(tmp_path: Path) -> None:
    small = [row for row in rows() if row[1] <= 256]
    write((tmp_path / "t.csv"), small)
    path = in_file(tmp_path)
    write(tmp_path / "tables" / "t.csv", small)
    result = fleetsim.run(path, out=tmp_path / "out")
    assert [text for text in result.extrapolated if "tokens per step, the table of prompts ends at 256" in text]
    path = in_file(tmp_path, outside="error")
    with pytest.raises(InputError, match=r"t\.csv  a step is outside the measured table: up to 700 tokens per step"):
        fleetsim.run(path, out=tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
