import hashlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fleetsim.errors import DataError
from fleetsim.kernel.streams import Streams
from fleetsim.scenario.schema import SyntheticWorkload
from fleetsim.workload import synthetic as module
from fleetsim.workload.prefixes import OPEN_END
from fleetsim.workload.request import FINISHED, REJECTED
from tests.workload.conftest import synthetic, told

POISSON = {"process": "poisson", "rate": "10 req/s"}
VARIED = {"distribution": "lognormal", "mean": 100, "cv": 1.0}
FULL = {
    "arrivals": {"process": "gamma", "rate": "10 req/s", "burstiness": 0.5},
    "prompt_tokens": VARIED,
    "output_tokens": VARIED,
    "prefixes": {"groups": 20, "tokens": 64, "zipf": 1.0},
}


def drawn(chunk=None, **block):
    config = SyntheticWorkload.model_validate({"kind": "synthetic", **FULL, **block})
    kind = module.Conversations if config.sessions else module.OpenLoop
    workload = kind(config, Streams(7)) if chunk is None else kind(config, Streams(7), chunk)
    return [told(r) for r in workload.requests()]


@pytest.mark.parametrize("chunk", [1, 7, 1000, 10_000])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"sessions": {"turns": {"distribution": "quantiles", "values": [1, 5]}}},
        {"arrivals": {"process": "mmpp", "rates": ["1 req/s", "9 req/s"], "holding": ["1 s", "2 s"]}},
        {"arrivals": {"process": "diurnal", "rate": "3 req/s", "period": "60 s"}},
        {"arrivals": {**FULL["arrivals"], "normalise": True}},
        {"profile": "azure2023-conv", "arrivals": None, "prompt_tokens": None, "output_tokens": None},
    ],
)
def test_chunks_change_nothing(chunk, extra):
    assert drawn(chunk, requests=2000, **extra) == drawn(requests=2000, **extra)


def test_more_requests_have_the_same_beginning():
    assert drawn(requests=500) == drawn(requests=5000)[:500]


def test_streams_do_not_disturb_each_other():
    """Other output lengths, prefixes or session pauses leave arrivals and prompts as they are."""
    base = drawn(requests=500)
    other = drawn(requests=500, output_tokens={"distribution": "fixed", "value": 1}, prefixes=None)
    assert [r[:3] for r in other] == [r[:3] for r in base]


def test_an_unrelated_stream_changes_nothing():
    used, fresh = Streams(7), Streams(7)
    used.get("router.random").random(1000)
    assert used.get("workload.arrivals").random(5).tolist() == fresh.get("workload.arrivals").random(5).tolist()
    names = ("workload.arrivals", "workload.prompt_tokens", "x", "y")
    assert len({Streams(7).get(name).random() for name in names}) == len(names)
    assert Streams(7).get("x").random() != Streams(8).get("x").random()
    assert used.get("x") is used.get("x")


def test_requests_do_not_depend_on_the_hash_seed():
    code = (
        "from tests.workload.test_synthetic import drawn\n"
        "import hashlib\n"
        "rows = drawn(requests=300, sessions={'turns': {'distribution': 'fixed', 'value': 2}})\n"
        "print(hashlib.sha256(repr(rows).encode()).hexdigest())"
    )
    root = Path(__file__).resolve().parents[2]
    digests = set()
    for seed in ("0", "1", "4711"):
        env = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=root, check=True, capture_output=True, text=True
        )
        digests.add(done.stdout.strip())
    here = drawn(requests=300, sessions={"turns": {"distribution": "fixed", "value": 2}})
    assert digests == {hashlib.sha256(repr(here).encode()).hexdigest()}


def test_prefix_groups_follow_zipf_and_share_their_content():
    found = list(
        synthetic(requests=40_000, arrivals=POISSON, prefixes={"groups": 50, "tokens": 8, "zipf": 1.0}).requests()
    )
    contents = {id(r.content): r.content for r in found}
    assert len(contents) == 50
    counts = np.bincount([r.content.runs[0][0] // 2 for r in found], minlength=50)
    shares = (1 / np.arange(1, 51)) / (1 / np.arange(1, 51)).sum()
    assert (counts / len(found)) == pytest.approx(shares, abs=4 * (0.25 * 0.75 / len(found)) ** 0.5)
    assert {r.content.runs[0][1] for r in found} == {8}


def test_uniform_groups():
    found = synthetic(requests=40_000, arrivals=POISSON, prefixes={"groups": 4, "tokens": 8}).requests()
    counts = np.bincount([r.content.runs[0][0] // 2 for r in found])
    assert counts == pytest.approx([10_000] * 4, abs=400)


def run_sessions(workload, answer_s=1.0):
    """Every request in the order of sending, with answers that take `answer_s`."""
    found = []
    for request in workload.requests():
        while request is not None:
            found.append(request)
            request = workload.released_by(request, request.arrival_s + answer_s)
    return found


def test_a_turn_s_prompt_is_the_history_and_new_tokens():
    turns = {"turns": {"distribution": "fixed", "value": 4}, "think_time": "5 s"}
    workload = synthetic(requests=10, arrivals=POISSON, sessions=turns, prefixes={"groups": 3, "tokens": 100})
    found = run_sessions(workload)
    assert len(found) == 10  # the third session is cut to two turns
    assert [r.id for r in found] == list(range(10))
    assert [(r.session, r.turn, r.prompt_tokens) for r in found[:5]] == [
        (0, 0, 110),
        (0, 1, 130),
        (0, 2, 150),
        (0, 3, 170),
        (1, 0, 110),
    ]
    first = found[0].content
    assert first is found[3].content
    assert first.runs[0][1] == 100
    assert first.runs[1] == (1, OPEN_END)
    assert found[4].content.runs[1] == (3, OPEN_END)
    assert found[1].arrival_s > found[0].arrival_s + 1.0


def test_think_times_are_exponential():
    turns = {"turns": {"distribution": "fixed", "value": 50}, "think_time": "5 s"}
    found = run_sessions(synthetic(requests=20_000, arrivals=POISSON, sessions=turns))
    pauses = np.array([b.arrival_s - a.arrival_s - 1 for a, b in pairwise(found) if b.turn])
    assert pauses.mean() == pytest.approx(5, rel=4 / len(pauses) ** 0.5)
    assert pauses.std() == pytest.approx(5, rel=0.05)


def test_a_session_ends_before_its_context_is_full():
    turns = {"turns": {"distribution": "fixed", "value": 1_000_000}, "max_context_tokens": 105}
    found = run_sessions(synthetic(requests=50, arrivals=POISSON, sessions=turns))
    assert max(r.prompt_tokens + r.output_tokens for r in found) == 100
    assert sum(r.turn == 0 for r in found) == 10
    small = run_sessions(synthetic(requests=5, arrivals=POISSON, sessions={**turns, "max_context_tokens": 3}))
    assert [r.turn for r in small] == [0] * 5


def test_duration_also_ends_sessions():
    turns = {"turns": {"distribution": "fixed", "value": 100}, "think_time": "1 s"}
    found = run_sessions(synthetic(duration="30 s", arrivals=POISSON, sessions=turns))
    assert max(r.arrival_s for r in found) <= 30
    assert len(found) > 1000


def test_closed_loop_keeps_its_users_busy():
    loop = {"process": "closed-loop", "concurrency": 3, "think_time": "2 s"}
    workload = synthetic(requests=8, arrivals=loop, prompt_tokens=VARIED)
    found = list(workload.requests())
    assert [(r.id, r.arrival_s, r.session) for r in found] == [(0, 0.0, 0), (1, 0.0, 1), (2, 0.0, 2)]
    for place in range(8):
        found[place].status = FINISHED
        following = workload.released_by(found[place], 10.0 * (place + 1))
        if following is None:
            assert place >= 5
            continue
        assert (following.id, following.session, following.turn) == (
            len(found),
            found[place].session,
            found[place].turn + 1,
        )
        assert following.arrival_s > 10.0 * (place + 1)
        found.append(following)
    assert len(found) == 8


def test_closed_loop_ends_with_the_duration_and_never_spins_on_rejections():
    workload = synthetic(duration="5 s", arrivals={"process": "closed-loop", "concurrency": 1})
    (request,) = workload.requests()
    sent = 1
    while True:
        request.status = REJECTED
        request = workload.released_by(request, request.arrival_s)
        if request is None:
            break
        sent += 1
    assert sent == 6


def test_fewer_requests_than_users():
    found = list(synthetic(requests=2, arrivals={"process": "closed-loop", "concurrency": 5}).requests())
    assert len(found) == 2


def test_profile_without_times_needs_arrivals():
    with pytest.raises(DataError, match="says nothing about arrivals"):
        synthetic(requests=2, profile="sharegpt")
    assert len(list(synthetic(requests=2, profile="sharegpt", arrivals=POISSON).requests())) == 2


def test_model_goes_with_every_request():
    assert {r.model for r in synthetic(requests=9, arrivals=POISSON, model="m").requests()} == {"m"}
