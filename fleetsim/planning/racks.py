"""Racks: how many replicas the power of a rack allows, and how many racks there are."""

from __future__ import annotations

from math import floor

from fleetsim.errors import Finding, InputError
from fleetsim.planning.program import Formulation
from fleetsim.scenario.schema import Block, Count
from fleetsim.units import Watts

_SLACK = 1e-9


class Racks(Block):
    """Racks of a site; each holds replicas of one kind, at their full power."""

    count: Count
    """That there are."""
    power: Watts
    """Of each."""

    def fit(self, power_w: float) -> int:
        """Replicas of this power in one rack."""
        return floor(self.power / power_w + _SLACK)

    def require(self, form: Formulation, kinds: list[tuple[str, int, float]], whole: bool, place: str = "") -> None:
        """Keep replicas within the racks.

        Parameters
        ----------
        form : Formulation
            What is added to.
        kinds : list of (name, column, power in watts)
            Kinds of replicas, and the variable that is the most of them at any time.
        whole : bool
            Whether racks are whole.
        place : str
            For people: `` in dublin``; there are other places then.

        Raises
        ------
        InputError
            If there is no other place, and a rack holds no replica of any kind.
        """
        if not place and not any(self.fit(power_w) for _, _, power_w in kinds):
            least = min(power_w for _, _, power_w in kinds)
            message = f"a rack of {self.power / 1e3:g} kW holds no replica: the smallest takes {least / 1e3:g} kW"
            raise InputError(Finding(message, "racks", hint="give racks more power, or offer smaller replicas"))
        columns = form.variables([f"racks of {name}{place}" for name, _, _ in kinds], integer=whole)
        for (name, most, power_w), rack in zip(kinds, columns.tolist(), strict=True):
            fit = self.fit(power_w)
            words = f"{name}{place} stand in racks of {self.power / 1e3:g} kW, {fit} each"
            form.require(words, [most, rack], [1.0, -float(fit)], "<=", 0.0, elastic=False)
        words, more = f"at most {self.count} racks{place}", f"one more rack{place}"
        form.require(words, columns, 1.0, "<=", self.count, unit="racks", more=more)
