"""Reading of catalogue files: all mistakes at once, each with file and path."""

from pathlib import Path

import pytest

from fleetsim.catalog import calibration, data
from fleetsim.catalog.sourced import Record
from fleetsim.errors import DataError

FILE = Path("models/accelerator/x.yaml")


def test_quantity_is_converted_once() -> None:
    record = Record({"bandwidth": {"value": 3.35, "unit": "TB/s", "source": "s", "note": "n"}}, FILE)
    assert record.quantity("bandwidth", "bytes/s") == 3.35e12
    figure = record.sourced["bandwidth"]
    assert (figure.published, figure.unit, figure.source, figure.note, figure.is_assumed) == (
        3.35,
        "TB/s",
        "s",
        "n",
        False,
    )
    record.finish()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (None, "is missing"),
        (3.35, "expected {value, unit, source}"),
        ({"value": 3, "unit": "TB/s"}, "has no source"),
        ({"value": 3, "unit": "TB/s", "source": "assumed"}, "assumed without a note"),
        ({"value": 3, "unit": "W", "source": "s"}, "unit of power"),
        ({"value": 3, "unit": "lightyears", "source": "s"}, "unknown unit"),
        ({"value": -3, "unit": "TB/s", "source": "s"}, "not below 0"),
        ({"value": "3", "unit": "TB/s", "source": "s"}, "expected a number"),
        ({"value": True, "unit": "TB/s", "source": "s"}, "expected a number"),
        ({"value": 3, "unit": "TB/s", "source": "s", "sauce": "s"}, "unknown keys: sauce"),
    ],
)
def test_mistakes_are_named(entry: object, message: str) -> None:
    record = Record({} if entry is None else {"bandwidth": entry}, FILE)
    record.quantity("bandwidth", "bytes/s")
    with pytest.raises(DataError, match="bandwidth") as caught:
        record.finish()
    assert message in str(caught.value)
    assert str(FILE) in str(caught.value)


def test_all_mistakes_at_once() -> None:
    record = Record({"power": {"idle": {}}, "kind": "cpu"}, FILE)
    record.text("kind", "gpu", "npu")
    record.part("power").quantity("idle", "power")
    record.part("peak")
    assert {finding.path for finding in record.findings} >= {"kind", "power.idle", "peak"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\na: 2\n", "duplicate key"),
        ("a: [1\n", "expected"),
        ("- 1\n", "expected a mapping"),
        ("a: !!python/x 1\n", ""),
    ],
)
def test_bad_yaml(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        data.read_yaml(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        data.read_yaml(tmp_path / "none.yaml")


def test_calibration_rejects_unknown_groups_and_missing_constants(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("gem: {}\ngemm:\n  bf16: {source: assumed, overhead: 3, overheard: 3 us}\n")
    with pytest.raises(DataError) as caught:
        calibration._load(path)
    text = str(caught.value)
    assert 'gem: unknown key. did you mean "gemm"?' in text
    assert 'gemm.bf16.overheard: unknown key. did you mean "overhead"?' in text
    assert "gemm.bf16.compute_ratio" in text
    assert "gemm.bf16.overhead" in text
    assert "gemm.bf16.note" in text
