"""Where prompts and answers may be computed: the places of one replica in the two views of a router of pairs."""

from __future__ import annotations

from fleetsim.routing.api import FleetView


class Sides:
    """Places in the view of prompts and in that of answers (the same one, where all replicas do all of a request).

    Parameters
    ----------
    fleet : FleetView
        View of the replicas that may compute prompts.
    """

    __slots__ = ("answers", "decode_only", "decode_place", "prefill_only", "prefill_place", "shared")

    def __init__(self, fleet: FleetView) -> None:
        self.answers = fleet if fleet.decode is None else fleet.decode
        """View of the replicas that may compute answers."""
        answering = {number: place for place, number in enumerate(self.answers.numbers)}
        prompting = {number: place for place, number in enumerate(fleet.numbers)}
        self.decode_place = [answering.get(number, -1) for number in fleet.numbers]
        """Of each place in the view of prompts, its place in that of answers; -1 if it computes prompts only."""
        self.prefill_place = [prompting.get(number, -1) for number in self.answers.numbers]
        """Of each place in the view of answers, its place in that of prompts; -1 if it computes answers only."""
        self.prefill_only = [place for place, other in enumerate(self.decode_place) if other < 0]
        """Places in the view of prompts."""
        self.decode_only = [place for place, other in enumerate(self.prefill_place) if other < 0]
        """Places in the view of answers."""
        self.shared = [place for place, other in enumerate(self.decode_place) if other >= 0]
        """Places, in the view of prompts, of those that compute both."""
