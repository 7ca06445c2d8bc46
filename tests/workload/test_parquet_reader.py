import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fleetsim.errors import DataError
from fleetsim.workload.formats import TraceFile
from fleetsim.workload.readers.rows import BadRows

BASE = {"arrival_s": [0.0, 1.0, 2.5], "prompt_tokens": [10, 20, 30], "output_tokens": [1, 2, 3]}


def read(path, **columns):
    pq.write_table(pa.table({**BASE, **columns}), path, row_group_size=2)
    bad = BadRows()
    return list(TraceFile.open(path, "parquet").rows(bad)), bad


def test_plain_columns(tmp_path):
    rows, bad = read(tmp_path / "t.parquet", note=["x", "y", "z"])
    assert not bad.count
    assert [(r.number, r.time_s, r.prompt_tokens, r.output_tokens) for r in rows] == [
        (1, 0.0, 10, 1),
        (2, 1.0, 20, 2),
        (3, 2.5, 30, 3),
    ]


def test_every_optional_column(tmp_path):
    rows, bad = read(
        tmp_path / "t.parquet",
        session_id=["s", "s", None],
        block_hashes=pa.array([[1, -2], [1], None], pa.list_(pa.int64())),
        block_size=[16, 16, 16],
        model=["m", None, ""],
        category=["chat", "chat", None],
        tenant=["t", None, None],
        tool_time_s=[None, 2.0, None],
        think_time_s=[None, 1.0, float("nan")],
        images=[None, 2, 1],
        image_tokens=[None, 7, None],
    )
    assert not bad.count
    assert rows[0][4:] == ((1, -2), 16, "s", None, "chat", "t", "m", 0, -1)
    assert rows[1][4:] == ((1,), 16, "s", 2.0, "chat", None, None, 2, 7)
    assert rows[2][4:] == ((), 0, None, None, None, None, None, 1, -1)


def test_sessions_follow_from_parents(tmp_path):
    rows, bad = read(tmp_path / "t.parquet", parent_request=[None, 0, 1])
    assert not bad.count
    assert [r.session for r in rows] == [0, 0, 0]


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("prompt_tokens", [10, None, 30], "prompt_tokens is missing"),
        ("prompt_tokens", [10, 0, 30], "prompt tokens: 0"),
        ("output_tokens", [1.0, 2.5, 3.0], "output_tokens: 2.5 is not a whole number"),
        ("arrival_s", [0.0, float("nan"), 2.0], "not a finite number"),
        ("arrival_s", [1.0, 0.5, 2.0], "time goes back by 0.5 s"),
        ("arrival_s", ["0", "soon", "2"], "arrival_s: 'soon' is not a number"),
    ],
)
def test_bad_rows_are_told_by_number(tmp_path, column, values, says):
    rows, bad = read(tmp_path / "t.parquet", **{column: values})
    assert [number for number, _ in bad.first] == [2]
    assert says in bad.first[0][1]
    assert [r.number for r in rows] == [1, 3]


def test_hashes_need_a_block_size(tmp_path):
    _, bad = read(tmp_path / "t.parquet", block_hashes=[[1], [2], [3]])
    assert bad.first[0] == (1, "block_size is missing")


def test_lengths_without_times_are_explained(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({k: v for k, v in BASE.items() if k != "arrival_s"}), path)
    with pytest.raises(DataError, match="lengths without times"):
        TraceFile.open(path, "parquet").scan()


def test_cut_off_file(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(BASE), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a sound Parquet file"):
        TraceFile.open(path, "parquet").scan()
