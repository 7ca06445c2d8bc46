import json
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fleetsim.errors import DataError
from fleetsim.kernel.streams import Streams
from fleetsim.scenario.schema import TraceWorkload
from fleetsim.workload.build import build_workload
from fleetsim.workload.convert import convert_trace
from fleetsim.workload.describe import describe_trace
from fleetsim.workload.prefixes import OPEN_END
from tests.workload.conftest import told, trace

VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n"


@pytest.fixture
def plain(tmp_path):
    """Ten rows at 5, 6, … 14 s with prompts of 1, 2, … 10 tokens."""
    (tmp_path / "t.csv").write_text(VIDUR + "".join(f"{5 + n},{n + 1},2\n" for n in range(10)))
    return tmp_path


def times_and_prompts(folder, **block):
    workload = trace(folder, format="splitwise", path="t.csv", **block)
    found = list(workload.requests())
    assert [r.id for r in found] == list(range(len(found)))
    assert workload.total in (None, len(found))
    return [(round(r.arrival_s, 9), r.prompt_tokens) for r in found]


def test_time_starts_at_the_first_row(plain):
    assert times_and_prompts(plain) == [(float(n), n + 1) for n in range(10)]


def test_scaling_time(plain):
    assert times_and_prompts(plain, rate_scale=4) == [(n / 4, n + 1) for n in range(10)]
    assert times_and_prompts(plain, rate_scale=0.001)[1] == (1000.0, 2)


def test_slice_is_in_the_trace_s_own_time(plain):
    assert times_and_prompts(plain, slice={"start": "2 s", "end": "5 s"}, rate_scale=2) == [
        (0.0, 3),
        (0.5, 4),
        (1.0, 5),
    ]
    with pytest.raises(DataError, match=r"no row of the trace lies in workload\.slice"):
        times_and_prompts(plain, slice={"start": "1 h"})


def test_loops_are_a_mean_gap_apart(plain):
    found = times_and_prompts(plain, loop=3, slice={"end": "3 s"})
    assert found == [(float(n), n % 3 + 1) for n in range(9)]


def test_limit_counts_all_loops(plain):
    assert len(times_and_prompts(plain, loop=3, limit=14)) == 14
    assert len(times_and_prompts(plain, limit=100)) == 10


def test_thinning_keeps_a_share_and_the_times(plain):
    (plain / "t.csv").write_text(VIDUR + "".join(f"{n},{n % 1000 + 1},2\n" for n in range(20_000)))
    found = times_and_prompts(plain, rate_scale=0.25, rate_scaling="thin")
    assert len(found) == pytest.approx(5000, abs=4 * (20_000 * 0.25 * 0.75) ** 0.5)
    assert all(b > a and (b - a).is_integer() for (a, _), (b, _) in pairwise(found))
    assert times_and_prompts(plain, rate_scale=0.25, rate_scaling="thin") == found


def test_rows_mixed_by_milliseconds_are_put_in_order_and_keep_their_places_as_ids(plain):
    times = (5.0, 5.002, 5.001, 5.006, 5.004, 5.01, 9.0)
    (plain / "t.csv").write_text(VIDUR + "".join(f"{t},{n + 1},2\n" for n, t in enumerate(times)))
    found = list(trace(plain, format="splitwise", path="t.csv", loop=2, limit=12).requests())
    assert [r.id for r in found] == [0, 2, 1, 4, 3, 5, 6, 7, 9, 8, 11, 10]
    assert [r.prompt_tokens - 1 for r in found] == [r.id % 7 for r in found]
    assert [round(r.arrival_s, 9) for r in found[:7]] == [0.0, 0.001, 0.002, 0.004, 0.006, 0.01, 4.0]
    assert all(a.arrival_s <= b.arrival_s for a, b in pairwise(found))
    described = describe_trace(plain / "t.csv")
    assert (described["late_rows"], described["bad_rows"]) == (2, 0)
    convert_trace(plain / "t.csv", plain / "sorted.csv")
    assert describe_trace(plain / "sorted.csv")["late_rows"] == 0


def test_the_first_row_may_be_late_too(plain):
    (plain / "t.csv").write_text(VIDUR + "5.002,1,1\n5.0,2,1\n5.003,3,1\n")
    found = list(trace(plain, format="splitwise", path="t.csv", slice={"end": "2500 us"}).requests())
    assert [(r.id, round(r.arrival_s, 9)) for r in found] == [(1, 0.0), (0, 0.002)]


def test_model_override(plain):
    workload = trace(plain, format="splitwise", path="t.csv", model="llama-3.1-8b")
    assert {r.model for r in workload.requests()} == {"llama-3.1-8b"}


def test_models_that_the_fleet_lacks_are_counted_and_left_open(tmp_path):
    columns = {
        "arrival_s": [0.0, 1.0, 2.0],
        "prompt_tokens": [1] * 3,
        "output_tokens": [1] * 3,
        "model": ["a", "b", None],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    config = TraceWorkload(kind="trace", format="parquet", path="t.parquet")
    for served, models, unserved in ((None, ["a", "b", None], {}), ({"a"}, ["a", None, None], {"b": 1})):
        workload = build_workload(config, tmp_path, Streams(1), served)
        assert [r.model for r in workload.requests()] == models
        assert workload.unserved == unserved


SESSIONS = {
    "arrival_s": [0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 30.0],
    "session_id": ["a", "b", "a", None, "b", "a", "a"],
    "prompt_tokens": [100, 50, 130, 7, 40, 170, 180],
    "output_tokens": [20, 5, 10, 7, 5, 10, 5],
    "tool_time_s": [None, None, 4.0, None, None, None, 0.5],
}


@pytest.fixture
def sessions(tmp_path):
    pq.write_table(pa.table(SESSIONS), tmp_path / "t.parquet")
    return {"tmp_path": tmp_path, "format": "parquet", "path": "t.parquet"}


def test_a_turn_that_holds_the_history_shares_its_content(sessions):
    a1, b1, a2, single, b2, a3, a4 = trace(**sessions).requests()
    assert a1.content is a2.content is a3.content is a4.content
    assert a1.content.runs[0][1] == OPEN_END
    assert b1.content is not b2.content  # 40 tokens cannot hold 50 + 5
    assert len({c.runs for c in (a1.content, b1.content, b2.content)}) == 3
    assert single.content is None
    assert [r.turn for r in (a1, a2, a3, a4, b1, b2, single)] == [0, 1, 2, 3, 0, 1, 0]
    assert (a1.session, b1.session, single.session) == (0, 1, -1)


def test_each_loop_has_its_own_sessions(sessions):
    found = list(trace(**sessions, loop=2).requests())
    assert {r.session for r in found} == {-1, 0, 1, 2, 3}
    assert found[0].content.runs != found[7].content.runs


def test_thinning_keeps_sessions_whole(tmp_path):
    rows = 400
    columns = {
        "arrival_s": [float(n) for n in range(rows)],
        "session_id": [f"s{n % 100}" for n in range(rows)],
        "prompt_tokens": [9] * rows,
        "output_tokens": [9] * rows,
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = list(trace(tmp_path, format="parquet", path="t.parquet", rate_scale=0.5, rate_scaling="thin").requests())
    assert 25 * 4 < len(found) < 75 * 4
    assert all(sum(r.session == s for r in found) == 4 for s in {r.session for r in found})


def test_released_turns_wait_for_the_answer(sessions):
    workload = trace(**sessions, sessions="released")
    first = list(workload.requests())
    assert [(r.id, r.arrival_s, r.session, r.turn) for r in first] == [(0, 0.0, 0, 0), (1, 1.0, 1, 0), (3, 11.0, -1, 0)]
    a2 = workload.released_by(first[0], 6.0)
    assert (a2.id, a2.arrival_s, a2.turn) == (2, 10.0, 1)  # 6 s + 4 s
    late = workload.released_by(a2, 50.0)
    assert (late.id, late.arrival_s) == (5, 50.0)  # pause not recorded, its own time is over
    last = workload.released_by(late, 60.0)
    assert (last.id, last.arrival_s, last.turn) == (6, 60.5, 3)
    assert workload.released_by(last, 70.0) is None
    early = workload.released_by(first[1], 2.0)
    assert (early.id, early.arrival_s) == (4, 20.0)  # pause not recorded, its own time is to come
    assert workload.released_by(early, 21.0) is None
    assert workload.released_by(first[2], 12.0) is None


def test_released_reads_ahead_only_as_needed(sessions):
    workload = trace(**sessions, sessions="released")
    requests = workload.requests()
    a1 = next(requests)
    assert workload.released_by(a1, 0.5).id == 2  # read past b1 and a2
    assert [r.id for r in requests] == [1, 3]


def test_released_and_recorded_have_the_same_requests(sessions):
    recorded = {r.id: told(r)[2:] for r in trace(**sessions, loop=2).requests()}
    workload = trace(**sessions, loop=2, sessions="released")
    queue, found = list(workload.requests()), {}
    while queue:
        request = queue.pop()
        found[request.id] = told(request)[2:]
        following = workload.released_by(request, request.arrival_s + 1)
        queue += [following] if following else []
    assert found == recorded


def test_agent_calls_are_released_after_their_tools(tmp_path):
    calls = [
        {"input_toks": 1472, "output_toks": 133, "tool_duration_ns": 127_348_767},
        {"input_toks": 1620, "output_toks": 125, "tool_duration_ns": 0},
    ]
    line = json.dumps({"session_id": "task-0", "arrival_time_ns": 4_059_740, "sub_requests": calls})
    (tmp_path / "t.jsonl").write_text(line + "\n")
    workload = trace(tmp_path, format="sharegpt", path="t.jsonl", sessions="released")
    (first,) = workload.requests()
    second = workload.released_by(first, 3.0)
    assert second.arrival_s == pytest.approx(3.127348767)
    assert second.content is first.content
    assert workload.released_by(second, 4.0) is None


def test_hashes_become_content(tmp_path):
    entry = {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [3, 4, 5]}
    (tmp_path / "t.jsonl").write_text(json.dumps(entry) + "\n")
    workload = trace(tmp_path, format="mooncake", path="t.jsonl")
    (request,) = workload.requests()
    assert (request.content.hashes, request.content.hash_tokens) == ((3, 4, 5), 512)
    assert workload.block_tokens == {512}


def test_embedded_trace(tmp_path):
    workload = trace(tmp_path, format="azure", path="embedded:default")
    assert sum(1 for _ in workload.requests()) == 3000
