"""The public checkers: everything registered passes, and each kind of mistake is rejected with a message that names it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from pydantic import BaseModel, Field

from fleetsim.engine.api import Line
from fleetsim.engine.batch import Batch
from fleetsim.engine.orders.order import Order, Outlook
from fleetsim.engine.schedulers.vllm_v1 import VllmV1, VllmV1Config
from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig, names
from fleetsim.routing.api import FleetView, Reject, RequestView
from fleetsim.testing import Report, check_order, check_predictor, check_router, check_scheduler, check_step_time_model
from fleetsim.workload.request import Request
from tests.theory.stations import ConstantStep, SharedStep

# --- what is registered passes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("routers"))
def test_registered_routers_pass(name: str) -> None:
    report = check_router(name, {"short_pool": "pool-0", "boundary_tokens": 600} if name == "fleetopt" else None)
    assert list(report.us_per_decision) == ["1 replica", "10 replicas", "1000 replicas"]
    assert all(cost > 0 for cost in report.us_per_decision.values())
    assert report.decisions > 5000
    assert report.policy in str(report)


@pytest.mark.parametrize("name", names("schedulers"))
def test_registered_schedulers_pass(name: str) -> None:
    report = check_scheduler(name)
    assert report.decisions > 100
    assert len(report.checks) == 5


@pytest.mark.parametrize(
    "config",
    [
        {"max_batched_tokens": 64, "max_seqs": 4},
        {"long_prefill_tokens": 100, "reserve_whole_prompt": False, "watermark_ratio": 0.05},
        VllmV1Config(max_seqs=3, reserve_whole_prompt=False),
    ],
)
def test_schedulers_pass_with_other_parameters(config: Any) -> None:
    assert isinstance(check_scheduler(VllmV1, config), Report)


@pytest.mark.parametrize("name", sorted({*names("step_time_models")} - {"affine", "table", "silicon"}))
def test_registered_step_time_models_pass(name: str) -> None:
    """Those that need numbers, a file or a package are checked in tests/engine/test_steptime_*.py."""
    report = check_step_time_model(name)
    assert report.decisions > 1000
    assert set(report.us_per_decision) == {"mixed", "decode"}


@pytest.mark.parametrize("model", [ConstantStep, SharedStep])
def test_the_models_of_the_theory_tests_pass(model: type) -> None:
    """As a class, by import path, and built."""
    assert check_step_time_model(model).policy == model.__name__
    assert check_step_time_model(f"tests.theory.stations:{model.__name__}", {"step_s": 0.5}).policy == model.__name__
    assert check_step_time_model(model(model.Config(step_s=0.25))).policy == model.__name__


def test_a_router_with_parameters_and_rejections_passes() -> None:
    """By import path; it may turn requests away as long as it serves some."""
    assert check_router("tests.theory.stations:AtMost", {"limit": 3}).policy == "AtMost"
    assert check_router("power-of-two-choices", {"choices": 5}).policy == "PowerOfTwoChoices"


# --- broken routers ---------------------------------------------------------------------------------------------------


class Plain(PolicyConfig):
    """No parameters."""


class Base:
    """The first replica, as long as it is there."""

    Config: type[BaseModel] = Plain

    def __init__(self, config: BaseModel, rng: Generator, fleet: FleetView) -> None:
        self.rng, self.fleet = rng, fleet

    def route(self, request: RequestView) -> Any:
        return self.fleet.here(0)


class ToWhoIsGone(Base):
    def route(self, request: RequestView) -> Any:
        return request.id % self.fleet.count


class OutOfRange(Base):
    def route(self, request: RequestView) -> Any:
        return self.fleet.count


class WrongType(Base):
    def route(self, request: RequestView) -> Any:
        return np.int64(0)


class Silent(Base):
    def route(self, request: RequestView) -> Any:
        return None


class RejectsWithoutReason(Base):
    def route(self, request: RequestView) -> Any:
        return Reject("") if request.id == 5 else 0


class RejectsAll(Base):
    def route(self, request: RequestView) -> Any:
        return Reject("closed")


class GlobalDice(Base):
    def route(self, request: RequestView) -> Any:
        return random.randrange(self.fleet.count)


class SharedCounter(Base):
    counter: list[int] = []  # noqa: RUF012

    def __init__(self, config: BaseModel, rng: Generator, fleet: FleetView) -> None:
        super().__init__(config, rng, fleet)
        self.start = len(self.counter)

    def route(self, request: RequestView) -> Any:
        self.counter.append(0)
        return (len(self.counter) - self.start) % self.fleet.count


class Peeks(Base):
    def route(self, request: RequestView) -> Any:
        return request._request.output_tokens % self.fleet.count


class PeeksAndHides(Base):
    def route(self, request: RequestView) -> Any:
        try:
            return request._request.output_tokens % self.fleet.count
        except PolicyError:
            return 0


class ReadsWhatIsNotThere(Base):
    def route(self, request: RequestView) -> Any:
        return request.output_tokens % self.fleet.count  # type: ignore[attr-defined]


class TouchesHiddenParts(Base):
    def route(self, request: RequestView) -> Any:
        return 0 if request._request.finish_step < 0 else 1


class ChangesView(Base):
    def route(self, request: RequestView) -> Any:
        self.fleet.outstanding[0] += 1
        return 0


class ChangesRequest(Base):
    def route(self, request: RequestView) -> Any:
        request._request.klass = "first"
        return 0


class NeedsTwo(Base):
    def route(self, request: RequestView) -> Any:
        first, second = self.rng.choice(self.fleet.count, 2, replace=False).tolist()
        return min(first, second)


class Loose(BaseModel):
    """A config that can be changed."""


class LooseConfig(Base):
    Config = Loose


class Demanding(PolicyConfig):
    limit: int = Field(ge=1)


class NoDefaults(Base):
    Config = Demanding


class NoConfig:
    def route(self, request: RequestView) -> int:
        return 0


class NoRoute:
    Config = Plain


BROKEN_ROUTERS: list[tuple[type, str]] = [
    (OutOfRange, "`route` answered 1: there are replicas 0 to 0"),
    (ToWhoIsGone, r"sends request \d+ to replica \d of \d replicas, which is not there: `view.members` are"),
    (WrongType, r"`route` answered np.int64\(0\): expected the number of a replica \(int\), a `Route` or a `Reject`"),
    (Silent, "`route` answered None"),
    (RejectsWithoutReason, "rejects request 5 without a reason"),
    (RejectsAll, "rejects all of 400 requests on 1 replica"),
    (GlobalDice, "with the same seed on 2 replicas: draw only from the given `rng`"),
    (SharedCounter, "instances are not independent"),
    (Peeks, "reads `_request` of the request; a gateway knows arrival_s"),
    (PeeksAndHides, "depend on the true output length"),
    (ReadsWhatIsNotThere, "`route` failed for request 0 on 1 replica: AttributeError: .*output_tokens"),
    (TouchesHiddenParts, "reads `_request` of the request; a gateway knows"),
    (ChangesView, "changes the request or the view"),
    (ChangesRequest, "changes the request or the view"),
    (NeedsTwo, "`route` failed for request 0 on 1 replica: ValueError"),
    (LooseConfig, "can be changed after validation"),
    (NoDefaults, "`Config` does not take its defaults: .*limit"),
    (NoConfig, "has no `Config` model"),
    (NoRoute, "has no method `route`"),
]


@pytest.mark.parametrize(("router", "message"), BROKEN_ROUTERS, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_routers_are_rejected(router: type, message: str) -> None:
    with pytest.raises(PolicyError, match=rf"(?s)^{router.__name__}: .*{message}"):
        check_router(router)


def test_the_base_of_the_broken_routers_is_sound() -> None:
    """So each of them is rejected for its own fault."""
    assert check_router(Base).policy == "Base"
    assert check_router(NoDefaults, {"limit": 4}).policy == "NoDefaults"


def test_unknown_names_are_told_with_a_hint() -> None:
    with pytest.raises(PolicyError, match=r"power-of-two-choice: unknown policy.*power-of-two-choices"):
        check_router("power-of-two-choice")


# --- broken schedulers ------------------------------------------------------------------------------------------------


class Wrapped:
    """vLLM's scheduler, to be broken."""

    Config = VllmV1Config

    def __init__(self, config: VllmV1Config) -> None:
        self.inner = VllmV1(config)
        self.calls = 0

    def schedule(self, batch: Batch) -> None:
        self.calls += 1
        self.inner.schedule(batch)

    def admits(self, batch: Batch) -> bool:
        return self.inner.admits(batch)


class NeverAdmits(Wrapped):
    """Tells the engine that arrivals can wait, although it would admit them."""

    def admits(self, batch: Batch) -> bool:
        return False


class Counts(Wrapped):
    """Holds back arrivals at every third call: depends on how often it is asked."""

    def schedule(self, batch: Batch) -> None:
        self.calls += 1
        if self.calls % 3 or not batch.running:
            self.inner.schedule(batch)
        else:
            while batch.spare_blocks() < 0:
                batch.preempt(batch.newest())
            for request in batch.prefilling[:1]:
                batch.extend(request, min(16, request.target - request.computed))


class Dice(Wrapped):
    """Shuffles the queue."""

    def schedule(self, batch: Batch) -> None:
        if batch.waiting:
            batch.waiting.rotate(random.randrange(3))
        self.inner.schedule(batch)


class Mixes(Wrapped):
    """Remembers the requests of another replica."""

    def __init__(self, config: VllmV1Config) -> None:
        super().__init__(config)
        self.seats: set[int] = set()

    def schedule(self, batch: Batch) -> None:
        self.seats.add(id(batch))
        self.inner.max_seqs = 4 if len(self.seats) > 1 else 256
        self.inner.schedule(batch)


class SortsUnasked(Wrapped):
    """Puts short prompts first, but tells the engine, like a first come, first served one, that who comes last can wait."""

    def schedule(self, batch: Batch) -> None:
        ordered = sorted(batch.waiting, key=lambda request: (request.prompt_tokens, request.id))
        batch.waiting.clear()
        batch.waiting.extend(ordered)
        self.inner.schedule(batch)


class ShortestAnswerFirst(Wrapped):
    """Sorts the queue by what it cannot know; whoever comes may be first, so it always wants to be asked."""

    def admits(self, batch: Batch) -> bool:
        return True

    def schedule(self, batch: Batch) -> None:
        if len(batch.waiting) > 1:
            ordered = sorted(batch.waiting, key=lambda request: (request.output_tokens, request.id))
            batch.waiting.clear()
            batch.waiting.extend(ordered)
        self.inner.schedule(batch)


class PreemptsLongestAnswer(Wrapped):
    """Blocks lacking: stops whoever will need them for longest, which it cannot know."""

    def schedule(self, batch: Batch) -> None:
        while batch.spare_blocks() < 0:
            batch.preempt(max(batch.running, key=lambda request: (request.output_tokens, request.id)))
        self.inner.schedule(batch)


class Loses(Wrapped):
    """Drops a request from the queue."""

    def schedule(self, batch: Batch) -> None:
        self.inner.schedule(batch)
        if len(batch.waiting) > 3:
            batch.waiting.pop()


class Starves(Wrapped):
    """Never admits the request with number 7 while others run, then not at all."""

    def schedule(self, batch: Batch) -> None:
        held = [request for request in batch.waiting if request.id == 7]
        for request in held:
            batch.waiting.remove(request)
        self.inner.schedule(batch)
        batch.waiting.extend(held)


class Miscounts(Wrapped):
    """Corrupts the books."""

    def schedule(self, batch: Batch) -> None:
        self.inner.schedule(batch)
        batch.ctx_tokens += 1


class Crashes(Wrapped):
    def schedule(self, batch: Batch) -> None:
        raise ZeroDivisionError("half done")


class NoAdmits:
    Config = VllmV1Config

    def schedule(self, batch: Batch) -> None:
        pass


BROKEN_SCHEDULERS: list[tuple[type, str]] = [
    (NeverAdmits, "leaps and single steps disagree"),
    (Counts, "leaps and single steps disagree"),
    (SortsUnasked, "leaps and single steps disagree"),
    (Dice, "leaps and single steps disagree|does otherwise the second time"),
    (Mixes, "mixes up replicas"),
    (ShortestAnswerFirst, r"order depends on the true output lengths.*oracle=True"),
    (PreemptsLongestAnswer, r"order depends on the true output lengths.* preempts \[\d+\], or .*oracle=True"),
    (Loses, r"requests have not ended after 900 s \(the first is"),
    (Starves, "admits nothing on an empty rank although request 7 waits"),
    (Miscounts, "law 3 .*context tokens"),
    (Crashes, r"fails in _Scene\(.*ZeroDivisionError: half done"),
    (NoAdmits, "has no method `admits`"),
]


@pytest.mark.parametrize(("scheduler", "message"), BROKEN_SCHEDULERS, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_schedulers_are_rejected(scheduler: type, message: str) -> None:
    with pytest.raises(PolicyError, match=rf"(?s)^{scheduler.__name__}: .*({message})"):
        check_scheduler(scheduler)


def test_an_oracle_may_know_the_answers() -> None:
    """And the wrapper itself is sound."""
    assert check_scheduler(ShortestAnswerFirst, oracle=True).policy == "ShortestAnswerFirst"
    assert check_scheduler(PreemptsLongestAnswer, oracle=True).policy == "PreemptsLongestAnswer"
    assert check_scheduler(Wrapped).policy == "Wrapped"


# --- broken step-time models --------------------------------------------------------------------------------------------


class Affine(ConstantStep):
    """Time and energy that rise with everything; sound, to be broken."""

    def line(self, batch: int) -> Line:
        return Line(1e-2 + 1e-5 * batch, 1e-8, 0.1 * batch, 1e-6, float("inf"))

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        return self.line(batch)

    def mixed(self, *question: int) -> tuple[float, float]:
        tokens, _, pairs, _, _, decoding, ctx, _ = question
        line = self.line(decoding)
        more_s, more_j = 2e-5 * (tokens - decoding) + 1e-9 * pairs, 0.2 * (tokens - decoding)
        return line.time_s + line.time_per_ctx_s * ctx + more_s, line.energy_j + line.energy_per_ctx_j * ctx + more_j


class Bent(Affine):
    """A line that ends where another begins; sound."""

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        time, slope, energy, per_ctx, _ = self.line(batch)
        if ctx_tokens < 10_000:
            return Line(time, slope, energy, per_ctx, 10_000)
        return Line(time - 1e-4, slope + 1e-8, energy, per_ctx, float("inf"))

    def mixed(self, *question: int) -> tuple[float, float]:
        time, energy = super().mixed(*question)
        return time + max(question[6] - 10_000, 0) * 1e-8, energy


class EndsTooLate(Bent):
    """Says that the first line holds longer than it does."""

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        line = super().decode(batch, ctx_tokens, group_tokens)
        return line._replace(ctx_end=line.ctx_end + 5000)


class DropsAtItsEnd(Bent):
    """Both lines hold where they say, but the second begins below the first's end."""

    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        line = super().decode(batch, ctx_tokens, group_tokens)
        return line._replace(time_s=line.time_s - 1e-3) if ctx_tokens >= 10_000 else line

    def mixed(self, *question: int) -> tuple[float, float]:
        time, energy = super().mixed(*question)
        return time - (1e-3 if question[6] >= 10_000 else 0.0), energy


class BendsUnseen(Affine):
    """Between the points that it is asked for first it is not linear."""

    def mixed(self, *question: int) -> tuple[float, float]:
        time, energy = super().mixed(*question)
        return time + (1e-5 if question[6] % 10 == 7 else 0.0), energy


class EndsAtOnce(Affine):
    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        return self.line(batch)._replace(ctx_end=ctx_tokens)


class Disagrees(Affine):
    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        return self.line(batch)._replace(time_s=0.02)


class OtherEnergy(Affine):
    def decode(self, batch: int, ctx_tokens: int, group_tokens: int) -> Line:
        return self.line(batch)._replace(energy_j=0.0)


class FallsWithContext(Affine):
    def line(self, batch: int) -> Line:
        return Line(1.0, -1e-9, 0.1, 0.0, float("inf"))


class FasterWithMoreTokens(Affine):
    def mixed(self, *question: int) -> tuple[float, float]:
        time, energy = super().mixed(*question)
        return (time * 0.5 if question[0] - question[5] >= 512 else time), energy


class FallsWithBatch(Affine):
    def line(self, batch: int) -> Line:
        return Line(1.0 / batch if batch else 2.0, 1e-8, 0.1 * batch, 1e-6, float("inf"))


class NeverTakesTime(Affine):
    def mixed(self, *question: int) -> tuple[float, float]:
        return 0.0, 0.0


class NotANumber(Affine):
    def mixed(self, *question: int) -> tuple[float, float]:
        return 1.0, float("nan")


class Warms(Affine):
    """Slower at each call."""

    def mixed(self, *question: int) -> tuple[float, float]:
        self.step_s *= 1.001
        time, energy = super().mixed(*question)
        return time + self.step_s, energy


class PowerOutOfOrder(Affine):
    idle_w, limit_w = 700.0, 400.0


class EarlyFrontend(Affine):
    frontend_s = -0.001


class CrashesOnLongPrompts(Affine):
    def mixed(self, *question: int) -> tuple[float, float]:
        return super().mixed(*question) if question[0] < 4096 else ()[0]


BROKEN_MODELS: list[tuple[type, str]] = [
    (EndsTooLate, r"the line of decode\(.* does not hold at context"),
    (DropsAtItsEnd, r"time falls where the line ends: .* decode\(\d+, 10000, \d+\)"),
    (BendsUnseen, "`decode` and `mixed` disagree|the line of .* does not hold|time falls"),
    (EndsAtOnce, r"the line of decode\(1, 1, 1\) ends at 1 already"),
    (Disagrees, r"`decode` and `mixed` disagree at decode\(1, 1, 1\), context 1: time"),
    (OtherEnergy, r"`decode` and `mixed` disagree at decode\(1, 1, 1\), context 1: energy"),
    (FallsWithContext, "time or energy falls with the context"),
    (FasterWithMoreTokens, "time falls: .* for .*511.* for .*512"),
    (FallsWithBatch, "time falls"),
    (NeverTakesTime, "a step lasts 0.0 s: mixed"),
    (NotANumber, "a step takes nan J: mixed"),
    (Warms, "is not pure"),
    (PowerOutOfOrder, "powers are out of order: idle 700.0 W"),
    (EarlyFrontend, "`frontend_s` -0.001 s is negative"),
    (CrashesOnLongPrompts, "fails: IndexError"),
]


@pytest.mark.parametrize(("model", "message"), BROKEN_MODELS, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_step_time_models_are_rejected(model: type, message: str) -> None:
    with pytest.raises(PolicyError, match=rf"^{model.__name__}: .*{message}"):
        check_step_time_model(model)


@pytest.mark.parametrize("model", [Affine, Bent])
def test_the_bases_of_the_broken_models_are_sound(model: type) -> None:
    assert len(check_step_time_model(model).checks) == 6


# --- orders and predictors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("orders"))
def test_registered_orders_pass(name: str) -> None:
    report = check_order(name)
    assert len(report.checks) == 6
    assert report.us_per_decision["queue of 1000"] > 0


@pytest.mark.parametrize("name", names("predictors"))
def test_registered_predictors_pass(name: str) -> None:
    report = check_predictor(name)
    assert len(report.checks) == 4
    assert report.us_per_decision["3000 requests"] > 0


class Truth(Order):
    """Sorts by what nobody knows."""

    Config = Plain

    def key(self, request: Request) -> float:
        return request.output_tokens


class Forgetful(Order):
    """Loses every tenth request."""

    Config = Plain

    def key(self, request: Request) -> float:
        return 0.0

    def append(self, request: Request) -> None:
        if request.id % 10:
            super().append(request)


class Counting(Order):
    """Lets somebody else go first after so many questions."""

    Config = Plain

    def __init__(self, config: Plain, outlook: Outlook) -> None:
        super().__init__(config, outlook)
        self.asked = 0

    def key(self, request: Request) -> float:
        return 0.0

    def refresh(self) -> None:
        self.asked += 1
        if self.asked % 40 == 0 and len(self) > 1:
            last = list(self)[-1]
            self._queue.push(-float(self.asked), last)


@pytest.mark.parametrize(
    ("order", "message"),
    [(Truth, "output lengths"), (Forgetful, "can be seen waiting"), (Counting, "leaps and single steps disagree")],
)
def test_broken_orders_are_rejected(order: type, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        check_order(order)


class Constant:
    """Expects the same of everybody."""

    Config = Plain

    def __init__(self, config: Plain, rng: Generator) -> None:
        self.rng = rng
        self.seen = 0

    def predict(self, request: RequestView) -> float:
        return 100.0

    def observe(self, request: RequestView, output_tokens: int) -> None:
        self.seen += 1


class Peeking(Constant):
    """Looks up the answer."""

    def predict(self, request: RequestView) -> float:
        return float(request._request.output_tokens)


class Endless(Constant):
    """Gives up on codes."""

    def predict(self, request: RequestView) -> float:
        return float("inf") if request.klass == "code" else 1.0


class Moody(Constant):
    """An oracle whose errors depend on who came before."""

    knows_length = True

    def predict_knowing(self, request: RequestView, output_tokens: int) -> float:
        return output_tokens * self.rng.random()


class Random(Constant):
    """Draws from a generator of its own."""

    def predict(self, request: RequestView) -> float:
        return random.random()


@pytest.mark.parametrize(
    ("predictor", "message"),
    [
        (Peeking, "depend on answers that have not ended"),
        (Endless, "predicts inf"),
        (Moody, "which others came before"),
        (Random, "second time"),
    ],
)
def test_broken_predictors_are_rejected(predictor: type, message: str) -> None:
    assert check_predictor(Constant).decisions == 3000
    with pytest.raises(PolicyError, match=message):
        check_predictor(predictor)
