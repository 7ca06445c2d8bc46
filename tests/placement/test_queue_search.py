"""The search for queues in which nobody is late, against all queues that there are."""

from __future__ import annotations

from itertools import permutations, product

from hypothesis import given
from hypothesis import strategies as st

from fleetsim.placement.queue_search import GAP, Program, assigned


def ends_s(program: Program, queues: list[list[int]]) -> list[float] | None:
    """When each queue is done, if nobody is late."""
    ends: list[float] = []
    for i, queue in enumerate(queues):
        end_s, model = program.runs_s[i], program.lasts[i]
        for group in queue:
            if program.place_s[group][i] < 0:
                return None
            if program.models[group] != model:
                model = program.models[group]
                end_s += program.swaps_s[i][model]
            end_s += program.place_s[group][i]
            if end_s > program.slack_s[group] + 1e-9:
                return None
        ends.append(end_s)
    return ends


def least_s(program: Program) -> float | None:
    """The least sum of ends over all orders of all assignments."""
    groups, replicas = range(len(program.models)), range(len(program.runs_s))
    found = []
    for order in permutations(groups):
        for places in product(replicas, repeat=len(program.models)):
            ends = ends_s(program, [[g for g in order if places[g] == i] for i in replicas])
            if ends is not None:
                found.append(sum(ends))
    return min(found, default=None)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    groups, replicas = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    alike = draw(st.booleans())
    seconds = st.integers(1, 20).map(float)
    times = [[draw(seconds)] * replicas if alike else [draw(seconds) for _ in range(replicas)] for _ in range(groups)]
    for row in times:
        if replicas > 1 and draw(st.booleans()) and not alike:
            row[draw(st.integers(0, replicas - 1))] = -1.0
    return Program(
        models=[draw(st.sampled_from("ab")) for _ in range(groups)],
        place_s=times,
        slack_s=sorted(draw(st.integers(5, 70)) + 0.0 for _ in range(groups)),
        runs_s=[draw(st.integers(0, 10)) + 0.0 for _ in range(replicas)],
        lasts=[draw(st.sampled_from("ab")) for _ in range(replicas)],
        swaps_s=[{"a": 7.0, "b": 5.0} for _ in range(replicas)],
    )


@given(programs())
def test_nobody_is_late_and_the_ends_are_the_least_but_for_the_gap(program: Program) -> None:
    best_s = least_s(program)
    queues = assigned(program, nodes=100_000)
    if best_s is None:
        assert queues is None
        return
    assert queues is not None
    assert sorted(group for queue in queues for group in queue) == list(range(len(program.models)))
    ends = ends_s(program, queues)
    assert ends is not None
    assert best_s - 1e-9 <= sum(ends) <= best_s / (1.0 - GAP) + 1e-9


@given(programs(), st.integers(1, 12))
def test_a_search_that_is_stopped_answers_with_queues_that_keep_all_limits_or_none(
    program: Program, nodes: int
) -> None:
    queues = assigned(program, nodes)
    if queues is not None:
        assert ends_s(program, queues) is not None
        assert sorted(group for queue in queues for group in queue) == list(range(len(program.models)))
    if nodes < len(program.models):
        assert queues is None


def test_who_can_run_nowhere_has_no_queue() -> None:
    """The replicas that a group could go to are lost."""
    program = Program(["a", "b"], [[1.0], [-1.0]], [10.0, 10.0], [0.0], ["a"], [{"a": 1.0, "b": 1.0}])
    assert assigned(program, 100) is None
