"""A model router each of whose answers takes what a budget controller grants it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fleetsim.errors import PolicyError
from fleetsim.model_routing.api import Accept, Answer, Ask, Query, Reject
from fleetsim.model_routing.budgets.api import Effort, best_scored, most_agreed

_MOST_SAMPLES = 1000
_MOST_ROUNDS = 100


class _Work:
    """One answer that the router asked for, on its way."""

    __slots__ = ("ask", "effort", "fresh", "kept", "left", "owed", "picked")

    def __init__(self, ask: Ask, effort: Effort, owed: list[int]) -> None:
        self.ask = ask
        self.effort = effort
        self.owed = owed
        """Numbers of the samples of its arm that are to come."""
        self.kept: list[int] = []
        """Numbers of its answers."""
        self.fresh = False
        """Whether there are new ones."""
        self.left = effort.rounds - 1
        """Rounds that may follow."""
        self.picked = -1
        """Number of the answer that counts so far."""


class _Progress:
    """Where a request stands."""

    __slots__ = ("final", "picked", "samples", "seen", "works")

    def __init__(self) -> None:
        self.picked: list[int] = []
        """Numbers of the answers that the router is shown."""
        self.works: list[_Work] = []
        self.final = False
        """Whether the answer that is picked now is given, whatever it is."""
        self.samples: dict[int, int] = {}
        """Answers that each arm was asked for."""
        self.seen = 0


class Budgeted:
    """Stands between a model router and the fleet: the router sees one answer for each that it asked for.

    Answers that the router wants checked, thought over, or in several samples, and what it has models write for itself, pass as
    they are: there it spends a budget of its own.

    Parameters
    ----------
    router : ModelRouter
        Who chooses the arms.
    controller : BudgetController
        Who says what their answers may take.
    name : str
        The controller's, for messages.
    """

    def __init__(self, router: Any, controller: Any, name: str) -> None:
        self._router, self._controller, self._name = router, controller, name
        self._goes_on = getattr(controller, "goes_on", None)
        self._ends = not hasattr(router, "proceed")
        self._open: dict[int, _Progress] = {}
        self.verifies = True
        self.knows_answers = bool(getattr(router, "knows_answers", False))
        for cost in ("decision_s", "decision_j", "decision_usd"):
            setattr(self, cost, getattr(router, cost, 0.0) + getattr(controller, cost, 0.0))
        for told in ("feedback", "joined", "left"):
            if hasattr(router, told):
                setattr(self, told, getattr(router, told))

    def route(self, query: Query) -> Any:
        """Whom the router asks first, and with which effort."""
        return self._begun(query, self._router.route(query))

    def route_knowing(self, query: Query, quality: Any) -> Any:
        """The same of a router that is told how good answers would be."""
        return self._begun(query, self._router.route_knowing(query, quality))

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Any:
        """Another round, or what the router says of the answers that count."""
        progress = self._open[query.id]
        self._sort(progress, answers)
        further: list[Ask] = []
        for work in progress.works:
            if work.fresh:
                further += self._further(query, progress, work, answers)
        if further:
            progress.seen = len(answers)
            return further
        picked = sorted([work.picked for work in progress.works if work.picked >= 0])
        progress.picked += picked
        progress.works = []
        progress.seen = len(answers)
        if progress.final and progress.picked:
            return Accept(picked[0] if picked else progress.picked[-1])
        return self._said(query, progress, self._router.proceed(query, [answers[i] for i in progress.picked]))

    def forget(self, query: Query) -> None:
        """A request has come to its end."""
        self._open.pop(query.id, None)
        if hasattr(self._router, "forget"):
            self._router.forget(query)

    # --- from the router to the fleet --------------------------------------------------------------------------------------

    def _begun(self, query: Query, said: Any) -> Any:
        before = self._open.get(query.id)
        progress = self._open[query.id] = _Progress()
        if before is not None:  # asked anew, since nobody serves what was asked for
            progress.samples = before.samples
        return self._said(query, progress, said)

    def _said(self, query: Query, progress: _Progress, said: Any) -> Any:
        """What the router says, with efforts."""
        if isinstance(said, Accept):
            known = type(said.answer) is int and 0 <= said.answer < len(progress.picked)
            return Accept(progress.picked[said.answer]) if known else said
        asks = [said] if isinstance(said, Ask) else said
        if isinstance(said, Reject) or not isinstance(asks, list | tuple):
            return said
        if not all(isinstance(ask, Ask) for ask in asks):
            return said
        progress.final = self._ends or (len(asks) == 1 and asks[0].last)
        return [self._granted(query, progress, ask, len(asks) == 1) for ask in asks]

    def _granted(self, query: Query, progress: _Progress, ask: Ask, alone: bool) -> Ask:
        if ask.verify >= 0 or ask.behind >= 0:
            picked = progress.picked
            known = max(ask.verify, ask.behind) < len(picked)
            ask = replace(
                ask,
                verify=picked[ask.verify] if known and ask.verify >= 0 else ask.verify,
                behind=picked[ask.behind] if known and ask.behind >= 0 else ask.behind,
            )
        if ask.verify >= 0 or ask.thought:
            return ask
        if ask.behind >= 0 or ask.samples > 1:  # the router is shown each of them
            progress.works += [_Work(ask, Effort(), [number]) for number in _numbers(progress, ask, ask.samples)]
            return ask
        effort = self._spend(query, ask)
        progress.works.append(_Work(ask, effort, _numbers(progress, ask, effort.samples)))
        judge = ask.judge or (effort.pick == "judge" and effort.samples > 1)
        last = ask.last or (progress.final and alone)
        tokens = min(ask.most_tokens or effort.most_tokens, effort.most_tokens or ask.most_tokens)
        simple = effort.samples == effort.rounds == 1
        return Ask(ask.arm, effort.samples, judge, last and simple, most_tokens=tokens)

    def _spend(self, query: Query, ask: Ask) -> Effort:
        effort = self._controller.spend(query, ask.arm)
        if not (
            isinstance(effort, Effort)
            and type(effort.samples) is type(effort.rounds) is type(effort.most_tokens) is int
            and 1 <= effort.samples <= _MOST_SAMPLES
            and 1 <= effort.rounds <= _MOST_ROUNDS
            and effort.most_tokens >= 0
        ):
            raise PolicyError(f"the budget controller {self._name} answered {effort!r}")
        return effort

    # --- from the fleet to the router --------------------------------------------------------------------------------------

    def _sort(self, progress: _Progress, answers: Sequence[Answer]) -> None:
        """Give each new answer to the work that it is of."""
        works = progress.works
        for number in range(progress.seen, len(answers)):
            answer = answers[number]
            if not works:
                progress.picked.append(number)
                continue
            for work in works:
                if answer.sample in work.owed and work.ask.arm == answer.arm:
                    break
            else:  # another arm may have stood in
                work = next((work for work in works if work.owed), works[0])
            if answer.sample in work.owed:
                work.owed.remove(answer.sample)
            elif work.owed:
                work.owed.pop(0)
            work.kept.append(number)
            work.fresh = True

    def _further(self, query: Query, progress: _Progress, work: _Work, answers: Sequence[Answer]) -> list[Ask]:
        """The next round of an answer, if there is one; notes which answer counts."""
        work.fresh = False
        own = [answers[i] for i in work.kept]
        effort = work.effort
        number = {"first": 0, "last": len(own) - 1}.get(effort.pick, -1)
        if number < 0:
            number = best_scored(own) if effort.pick == "judge" else most_agreed(own)
        work.picked = work.kept[number]
        if work.left <= 0 or (self._goes_on is not None and not self._goes_on(query, work.ask.arm, own)):
            return []
        work.left -= 1
        work.owed = _numbers(progress, work.ask, 1)
        judge = work.ask.judge or effort.pick == "judge"
        return [Ask(work.ask.arm, judge=judge, behind=work.picked, most_tokens=effort.most_tokens)]


def _numbers(progress: _Progress, ask: Ask, samples: int) -> list[int]:
    """Numbers of the next samples of an arm."""
    first = progress.samples.get(ask.arm, 0)
    progress.samples[ask.arm] = first + samples
    return list(range(first, first + samples))
