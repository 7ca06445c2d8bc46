import gzip
import json

import pytest

from fleetsim.workload.formats import TraceFile, detect_format
from fleetsim.workload.readers.rows import BadRows
from fleetsim.workload.readers.sharegpt import block_hashes


def read(path, name, text):
    path.write_text(text)
    bad = BadRows()
    return list(TraceFile.open(path, name).rows(bad)), bad


def jsonl(*entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def test_azure_2023_keeps_100_ns(tmp_path):
    rows, bad = read(
        tmp_path / "t.csv",
        "azure",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:46.6805901,396,109\n"
        "2023-11-17 00:00:00.0000000,1,1\n",
    )
    assert not bad.count
    assert [(r.number, r.prompt_tokens, r.output_tokens) for r in rows] == [(2, 374, 44), (3, 396, 109), (4, 1, 1)]
    assert [r.time_s for r in rows] == [0.0, 1e-7, 20653.31941]


def test_azure_2024_reads_offsets_from_utc(tmp_path):
    rows, bad = read(
        tmp_path / "t.csv",
        "azure",
        '"TIMESTAMP","ContextTokens","GeneratedTokens"\r\n'
        "2024-05-10 00:00:00.009930+00:00,2162,5\r\n"
        "2024-05-10 02:00:00.017335+02:00,2399,6\r\n"
        "2024-05-10T00:00:01Z,76,15\r\n"
        "2024-05-09 23:00:02-01:00,76,15.0\r\n"
        "\r\n",
    )
    assert not bad.count
    assert [r.time_s for r in rows] == pytest.approx([0.0, 0.007405, 0.99007, 1.99007], abs=1e-9)


def test_azure_ignores_other_columns_and_their_order(tmp_path):
    rows, bad = read(
        tmp_path / "t.csv",
        "azure",
        "NumImages,GeneratedTokens,TIMESTAMP,ContextTokens\n2,7,2024-10-15 00:00:00,900\n",
    )
    assert not bad.count
    assert (rows[0].prompt_tokens, rows[0].output_tokens) == (900, 7)


def test_burstgpt_without_sessions(tmp_path):
    rows, bad = read(
        tmp_path / "t.csv",
        "burstgpt",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45.5,GPT-4,1087,230,1317,API log\n",
    )
    assert not bad.count
    assert [r.time_s for r in rows] == [5.0, 45.5]
    assert [(r.klass, r.model, r.session) for r in rows] == [
        ("Conversation log", "ChatGPT", None),
        ("API log", "GPT-4", None),
    ]


def test_burstgpt_pause_runs_from_the_recorded_end(tmp_path):
    rows, bad = read(
        tmp_path / "t.csv",
        "burstgpt",
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "100,aa,40,GPT-4,10,5,15,Conversation log\n"
        "120,bb,,GPT-4,10,5,15,Conversation log\n"
        "150,aa,3,GPT-4,20,5,25,Conversation log\n"
        "152,aa,3,GPT-4,30,5,35,Conversation log\n"
        "160,bb,1,GPT-4,20,5,25,Conversation log\n",
    )
    assert not bad.count
    assert [(r.session, r.pause_s) for r in rows] == [
        ("aa", None),
        ("bb", None),
        ("aa", 10.0),
        ("aa", 0.0),
        ("bb", None),
    ]


def test_mooncake(tmp_path):
    text = jsonl(
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 3000, "input_length": 100, "output_length": 1, "hash_ids": []},
    )
    rows, bad = read(tmp_path / "t.jsonl", "mooncake", text + "\n")
    assert not bad.count
    assert [(r.time_s, r.hashes, r.hash_tokens) for r in rows] == [(0.0, (0, 1, 2), 512), (3.0, (), 512)]


def test_bailian_session_is_the_root_of_the_chain(tmp_path):
    entry = {"input_length": 20, "output_length": 3, "type": "text", "turn": 1, "hash_ids": [7, 8]}
    chain = [(1, -1), (2, -1), (3, 1), (4, 3), (5, 99), (6, 5)]
    text = jsonl(*({"chat_id": c, "parent_chat_id": p, "timestamp": 0.5 * c, **entry} for c, p in chain))
    rows, bad = read(tmp_path / "t.jsonl", "bailian", text)
    assert not bad.count
    assert [r.session for r in rows] == [1, 2, 1, 1, 99, 99]
    assert (rows[0].hash_tokens, rows[0].klass, rows[-1].time_s) == (16, "text", 3.0)


@pytest.mark.parametrize(
    "header", ["arrival_timestamp,prompt_size,token_size", "arrived_at,num_prefill_tokens,num_decode_tokens"]
)
def test_splitwise_and_vidur_headers(tmp_path, header):
    rows, bad = read(tmp_path / "t.csv", "splitwise", f"request_id,{header}\n0,0.0,374,44\n1,4.314579,396,109\n")
    assert not bad.count
    assert [(r.time_s, r.prompt_tokens, r.output_tokens) for r in rows] == [(0.0, 374, 44), (4.314579, 396, 109)]


def test_sharegpt_hashes_are_chained_over_whole_blocks(tmp_path):
    first, second = list(range(40)), [*range(16), *range(100, 124)]
    entries = [
        {"input_toks": 40, "output_toks": 4, "arrival_time_ns": n * 10**9, "input_tok_ids": ids}
        for n, ids in enumerate((first, second))
    ]
    rows, bad = read(tmp_path / "t.jsonl", "sharegpt", jsonl(*entries))
    assert not bad.count
    (a, b), (c, d) = rows[0].hashes, rows[1].hashes
    assert a == c
    assert b != d
    assert block_hashes(tuple(range(1, 17))) != (a,)
    assert block_hashes((-1, *range(15))) != block_hashes((1, *range(15)))


def test_sharegpt_sessions_come_in_order_of_time(tmp_path):
    calls = [{"input_toks": 10 * n, "output_toks": 2, "tool_duration_ns": 2 * 10**9} for n in (1, 2, 3)]
    text = jsonl(
        {"session_id": "a", "arrival_time_ns": 0, "sub_requests": calls},
        {"input_toks": 5, "output_toks": 1, "arrival_time_ns": 3 * 10**9},
        {"session_id": "b", "arrival_time_ns": 3.5e9, "sub_requests": calls[:1]},
    )
    rows, bad = read(tmp_path / "t.jsonl", "sharegpt", text)
    assert not bad.count
    assert [(r.time_s, r.session, r.pause_s) for r in rows] == [
        (0.0, "a", None),
        (2.0, "a", 2.0),
        (3.0, None, None),
        (3.5, "b", None),
        (4.0, "a", 2.0),
    ]


def test_gzip_is_seen_by_its_content(tmp_path):
    plain = b"arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n"
    for name in ("t.csv.gz", "t.csv"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(plain))
        assert detect_format(path) == "splitwise"
        assert len(list(TraceFile.open(path, "splitwise").rows())) == 1


def test_byte_order_mark_is_no_part_of_the_header(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfTIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1,1\n")
    assert detect_format(path) == "azure"


def test_formats_are_told_apart(tmp_path):
    path = tmp_path / "t"
    for text, name in (
        ("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n", "burstgpt"),
        (jsonl({"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": []}), "mooncake"),
        (jsonl({"chat_id": 1, "timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": []}), "bailian"),
        (jsonl({"arrival_time_ns": 0, "sub_requests": []}), "sharegpt"),
        ("rubbish\n" + jsonl({"arrival_time_ns": 0, "input_toks": 1, "output_toks": 1}), "sharegpt"),
        ("a,b\n1,2\n", None),
    ):
        path.write_text(text)
        assert detect_format(path) == name
