"""Synthetic workloads: requests drawn from distributions, alone, in conversations or in a closed loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from fleetsim.errors import DataError, Finding
from fleetsim.scenario import schema
from fleetsim.workload.arrivals import CHUNK, Arrivals, Floats, arrival_process
from fleetsim.workload.lengths import Ints, Lengths, length_source
from fleetsim.workload.prefixes import OPEN_END, Content
from fleetsim.workload.profiles import Profile, load_profile
from fleetsim.workload.request import REJECTED, Request

if TYPE_CHECKING:
    from numpy.random import Generator

    from fleetsim.kernel.streams import Streams

_AGENTS = 10_000_000
"""Where numbers of agents begin: above every shared prefix's."""
_RETRY_S = 1.0
"""A closed loop's user whose request was turned away waits at least this long."""


def group_stream(group: int) -> int:
    """Content stream of a shared prefix."""
    return 2 * group


def session_stream(session: int) -> int:
    """Content stream of a conversation."""
    return 2 * session + 1


def agent_stream(turn: int) -> int:
    """Content stream of an agent's instructions."""
    return group_stream(_AGENTS + turn)


class PrefixGroups(dict[int, Content]):
    """Contents of shared prefixes, made when first used, and who uses which."""

    def __init__(self, config: schema.SharedPrefixes, rng: Generator, contents: int) -> None:
        super().__init__()
        self._contents = contents
        self.tokens = config.tokens
        self._rng = rng
        weights = np.arange(1, config.groups + 1, dtype=np.float64) ** -config.zipf
        self._cumulative = np.cumsum(weights) / weights.sum()
        self._last = config.groups - 1

    def __missing__(self, group: int) -> Content:
        content = self[group] = Content(((self._contents + group_stream(group), self.tokens),))
        return content

    def draw(self, count: int) -> list[int]:
        """Groups of the next `count` requests."""
        groups = np.searchsorted(self._cumulative, self._rng.random(count), side="right")
        drawn: list[int] = np.minimum(groups, self._last).tolist()
        return drawn


class ImageDraws:
    """Images of requests: how many each has, and how many tokens they become together."""

    def __init__(self, config: schema.Images, streams: Streams) -> None:
        self._rng = streams.get("workload.images")
        self._share = config.share
        self._counts = length_source(config.per_request, self._rng)
        self._tokens = length_source(config.tokens, self._rng)

    def draw(self, count: int) -> tuple[Ints, Ints]:
        """Images and their tokens of the next `count` requests."""
        images = np.where(self._rng.random(count) < self._share, self._counts(count), 0)
        each = self._tokens(int(images.sum()))
        ends = np.cumsum(images)
        total = np.concatenate(([0], np.cumsum(each)))
        return images, total[ends] - total[ends - images]


class _Parts:
    """What every synthetic workload is drawn from: the config's blocks, a profile's for those that it leaves out."""

    def __init__(self, config: schema.SyntheticWorkload, streams: Streams) -> None:
        self.config = config
        self._streams = streams
        self._profile = load_profile(config.profile) if config.profile is not None else None
        self.prompts = self._lengths(config.prompt_tokens, "prompt_tokens")
        self.outputs = self._lengths(config.output_tokens, "output_tokens")
        self.images = None if config.images is None else ImageDraws(config.images, streams)
        prefixes = config.prefixes
        self.contents = streams.contents
        self.groups = None
        if prefixes is not None:
            self.groups = PrefixGroups(prefixes, streams.get("workload.prefixes"), streams.contents)

    def arrivals(self) -> Arrivals:
        """The open arrival process."""
        config = self.config
        if config.arrivals is not None:
            return arrival_process(config.arrivals, config.requests, self._streams)
        profile = self._known("arrivals")
        rng = self._streams.get("workload.arrivals")
        return profile.arrivals(None if config.sessions else config.requests, rng)

    def rng(self, name: str) -> Generator:
        """The workload's random stream of that name."""
        return self._streams.get(f"workload.{name}")

    def _lengths(self, config: schema.Lengths | None, name: str) -> Lengths:
        rng = self.rng(name)
        return length_source(config, rng) if config is not None else self._known(name).lengths(name, rng)

    def _known(self, name: str) -> Profile:
        if self._profile is None or not self._profile.has(name):
            hint = f"give workload.{name}"
            raise DataError(Finding(f'profile "{self.config.profile}" says nothing about {name}', hint=hint))
        return self._profile


class OpenLoop:
    """Requests that arrive by themselves and have nothing to do with each other but a shared prefix."""

    skipped_rows = 0

    def __init__(self, config: schema.SyntheticWorkload, streams: Streams, chunk: int = CHUNK) -> None:
        self._parts = _Parts(config, streams)
        self._config = config
        self.total = config.requests
        self._chunk = chunk
        self._arrivals = self._parts.arrivals()

    def requests(self) -> Iterator[Request]:
        """Requests in order of arrival."""
        parts, model = self._parts, self._config.model
        first = 0
        for times in _limited(self._arrivals.chunks(self._chunk), self._config.requests, self._config.duration):
            count = len(times)
            contents: Iterable[Content | None] = repeat(None)
            if parts.groups is not None:
                contents = map(parts.groups.__getitem__, parts.groups.draw(count))
            columns = (
                range(first, first + count),
                times.tolist(),
                parts.prompts(count).tolist(),
                parts.outputs(count).tolist(),
                contents,
            )
            if parts.images is not None:
                yield from self._with_images(parts.images, count, columns)
            elif model is None:
                yield from map(Request, *columns)
            else:
                yield from map(Request, *columns, repeat(-1), repeat(0), repeat(None), repeat(None), repeat(model))
            first += count

    def _with_images(self, draws: ImageDraws, count: int, columns: tuple[Iterable[Any], ...]) -> Iterator[Request]:
        """Requests whose prompts are longer by their images' tokens."""
        images, tokens = draws.draw(count)
        for cells in zip(*columns, images.tolist(), tokens.tolist(), strict=False):
            number, time_s, prompt, output, content, shown, seen = cells
            yield Request(
                number, time_s, prompt + seen, output, content, -1, 0, None, None, self._config.model, shown, seen
            )

    def released_by(self, request: Request, now_s: float) -> Request | None:  # noqa: ARG002
        """Nothing: no request waits for another."""
        return None


def _limited(chunks: Iterator[Floats], requests: int | None, duration_s: float | None) -> Iterator[Floats]:
    """Arrivals up to a number or an instant, whichever comes first."""
    left = requests
    for chunk in chunks:
        times = chunk if left is None else chunk[:left]
        if duration_s is not None and times[-1] > duration_s:
            times = times[: int(np.searchsorted(times, duration_s, side="right"))]
        if len(times):
            yield times
        if left is not None:
            left -= len(times)
        if len(times) < len(chunk) or left == 0:
            return


class Conversations:
    """Sessions of turns: each prompt is the history (after a shared prefix, if any) plus the user's new tokens.

    A session's lengths and pauses are drawn when it starts, so they do not depend on how fast the fleet answers. Its
    requests have consecutive ids. The first turn is sent whatever its length; a later one that would exceed the context
    ends the session. Where turns are agents, each prompt starts with the agent's instructions, and only the first brings new
    tokens.
    """

    skipped_rows = 0

    def __init__(self, config: schema.SyntheticWorkload, streams: Streams, chunk: int = CHUNK) -> None:
        assert config.sessions is not None
        self._agent_tokens = config.sessions.agent_tokens
        self._sessions = config.sessions
        self._config = config
        self.total = config.requests
        self._chunk = chunk
        self._parts = _Parts(config, streams)
        self._arrivals = self._parts.arrivals()
        self._turns = length_source(config.sessions.turns, self._parts.rng("turns"))
        self._think = self._parts.rng("think")
        self._live: dict[int, deque[tuple[int, int, float]]] = {}

    def requests(self) -> Iterator[Request]:
        """First turns, in order of arrival."""
        session = next_id = 0
        cap, contents = self._config.requests, self._parts.contents
        for times in _limited(self._arrivals.chunks(self._chunk), cap, self._config.duration):
            groups, turns = self._groups(len(times)), self._turns(len(times)).tolist()
            for time_s, group, count in zip(times.tolist(), groups, turns, strict=True):
                plan = self._plan(count, self._agent_tokens if group is None else group[1])
                if cap is not None:
                    plan = plan[: cap - next_id]
                runs = ((contents + session_stream(session), OPEN_END),)
                prompt, output, _ = plan[0]
                if self._agent_tokens:
                    content = self._agent_content(session, 0, (prompt - self._agent_tokens,))
                else:
                    content = Content(runs if group is None else (group, *runs))
                if len(plan) > 1:
                    self._live[session] = deque(plan[1:])
                yield Request(next_id, time_s, prompt, output, content, session, 0, None, None, self._config.model)
                next_id += len(plan)
                session += 1
                if next_id == cap:
                    return

    def released_by(self, request: Request, now_s: float) -> Request | None:
        """The session's next turn, a think time after the end of the last."""
        left = self._live.get(request.session)
        if left is None:
            return None
        prompt, output, pause_s = left.popleft()
        over = self._config.duration is not None and now_s + pause_s > self._config.duration
        if over or not left:
            del self._live[request.session]
        if over:
            return None
        content = request.content
        if self._agent_tokens and content is not None:
            segments = (*content.segments, request.output_tokens)
            content = self._agent_content(request.session, request.turn + 1, segments)
        return Request(
            request.id + 1,
            now_s + pause_s,
            prompt,
            output,
            content,
            request.session,
            request.turn + 1,
            None,
            None,
            request.model,
        )

    def _agent_content(self, session: int, turn: int, segments: tuple[int, ...]) -> Content:
        """An agent's instructions, then the messages of its session."""
        contents = self._parts.contents
        runs = ((contents + agent_stream(turn), self._agent_tokens), (contents + session_stream(session), OPEN_END))
        return Content(runs, segments=segments)

    def _groups(self, count: int) -> Iterable[tuple[int, int] | None]:
        """Run of the shared prefix that each session starts with."""
        groups = self._parts.groups
        if groups is None:
            return repeat(None, count)
        return [groups[group].runs[0] for group in groups.draw(count)]

    def _plan(self, turns: int, prefix_tokens: int) -> list[tuple[int, int, float]]:
        """Prompt, output and pause before it of each turn that fits the context; always one."""
        room = max(1, self._sessions.max_context_tokens - prefix_tokens)
        count = min(turns, 1 + room // 2)  # a turn adds two tokens or more, so further ones cannot fit
        new, outputs = self._parts.prompts(count), self._parts.outputs(count)
        if self._agent_tokens:
            new = np.where(np.arange(count) == 0, new, 0)
        pauses = self._think.standard_exponential(count) * self._sessions.think_time
        total = np.cumsum(new + outputs)
        fit = max(1, int(np.searchsorted(total, room, side="right")))
        prompts = prefix_tokens + total - outputs
        return list(zip(prompts[:fit].tolist(), outputs[:fit].tolist(), pauses[:fit].tolist(), strict=True))


class ClosedLoop:
    """A fixed number of users, each with one request at a time; the n-th request sent takes the n-th lengths drawn."""

    skipped_rows = 0

    def __init__(self, config: schema.SyntheticWorkload, streams: Streams) -> None:
        assert isinstance(config.arrivals, schema.ClosedLoopArrivals)
        self._loop = config.arrivals
        self._config = config
        self.total = config.requests
        self._parts = _Parts(config, streams)
        self._sent = 0
        self._drawn = self._draws()

    def requests(self) -> Iterator[Request]:
        """Every user's first request, all at the start."""
        for user in range(self._loop.concurrency):
            request = self._next(0.0, user, 0)
            if request is None:
                return
            yield request

    def released_by(self, request: Request, now_s: float) -> Request | None:
        """The same user's next request, after the pause drawn with it."""
        return self._next(now_s, request.session, request.turn + 1, _RETRY_S if request.status == REJECTED else 0.0)

    def _next(self, now_s: float, user: int, turn: int, wait_s: float = 0.0) -> Request | None:
        if self._sent == self._config.requests:
            return None
        prompt, output, content, images, seen, pause_s = next(self._drawn)
        time_s = now_s + max(pause_s, wait_s) if turn else now_s
        if self._config.duration is not None and time_s > self._config.duration:
            return None
        number = self._sent
        self._sent += 1
        model = self._config.model
        return Request(number, time_s, prompt + seen, output, content, user, turn, None, None, model, images, seen)

    def _draws(self) -> Iterator[tuple[int, int, Content | None, int, int, float]]:
        """Prompt, output, content, images with their tokens, and pause before it of each request in the order of sending."""
        parts = self._parts
        rng = parts.rng("think")
        while True:
            contents: Iterable[Content | None] = repeat(None, CHUNK)
            if parts.groups is not None:
                contents = [parts.groups[group] for group in parts.groups.draw(CHUNK)]
            pauses = rng.standard_exponential(CHUNK) * self._loop.think_time
            lengths = (parts.prompts(CHUNK).tolist(), parts.outputs(CHUNK).tolist())
            images: tuple[Iterable[int], Iterable[int]] = (repeat(0, CHUNK), repeat(0, CHUNK))
            if parts.images is not None:
                counts, tokens = parts.images.draw(CHUNK)
                images = (counts.tolist(), tokens.tolist())
            yield from zip(*lengths, contents, *images, pauses.tolist(), strict=True)


def synthetic_workload(config: schema.SyntheticWorkload, streams: Streams) -> OpenLoop | Conversations | ClosedLoop:
    """The workload that draws what `config` says."""
    if isinstance(config.arrivals, schema.ClosedLoopArrivals):
        return ClosedLoop(config, streams)
    return Conversations(config, streams) if config.sessions is not None else OpenLoop(config, streams)
