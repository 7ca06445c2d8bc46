"""Preemption by swapping: keys and values of requests that gave way wait in host memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fleetsim.engine.batch import Batch
from fleetsim.engine.replica import Replica
from fleetsim.errors import LawError
from fleetsim.kernel.clock import Timer
from fleetsim.network.flows import Flow, Network
from fleetsim.scenario.schema import Preemption
from fleetsim.workload.request import Request


class HostCopy:
    """One request's keys and values in host memory: the `Carrier` that brings them back."""

    __slots__ = ("blocks", "ended", "flow", "outs", "request", "swap", "timer", "tokens", "unbacked", "wanted_blocks")

    def __init__(self, swap: Swap, request: Request) -> None:
        self.swap = swap
        self.request = request
        self.blocks = 0
        """Room that it takes on the host."""
        self.tokens = 0
        """Tokens that it is valid for."""
        self.outs = 0
        """Copies to the host that are under way for it."""
        self.wanted_blocks = 0
        """Blocks that its request waits for."""
        self.unbacked = 0
        """Of the blocks that its request was given for them, those that still hold what is copied out."""
        self.timer: Timer | None = None
        self.flow: Flow | None = None
        self.ended = False
        """Whether nobody wants it any more."""

    def fetch(self, request: Request, tokens: int) -> None:  # noqa: ARG002
        """Begin to copy the last `tokens` of the request's carried tokens back."""
        if tokens:
            self.swap.fetch(self, -(-tokens // self.swap.block_tokens))
        else:
            self.swap.back(self)

    def drop(self, request: Request) -> None:  # noqa: ARG002
        """Stop copying; the host's copy stays."""
        self.swap.interrupt(self)

    def release(self) -> None:
        """Give the host's room back."""
        self.swap.forget(self.request)


class Swap:
    """Copies between a replica's memory and its host, of requests that are preempted and admitted again.

    On preemption the request's keys and values are copied to the host, if it has room; otherwise the request is computed again.
    They come back when it is admitted. A copy of n blocks takes ``2 * layers * ceil(n / group)`` calls, one after the other on the
    host, and its bytes travel over the network. Unless `asynchronous`, the next step waits for all copies, and those back begin
    when those out are over. Otherwise steps go on, as long as they can do without blocks that are still being copied out: a step
    that cannot waits until they are gone, and a copy back into such blocks begins then. Where copies are kept for `reuse`, only
    blocks that the host lacks go out again; copies of running requests, oldest first, make room for those of requests that wait.

    Parameters
    ----------
    config : Preemption
        What the scenario says.
    network : Network
        Where everything travels.
    replica : Replica
        Whose requests they are.
    host : str
        Memory of its server in the network.
    capacity_blocks : int
        Blocks that the host has room for.
    block_bytes : float
        Keys and values of a block, over all layers and accelerators [bytes].
    layers : int
        Layers of the LLM.
    """

    def __init__(
        self,
        config: Preemption,
        network: Network,
        replica: Replica,
        host: str,
        capacity_blocks: int,
        block_bytes: float,
        layers: int,
    ) -> None:
        self.config = config
        self.network = network
        self.replica = replica
        self.gpu, self.host = f"gpu:{replica.index}", host
        self.capacity_blocks = capacity_blocks
        self.block_bytes = block_bytes
        self.block_tokens = replica.batches[0].block_tokens
        self.layers = layers
        self.used_blocks = 0
        """Blocks taken on the host."""
        self.out_blocks = 0
        """Blocks copied to the host so far."""
        self.back_blocks = 0
        """Blocks copied back so far."""
        self.refused = 0
        """Preemptions for which the host had no room."""
        self.waited_s = 0.0
        """Time for which steps waited for copies."""
        self._copies: dict[Request, HostCopy] = {}
        """By request, the one that was copied out last is last."""
        self._ending = 0
        """Blocks of copies that nobody wants and that are still being written."""
        self._loads: dict[HostCopy, None] = {}
        """On their way back, or waiting to be."""
        self._outs = 0
        """Copies out that are under way."""
        self._calls_until_s = 0.0
        """When the host has made all calls for copies."""

    # --- out ---------------------------------------------------------------------------------------------------------

    def take(self, batch: Batch, request: Request, freed_blocks: int) -> None:
        """Copy a preempted request out, whose `freed_blocks` are free for others once that is done."""
        blocks = -(-request.computed // self.block_tokens)
        copy = self._copies.pop(request, None)
        if copy is None:
            copy = HostCopy(self, request)
        missing = blocks - copy.blocks
        if not blocks or not self._make_room(missing):
            self.refused += 1
            if copy.blocks:
                self._free(copy)
            return
        self.used_blocks += missing
        moved = blocks - copy.tokens // self.block_tokens
        copy.blocks = blocks
        copy.tokens = request.computed
        self._copies[request] = copy
        request.carrier = copy
        request.carried_tokens = request.computed
        self.out_blocks += moved
        copy.outs += 1
        self._outs += 1
        batch.leaving += freed_blocks
        size_bytes = moved * self.block_bytes
        done = partial(self._out, batch, copy, freed_blocks)
        self._call(moved, lambda: self._send(self.gpu, self.host, size_bytes, done))

    def _make_room(self, blocks: int) -> bool:
        """Whether the host has room for so many blocks more, copies of running requests given up for it if need be."""
        lacking = self.used_blocks + blocks - self.capacity_blocks
        if lacking <= 0:
            return True
        idle = [copy for copy in self._copies.values() if copy.request.carrier is not copy and not copy.outs]
        if sum([copy.blocks for copy in idle]) < lacking:
            return False
        for copy in idle:
            if lacking <= 0:
                break
            lacking -= copy.blocks
            del self._copies[copy.request]
            self._free(copy)
        return True

    def _out(self, batch: Batch, copy: HostCopy, freed_blocks: int) -> None:
        """A copy to the host is over."""
        batch.leaving -= freed_blocks
        self._outs -= 1
        copy.outs -= 1
        if copy.ended and not copy.outs:
            self._ending -= copy.blocks
            self.used_blocks -= copy.blocks
        for load in list(self._loads):
            if load.flow is None and load.timer is None and self._may_begin(load):
                self._begin(load)
        self._look()

    # --- back --------------------------------------------------------------------------------------------------------

    def fetch(self, copy: HostCopy, blocks: int) -> None:
        """Begin to copy blocks of an admitted request back, or wait until that is possible."""
        batch, request = self.replica.batches[copy.request.rank], copy.request
        copy.wanted_blocks = blocks
        self._loads[copy] = None
        if self._may_begin(copy) or (self.config.asynchronous and not copy.outs and not batch.lacks_until_copied()):
            self._begin(copy)
        else:
            copy.unbacked = request.blocks - request.shared_blocks
            batch.unbacked += copy.unbacked

    def _may_begin(self, copy: HostCopy) -> bool:
        """Whether a copy back must not wait for others out any more."""
        return not copy.outs and not self.replica.batches[copy.request.rank].leaving

    def _begin(self, copy: HostCopy) -> None:
        self._back(copy)
        self.back_blocks += copy.wanted_blocks
        copy.timer = self._call(copy.wanted_blocks, partial(self._send_back, copy))

    def _send_back(self, copy: HostCopy) -> None:
        size_bytes = copy.wanted_blocks * self.block_bytes
        copy.timer = None
        copy.flow = self.network.transfer(self.host, self.gpu, size_bytes, partial(self._arrived, copy))

    def _arrived(self, copy: HostCopy) -> None:
        """All that a request waited for is there."""
        request = copy.request
        copy.flow = None
        del self._loads[copy]
        self.back(copy)
        self.replica.swapped_in(request)
        self._look()

    def back(self, copy: HostCopy) -> None:
        """The request has all its keys and values: the host's copy is of use only if it is preempted again."""
        copy.request.carrier = None
        if not self.config.reuse:
            del self._copies[copy.request]
            self._free(copy)

    def interrupt(self, copy: HostCopy) -> None:
        """Stop copying back."""
        if copy not in self._loads:
            return
        del self._loads[copy]
        self._back(copy)
        if copy.timer is not None:
            copy.timer.cancel()
            copy.timer = None
        if copy.flow is not None:
            self.network.cancel(copy.flow)
            copy.flow = None

    def forget(self, request: Request) -> None:
        """A request has ended, or goes elsewhere: nothing is kept for it."""
        copy = self._copies.pop(request, None)
        if copy is None:
            return
        self.interrupt(copy)
        if request.carrier is copy:
            request.carrier = None
            request.carried_tokens = 0
        self._free(copy)
        self._look()

    def _back(self, copy: HostCopy) -> None:
        """The blocks that a request was given are no longer those that are copied out."""
        self.replica.batches[copy.request.rank].unbacked -= copy.unbacked
        copy.unbacked = 0

    # --- inside ------------------------------------------------------------------------------------------------------

    @property
    def must_wait(self) -> bool:
        """Whether the next step must wait for copies."""
        if not self._outs and not self._loads:
            return False
        if not self.config.asynchronous:
            return True
        return any([batch.leaving and batch.lacks_until_copied() for batch in self.replica.batches])

    def _look(self) -> None:
        """Something is over: let a step that waited for it begin."""
        if self.replica.paused and not self.must_wait:
            self.replica.go_on()

    def _call(self, blocks: int, then: Callable[[], None]) -> Timer:
        """Make the calls that copying so many blocks takes, after those that were asked for before, and then go on."""
        calls = 2 * self.layers * -(-blocks // self.config.group_blocks)
        clock = self.replica.clock
        self._calls_until_s = max(self._calls_until_s, clock.now_s) + calls * self.config.call_time
        return clock.at(self._calls_until_s, then)

    def _send(self, source: str, target: str, size_bytes: float, done: Callable[[], None]) -> None:
        self.network.transfer(source, target, size_bytes, done)

    def _free(self, copy: HostCopy) -> None:
        """Give up a copy's room; one that is still being written when that is over."""
        copy.ended = True
        if copy.outs:
            self._ending += copy.blocks
        else:
            self.used_blocks -= copy.blocks

    def verify(self) -> None:
        """Recount the host's room (law 3).

        Raises
        ------
        LawError
            If a total differs from the recount, or is beyond the capacity.
        """
        counted = sum(copy.blocks for copy in self._copies.values()) + self._ending
        if self.used_blocks != counted or counted > self.capacity_blocks:
            raise LawError(
                f"law 3 (swapped KV blocks): kept {self.used_blocks}, counted {counted}, room {self.capacity_blocks}"
            )
        unbacked = sum(copy.unbacked for copy in self._loads)
        if unbacked != sum(batch.unbacked for batch in self.replica.batches):
            raise LawError("law 3 (swapped KV blocks): blocks that wait for copies out")
