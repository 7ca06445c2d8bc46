"""Findings about faults beside what they cannot be combined with: told before the run, with the place, and not when one strikes."""

from __future__ import annotations

from collections.abc import Iterator

from fleetsim.errors import Finding
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import Scenario

Findings = Iterator[Finding]


def cuts_are_modelled(loaded: LoadedScenario) -> Findings:
    """Whether links are cut in a fleet where nobody says what becomes of what is behind a cut."""
    why = _not_modelled(loaded.scenario)
    if not why:
        return
    hint = "let links be throttled, or replicas fail"
    for number, choice in enumerate(loaded.scenario.faults):
        for place, incident in enumerate(getattr(choice.config, "incidents", ())):
            if getattr(incident, "what", None) == "cut":
                yield loaded.finding(("faults", number, "incidents", place, "what"), f"a link is cut {why}", hint)
        if choice.name == "links" and getattr(choice.config, "slow_share", 1.0) < 1.0:
            message = f"links are cut {why}"
            yield loaded.finding(("faults", number), message, "set slow_share: 1, or let replicas fail")
        if choice.name == "empirical":
            message = f"links are cut now and then {why}: the run ends where that happens"
            yield loaded.finding(("faults", number), message, "take `crashes`, which leaves links whole", "warning")


def _not_modelled(scenario: Scenario) -> str:
    """In which kind of fleet, and what is missing; nothing where cuts are modelled."""
    if any(pool.encoder is not None for pool in scenario.pools):
        return "in a fleet with encoders, and what becomes of images behind it is not modelled"
    if any(pool.models for pool in scenario.pools):
        return (
            "in a fleet with replicas that change their LLM (`models`), and what becomes of orders to load one that do not "
            "arrive is not modelled"
        )
    if scenario.conversions:
        return (
            "in a fleet whose replicas change their pool (`conversions`), and what becomes of a change half of which cannot be "
            "reached is not modelled"
        )
    return ""
