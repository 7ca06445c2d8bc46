import gzip
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.errors import DataError
from fleetsim.workload.formats import FORMATS, TraceFile
from fleetsim.workload.readers.rows import in_order
from tests.workload.conftest import told, trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BROKEN = HEADER + (
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,three,109\n"
    "2023-11-16 18:15:51.2225670,879\n"
    "2023-11-16 18:15:40.0000000,91,16\n"
)


def refusal(tmp_path, name="t.csv", form="azure", **block):
    with pytest.raises(DataError) as caught:
        trace(tmp_path, format=form, path=name, **block)
    return str(caught.value)


def test_bad_rows_are_refused_before_anything_runs(tmp_path):
    (tmp_path / "t.csv").write_text(BROKEN)
    message = refusal(tmp_path)
    for line, what in (
        (3, "'three' is not a number"),
        (4, "2 fields instead of 3"),
        (5, "time goes back by 6.68059 s"),
    ):
        assert f"t.csv:{line}  row {line}: " in message
        assert what in message
    assert "3 rows cannot be read" in message
    assert "workload.on_bad_rows: skip" in message


def test_bad_rows_are_skipped_and_counted(tmp_path):
    (tmp_path / "t.csv").write_text(BROKEN)
    workload = trace(tmp_path, format="azure", path="t.csv", on_bad_rows="skip")
    assert [told(r)[:4] for r in workload.requests()] == [(0, 0.0, 374, 44)]
    assert workload.skipped_rows == 3


def test_only_the_first_bad_rows_are_shown(tmp_path):
    (tmp_path / "t.csv").write_text(HEADER + "x,1,1\n" * 500)
    message = refusal(tmp_path)
    assert message.count("is not a date") == 10
    assert "500 rows cannot be read (490 more than shown)" in message


def test_skipping_every_row_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text(HEADER + "x,1,1\n")
    assert "none of the 1 rows can be read; the first is row 2" in refusal(tmp_path, on_bad_rows="skip")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("2023-11-16 18:15:47,0,5", "prompt tokens: 0"),
        ("2023-11-16 18:15:47,5,-1", "output tokens: -1"),
        ("2023-11-16 18:15:47,5,99999999999999999999999", "more than 64 bits"),
        ("2023-11-16 18:15:47,nan,5", "not a finite number"),
        ("2023-11-16 18:15:47,5.5,5", "not a whole number"),
        ("2023-11-16 18:15:47,,5", "ContextTokens is missing"),
        ("2023-13-16 18:15:47,5,5", "is not a date"),
        ("2023-11-16 18:15:47.12x,5,5", "is not a date"),
        ("yesterday,5,5", "is not a date"),
        ("2023-11-16 18:15:47,5,5,5", "4 fields instead of 3"),
        ('"2023-11-16 18:15:47,5,5', "1 fields instead of 3"),
        ("2023-11-16 18:15:46.6705,5,5", "time goes back by 0.01009 s"),
    ],
)
def test_what_is_wrong_with_a_row(tmp_path, row, what):
    (tmp_path / "t.csv").write_text(HEADER + "2023-11-16 18:15:46.6805900,1,1\n" + row + "\n")
    message = refusal(tmp_path)
    assert "row 3: " in message
    assert what in message


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ({"timestamp": -1}, "negative"),
        ({"timestamp": float("inf")}, "timestamp: inf is not a finite number"),
        ({"timestamp": "soon"}, "timestamp: 'soon' is not a number"),
        ({"timestamp": True}, "timestamp: True is not a number"),
        ({"timestamp": 10**400}, "is not a number"),
        ({"timestamp": 1e300}, "beyond any trace"),
        ({"input_length": None}, "input_length is missing"),
        ({"input_length": 1.5}, "input_length: 1.5 is not a whole number"),
        ({"hash_ids": 3}, "hash_ids is not a list"),
        ({"hash_ids": [1, "2"]}, "hash_ids holds something that is not a whole number"),
        ({"hash_ids": [1 << 64]}, "more than 64 bits"),
    ],
)
def test_what_is_wrong_with_a_json_row(tmp_path, entry, what):
    good = {"timestamp": 5, "input_length": 3, "output_length": 1, "hash_ids": [1]}
    first = entry if isinstance(entry, str) else json.dumps({**good, **entry})
    (tmp_path / "t.jsonl").write_text(first + "\n" + json.dumps(good) + "\n")
    message = refusal(tmp_path, "t.jsonl", "mooncake")
    assert "t.jsonl:1  row 1: " in message
    assert what in message


def test_what_is_wrong_with_the_file(tmp_path):
    def written(name, content):
        (tmp_path / name).write_bytes(content)
        return name

    packed = gzip.compress(os.urandom(20_000))
    text = gzip.compress((HEADER + "2023-11-16 18:15:46,1,1\n" * 4000).encode())
    os.mkfifo(tmp_path / "pipe")
    for name, what in (
        ("absent.csv", "no such file"),
        ("no-such-folder/absent.csv", "there is no folder"),
        ("x" * 300, "cannot be read: File name too long"),
        ("", "is a directory"),
        ("pipe", "is not a regular file"),
        (written("empty.csv", b""), "is empty"),
        (written("header.csv", HEADER.encode()), "has no rows"),
        (written("blank.csv", b"\n\n"), "is not a trace of format azure"),
        (written("plain.csv.gz", b"TIMESTAMP"), "is not a gzip file"),
        (written("cut.csv.gz", text[:60]), "is cut off"),
        (written("garbled.csv.gz", text[:30] + bytes(20) + text[50:]), "is not a sound gzip file"),
        (written("noise.csv.gz", packed), "is not UTF-8 text"),
        (written("utf16.csv", HEADER.encode("utf-16")), "is not UTF-8 text"),
        (written("latin.csv", HEADER.encode() + b"caf\xe9,1,1\n"), "is not UTF-8 text"),
        (written("a.zip", b"PK\x03\x04rest"), "is a zip archive"),
        (written("a.zst", b"(\xb5/\xfdrest"), "is a zstd file"),
        (written("a.parquet", b"PAR1rest"), "set workload.format: parquet"),
        (written("other.csv", b"a,b\n1,2\n"), "its first line is 'a,b'"),
        (written("burst.csv", b"Timestamp,Model,Request tokens,Response tokens\n"), "set workload.format: burstgpt"),
    ):
        message = refusal(tmp_path, name or ".")
        assert what in message, name
    assert "in the same folder: empty.csv" in refusal(tmp_path, "empty.cvs")


def test_wrong_format_names_the_right_one(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": []}\n')
    for form in ("azure", "bailian", "sharegpt", "parquet"):
        assert "set workload.format: mooncake" in refusal(tmp_path, "m.jsonl", form)


def test_unknown_embedded_trace(tmp_path):
    assert 'did you mean "default"?' in refusal(tmp_path, "embedded:defalt")


cells = st.one_of(
    st.sampled_from(
        ["", " ", "1", "0", "-3", "nan", "inf", "1e400", "2023-11-16 18:15:46.5", "9" * 30, '"', "é", "\x00"]
    ),
    st.text(max_size=12),
    st.floats().map(str),
    st.integers().map(str),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
values = st.recursive(scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=2))
HEADERS = {
    "azure": HEADER,
    "burstgpt": "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n",
    "splitwise": "arrived_at,num_prefill_tokens,num_decode_tokens\n",
}
KEYS = {
    "mooncake": ("timestamp", "input_length", "output_length", "hash_ids"),
    "bailian": ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "type", "hash_ids"),
    "sharegpt": ("input_toks", "output_toks", "arrival_time_ns", "input_tok_ids", "sub_requests", "tool_duration_ns"),
}
GOOD = {"mooncake": [0, 1, 1, []], "bailian": [1, -1, 0, 1, 1, "text", []], "sharegpt": [1, 1, 0, [1], None, 0]}


def accepted(path, form):
    """Read to the end; rows that come out make sense."""
    file = TraceFile.open(path, form)
    last = 0.0
    for row in in_order(file.rows()):
        assert row.time_s >= last
        assert row.prompt_tokens > 0
        assert row.output_tokens > 0
        last = row.time_s
    file.scan()


@pytest.mark.parametrize("form", HEADERS)
@settings(deadline=None)
@given(rows=st.lists(st.lists(cells, max_size=9).map(",".join), max_size=6))
def test_no_table_breaks_the_reader(tmp_path_factory, form, rows):
    path = tmp_path_factory.mktemp("fuzz") / "t.csv"
    path.write_text(HEADERS[form] + "\n".join(rows), encoding="utf-8", errors="surrogatepass")
    try:
        accepted(path, form)
    except DataError as error:
        assert error.findings  # noqa: PT017  either outcome is right, any other exception is not


@pytest.mark.parametrize("form", KEYS)
@settings(deadline=None)
@given(data=st.data())
def test_no_json_breaks_the_reader(tmp_path_factory, form, data):
    keys = KEYS[form]
    entries = [dict(zip(keys, GOOD[form], strict=True))]
    entry = st.fixed_dictionaries({}, optional={key: values for key in keys})
    entries += data.draw(st.lists(entry | values, max_size=5))
    path = tmp_path_factory.mktemp("fuzz") / "t.jsonl"
    path.write_text("\n".join(json.dumps(e) for e in entries), encoding="utf-8", errors="surrogatepass")
    try:
        accepted(path, form)
    except DataError as error:
        assert error.findings  # noqa: PT017


@settings(deadline=None)
@given(
    content=st.binary(max_size=200), form=st.sampled_from(sorted(FORMATS)), suffix=st.sampled_from(["", ".gz", ".csv"])
)
def test_no_bytes_break_the_reader(tmp_path_factory, content, form, suffix):
    path = tmp_path_factory.mktemp("fuzz") / f"t{suffix}"
    path.write_bytes(content)
    try:
        accepted(path, form)
    except DataError as error:
        assert error.findings  # noqa: PT017
