"""Compressed keys and values of conversations, kept in host memory between their turns."""

from __future__ import annotations

from functools import partial

import numpy as np

from fleetsim.engine.api import Compression
from fleetsim.engine.batch import Batch
from fleetsim.engine.replica import Replica
from fleetsim.errors import LawError
from fleetsim.kernel.clock import Clock
from fleetsim.network.flows import Flow, Network
from fleetsim.workload.prefixes import Path
from fleetsim.workload.request import Request


class Session:
    """Caches of one conversation on the host: one per episode, each within the budget."""

    __slots__ = ("copies", "runs", "size_bytes", "tokens", "waiting")

    def __init__(self, runs: tuple[tuple[int, int], ...], tokens: int, size_bytes: float) -> None:
        self.runs = runs
        """What the conversation's tokens are: only a prompt that goes on with them finds them."""
        self.tokens = tokens
        """Tokens of the conversation that they stand for."""
        self.size_bytes = size_bytes
        """Room that all of them take on the host."""
        self.copies = 0
        """Copies to the host that are under way."""
        self.waiting: list[Loading] = []
        """Loads that begin when these are over."""


class Loading:
    """Brings the cache of an episode back for a request: a `Carrier`."""

    __slots__ = ("_flow", "_lacking", "_since_s", "owner", "request", "session", "size_bytes", "tokens")

    def __init__(self, owner: BetweenTurns, session: Session, request: Request, tokens: int, size_bytes: float) -> None:
        self.owner = owner
        self.session = session
        self.request = request
        self.tokens = tokens
        self.size_bytes = size_bytes
        self._lacking = False
        self._since_s = 0.0
        self._flow: Flow | None = None

    def fetch(self, request: Request, tokens: int) -> None:  # noqa: ARG002
        """Begin to load once the cache is on the host: all of it, however much it stands for."""
        self._lacking = True
        self._since_s = self.owner.clock.now_s
        if self.session.copies:
            self.session.waiting.append(self)
        else:
            self.begin()

    def begin(self) -> None:
        """Load, if it is still wanted."""
        if self._lacking:
            owner = self.owner
            self._flow = owner.network.transfer(owner.host, owner.gpu, self.size_bytes, self._arrived)

    def _arrived(self) -> None:
        request, owner = self.request, self.owner
        self._flow = None
        self._lacking = False
        request.carrier = None
        request.cached_tokens = 0  # they are no prefix that anybody could have found
        request.loaded_tokens += self.tokens
        request.load_s += owner.clock.now_s - self._since_s
        owner.loaded(self)
        owner.replica.loaded(request)

    def drop(self, request: Request) -> None:  # noqa: ARG002
        """Stop loading; what is on the host stays."""
        self._lacking = False
        if self._flow is not None:
            self.owner.network.cancel(self._flow)
            self._flow = None

    def release(self) -> None:
        """Stop loading for a request that leaves."""
        self.drop(self.request)


class BetweenTurns:
    """Keeps the caches of a replica's conversations on its host between their turns.

    When a turn ends its cache is copied to the host, over the network and beside the steps; the first time with those of all other
    episodes. When the next turn of the conversation joins the queue here and its prompt goes on with what was kept, it loads the
    cache of one episode when it is admitted, and computes only what is new. Which episode is the nearest is drawn: with
    probability `accuracy` it is the right one; the tokens that another one's cache stands for count as approximate too. Nobody else
    ever finds these caches. Where the host is full, conversations used longest ago are forgotten.

    It stands where preempted requests go and where lower tiers are asked (`Replica.swap` and `Replica.tiers`), of which a replica
    with a compression has neither: a preempted request is computed again, from its kept cache where there is one.

    Parameters
    ----------
    capacity_bytes : float
        Room on the host.
    episodes : int
        Caches of each conversation. ≥ 1.
    accuracy : float
        Chance that the nearest episode is the right one.
    seed : int
        Root of the draws; each is the request's own, whatever happens before it.
    token_bytes : float
        Keys and values of a token, over all layers and accelerators [bytes].
    """

    waited_s = 0.0
    must_wait = False
    writes_back = False

    def __init__(
        self,
        replica: Replica,
        network: Network,
        host: str,
        compression: Compression,
        capacity_bytes: float,
        episodes: int,
        accuracy: float,
        seed: int,
        token_bytes: float,
    ) -> None:
        self.replica = replica
        self.network = network
        self.clock: Clock = replica.clock
        self.host = host
        self.gpu = f"gpu:{replica.index}"
        self.compression = compression
        self.capacity_bytes = capacity_bytes
        self.episodes = episodes
        self.accuracy = accuracy
        self.seed = seed
        self.token_bytes = token_bytes
        self.used_bytes = 0.0
        """Taken on the host."""
        self.forgotten = 0
        """Conversations whose caches had to go for others'."""
        self.sessions: dict[int, Session] = {}
        """By number of the conversation, the one used last is last."""
        self._spared: dict[Request, int] = {}
        """Tokens of each request that were not computed because they were loaded, of those that would have been approximate."""
        self._wrong: dict[Request, int] = {}
        """Tokens that a wrong episode's cache stood for."""
        replica.swap = self
        replica.tiers = self
        for batch in replica.batches:
            batch.swap = self

    # --- when a turn begins -----------------------------------------------------------------------------------------------

    def prefetch(self, request: Request, ready_s: float) -> bool:  # noqa: ARG002
        """A request joins the queue: have it load its conversation's cache when it is admitted. It never waits for that here."""
        self._arm(request)
        return False

    def take(self, batch: Batch, request: Request, freed_blocks: int) -> None:  # noqa: ARG002
        """A request was preempted: what was kept of its conversation is still there."""
        self._arm(request)

    def _arm(self, request: Request) -> None:
        session = self.sessions.get(request.session) if request.session >= 0 else None
        content = request.content
        if session is None or content is None or content.runs != session.runs or request.carrier is not None:
            return
        if not session.tokens < request.prompt_tokens:
            return
        del self.sessions[request.session]
        self.sessions[request.session] = session
        kept = min(session.tokens, self.compression.kept_tokens)
        request.carried_tokens = session.tokens
        request.carrier = Loading(self, session, request, session.tokens, kept * self.token_bytes)

    def loaded(self, load: Loading) -> None:
        """A request has its episode's cache."""
        request = load.request
        if request.generated:
            return
        self._spared[request] = self.compression.approximate(load.tokens)
        draw = np.random.default_rng([self.seed, request.id, request.turn]).random()
        self._wrong[request] = 0 if draw < self.accuracy else load.tokens

    # --- when it ends ---------------------------------------------------------------------------------------------------------

    def forget(self, request: Request) -> None:
        """A request has ended, or is taken back: keep its conversation's cache if it has ended."""
        spared, wrong = self._spared.pop(request, 0), self._wrong.pop(request, 0)
        if request.generated < request.output_tokens:
            return
        request.approximate_tokens += wrong - spared
        content = request.content
        if request.session >= 0 and content is not None and content.open_ended:
            self._keep(request.session, content.runs, request.prompt_tokens + request.output_tokens - 1)

    def _keep(self, number: int, runs: tuple[tuple[int, int], ...], tokens: int) -> None:
        """Copy the cache that was used to the host; of a new conversation those of all episodes."""
        one_bytes = min(tokens, self.compression.kept_tokens) * self.token_bytes
        old = self.sessions.pop(number, None)
        if old is not None:
            self.used_bytes -= old.size_bytes
        moved = one_bytes if old is not None and old.runs == runs else self.episodes * one_bytes
        size_bytes = self.episodes * one_bytes
        if size_bytes > self.capacity_bytes:
            self.forgotten += 1
            return
        while self.used_bytes + size_bytes > self.capacity_bytes:
            oldest = next(iter(self.sessions))
            self.used_bytes -= self.sessions.pop(oldest).size_bytes
            self.forgotten += 1
        session = self.sessions[number] = Session(runs, tokens, size_bytes)
        self.used_bytes += size_bytes
        session.copies += 1
        self.network.transfer(self.gpu, self.host, moved, partial(self._copied, session))

    def _copied(self, session: Session) -> None:
        session.copies -= 1
        waiting, session.waiting = session.waiting, []
        for load in waiting:
            load.begin()

    # --- what lower tiers are asked besides ----------------------------------------------------------------------------------

    def offer(self, request: Request, path: Path, held: int, limit: int) -> None:
        """Nothing: nobody finds a prefix here."""

    def used(self, path: Path, blocks: int, hit_blocks: int) -> None:
        """Nothing: no block is anybody's prefix."""

    def verify(self) -> None:
        """Recount the host's room (law 3).

        Raises
        ------
        LawError
            If the total differs from the recount, or is beyond the capacity.
        """
        counted = sum(session.size_bytes for session in self.sessions.values())
        if abs(counted - self.used_bytes) > 1e-9 * max(counted, 1.0) or counted > self.capacity_bytes * (1 + 1e-9):
            raise LawError(f"law 3 (caches between turns): kept {self.used_bytes}, counted {counted} bytes")
