"""Requests that models are asked about: their stories, and the calls of which these are made.

What reads this loads neither numbers nor routers: it says who bears what a call costs, and who waits for what.
"""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING

from fleetsim.workload.request import FINISHED, Request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fleetsim.model_routing.api import Answer, Ask, Query
    from fleetsim.quality.api import Truth
    from fleetsim.workload.prefixes import Content


class Story:
    """A request on its way to an answer."""

    __slots__ = (
        "answers",
        "arm",
        "calls",
        "chance",
        "content",
        "draws",
        "failed",
        "final",
        "kept",
        "labels",
        "list_usd",
        "named",
        "output_tokens",
        "prompt_tokens",
        "quality",
        "query",
        "request",
        "rounds",
        "samples",
        "seen",
        "thought_tokens",
        "truth",
        "under_way",
    )

    def __init__(self, request: Request, truth: Truth, query: Query, named: int) -> None:
        self.request = request
        self.truth = truth
        self.query = query
        self.named = named
        """Arm that the request asks for itself; below 0: the router decides."""
        self.answers: list[Answer] = []
        self.kept: list[Request] = []
        """Of each answer, the call that gave it."""
        self.draws: list[tuple[int, int] | None] = []
        """Of each answer, the arm and the sample that it is; None where it was cut off."""
        self.thought_tokens = 0
        """What models wrote for the router [tokens]."""
        self.labels: dict[int, int] = {}
        """Label of each answer that occurred, by which it is."""
        self.under_way: dict[Call, None] = {}
        """Calls of this round."""
        self.seen = 0
        """Answers before this round."""
        self.failed = FINISHED
        """How a call of this round ended that gave no answer."""
        self.final = False
        """Whether the first answer of this round is given, whatever it is."""
        self.samples: dict[int, int] = {}
        """Answers that each arm was asked for."""
        self.content: Content | None = None
        """What its prompts are, once calls have something in common."""
        self.rounds = 0
        self.calls = 0
        self.prompt_tokens = 0
        """Of all calls [tokens]."""
        self.output_tokens = 0
        """Of all calls [tokens]."""
        self.list_usd = 0.0
        """List price of calls, decisions and judgements so far [USD]."""
        self.arm = -1
        """Whose answer was given."""
        self.quality = nan
        self.chance = nan
        """Chance of that arm, as the predictor saw it."""


class Call:
    """One request to one model, for a story."""

    __slots__ = (
        "arm",
        "behind",
        "cut",
        "followers",
        "judge",
        "pays_prompt",
        "sample",
        "sent_s",
        "story",
        "streams",
        "thought",
        "verify",
    )

    def __init__(self, story: Story, arm: int, sample: int, ask: Ask, sent_s: float) -> None:
        self.story = story
        self.arm = arm
        self.sample = sample
        self.judge = ask.judge
        self.verify = ask.verify
        """Number of the answer that it checks; below 0: it gives one."""
        self.thought = ask.thought > 0
        """Whether it is for the router alone."""
        self.behind = ask.behind
        """Number of the answer that it thinks over; below 0: none."""
        self.cut = False
        """Whether its answer is longer than was asked for."""
        self.streams = False
        """Whether the client sees its tokens as they come."""
        self.sent_s = sent_s
        self.pays_prompt = True
        """Whether the list's price of the prompt falls due: once for all samples that share it."""
        self.followers: list[Request] = []
        """Further samples, sent when this one has its first token."""


def bearer(request: Request) -> Request:
    """Whose row bears what a request costs: its own, or that of the one that it is a call for."""
    call = request.call
    return call.story.request if type(call) is Call else request


def rows_of(waiting: Iterable[Request]) -> int:
    """How many requests with a row wait for these and for nothing else; of a story, all calls must be among them.

    Samples that follow another one wait with it.
    """
    count = 0
    calls: dict[Story, int] = {}
    for request in waiting:
        call = request.call
        if type(call) is Call:
            calls[call.story] = calls.get(call.story, 0) + 1 + len(call.followers)
        else:
            count += 1
    return count + sum([among >= len(story.under_way) for story, among in calls.items()])
