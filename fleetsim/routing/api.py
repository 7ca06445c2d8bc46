"""What a router sees and what it answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import numpy as np

from fleetsim.errors import PolicyError
from fleetsim.routing.min_index import MinIndex
from fleetsim.routing.prefix_index import PrefixNode
from fleetsim.routing.router import Prompt, Router, WindowRouter
from fleetsim.routing.telemetry import Board, Caches, Freshness, Probe
from fleetsim.workload.prefixes import Path, Segment, private_path
from fleetsim.workload.request import Request

__all__ = [
    "ADMIT",
    "HOLD",
    "KV_FULL",
    "Admit",
    "Borrow",
    "Defer",
    "FleetView",
    "Freshness",
    "Hold",
    "Migrate",
    "MinIndex",
    "MoveQueued",
    "Probe",
    "Recall",
    "Reject",
    "RequestView",
    "Route",
    "Router",
    "Window",
    "WindowRouter",
]

KV_FULL = 1 << 40
"""A full KV cache in the whole numbers of `FleetView.index_kv`: sums of shares that cancel exactly."""
_CAPACITY_TOKENS = 1 << 18
_AWAY = 1 << 40
"""Requests, and tokens of work, that a replica seems to have which takes none."""


class RequestView:
    """What the gateway knows of a request. The output length is not known to anybody before it happens."""

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        self._request = request

    def kept(self) -> RequestView:
        """A view of this request that stays what it is; the one that a router is asked with shows the next request later."""
        return RequestView(self._request)

    @property
    def id(self) -> int:
        """Unique in the run."""
        return self._request.id

    @property
    def arrival_s(self) -> float:
        """Arrival at the gateway [s]."""
        return self._request.arrival_s

    @property
    def prompt_tokens(self) -> int:
        """Prompt length [tokens]."""
        return self._request.prompt_tokens

    @property
    def model(self) -> str | None:
        """LLM that it asks for; None if any will do."""
        return self._request.model

    @property
    def images(self) -> int:
        """Images that it brings."""
        return self._request.images

    @property
    def image_tokens(self) -> int:
        """Of its prompt, what an encoder makes of them [tokens]."""
        return self._request.image_tokens

    @property
    def session(self) -> int:
        """Conversation it belongs to; -1 if none."""
        return self._request.session

    @property
    def tenant(self) -> str | None:
        """Who pays for it, if known."""
        return self._request.tenant

    @property
    def klass(self) -> str | None:
        """Service class, if known."""
        return self._request.klass

    @property
    def origin(self) -> str | None:
        """Site that it comes from, if known."""
        return self._request.origin

    @property
    def deadline_s(self) -> float:
        """Latest first token that keeps the limit of its class [s]; infinite without one."""
        return self._request.deadline_s

    @property
    def priority(self) -> int:
        """Higher is more urgent."""
        return self._request.priority

    @property
    def weight(self) -> float:
        """Its tenant's share where tenants compete."""
        return self._request.weight

    @property
    def predicted_tokens(self) -> float:
        """Output length that the gateway's predictor expects [tokens]; below zero where there is none."""
        return self._request.predicted_tokens

    @property
    def attempt(self) -> int:
        """Times it was sent before: 0 unless its first token took too long."""
        return self._request.attempt

    @property
    def tried(self) -> int:
        """Number over the whole fleet of the replica it was sent to last; -1 if none."""
        return self._request.replica

    def prefix(self, block_tokens: int) -> Path:
        """Keys of the prompt's whole blocks of `block_tokens` tokens, as a hash chained over its tokens would give them.

        Two prompts begin with the same tokens as far as their keys are equal. Costs nothing for routers that do not ask.

        Raises
        ------
        PolicyError
            If the prompt is known by a trace's hashes only, whose blocks cannot be cut or joined to `block_tokens`.
        """
        request = self._request
        left = request.prompt_tokens // block_tokens
        segments: list[Segment] = []
        blocks = left
        if request.content is not None:
            try:
                known = request.content.path(block_tokens)
            except ValueError as error:
                raise PolicyError(f"a router reads prefixes in blocks of {block_tokens} tokens: {error}") from error
            for segment in known:
                if not left:
                    break
                size = len(segment)
                segments.append(segment if size <= left else segment[:left])
                left -= min(size, left)
        if left:
            segments.append(private_path(request.id, blocks - left, left))
        return tuple(segments)

    def reusable(self, block_tokens: int) -> Path:
        """Keys of the blocks that a cache could hold: whole ones of known content, at least one token left to compute."""
        request = self._request
        content = request.content
        if content is None:
            return ()
        left = (request.prompt_tokens - 1) // block_tokens
        path = content.path(block_tokens)
        if len(path) == 1 and len(path[0]) <= left:
            return path
        segments: list[Segment] = []
        for segment in path:
            if left <= 0:
                break
            segments.append(segment[:left] if len(segment) > left else segment)
            left -= len(segment)
        return tuple(segments)


@dataclass(frozen=True, slots=True)
class MoveQueued:
    """Decision that a request waiting at one replica waits at another one instead."""

    request: int
    """Its id."""
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Migrate:
    """Decision that a request decoding on one replica goes on on another one: its keys and values are copied meanwhile."""

    request: int
    """Its id."""
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Borrow:
    """Decision that the oldest blocks of a decoding request come to lie on another replica, which computes attention over them."""

    request: int
    """Its id."""
    source: int
    """Where it decodes."""
    target: int
    """Whose memory it is."""
    blocks: int
    """≥ 1."""


@dataclass(frozen=True, slots=True)
class Recall:
    """Decision that all blocks of a request that lie on a replica come back to where it decodes."""

    request: int
    """Its id."""
    source: int
    """Where it decodes."""
    target: int
    """Where they lie."""


@dataclass(frozen=True, slots=True)
class Route:
    """Decision where a request goes, with more to say than the number of a replica."""

    replica: int
    """Number in the view."""
    decode: int = -1
    """Number, in the view's `decode`, of the replica that computes the tokens after the first; -1 leaves that to others: the same
    replica, or where that computes prompts only, what the decode router says when the prompt is computed."""
    hedge_after_s: float = inf
    """Time without a first token after which a copy is sent too: the router is asked again, with `attempt` one higher [s]."""
    retry_after_s: float = inf
    """Time without a first token after which the request is taken back and the router is asked again [s]."""
    prompt_tokens: int = -1
    """Length to which the prompt is compressed before it is sent [tokens]; below 0: as it is. What is left matches no prefix."""
    prepare_s: float = 0.0
    """Time that this takes [s]."""
    moves: tuple[MoveQueued, ...] = ()
    """Waiting requests to move between replicas of the view; only from a router whose class says ``moves = True``."""
    borrow: tuple[tuple[int, int], ...] = ()
    """Replicas of the view whose memory holds the beginning of its keys and values, and how many blocks each; it is sent once all
    have room for them, and what it brings matches no prefix."""
    borrow_again_s: float = 1.0
    """Time after which the router is asked again if one has not [s]. > 0."""
    fetch_from: int = -1
    """Number of another replica whose cache sends keys and values of the prompt's beginning over the network; -1: none does."""
    fetch_tokens: int = 0
    """How much of the beginning that is, at most: as far as that cache holds it [tokens]."""
    encode: int = -1
    """Number, in the view's `encoders`, of the replica that encodes the request's images; -1: the one that computes the prompt if
    it has an encoder, otherwise the one with the fewest image tokens to do."""


class Window(NamedTuple):
    """How long the gateway holds requests before it asks a `WindowRouter` about all of them."""

    max_requests: int
    """So many are not waited for any longer [count]. ≥ 1."""
    max_wait_s: float
    """The first one waits no longer than this [s]. ≥ 0."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Decision not to serve a request."""

    reason: str


@dataclass(frozen=True, slots=True)
class Defer:
    """Decision to decide later."""

    until_s: float
    """When to ask again [s], later than now."""


class Hold:
    """Decision that a request waits at the gateway: `HOLD`.

    Only from a router whose class says ``holds = True``. It is asked about the request again whenever a request leaves a replica or
    a replica comes; until then all that it holds besides wait in line behind it.
    """


HOLD = Hold()


class Admit:
    """Decision to let a request in: `ADMIT`."""


ADMIT = Admit()

_SENT, _STARTED, _ENDED = range(3)


class FleetView:
    """The replicas that may serve a request, as the gateway knows them: its own counts, and what the replicas publish.

    Replicas are numbered 0 to `count` - 1; a router answers with such a number. Counts of what the gateway itself sent and saw come
    back (`outstanding` and the indexes) are exact, unless its scenario says otherwise. Loads and caches (`watch_load`,
    `watch_caches`) are telemetry: as old as `freshness` says, and kept only where a router asks for them at construction.

    Parameters
    ----------
    pools : sequence of str
        Pool name of each replica.
    capacity_tokens : sequence of int, optional
        Tokens that each replica's KV cache holds.
    probes : sequence of Probe, optional
        What each replica publishes.
    freshness : Freshness, optional
        How old that is.
    time_s : callable, optional
        The time now [s]; needed where the own counts are old.
    numbers : sequence of int, optional
        Number of each replica over the whole fleet; 0, 1, 2, … where nobody says.
    transfer_s : callable, optional
        Seconds that keys and values take from one replica to another now: numbers over the fleet of both, and tokens.
    """

    __slots__ = (
        "_answers",
        "_begun",
        "_kv_scale",
        "_lending",
        "_log",
        "_now_s",
        "_paths",
        "_paths_of",
        "_probes",
        "_time_s",
        "_transfer_s",
        "_watchers",
        "board",
        "by_kv",
        "by_most_outstanding",
        "by_outstanding",
        "by_work",
        "caches",
        "capacity_tokens",
        "classes",
        "coming",
        "coming_tokens",
        "decode",
        "decode_weight_tokens",
        "decoding",
        "encode_tokens",
        "encoders",
        "expected_output_tokens",
        "freshness",
        "in_flight",
        "members",
        "numbers",
        "outstanding",
        "pending_tokens",
        "places",
        "pools",
        "present",
        "seats",
    )

    def __init__(
        self,
        pools: Sequence[str],
        capacity_tokens: Sequence[int] = (),
        probes: Sequence[Probe] = (),
        freshness: Freshness | None = None,
        time_s: Callable[[], float] | None = None,
        numbers: Sequence[int] = (),
        transfer_s: Callable[[int, int, int], float] | None = None,
        lending: Callable[[int], int] | None = None,
    ) -> None:
        self.pools = tuple(pools)
        """Pool name of each replica."""
        self.capacity_tokens = tuple(capacity_tokens) or (_CAPACITY_TOKENS,) * len(self.pools)
        """Tokens that each replica's KV cache holds (all equal where nobody says)."""
        self.numbers = tuple(numbers) or tuple(range(len(self.pools)))
        """Number of each replica over the whole fleet, as in `RequestView.tried`."""
        self.encoders: tuple[int, ...] = ()
        """Numbers over the fleet of the replicas that encode images."""
        self.encode_tokens: Sequence[int] = ()
        """Image tokens that the gateway gave each replica of the fleet to encode and that are not encoded yet."""
        self.places: Any = None
        """Where the replicas stand and what energy costs there (`Places`); None where the scenario says nothing of it."""
        self.classes: Sequence[dict[str | None, int]] = [{} for _ in self.pools]
        """Requests sent and not ended, by class, at each replica of the fleet; counted by the gateway, and always exact, where a
        router says ``holds = True``."""
        self.seats: Sequence[int] = [1 << 40] * len(self.pools)
        """Requests that each replica of the fleet runs at a time at most, kept up to date in the same case."""
        self.decode: FleetView | None = None
        """View of the replicas that may decode what these have begun; None where every replica does all of a request itself."""
        self.freshness = Freshness() if freshness is None else freshness
        """How old what it knows is."""
        self._probes = tuple(probes)
        self._time_s = time_s
        self._transfer_s = transfer_s
        self._lending = lending
        self._log: deque[tuple[float, int, int, int, float]] | None = None
        """Where the own counts are old: what they do not show yet (time, what, replica, prompt tokens, seconds)."""
        if self.freshness.kind != "exact" and not self.freshness.own_counts:
            self._log = deque()
        self.present = [True] * len(self.pools)
        """Whether each replica takes requests: not while it starts, leaves, is off or down."""
        self.members = list(range(len(self.pools)))
        """Those that do."""
        self.in_flight = 0
        """Requests sent and not ended yet, on all replicas."""
        self._now_s = 0.0
        self.outstanding = [0] * len(self.pools)
        """Requests sent and not ended yet, per replica."""
        self.decoding = [0] * len(self.pools)
        """Requests that have their first token and are not done, per replica; counted where a router asked for `index_work`."""
        self.pending_tokens = [0] * len(self.pools)
        """Prompt tokens sent whose first output token has not come yet, per replica; counted like `decoding`."""
        self.coming = [0] * len(self.pools)
        """Requests whose prompts are computed elsewhere and whose answers will be here, as their routes said: always exact."""
        self.coming_tokens = [0] * len(self.pools)
        """Their prompt tokens."""
        self.by_outstanding: MinIndex | None = None
        self.by_most_outstanding: MinIndex | None = None
        self.by_work: MinIndex | None = None
        self.by_kv: MinIndex | None = None
        self.decode_weight_tokens = 0
        self.expected_output_tokens = 0
        self.board: Board | None = None
        self.caches: Caches | None = None
        self._answers: list[list[tuple[int, int, float]]] = []
        self._begun: list[list[int]] = []
        self._watchers: list[list[int]] = []
        self._paths: dict[int, Path] = {}
        self._paths_of = -1
        self._kv_scale = [KV_FULL // max(1, capacity) for capacity in self.capacity_tokens]

    @property
    def count(self) -> int:
        """Number of replicas."""
        return len(self.pools)

    @property
    def now_s(self) -> float:
        """Time of this decision [s]. The gateway sets it, and from then on the view shows what is known at that time."""
        return self._now_s

    @now_s.setter
    def now_s(self, now_s: float) -> None:
        self._now_s = now_s
        if self._log:
            self._apply(self.freshness.horizon_s(now_s))
        if self.board is not None:
            self.board.begin(now_s)
        if self.caches is not None:
            self.caches.begin(now_s)

    # --- what a router asks for at construction -----------------------------------------------------------------------

    def index_outstanding(self) -> MinIndex:
        """Ask, at construction, for an index of the replica with the fewest outstanding requests."""
        if self.by_outstanding is None:
            self.by_outstanding = MinIndex(self.outstanding)
        return self.by_outstanding

    def index_most_outstanding(self) -> MinIndex:
        """Ask, at construction, for an index whose `smallest` has the most outstanding requests (its values are negative)."""
        if self.by_most_outstanding is None:
            self.by_most_outstanding = MinIndex([-(value % _AWAY) for value in self.outstanding])
        return self.by_most_outstanding

    def index_kv(self, expected_output_tokens: int) -> MinIndex:
        """Ask, at construction, for an index of the replica whose KV cache the gateway takes for the least used.

        Its estimate counts every request sent and not ended with its prompt and `expected_output_tokens`, as a share of the
        replica's capacity; `MinIndex.values` are such shares times `KV_FULL`. Shared prefixes are counted once per request.
        Requests that another view of the same replicas sent before are not counted.

        Raises
        ------
        PolicyError
            If a router inside another one asked for it with another number of tokens.
        """
        if self.by_kv is None:
            self.expected_output_tokens = expected_output_tokens
            self.by_kv = MinIndex([0 if here else _AWAY * KV_FULL for here in self.present])
        elif self.expected_output_tokens != expected_output_tokens:
            raise PolicyError("two routers of one gateway estimate KV use with different expected_output_tokens")
        return self.by_kv

    def index_work(self, decode_weight_tokens: int) -> MinIndex:
        """Ask, at construction, for an index of the replica with the least work.

        Work is the pending prompt tokens, plus `decode_weight_tokens` for each request that has its first token and is not done.

        Raises
        ------
        PolicyError
            If a router inside another one asked for it with another weight.
        """
        if self.by_work is None:
            weight = self.decode_weight_tokens = decode_weight_tokens
            work = [p + weight * d for p, d in zip(self.pending_tokens, self.decoding, strict=True)]
            self.by_work = MinIndex([w if here else w + _AWAY for w, here in zip(work, self.present, strict=True)])
        elif self.decode_weight_tokens != decode_weight_tokens:
            raise PolicyError("two routers of one gateway count work with different decode_weight_tokens")
        return self.by_work

    def set_present(self, position: int, present: bool) -> None:
        """Let a replica take requests, or no more (called by the gateway).

        One that does not looks infinitely loaded to all who look for the least.
        """
        if self.present[position] == present:
            return
        self.present[position] = present
        self.members = [i for i in range(len(self.pools)) if self.present[i]]
        away = -_AWAY if present else _AWAY
        self.outstanding[position] += away
        if self.by_outstanding is not None:
            self.by_outstanding.add(position, away)
        if self.by_work is not None:
            self.by_work.add(position, away)
        if self.by_kv is not None:
            self.by_kv.add(position, away * KV_FULL)
        for watcher in self._watchers:
            watcher.append(position)

    def lending(self, position: int) -> int:
        """1 where a replica holds blocks for requests of others, -1 where others do for its own, else 0.

        The gateway arranges loans of memory, so this is never old.
        """
        return 0 if self._lending is None else self._lending(position)

    def watch_load(self, scan: bool = True, demand: Sequence[str] = ()) -> Board:
        """Ask, at construction, for what the replicas publish of their load.

        Without `scan`, which is cheaper in large fleets, only for that of replicas for which ``Board.look`` is called first.
        `demand` names those of `kv_wanted`, `kv_first` and `urgent` that are asked for too: the first costs a look at all requests
        that wait, the last one at all that run.
        """
        if self.board is None:
            self.board = Board(self._known_probes(), self.freshness, self.now_s)
        if scan:
            self.board.scanned = True
        if demand:
            self.board.watch_demand(demand, self.now_s)
        return self.board

    def watch_caches(self, holders: bool = True) -> None:
        """Ask, at construction, for what the replicas publish of their caches.

        With `holders` for an index of who holds what (`cached`); without, in an exact view, `hit_tokens` looks into the one cache
        that it is asked about, which is cheaper for routers that compare a few replicas.
        """
        if self.caches is None and (holders or self.freshness.kind != "exact"):
            self.caches = Caches(self._known_probes(), self.freshness)

    def watch_answers(self) -> list[tuple[int, int, float]]:
        """Ask, at construction, for a list of first tokens seen: replica, prompt tokens, seconds since it was sent.

        The router empties it.
        """
        answers: list[tuple[int, int, float]] = []
        self._answers.append(answers)
        return answers

    def watch_begun(self) -> list[int]:
        """Ask, at construction, for a list of requests, by id, that got a first token or left; the router empties it.

        The gateway sees first tokens pass, so this is never old.
        """
        begun: list[int] = []
        self._begun.append(begun)
        return begun

    def watch_outstanding(self) -> list[int]:
        """Ask, at construction, for a list of replicas whose `outstanding` changes (all, at first); the router empties it."""
        watcher = list(range(len(self.pools)))
        self._watchers.append(watcher)
        return watcher

    def prefill_terms(self) -> tuple[list[float], list[float], list[float]]:
        """Of each replica: seconds per prompt (its front end included), per token and per pair of tokens that attention scores."""
        terms = [self.prefill_terms_of(position) for position in range(len(self.pools))]
        return [term[0] for term in terms], [term[1] for term in terms], [term[2] for term in terms]

    def prefill_terms_of(self, position: int) -> tuple[float, float, float]:
        """The same of one replica."""
        probe = self._known_probes()[position]
        base_s, token_s, pair_s = probe.prefill_terms()
        return base_s + probe.frontend_s, token_s, pair_s

    def decode_terms_of(self, position: int) -> tuple[float, float, float]:
        """Of a replica's decode steps: seconds of each, per request and per token of context."""
        return self._known_probes()[position].decode_terms()

    def _known_probes(self) -> tuple[Probe, ...]:
        if len(self._probes) != len(self.pools):
            raise PolicyError("this view has no telemetry: its replicas publish nothing")
        return self._probes

    # --- what a router asks at a decision -------------------------------------------------------------------------------

    def kv_used(self, position: int) -> float:
        """Part of a replica's KV cache in use (after `watch_load`); infinite where it takes no requests [ratio]."""
        if not self.present[position]:
            return inf
        board = self.board
        assert board is not None, "a router asks for watch_load at construction"
        return board.kv_used_at(position, self._now_s)

    def hit_tokens(self, position: int, request: Prompt) -> int:
        """Leading tokens of the prompt that a replica's cache holds (after `watch_caches`) [tokens]."""
        if self.caches is not None:
            return self.caches.held_tokens(position, self._paths_for(request))
        if self.freshness.kind != "exact":
            raise PolicyError("a router asks for watch_caches at construction")
        probe = self._known_probes()[position]
        return probe.held_tokens(request.reusable(probe.block_tokens))

    def known_hit_tokens(self, position: int, request: Prompt) -> int | None:
        """The same, or None where no router watches caches and no telemetry tells."""
        if self.caches is None and (self.freshness.kind != "exact" or not self._probes):
            return None
        return self.hit_tokens(position, request)

    def cached(self, request: Prompt, limit: int = 16) -> dict[int, int]:
        """Up to `limit` replicas that hold a beginning of the prompt, those with most first, and how many tokens of it.

        After ``watch_caches()``. The cost does not grow with the number of replicas.
        """
        assert self.caches is not None, "a router asks for watch_caches at construction"
        return self.caches.holders(self._paths_for(request), limit)

    def hits(self, request: Prompt, limit: int = 64) -> Any:
        """Tokens of the prompt that each replica's cache holds, as an array (after ``watch_caches()``).

        Of the holders of each part of it only the `limit` ones that have held it for longest count.
        """
        assert self.caches is not None, "a router asks for watch_caches at construction"
        found = np.zeros(len(self.pools))
        self.caches.mark(self._paths_for(request), limit, found)
        return found

    @property
    def one_block_size(self) -> bool:
        """Whether all caches have blocks of the same size (after ``watch_caches()``)."""
        return self.caches is not None and len(self.caches.sizes) == 1

    def levels(self, request: Prompt, limit: int = 64) -> list[tuple[PrefixNode, int]]:
        """Sets of replicas by what their caches hold of the prompt (after ``watch_caches()``), longest first of each block size.

        Each is a run of blocks and the tokens up to its end, which those that hold it have (`first_holders`); a replica's hit is
        the most that a set with it says, and 0 where none has it. Holders count as in `hits`; this is cheaper where only the best
        replica of each set matters.
        """
        assert self.caches is not None, "a router asks for watch_caches at construction"
        return self.caches.levels(self._paths_for(request), limit)

    def prefill_s(self, position: int, tokens: float, cached: float) -> float:
        """Seconds that computing `tokens` prompt tokens after `cached` ones takes a replica, alone, by its own step times [s]."""
        return self._known_probes()[position].prefill_s(tokens, cached)

    def ttft_s(self, position: int, prompt_tokens: int, hit_tokens: int) -> float:
        """Time to the first token that is to be expected of a replica (after `watch_load`): prompts before it, and its own [s]."""
        if not self.present[position]:
            return inf
        board = self.board
        assert board is not None, "a router asks for watch_load at construction"
        board.look(position)
        probe = self._probes[position]
        own_s = probe.prefill_s(prompt_tokens - hit_tokens, hit_tokens)
        return board.pending_s[position] + own_s + probe.frontend_s

    def tpot_s(self, position: int, batch: int) -> float:
        """Seconds of a replica's decode step with `batch` requests of middling length, by its own step times [s]."""
        return self._known_probes()[position].tpot_s(batch)

    def decode_s(self, position: int, batch: float, tokens: float) -> float:
        """Seconds of a replica's decode step with `batch` requests of `tokens` of context altogether, by its own step times [s]."""
        base_s, request_s, token_s = self.decode_terms_of(position)
        return base_s + request_s * batch + token_s * tokens

    def transfer_s(self, source: int, target: int, tokens: int) -> float:
        """Seconds that keys and values of `tokens` would take between two replicas now; infinite where there is no network [s]."""
        if self._transfer_s is None:
            return inf
        return self._transfer_s(self.numbers[source], self.numbers[target], tokens)

    def _paths_for(self, request: Prompt) -> dict[int, Path]:
        assert self.caches is not None
        if self._paths_of != request.id:
            self._paths_of = request.id
            self._paths = {size: request.reusable(size) for size in self.caches.sizes}
        return self._paths

    # --- replicas that are not there ----------------------------------------------------------------------------------

    @property
    def whole(self) -> bool:
        """Whether all replicas are there."""
        return len(self.members) == len(self.pools)

    def here(self, position: int) -> int:
        """A replica, or where it is not there another one that is, always the same while nobody comes or goes."""
        members = self.members
        if self.present[position] or not members:
            return position
        return members[position % len(members)]

    def keep_present(self, values: Any, otherwise: float = inf) -> Any:
        """Give replicas that are not there another value, in place, in an array with one for each; returns it."""
        if len(self.members) < len(self.pools):
            for position, there in enumerate(self.present):
                if not there:
                    values[position] = otherwise
        return values

    # --- what the gateway tells ---------------------------------------------------------------------------------------

    def _apply(self, horizon_s: float) -> None:
        """Count what happened before `horizon_s`."""
        log = self._log
        while log and log[0][0] < horizon_s:
            _, what, position, prompt_tokens, seconds = log.popleft()
            if what == _SENT:
                self._count_sent(position, prompt_tokens)
            elif what == _STARTED:
                self._count_started(position, prompt_tokens, seconds)
            else:
                self._count_ended(position, prompt_tokens)

    def begin_like(self, position: int, other: FleetView, other_position: int) -> None:
        """Take over the counts that another view has of the same replica."""
        self.set_present(position, other.present[other_position])
        self.in_flight += other.outstanding[other_position] - self.outstanding[position]
        self.outstanding[position] = other.outstanding[other_position]
        self.decoding[position] = other.decoding[other_position]
        self.pending_tokens[position] = other.pending_tokens[other_position]
        if self._log is not None and other._log:
            to_come = [(t, what, position, n, s) for t, what, at, n, s in other._log if at == other_position]
            self._log = deque(sorted([*self._log, *to_come], key=_time))

    def sent(self, position: int, prompt_tokens: int, request: Request | None = None) -> None:
        """Count a request that goes to a replica (called by the gateway)."""
        if self._log is not None:
            self._note(_SENT, position, prompt_tokens, 0.0)
            return
        self._count_sent(position, prompt_tokens)
        if self.board is not None and self.freshness.kind != "exact":
            hit = 0
            if request is not None and self.caches is not None:
                hit = self.caches.held_tokens(position, self._paths_for(RequestView(request)))
            uncached = prompt_tokens - hit
            share = prompt_tokens / self.capacity_tokens[position]
            self.board.sent(position, self.now_s, uncached, self._probes[position].prefill_s(uncached, hit), share)

    def started(self, position: int, prompt_tokens: int, seconds: float = -1.0, request_id: int = -1) -> None:
        """Count a first token, `seconds` after its request was sent (called by the gateway where a router wants to know).

        Without `seconds` there was none: the request leaves for another replica, and `ended` follows.
        """
        for begun in self._begun:
            begun.append(request_id)
        if self._log is not None:
            self._note(_STARTED, position, prompt_tokens, seconds)
        else:
            self._count_started(position, prompt_tokens, seconds)

    def ended(self, position: int, prompt_tokens: int) -> None:
        """Count the end of a request that had its first token (called by the gateway)."""
        if self._log is not None:
            self._note(_ENDED, position, prompt_tokens, 0.0)
        else:
            self._count_ended(position, prompt_tokens)

    def promised(self, position: int, requests: int, prompt_tokens: int) -> None:
        """Count requests whose answers will be computed here, or below zero do so no more (called by the gateway)."""
        self.coming[position] += requests
        self.coming_tokens[position] += requests * prompt_tokens

    @property
    def has_telemetry(self) -> bool:
        """Whether the replicas publish anything at all."""
        return bool(self._probes)

    @property
    def wants_first_tokens(self) -> bool:
        """Whether `started` has to be called."""
        return self.by_work is not None or bool(self._answers) or bool(self._begun)

    def _note(self, what: int, position: int, prompt_tokens: int, seconds: float) -> None:
        assert self._log is not None
        now_s = self.now_s if self._time_s is None else self._time_s()
        self._log.append((now_s, what, position, prompt_tokens, seconds))

    def _count_sent(self, position: int, prompt_tokens: int) -> None:
        self.in_flight += 1
        self._count_outstanding(position, 1)
        if self.by_kv is not None:
            self.by_kv.add(position, self._kv_scale[position] * (prompt_tokens + self.expected_output_tokens))
        if self.by_work is not None:
            self.pending_tokens[position] += prompt_tokens
            self.by_work.add(position, prompt_tokens)

    def _count_started(self, position: int, prompt_tokens: int, seconds: float) -> None:
        if self.by_work is not None:
            self.pending_tokens[position] -= prompt_tokens
            self.decoding[position] += 1
            self.by_work.add(position, self.decode_weight_tokens - prompt_tokens)
        if seconds >= 0.0:
            for answers in self._answers:
                answers.append((position, prompt_tokens, seconds))

    def _count_ended(self, position: int, prompt_tokens: int) -> None:
        self.in_flight -= 1
        self._count_outstanding(position, -1)
        if self.by_kv is not None:
            self.by_kv.add(position, -self._kv_scale[position] * (prompt_tokens + self.expected_output_tokens))
        if self.by_work is not None:
            self.decoding[position] -= 1
            self.by_work.add(position, -self.decode_weight_tokens)

    def _count_outstanding(self, position: int, change: int) -> None:
        self.outstanding[position] += change
        if self.by_outstanding is not None:
            self.by_outstanding.add(position, change)
        if self.by_most_outstanding is not None:
            self.by_most_outstanding.add(position, -change)
        for watcher in self._watchers:
            watcher.append(position)


def _time(entry: tuple[float, int, int, int, float]) -> float:
    return entry[0]
