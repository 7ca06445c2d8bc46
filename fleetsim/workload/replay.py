"""Replay of a trace file: part of it, faster or slower, over and over; sessions as recorded or released."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Hashable, Iterator
from typing import TYPE_CHECKING

from fleetsim.errors import DataError, Finding
from fleetsim.scenario.schema import TraceWorkload
from fleetsim.workload.formats import TraceFile
from fleetsim.workload.prefixes import OPEN_END, Content
from fleetsim.workload.readers.rows import Row
from fleetsim.workload.request import Request
from fleetsim.workload.synthetic import session_stream

if TYPE_CHECKING:
    from numpy.random import Generator

    from fleetsim.kernel.streams import Streams

_DRAWS = 4096


class Session:
    """A session of the trace as far as it has been read."""

    __slots__ = ("_content", "_known_tokens", "_streams", "number", "turns")

    def __init__(self, number: int, streams: Iterator[int]) -> None:
        self.number = number
        self.turns = 0
        self._streams = streams
        self._known_tokens = 0
        self._content: Content | None = None

    def content(self, prompt_tokens: int, output_tokens: int) -> Content:
        """Content of the next turn: that of the turn before if the prompt can hold it all, else something new."""
        if self._content is None or prompt_tokens < self._known_tokens:
            self._content = Content(((next(self._streams), OPEN_END),))
        self._known_tokens = prompt_tokens + output_tokens
        return self._content


class Sessions:
    """Numbers and contents of a trace's sessions, apart for each time that the trace is played."""

    def __init__(self, contents: int = 0) -> None:
        self._sessions: dict[tuple[int, Hashable], Session] = {}
        self._streams = iter(range(contents + session_stream(0), 1 << 80, 2))

    def of(self, loop: int, key: Hashable) -> Session:
        """The session, new or known."""
        session = self._sessions.get((loop, key))
        if session is None:
            session = self._sessions[loop, key] = Session(len(self._sessions), self._streams)
        return session

    def content(self, row: Row, session: Session | None) -> Content | None:
        """What is known of a row's tokens: its hashes, or its session's history."""
        if row.hashes:
            return Content(hashes=row.hashes, hash_tokens=row.hash_tokens)
        return None if session is None else session.content(row.prompt_tokens, row.output_tokens)


class Replay:
    """Requests of a trace at their recorded times."""

    def __init__(
        self, config: TraceWorkload, trace: TraceFile, streams: Streams, served: Collection[str] | None = None
    ) -> None:
        self._config = config
        self._served = served
        self.unserved: Counter[str] = Counter()
        self._trace = trace
        self._rng: Generator | None = streams.get("workload.thin") if config.rate_scaling == "thin" else None
        self._scan = trace.scan(config.slice.start, config.slice.end)
        if self._scan.bad.count and config.on_bad_rows == "refuse":
            trace.refuse(self._scan)
        if not self._scan.rows:
            raise DataError(self._nothing_left())
        self.skipped_rows = self._scan.bad.count
        if self._scan.counts_images and config.tokens_per_image is None:
            message = "the trace counts images, but does not say how many of the prompt's tokens they are"
            hint = "set workload.tokens_per_image, such as 1024"
            raise DataError(Finding(message, file=str(trace.path), hint=hint))
        self._sessions = Sessions(streams.contents)
        self._made = 0

    @property
    def total(self) -> int | None:
        """How many requests there will be, if thinning does not decide."""
        if self._rng is not None:
            return None
        total = self._scan.rows * self._config.loop
        return total if self._config.limit is None else min(total, self._config.limit)

    @property
    def block_tokens(self) -> frozenset[int]:
        """Block sizes of the trace's hashes."""
        return frozenset(self._scan.block_tokens)

    def requests(self) -> Iterator[Request]:
        """Requests in order of arrival."""
        for time_s, loop, row in self._kept():
            yield self._request(time_s, loop, row)

    def released_by(self, request: Request, now_s: float) -> Request | None:  # noqa: ARG002
        """Nothing: the recorded time decides."""
        return None

    def _nothing_left(self) -> Finding:
        bad = self._scan.bad
        if not bad.count or self._config.slice.start or self._config.slice.end is not None:
            return Finding("no row of the trace lies in workload.slice", file=str(self._trace.path))
        number, message = bad.first[0]
        what = f"none of the {bad.count} rows can be read; the first is row {number}: {message}"
        return Finding(what, file=str(self._trace.path))

    def _request(self, time_s: float, loop: int, row: Row) -> Request:
        number, content = -1, None
        turn = 0
        if row.session is not None:
            session = self._sessions.of(loop, row.session)
            number, turn = session.number, session.turns
            session.turns += 1
            content = self._sessions.content(row, session)
        elif row.hashes:
            content = Content(hashes=row.hashes, hash_tokens=row.hash_tokens)
        model = self._config.model or row.model
        if model is not None and self._served is not None and model not in self._served:
            self.unserved[model] += 1
            model = None
        # a trace whose rows stand slightly out of order keeps their places as ids
        number_in_file = loop * self._scan.good + row.number
        request = Request(
            number_in_file if self._scan.bad.late else self._made,
            time_s,
            row.prompt_tokens,
            row.output_tokens,
            content,
            number,
            turn,
            row.klass,
            row.tenant,
            model,
            *self._images(row),
        )
        self._made += 1
        return request

    def _images(self, row: Row) -> tuple[int, int]:
        """Images of a row, and how many of the prompt's tokens they are."""
        if not row.images:
            return 0, 0
        tokens = row.image_tokens
        if tokens < 0:
            assert self._config.tokens_per_image is not None
            tokens = min(row.images * self._config.tokens_per_image, max(row.prompt_tokens - 1, 1))
        return row.images, tokens

    def _kept(self) -> Iterator[tuple[float, int, Row]]:
        """Rows to replay with their new times and which time round it is."""
        left = self._config.limit if self._config.limit is not None else 1 << 62
        shift_s = self._scan.span_s + self._scan.gap_s
        squeeze = self._config.rate_scale if self._config.rate_scaling == "time" else 1.0
        zero_s: float | None = None
        for loop in range(self._config.loop):
            for row in self._thinned():
                time_s = row.time_s + loop * shift_s
                if zero_s is None:
                    zero_s = time_s
                yield (time_s - zero_s) / squeeze, loop, row
                left -= 1
                if not left:
                    return

    def _slice(self) -> Iterator[Row]:
        first_s, last_s = self._scan.first_s, self._scan.last_s
        for row in self._trace.ordered(self._scan):
            if row.time_s > last_s:
                return
            if row.time_s >= first_s:
                yield row

    def _thinned(self) -> Iterator[Row]:
        """Rows of the slice that thinning keeps: each session as a whole, other requests one by one."""
        if self._rng is None:
            yield from self._slice()
            return
        draws = _uniform(self._rng)
        share = self._config.rate_scale
        chosen: dict[Hashable, bool] = {}
        for row in self._slice():
            if row.session is None:
                keep = next(draws) < share
            elif row.session in chosen:
                keep = chosen[row.session]
            else:
                keep = chosen[row.session] = next(draws) < share
            if keep:
                yield row


class ReleasedReplay(Replay):
    """Requests of a trace whose later turns wait for the answer before and its recorded pause.

    A turn whose pause was not recorded comes at its recorded time, or when the answer before has come if that is later.
    Reading runs ahead of time only as far as the next turn of a session that is waiting for it.
    """

    def __init__(
        self, config: TraceWorkload, trace: TraceFile, streams: Streams, served: Collection[str] | None = None
    ) -> None:
        super().__init__(config, trace, streams, served)
        self._rows = self._kept()
        self._ahead: deque[Request] = deque()
        self._later: dict[int, deque[tuple[Request, float | None]]] = {}
        self._unread: dict[int, int] = {}

    def requests(self) -> Iterator[Request]:
        """Requests that wait for no other, in order of arrival."""
        while self._ahead or self._read():
            while self._ahead:
                yield self._ahead.popleft()

    def released_by(self, request: Request, now_s: float) -> Request | None:
        """The session's next turn."""
        session = request.session
        while not self._later.get(session):
            if not self._unread.get(session) or not self._read():
                return None
        turn, pause_s = self._later[session].popleft()
        if not self._later[session]:
            del self._later[session]
        turn.arrival_s = max(now_s, turn.arrival_s) if pause_s is None else now_s + pause_s
        return turn

    def _read(self) -> bool:
        """Take one more row of the trace; false at its end."""
        entry = next(self._rows, None)
        if entry is None:
            return False
        time_s, loop, row = entry
        request = self._request(time_s, loop, row)
        if request.turn == 0:
            self._ahead.append(request)
            if row.session is not None:
                self._unread[request.session] = self._scan.turns[row.session] - 1
            return True
        self._unread[request.session] -= 1
        self._later.setdefault(request.session, deque()).append((request, row.pause_s))
        return True


def _uniform(rng: Generator) -> Iterator[float]:
    while True:
        yield from rng.random(_DRAWS).tolist()
