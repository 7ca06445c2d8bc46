"""fleetsim: a discrete-event simulator of heterogeneous LLM inference fleets.

>>> import fleetsim
>>> result = fleetsim.run("scenario.yaml", out="results")  # doctest: +SKIP
>>> result.verdict, result.summary["ttft_p99_s"], result.requests()  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleetsim.errors import DataError, FleetsimError, InputError, LawError, PolicyError, ScenarioError
    from fleetsim.experiment.run import Result, run
    from fleetsim.planning.api import find_fleet, find_rate, plan
    from fleetsim.planning.result import Plan
    from fleetsim.reporting.build import report
    from fleetsim.results.compare import compare
    from fleetsim.results.folder import open_results
    from fleetsim.results.query import query
    from fleetsim.scenario.load import LoadedScenario, load_scenario
    from fleetsim.scenario.schema import Scenario
    from fleetsim.sweeping.optimise import optimise
    from fleetsim.sweeping.study import Study, sweep

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "FleetsimError",
    "InputError",
    "LawError",
    "LoadedScenario",
    "Plan",
    "PolicyError",
    "Result",
    "Scenario",
    "ScenarioError",
    "Study",
    "__version__",
    "compare",
    "find_fleet",
    "find_rate",
    "load_scenario",
    "open_results",
    "optimise",
    "plan",
    "query",
    "report",
    "run",
    "sweep",
]

_HOME = {
    "DataError": "fleetsim.errors",
    "FleetsimError": "fleetsim.errors",
    "InputError": "fleetsim.errors",
    "LawError": "fleetsim.errors",
    "LoadedScenario": "fleetsim.scenario.load",
    "Plan": "fleetsim.planning.result",
    "PolicyError": "fleetsim.errors",
    "Result": "fleetsim.experiment.run",
    "Scenario": "fleetsim.scenario.schema",
    "ScenarioError": "fleetsim.errors",
    "Study": "fleetsim.sweeping.study",
    "compare": "fleetsim.results.compare",
    "find_fleet": "fleetsim.planning.api",
    "find_rate": "fleetsim.planning.api",
    "load_scenario": "fleetsim.scenario.load",
    "open_results": "fleetsim.results.folder",
    "optimise": "fleetsim.sweeping.optimise",
    "plan": "fleetsim.planning.api",
    "query": "fleetsim.results.query",
    "report": "fleetsim.reporting.build",
    "run": "fleetsim.experiment.run",
    "sweep": "fleetsim.sweeping.study",
}
"""Module of each public name, imported when the name is first used: ``import fleetsim`` itself stays light."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fleetsim' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
