"""Splitwise's pools of prompt, token and mixed machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView, Route
from fleetsim.routing.sides import Sides


class SplitwiseConfig(PolicyConfig):
    """Parameters of Splitwise."""

    prompt_pools: tuple[str, ...] = ()
    """Names of pools whose replicas are prompt machines, besides those of the role `prefill`. Those of the role `mixed` that are
    named here or in `token_pools` may help out on the other side."""
    token_pools: tuple[str, ...] = ()
    """Names of pools whose replicas are token machines, besides those of the role `decode`. All others are mixed machines."""
    queue_tokens: int = Field(default=8192, ge=1, strict=True)
    """Pending prompt tokens above which a queue is too long."""


class Splitwise:
    """Prompt machines, token machines, and mixed ones that take what is too much for either; both sides lend to the other.

    Rule: a prompt goes to the prompt machine with the least pending prompt tokens. If that has more than `queue_tokens`, to
    the mixed machine with the least, and if that has too many or there is none, the token machine with the least is borrowed:
    it is a mixed one until its prompts are computed. The answer is computed by the mixed machine itself if one has the prompt
    and there is room; otherwise by the token machine with the least memory in use, or if the request does not fit there, by
    such a mixed machine, and last of all by a borrowed prompt machine. Both are named when the request arrives. Machines lend
    only if their pool's role is `mixed`.

    Memory in use is what replicas publish, and the prompts of requests that are on their way to them.

    What is charged: transfers over the network.

    References
    ----------
    P. Patel et al., "Splitwise: Efficient Generative LLM Inference Using Phase Splitting", ISCA 2024, arXiv:2311.18677.
    """

    Config: ClassVar = SplitwiseConfig
    pairs: ClassVar[bool] = True

    def __init__(self, config: SplitwiseConfig, rng: Generator, fleet: FleetView) -> None:
        self._queue_tokens = config.queue_tokens
        self._fleet = fleet
        self._sides = sides = Sides(fleet)
        self._answers = answers = sides.answers
        fleet.index_work(0)
        answers.watch_load()
        pools = answers.pools
        self._prompt = [
            i for i in range(fleet.count) if sides.decode_place[i] < 0 or fleet.pools[i] in config.prompt_pools
        ]
        self._lenders = [i for i in sides.shared if fleet.pools[i] in config.token_pools]
        """Token machines that may compute prompts, by their places among those that do."""
        self._mixed = [i for i in sides.shared if i not in self._prompt and i not in self._lenders]
        self._token = [i for i in range(answers.count) if sides.prefill_place[i] < 0 or pools[i] in config.token_pools]
        self._borrowed: dict[int, None] = {}
        """Token machines with prompts to compute."""

    def route(self, request: RequestView) -> Route:
        """Choose a machine for the prompt and one for the answer."""
        pending = self._fleet.pending_tokens
        for machine in [machine for machine in self._borrowed if not pending[machine]]:
            del self._borrowed[machine]
        mixed = self._there([*self._mixed, *self._borrowed])
        prompt = self._prompt_machine(mixed)
        return Route(prompt, self._token_machine(request, prompt, mixed))

    def _prompt_machine(self, mixed: Sequence[int]) -> int:
        pending = self._fleet.pending_tokens.__getitem__
        first = min(self._there(self._prompt), key=pending, default=-1)
        if first >= 0 and pending(first) <= self._queue_tokens:
            return first
        second = min(mixed, key=pending, default=-1)
        if second >= 0 and pending(second) <= self._queue_tokens:
            return second
        lenders = self._there([machine for machine in self._lenders if machine not in self._borrowed])
        if lenders:
            chosen = min(lenders, key=pending)
            self._borrowed[chosen] = None
            return chosen
        return min([machine for machine in (first, second) if machine >= 0], key=pending)

    def _there(self, machines: Sequence[int]) -> Sequence[int]:
        """Those that are there, of machines that may compute prompts."""
        return machines if self._fleet.whole else [machine for machine in machines if self._fleet.present[machine]]

    def _token_machine(self, request: RequestView, prompt: int, mixed: Sequence[int]) -> int:
        places = self._sides.decode_place
        mixed_places = [places[machine] for machine in mixed]
        if places[prompt] in mixed_places and self._used(places[prompt], request) <= 1.0:
            return places[prompt]
        lent = [places[machine] for machine in self._there(self._prompt) if places[machine] >= 0]
        token = [machine for machine in self._token if self._answers.present[machine]] or self._token
        for machines in (token, mixed_places, lent):
            used = {machine: self._used(machine, request) for machine in machines}
            if used:
                chosen = min(used, key=used.__getitem__)
                if used[chosen] <= 1.0:
                    return chosen
        everywhere = token or mixed_places or lent
        return min(everywhere, key=lambda machine: self._used(machine, request))

    def _used(self, machine: int, request: RequestView) -> float:
        """Part of a machine's memory in use if it had this request too."""
        answers = self._answers
        coming = answers.coming_tokens[machine] + request.prompt_tokens
        return answers.kv_used(machine) + coming / answers.capacity_tokens[machine]
