"""Requests that are answered by whichever model a router chooses: every call for them runs on the fleet.

A request is a *story* here: it stays outside the replicas, and what is sent to them are *calls*, requests of their own with its
arrival, class and deadline. A story bears what its calls cost; its row is written when its answer is given.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import partial
from math import exp, inf
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from fleetsim.errors import LawError, PolicyError
from fleetsim.fleet.profile import profiles
from fleetsim.fleet.stories import Call, Story
from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Outcome, Query, best
from fleetsim.model_routing.budgeted import Budgeted
from fleetsim.quality.answers import Signals
from fleetsim.quality.api import MAX_TOKENS, Truth
from fleetsim.quality.build import build_world
from fleetsim.quality.draws import key_of, uniform
from fleetsim.routing.api import FleetView, Reject
from fleetsim.workload.prefixes import OPEN_END, Content
from fleetsim.workload.request import FINISHED, REJECTED, TIMED_OUT, UNFINISHED, Request

if TYPE_CHECKING:
    from fleetsim.fleet.fleet import Fleet
    from fleetsim.fleet.pool import Pool
    from fleetsim.fleet.sides import Group
    from fleetsim.kernel.streams import Streams
    from fleetsim.scenario.schema import Scenario

_CALLS = 40
"""Bits of a call's id below which its request's own lies."""
_STREAMS = 1 << 40
"""Where content streams of stories begin, above all of a workload's own (see `PartStreams`)."""
_MOST_ROUNDS = 100
"""A router that is asked more often about one request is taken to go round in circles."""
_MOST_SAMPLES = 1000
_TYPICAL = (8, 4096)
"""Requests, and their context together, of the decode step that a profile's joules per token are read from."""


class Books:
    """What the answers of a run come to, and what they would with other choices.

    Parameters
    ----------
    models : ModelsView
        The arms.
    """

    def __init__(self, models: ModelsView) -> None:
        self.models = models
        self.requests = 0
        self.quality = np.zeros(models.count)
        """Quality of each arm's answers, summed over all requests."""
        self.list_usd = np.zeros(models.count)
        """Their list prices, summed [USD]."""
        self.best = 0.0
        """Quality of the best answer to each request, summed."""
        self.best_usd = 0.0
        """List price of the cheapest of the best answers, summed [USD]."""
        strong = int(models.mean_quality.argmax())
        usd = models.usd_per_prompt_token + models.usd_per_output_token
        others = [arm for arm in range(models.count) if arm != strong] or [strong]
        self.strong = strong
        """The arm with the highest mean quality."""
        self.weak = min(others, key=lambda arm: (usd[arm], models.mean_quality[arm]))
        """The cheapest of the others."""
        self.pairs = tuple(array("d") for _ in range(5))
        """Of each request: predicted gain of the strong arm over the weak one; qualities of the weak and of the strong one; their
        prices."""

    def count(self, truth: Truth, usd: Any) -> None:
        """Add what is true of a request."""
        self.requests += 1
        quality = truth.quality
        self.quality += quality
        self.list_usd += usd
        top = quality.max()
        self.best += float(top)
        self.best_usd += float(usd[quality >= top - 1e-12].min())
        weak, strong, chance = self.weak, self.strong, truth.seen.chance
        row = (chance[strong] - chance[weak], quality[weak], quality[strong], usd[weak], usd[strong])
        for values, value in zip(self.pairs, row, strict=True):
            values.append(float(value))


class Answering:
    """Asks the model router, sends calls, has answers judged, and tells the router how good they were.

    Parameters
    ----------
    fleet : Fleet
        Built except for this.
    scenario : Scenario
        With a quality block and a model router.
    streams : Streams
        The router draws from ``model_router``.

    Raises
    ------
    InputError
        If the profile, the table of outcomes or a parameter of the router cannot be used.
    """

    def __init__(self, fleet: Fleet, scenario: Scenario, streams: Streams) -> None:
        config, choice = scenario.quality, scenario.gateway.model_router
        assert config is not None
        assert choice is not None
        self._fleet = fleet
        self._gateway = gateway = fleet.gateway
        self._clock = fleet.clock
        self.config = config
        self.world = world = build_world(config, scenario.seed, fleet.base_dir)
        self._signals = Signals(config, scenario.seed, world)
        self._lengths = [key_of(scenario.seed, f"quality.lengths.{arm.name}") for arm in world.arms]
        self._contents = streams.contents + _STREAMS
        self.open: dict[Story, None] = {}
        """Stories without an end."""
        self.thinking = 0
        """Of these, how many wait for a decision or a judgement."""
        self.rerouted = 0
        """Calls that were given up since nobody served their model any more."""
        self.stand_ins = 0
        """Calls that went to another model because nobody served the one that the router named."""
        before = gateway.on_first_token
        gateway.on_first_token = self._started if before is None else partial(self._started_after, before)
        gateway.on_end = self.ended
        gateway.answering = self
        self._groups: list[Group] = [gateway.group_of(arm.llm) for arm in world.arms]
        self._returns = [
            scenario.autoscaler is not None
            or any(pool.config.autoscaler is not None for pool in fleet.pools if arm.llm in pool.variants)
            for arm in world.arms
        ]
        """Whether somebody brings replicas of each arm's LLM when none is there."""
        self.models = ModelsView(
            world.arms, world.domains, world.profile, self._joules_per_token(), self._replicas, self._seats()
        )
        for arm in world.arms:
            self.models.offered[arm.number] = arm.joins_s <= 0.0
        self.books = Books(self.models)
        self.router: Any = choice.create(streams.get("model_router"), self.models)
        self.name = choice.name
        budget = scenario.gateway.budget
        if budget is not None:
            controller = budget.create(streams.get("budget"), self.models)
            self.router = Budgeted(self.router, controller, budget.name)
        self._proceeds = hasattr(self.router, "proceed")
        self._learns = hasattr(self.router, "feedback")
        self._forget = getattr(self.router, "forget", None)
        self._knows = bool(getattr(self.router, "knows_answers", False))
        self._route = self.router.route_knowing if self._knows else self.router.route
        self._verifies = bool(getattr(self.router, "verifies", False))
        cost = config.decision
        self._decision_s = getattr(self.router, "decision_s", 0.0) if cost.time is None else cost.time
        self._decision_j = getattr(self.router, "decision_j", 0.0) if cost.energy is None else cost.energy
        self._decision_usd = getattr(self.router, "decision_usd", 0.0) if cost.list_usd is None else cost.list_usd
        judge = config.judge
        self._judge_s = 0.01 if judge.time is None else judge.time
        self._judge_j, self._judge_usd = judge.energy or 0.0, judge.list_usd or 0.0
        first = float(config.expected_output_tokens)
        self._answered = [1] * self.models.count
        """Answers of each arm that have been seen, and one for the expectation before."""
        self._mean = world.longer[0] * first + world.longer[1]
        """Mean length of these [tokens]; not changed in place, since queries show it."""
        numbers: dict[str, int] = {}
        for arm in world.arms:
            numbers.setdefault(arm.llm, arm.number)
        self._first_arm = numbers
        """The first arm of each LLM."""

    # --- construction ------------------------------------------------------------------------------------------------

    def _pool(self, llm: str) -> Pool:
        """The first pool that serves an LLM, as it is then."""
        return next(pool.variants[llm] for pool in self._fleet.pools if llm in pool.variants)

    def _joules_per_token(self) -> list[float]:
        """What a token takes each arm: as the scenario or the table says, else a decode step of its first pool."""
        found = []
        measured = self.world.energy_per_token
        for arm in self.world.arms:
            given = self.config.models[arm.llm].energy_per_token
            if given is None and measured is not None:
                given = float(measured[arm.number])
            if given is None:
                batch, context = _TYPICAL
                given = profiles(self._pool(arm.llm))(1.0).step(batch, context)[1] / batch
            found.append(given)
        return found

    def _seats(self) -> list[int]:
        """Requests that a replica of each arm's first pool runs at a time at most."""
        return [self._gateway.seats_of(self._pool(arm.llm)) for arm in self.world.arms]

    def _replicas(self, arm: int) -> FleetView:
        return self._groups[arm].entry.view

    def begin(self) -> None:
        """Wait for models that join or leave."""
        for arm in self.world.arms:
            if arm.joins_s > 0.0:
                self._clock.at(arm.joins_s, partial(self._offer, arm.number, True))
            if arm.leaves_s < inf:
                self._clock.at(arm.leaves_s, partial(self._offer, arm.number, False))

    def _offer(self, arm: int, offered: bool) -> None:
        """A model joins or leaves."""
        models = self.models
        models.offered[arm] = offered
        models.epoch += 1
        models.now_s = self._clock.now_s
        told = getattr(self.router, "joined" if offered else "left", None)
        if told is not None:
            told(arm)

    # --- a request comes -----------------------------------------------------------------------------------------------

    def take(self, request: Request) -> None:
        """Take a request that is sent now."""
        named = -1
        if request.model is not None:
            named = self._first_arm.get(request.model, -1)
            if named < 0:
                self._gateway.take(request)  # nobody knows how good that model's answers are
                return
        gateway, delay_s = self._gateway, 0.0
        if gateway.ways is not None:
            gateway.ways.set_origin(request)
            delay_s = gateway.ways.to_gateway_s(request.origin)
        story = self._story(request, named)
        self.open[story] = None
        request.call = story
        if named < 0:
            delay_s += self._decision_s
        self._later(delay_s, self._begin, story)

    def _story(self, request: Request, named: int) -> Story:
        """What is true of a request, and what a router sees of it."""
        label = {"draw": None, "class": request.klass, "tenant": request.tenant}[self.config.domain_by]
        planned = (request.prompt_tokens, request.output_tokens)
        truth = self.world.meet(request.id, label, *planned)
        if truth.prompt_tokens != request.prompt_tokens:
            request.prompt_tokens = truth.prompt_tokens
            request.content = None
        seen = truth.seen
        query = Query(
            request.id,
            request.arrival_s,
            request.prompt_tokens,
            request.klass,
            request.tenant,
            request.session,
            self._gateway.weight_of(request),
            request.arrival_s + self._gateway.limit_s(request),
            seen.domain,
            seen.difficulty,
            seen.chance,
            self._mean,
            turn=request.turn,
            image_tokens=request.image_tokens,
        )
        usd = truth.usd
        if usd is None:
            usd = [
                arm.list_usd(truth.prompt_tokens, tokens)
                for arm, tokens in zip(self.world.arms, truth.output_tokens, strict=True)
            ]
        self.books.count(truth, np.array(usd))
        return Story(request, truth, query, named)

    def _later(self, delay_s: float, do: Any, story: Story) -> None:
        """Go on with a story after a time, or at once."""
        if delay_s > 0.0:
            self.thinking += 1
            self._clock.at(self._clock.now_s + delay_s, partial(self._now, do, story))
        else:
            do(story)

    def _now(self, do: Any, story: Story) -> None:
        self.thinking -= 1
        if story in self.open:
            do(story)

    def _begin(self, story: Story) -> None:
        if story.named >= 0:
            self._follow(story, Ask(story.named), True)
            return
        self._charge(story, self._decision_j, self._decision_usd)
        self._ask(story)

    def _charge(self, story: Story, energy_j: float, list_usd: float) -> None:
        """Charge a story for a decision or a judgement."""
        story.list_usd += list_usd
        if energy_j:
            self._gateway.energy_j += energy_j
            self._gateway.charge_decision(story.request, energy_j)

    # --- decisions -------------------------------------------------------------------------------------------------------

    def _ask(self, story: Story) -> None:
        """Ask the router whom to ask first."""
        query = story.query
        self.models.now_s = query.now_s = self._clock.now_s
        try:
            known = (story.truth.quality,) if self._knows else ()
            answer = self._route(query, *known)
        except Exception as error:
            raise self._failed(story, error) from error
        self._follow(story, answer, not self._proceeds)

    def _proceed(self, story: Story) -> None:
        """Ask the router what to do with the answers that are there."""
        query = story.query
        self.models.now_s = query.now_s = self._clock.now_s
        try:
            answer = self.router.proceed(query, story.answers)
        except Exception as error:
            raise self._failed(story, error) from error
        self._follow(story, answer, False)

    def _failed(self, story: Story, error: Exception) -> PolicyError:
        what = f"{type(error).__name__}: {error}"
        return PolicyError(f"the model router {self.name} failed for request {story.request.id}: {what}")

    def _follow(self, story: Story, answer: Any, final: bool) -> None:
        """Do what the router says."""
        story.rounds += 1
        if story.rounds > _MOST_ROUNDS:
            raise PolicyError(f"the model router {self.name} never ends with request {story.request.id}")
        if isinstance(answer, Accept):
            self._accept(story, answer.answer)
            return
        if isinstance(answer, Reject):
            self._end(story, REJECTED, answer.reason)
            return
        asks = [answer] if isinstance(answer, Ask) else answer
        if not (isinstance(asks, list | tuple) and asks and all(isinstance(ask, Ask) for ask in asks)):
            raise PolicyError(f"the model router {self.name} answered {answer!r} for request {story.request.id}")
        alone = len(asks) == 1 and asks[0].samples == 1 and asks[0].verify < 0
        story.final = final or (alone and asks[0].last)
        story.failed = FINISHED
        story.seen = len(story.answers)
        leaders = [self._calls(story, ask) for ask in asks]
        for request in leaders:
            request.call.streams = story.final and alone
        for request in leaders:
            self._gateway.receive(request)

    def _calls(self, story: Story, ask: Ask) -> Request:
        """The calls that a decision means; the first one is to be sent, and has the others as followers."""
        arm = self._served(story, ask)
        if not (type(ask.samples) is int and 1 <= ask.samples <= _MOST_SAMPLES):
            raise PolicyError(f"the model router {self.name} wants {ask.samples!r} samples")
        if max(ask.verify, ask.behind) >= len(story.answers):
            number = max(ask.verify, ask.behind)
            raise PolicyError(f"the model router {self.name} has answer {number} looked at, which is not there")
        leader: Request | None = None
        for _ in range(ask.samples):
            sample = 0
            if ask.verify < 0 and not ask.thought:
                sample = story.samples.get(arm, 0)
                story.samples[arm] = sample + 1
            call = Call(story, arm, sample, ask, self._clock.now_s)
            request = self._request(story, call, ask)
            story.under_way[call] = None
            if leader is None:
                leader = request
            else:
                call.pays_prompt = False
                leader.call.followers.append(request)
        assert leader is not None
        return leader

    def _served(self, story: Story, ask: Ask) -> int:
        """The arm that a decision names; another one, where nobody serves it or it may not be chosen any more."""
        arm, models = ask.arm, self.models
        if type(arm) is not int or not 0 <= arm < models.count:
            raise PolicyError(
                f"the model router {self.name} answered arm {arm!r} for request {story.request.id}; there are {models.count}"
            )
        if models.present(arm) or (models.offered[arm] and self._returns[arm]):
            return arm
        among = models.open()
        if not among or arm in among:
            return arm
        self.stand_ins += 1
        return best(models.mean_quality, among)

    def _request(self, story: Story, call: Call, ask: Ask) -> Request:
        """A request to a replica."""
        parent, truth, arm = story.request, story.truth, self.world.arms[call.arm]
        prompt, output = truth.prompt_tokens, truth.output_tokens[call.arm]
        if call.verify >= 0:
            prompt = min(prompt + story.answers[call.verify].output_tokens, MAX_TOKENS)
            output = ask.thought or self.config.verification.tokens
        elif call.thought:
            written = story.thought_tokens + sum([answer.output_tokens for answer in story.answers])
            prompt, output = min(prompt + written, MAX_TOKENS), ask.thought
        elif call.sample:
            spread = self.config.length_spread
            noise = float(ndtri(uniform(self._lengths[call.arm] + call.sample, truth.number)))
            output = min(max(round(output * exp(spread * noise)), 1), MAX_TOKENS)
        if call.behind >= 0:
            before = story.kept[call.behind]
            prompt = min(before.prompt_tokens + before.generated, MAX_TOKENS)
        if 0 < ask.most_tokens < output and call.verify < 0 and not call.thought:
            output, call.cut = ask.most_tokens, True
        request = Request(
            parent.id + (story.calls << _CALLS),
            parent.arrival_s,
            prompt,
            output,
            self._content(story, ask),
            parent.session,
            parent.turn,
            parent.klass,
            parent.tenant,
            arm.llm,
            parent.images,
            parent.image_tokens,
        )
        story.calls += 1
        request.origin = parent.origin
        request.call = call
        return request

    def _content(self, story: Story, ask: Ask) -> Content | None:
        """What a call's prompt is: samples have it in common, and what looks at an answer has that too."""
        own = story.request.content
        if ask.samples == 1 and ask.verify < 0 and ask.behind < 0 and not ask.thought and not self._verifies:
            return own
        if own is not None and (own.hashes or (own.open_ended and ask.samples == 1)):
            return own
        if story.content is None:
            stream = self._contents + story.request.id
            runs = () if own is None else own.runs
            if runs and runs[-1][1] == OPEN_END:  # the answers of samples differ: only the prompt is known
                known = sum(tokens for _, tokens in runs[:-1])
                runs = (*runs[:-1], (runs[-1][0], max(story.truth.prompt_tokens - known, 1)))
                story.content = Content(runs)
            elif ask.samples > 1:
                left = story.truth.prompt_tokens - sum(tokens for _, tokens in runs)
                story.content = Content((*runs, (stream, left)) if left > 0 else runs)
            else:
                story.content = Content((*runs, (stream, OPEN_END)))
        return story.content

    # --- calls -----------------------------------------------------------------------------------------------------------

    def _started_after(self, before: Any, request: Request) -> None:
        before(request)
        self._started(request)

    def _started(self, request: Request) -> None:
        """A call has its first token: its prompt is computed, and further samples follow it to the same replica."""
        call = request.call
        if type(call) is not Call or not call.followers:
            return
        followers, call.followers = call.followers, []
        gateway = self._gateway
        group, here = self._groups[call.arm], gateway.replicas[request.replica].present
        for follower in followers:
            if here and not group.collects and not group.swaps:
                gateway.steered[follower.id] = request.replica
            gateway.receive(follower)

    def ended(self, request: Request) -> None:
        """Note the end of a request: of a call, or of one that asked for a model by itself."""
        call = request.call
        if type(call) is Call:
            self._call_over(request, call)
        else:
            self._fleet.end(request)

    def _call_over(self, request: Request, call: Call) -> None:
        story = call.story
        self._gateway.steered.pop(request.id, None)
        self._bear(story, request)
        del story.under_way[call]
        for follower in call.followers:  # never sent: the first sample had no token
            del story.under_way[follower.call]
        if request.status == FINISHED:
            self._answer(story, request, call)
        elif story.failed != TIMED_OUT:
            story.failed = request.status
            story.request.reason = request.reason
        if self._fleet.lifecycle is not None and self._fleet.lifecycle.draining:
            self._fleet.lifecycle.look()
        if not story.under_way:
            self._round_over(story)

    def _bear(self, story: Story, request: Request) -> None:
        """Let a story bear what a call cost, and count what it was."""
        if request.replica >= 0:
            self._gateway.pay(request)
        parent = story.request
        self._gateway.bear(parent, request)
        if request.first_scheduled_s == request.first_scheduled_s:
            story.prompt_tokens += request.prompt_tokens
            if not parent.first_scheduled_s <= request.first_scheduled_s:
                parent.queued_s, parent.first_scheduled_s = request.queued_s, request.first_scheduled_s
                parent.encode_start_s, parent.encode_end_s = request.encode_start_s, request.encode_end_s
                parent.encode_replica = request.encode_replica
        story.output_tokens += request.generated
        parent.preemptions += request.preemptions
        parent.migrations += request.migrations
        parent.loaded_tokens += request.loaded_tokens
        parent.load_s += request.load_s
        parent.approximate_tokens += request.approximate_tokens

    def _answer(self, story: Story, request: Request, call: Call) -> None:
        """A call gave an answer, or a verdict about one."""
        truth, arm = story.truth, self.world.arms[call.arm]
        prompt = request.prompt_tokens if call.pays_prompt else 0
        usd = arm.list_usd(prompt, request.output_tokens)
        if truth.usd is not None and call.verify < 0 and call.sample == 0:
            usd = truth.usd[call.arm]
        story.list_usd += usd
        signals = self._signals
        if call.verify >= 0:
            checked, quality = story.answers[call.verify], self._good(story, story.draws[call.verify])
            votes = checked.votes
            votes.append(signals.agrees(truth, checked.arm, checked.sample, call.arm, len(votes), quality))
        if call.thought:
            story.thought_tokens += request.output_tokens
        if call.verify >= 0 or call.thought:
            return
        draw = self._draw(story, call)
        identity = -1 - len(story.answers) if draw is None else signals.identity(truth, *draw)
        label = story.labels.setdefault(identity, len(story.labels))
        latency_s, ttft_s = self._clock.now_s - call.sent_s, request.first_token_s - call.sent_s
        answer = Answer(call.arm, call.sample, label, request.output_tokens, latency_s, usd, request.energy_j)
        answer.ttft_s = ttft_s
        if call.judge:
            answer.score = signals.score(truth, call.arm, call.sample, self._good(story, draw))
            self._charge(story, self._judge_j, self._judge_usd)
        story.answers.append(answer)
        story.kept.append(request)
        story.draws.append(draw)
        count = self._answered[call.arm] = self._answered[call.arm] + 1
        self._mean = self._mean.copy()
        self._mean[call.arm] += (request.output_tokens - self._mean[call.arm]) / count

    def _draw(self, story: Story, call: Call) -> tuple[int, int] | None:
        """Which draw of which arm an answer is: its own, or the one that was thought over, where that was as good."""
        own = None if call.cut else (call.arm, call.sample)
        before = story.draws[call.behind] if call.behind >= 0 else None
        if own is None or (before is not None and self._good(story, before) >= self._good(story, own)):
            return before
        return own

    def _good(self, story: Story, draw: tuple[int, int] | None) -> float:
        """How good an answer is."""
        return 0.0 if draw is None else self.world.quality_of(story.truth, *draw)

    def _round_over(self, story: Story) -> None:
        """All calls of a round have ended."""
        fresh = len(story.answers) > story.seen
        if story.failed == TIMED_OUT:
            self._end(story, TIMED_OUT, story.request.reason)
        elif story.final and fresh:
            self._accept(story, story.seen)
        elif story.failed == UNFINISHED and not story.answers and story.named < 0:
            story.request.reason = None
            self._ask(story)  # nobody serves that model any more
        elif story.failed not in (FINISHED, UNFINISHED) and not fresh:
            if story.answers:
                self._accept(story, len(story.answers) - 1)  # better than nothing
            else:
                self._end(story, story.failed, story.request.reason)
        else:
            story.request.reason = None
            judged = any(answer.score is not None for answer in story.answers[story.seen :])
            self._later(self._judge_s if judged else 0.0, self._proceed, story)

    def takes_back(self, group: Group, request: Request) -> bool:
        """Whether a call that waits for a replica to come is given up, since its model is gone and there are others."""
        call = request.call
        if type(call) is not Call or self._returns[call.arm] or request in self._gateway.patience.twins:
            return False
        if group.entry.view.members or call.story.named >= 0:
            return False
        if not any(self.models.present(arm) for arm in range(self.models.count)):
            return False
        self.rerouted += 1
        self._gateway.patience.calm(request)
        request.status = UNFINISHED
        request.end_s = self._clock.now_s
        self._gateway.over(request)
        return True

    # --- the end of a story ------------------------------------------------------------------------------------------------

    def _accept(self, story: Story, number: int) -> None:
        """Give an answer."""
        if type(number) is not int or not 0 <= number < len(story.answers):
            raise PolicyError(
                f"the model router {self.name} accepts answer {number!r} of request {story.request.id}; "
                f"there are {len(story.answers)}"
            )
        answer, winner, request = story.answers[number], story.kept[number], story.request
        now_s = self._clock.now_s
        request.replica, request.prefill_replica, request.rank = winner.replica, winner.prefill_replica, winner.rank
        request.cached_tokens, request.dropped_tokens = winner.cached_tokens, winner.dropped_tokens
        request.output_tokens = request.generated = winner.generated
        streams = winner.call.streams
        request.first_token_s = winner.first_token_s if streams else now_s
        request.itl_max_s = winner.itl_max_s if streams else 0.0
        request.last_token_s = now_s
        story.arm = answer.arm
        story.quality = self._good(story, story.draws[number])
        story.chance = float(story.truth.seen.chance[answer.arm])
        self._end(story, FINISHED, None)
        if self._learns and story.named < 0 and self._signals.graded(story.truth):
            self._clock.at(now_s + self.config.feedback.delay, partial(self._tell, story, self._outcome(story)))

    def _outcome(self, story: Story) -> Outcome:
        request = story.request
        return Outcome(
            story.query,
            story.arm,
            story.quality,
            request.output_tokens,
            request.end_s - request.arrival_s,
            request.first_token_s - request.arrival_s,
            request.energy_j,
            story.list_usd,
            request.paid_usd,
            story.calls,
        )

    def _tell(self, story: Story, outcome: Outcome) -> None:
        """Let the router learn."""
        self.models.now_s = self._clock.now_s
        try:
            self.router.feedback(outcome)
        except Exception as error:
            raise self._failed(story, error) from error

    def _end(self, story: Story, status: int, reason: str | None) -> None:
        """Note the terminal state of a story."""
        del self.open[story]
        request = story.request
        request.status = status
        request.reason = reason
        request.end_s = self._clock.now_s
        story.content = None
        if self._forget is not None:
            self._forget(story.query)
        self._fleet.end(request)

    def parents_of(self, left: Sequence[Request]) -> list[Request]:
        """Of requests that are left when a run ends, those that have a row: stories bear what their calls cost."""
        alone = []
        for request in left:
            call = request.call
            if type(call) is Call:
                if call in call.story.under_way:
                    del call.story.under_way[call]
                    self._bear(call.story, request)
            else:
                alone.append(request)
        stories = [story.request for story in self.open]
        self.open.clear()
        return [*alone, *stories]

    def verify(self, end_s: float) -> None:
        """Check that every story has ended.

        Raises
        ------
        LawError
            If one has not.
        """
        if self.open:
            raise LawError(f"law 1 (conservation): {len(self.open)} requests were never answered until {end_s} s")
