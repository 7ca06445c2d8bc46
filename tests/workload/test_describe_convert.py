import gzip
import json

import numpy as np
import pytest

from fleetsim.errors import DataError
from fleetsim.workload.convert import convert_trace, synthesise
from fleetsim.workload.describe import describe_trace
from fleetsim.workload.formats import TraceFile
from fleetsim.workload.prefix_reuse import EndlessCache
from fleetsim.workload.readers.rows import Row


def rows(path, name):
    return list(TraceFile.open(path, name).rows())


def mooncake(path, *entries):
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("".join(json.dumps(dict(zip(keys, entry, strict=True))) + "\n" for entry in entries))
    return path


def test_hit_ratio_counts_whole_blocks_and_computes_one_token_at_least(tmp_path):
    path = mooncake(
        tmp_path / "t.jsonl",
        (0, 1024, 1, [0, 1]),
        (1000, 1024, 1, [0, 1]),  # known to its end: the last block is computed again
        (2000, 1100, 1, [0, 1, 2]),
        (3000, 1100, 1, [0, 1, 2]),  # a partial block is no hit
        (4000, 1536, 1, [0, 9, 1]),  # what follows an unknown block is unknown
    )
    found = describe_trace(path)["prefix"]
    assert found["hit_ratio"] == pytest.approx((512 + 1024 + 1024 + 512) / (1024 * 2 + 1100 * 2 + 1536))
    assert found["block_tokens"] == [512]
    assert found["blocks"] == 2 + 2 + 2 + 2 + 3
    assert found["blocks_unique"] == 4


def test_hit_ratio_of_history():
    cache = EndlessCache()
    served = [cache.add(Row(1, 0.0, prompt, 10, session="s")) for prompt in (100, 150, 100)]
    assert served == [0, 96, 0]  # 110 tokens of history in whole blocks of 16; then a new history


def test_description_of_a_small_trace(tmp_path):
    text = (
        "arrived_at,num_prefill_tokens,num_decode_tokens\n"
        + "".join(f"{n},{n + 1},2\n" for n in range(100))
        + "x,1,1\n"
    )
    (tmp_path / "t.csv").write_text(text)
    found = describe_trace(tmp_path / "t.csv")
    assert json.loads(json.dumps(found)) == found
    assert (found["format"], found["requests"], found["bad_rows"]) == ("splitwise", 100, 1)
    assert found["bad_rows_first"][0]["row"] == 102
    assert (found["span_s"], found["rate_per_s"], found["gap_cv"]) == (99.0, 1.0, 0.0)
    assert found["prompt_tokens"]["p50"] == 50.5
    assert found["dispersion"]["1s"] == pytest.approx(0.0, abs=0.02)
    assert "prefix" not in found


def test_dispersion_of_a_poisson_process_is_one(tmp_path):
    synthesise("sharegpt", 50_000, 2, tmp_path / "t.csv", rate=20)
    found = describe_trace(tmp_path / "t.csv")
    assert found["dispersion"]["1s"] == pytest.approx(1, abs=4 * (2 / 2500) ** 0.5)
    assert found["gap_cv"] == pytest.approx(1, abs=0.02)


def test_one_row_has_no_rate(tmp_path):
    found = describe_trace(mooncake(tmp_path / "t.jsonl", (5, 1, 1, [])))
    assert (found["requests"], found["rate_per_s"]) == (1, None)


def test_describing_nothing_is_an_error(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="known formats: azure"):
        describe_trace(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n")
    with pytest.raises(DataError, match="has no rows"):
        describe_trace(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\nx,1,1\n")
    with pytest.raises(DataError, match="'x' is not a number"):
        describe_trace(tmp_path / "t.csv")


BURST = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "100,aa,40,GPT-4,600,50,650,Conversation log\n"
    "120,bb,5,,10,5,15,API log\n"
    "150,aa,3,GPT-4,1200,5,1205,Conversation log\n"
)


def test_parquet_keeps_everything(tmp_path):
    (tmp_path / "t.csv").write_text(BURST)
    told = convert_trace(tmp_path / "t.csv", tmp_path / "t.parquet")
    assert told == {"requests": 3, "skipped_rows": 0, "from_format": "burstgpt", "to_format": "parquet", "lost": []}
    before, after = rows(tmp_path / "t.csv", "burstgpt"), rows(tmp_path / "t.parquet", "parquet")
    assert [r[1:] for r in after] == [r[1:] for r in before]


def test_azure_keeps_times_to_100_ns(tmp_path):
    (tmp_path / "t.csv").write_text(BURST)
    told = convert_trace(tmp_path / "t.csv", tmp_path / "out.csv.gz")
    assert (told["to_format"], told["lost"]) == ("azure", ["klass", "model", "pause_s", "session"])
    assert [r.time_s for r in rows(tmp_path / "out.csv.gz", "azure")] == [0.0, 20.0, 50.0]


def test_mooncake_round_trip_is_exact(tmp_path):
    path = mooncake(tmp_path / "a.jsonl", (0, 1100, 5, [0, 1, 2]), (40, 1500, 1, [0, 1, 3]), (40, 3, 1, [4]))
    convert_trace(path, tmp_path / "b.parquet")
    convert_trace(tmp_path / "b.parquet", tmp_path / "c.jsonl.gz", to_format="mooncake")
    assert gzip.decompress((tmp_path / "c.jsonl.gz").read_bytes()) == path.read_bytes()


def test_mooncake_blocks_of_a_session_are_shared(tmp_path):
    (tmp_path / "t.csv").write_text(BURST)
    convert_trace(tmp_path / "t.csv", tmp_path / "t.jsonl")
    first, other, second = (r.hashes for r in rows(tmp_path / "t.jsonl", "mooncake"))
    assert [len(h) for h in (first, other, second)] == [2, 1, 3]
    assert first[0] == second[0]
    assert len({*first, *other, *second}) == 5


def test_small_blocks_become_mooncake_blocks(tmp_path):
    def entry(n, hashes):
        return {"chat_id": n, "timestamp": n, "input_length": 1030, "output_length": 1, "hash_ids": hashes}

    shared = list(range(40))
    lines = [entry(1, [*shared, *range(100, 125)]), entry(2, [*shared, *range(200, 225)])]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    convert_trace(tmp_path / "t.jsonl", tmp_path / "m.jsonl", to_format="mooncake")
    first, second = (r.hashes for r in rows(tmp_path / "m.jsonl", "mooncake"))
    assert first[0] == second[0]
    assert len({*first, *second}) == 5


def test_unsigned_hashes_fit_into_parquet(tmp_path):
    path = mooncake(tmp_path / "a.jsonl", (0, 600, 5, [2**64 - 1, 2**63]))
    convert_trace(path, tmp_path / "b.parquet")
    assert rows(tmp_path / "b.parquet", "parquet")[0].hashes == (-1, -(2**63))


def test_bad_rows_are_refused_or_left_out(tmp_path):
    (tmp_path / "t.csv").write_text(BURST + "soon,,,,,,,\n")
    with pytest.raises(DataError, match="Timestamp: 'soon'"):
        convert_trace(tmp_path / "t.csv", tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()
    assert convert_trace(tmp_path / "t.csv", tmp_path / "t.parquet", skip_bad_rows=True)["skipped_rows"] == 1


def test_targets_that_cannot_be_written(tmp_path):
    (tmp_path / "t.csv").write_text(BURST)
    (tmp_path / "file").write_text("")
    for target, form, what in (
        ("t.csv", "azure", "over itself"),
        ("t.xyz", None, "does not tell the format"),
        ("t.bin", "burstgpt", "does not write the format"),
        ("file/t.csv", None, "cannot be written"),
        ("folder", "azure", "cannot be written"),
    ):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=what):
            convert_trace(tmp_path / "t.csv", tmp_path / target, to_format=form)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "t.csv"]


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        for form in ("parquet", "jsonl.gz", "csv.gz"):
            synthesise("azure2023-conv", 500, 3, tmp_path / f"{name}.{form}")
    for form in ("parquet", "jsonl.gz", "csv.gz"):
        assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / f"b.{form}").read_bytes()
    formats = (("parquet", "parquet"), ("jsonl.gz", "mooncake"), ("csv.gz", "azure"))
    lengths = [np.array([r.prompt_tokens for r in rows(tmp_path / f"a.{ending}", name)]) for ending, name in formats]
    assert all((found == lengths[0]).all() for found in lengths)
