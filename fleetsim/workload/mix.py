"""Several workloads at once, merged by time: chat beside batch jobs, one tenant beside another."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from heapq import merge
from operator import attrgetter
from typing import Any

from numpy.random import Generator

from fleetsim.kernel.streams import Streams
from fleetsim.scenario.schema import SyntheticWorkload, TraceWorkload
from fleetsim.workload.prefixes import Content
from fleetsim.workload.request import Request, Workload, each_released

_PART_CONTENTS = 1 << 41
"""Content streams of one part; with 32 bits of its name in front they stay below those that belong to one request alone."""


class PartStreams(Streams):
    """The random streams of one part: fixed by the seed and the part's name, whatever other parts there are."""

    def __init__(self, streams: Streams, part: str) -> None:
        super().__init__(streams.seed)
        self._streams, self._part = streams, part
        self.contents = _PART_CONTENTS * (1 + _number(part, 4))

    def get(self, name: str) -> Generator:
        """The part's generator called `name`."""
        return self._streams.get(f"{name} of {self._part}")


class Labelled:
    """A workload whose requests get a class, a tenant and an origin where they have none."""

    def __init__(self, inner: Workload, klass: str | None, tenant: str | None, origin: str | None = None) -> None:
        self._inner, self._klass, self._tenant, self._origin = inner, klass, tenant, origin
        self.skipped_rows = inner.skipped_rows

    def __getattr__(self, name: str) -> Any:
        """What else the workload tells of itself: `total`, `unserved`, `block_tokens`."""
        return getattr(self._inner, name)

    def requests(self) -> Iterator[Request]:
        """The workload's own requests, labelled."""
        return map(self._label, self._inner.requests())

    def released_by(self, request: Request, now_s: float) -> list[Request]:
        """What the end of `request` releases, labelled."""
        return [self._label(follower) for follower in each_released(self._inner.released_by(request, now_s))]

    def _label(self, request: Request) -> Request:
        if request.klass is None:
            request.klass = self._klass
        if request.tenant is None:
            request.tenant = self._tenant
        if request.origin is None:
            request.origin = self._origin
        return request


class Mix:
    """Parts merged by time of arrival.

    The k-th of n parts gives its request i the number ``i * n + k``, and its sessions likewise: a request has the same number
    whatever the fleet does with it, so that runs with different policies can be compared request by request. Parts share no
    contents, except where they replay the same trace file.

    Parameters
    ----------
    parts : mapping of str to Workload
        By name, each built with the `PartStreams` of its name.
    salts : mapping of str to int
        What tells a part's block hashes from those of other trace files, for parts that replay one.
    """

    def __init__(self, parts: Mapping[str, Workload], salts: Mapping[str, int]) -> None:
        self._parts = list(parts.values())
        self._salts = [salts.get(name, 0) for name in parts]
        self.skipped_rows = sum(part.skipped_rows for part in self._parts)

    @property
    def total(self) -> int | None:
        """How many requests there will be, if all parts know."""
        totals: list[int | None] = [getattr(part, "total", None) for part in self._parts]
        return None if None in totals else sum(total or 0 for total in totals)

    @property
    def unserved(self) -> Counter[str]:
        """Requests by LLM that no pool serves."""
        found = Counter[str]()
        for part in self._parts:
            found += getattr(part, "unserved", Counter())
        return found

    @property
    def block_tokens(self) -> frozenset[int]:
        """Block sizes of the traces' hashes."""
        return frozenset().union(*(getattr(part, "block_tokens", frozenset()) for part in self._parts))

    def requests(self) -> Iterator[Request]:
        """Requests of all parts in order of arrival; of those that arrive together, the first part's first."""
        return merge(*(self._numbered(index) for index in range(len(self._parts))), key=attrgetter("arrival_s"))

    def released_by(self, request: Request, now_s: float) -> list[Request]:
        """What the end of `request` releases in its own part."""
        count = len(self._parts)
        number, session = request.id, request.session
        index = number % count
        request.id = number // count
        request.session = session // count if session >= 0 else session
        released = each_released(self._parts[index].released_by(request, now_s))
        request.id, request.session = number, session
        return [self._renumber(index, follower) for follower in released]

    def _numbered(self, index: int) -> Iterator[Request]:
        for request in self._parts[index].requests():
            yield self._renumber(index, request)

    def _renumber(self, index: int, request: Request) -> Request:
        count = len(self._parts)
        request.id = request.id * count + index
        if request.session >= 0:
            request.session = request.session * count + index
        salt = self._salts[index]
        if salt and request.content is not None and request.content.hashes:
            content = request.content
            request.content = Content(hashes=tuple([h ^ salt for h in content.hashes]), hash_tokens=content.hash_tokens)
        return request


def salt_of(config: TraceWorkload | SyntheticWorkload) -> int:
    """What tells the block hashes of a trace file from those of others; 0 for a workload without any."""
    return 0 if isinstance(config, SyntheticWorkload) else _number(config.path, 7)


def _number(text: str, size: int) -> int:
    """A number of `size` bytes that stands for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size], "little")
