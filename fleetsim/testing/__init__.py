"""Checkers that any policy or model can be put through, ours and third parties' alike.

Each takes a class (or its registered name, or ``module:Class``), tries it on generated cases and returns a `Report`, or raises
`PolicyError` with what is wrong::

    def test_my_router():
        report = check_router(MyRouter)
        assert report.us_per_decision["1000 replicas"] < 50
"""

from __future__ import annotations

from fleetsim.testing.admission import check_admission
from fleetsim.testing.autoscaler import check_autoscaler
from fleetsim.testing.budget import check_budget
from fleetsim.testing.eviction import check_cache
from fleetsim.testing.fleet_autoscaler import check_fleet_autoscaler
from fleetsim.testing.model_router import check_model_router
from fleetsim.testing.order import check_order
from fleetsim.testing.placement import check_placement
from fleetsim.testing.power_manager import check_power_manager
from fleetsim.testing.predictor import check_predictor
from fleetsim.testing.rebalancer import check_rebalancer
from fleetsim.testing.report import Report
from fleetsim.testing.router import check_router
from fleetsim.testing.scheduler import check_scheduler
from fleetsim.testing.search import check_search
from fleetsim.testing.step_time_model import check_step_time_model

__all__ = [
    "Report",
    "check_admission",
    "check_autoscaler",
    "check_budget",
    "check_cache",
    "check_fleet_autoscaler",
    "check_model_router",
    "check_order",
    "check_placement",
    "check_power_manager",
    "check_predictor",
    "check_rebalancer",
    "check_router",
    "check_scheduler",
    "check_search",
    "check_step_time_model",
]
