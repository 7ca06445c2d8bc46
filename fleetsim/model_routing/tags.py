"""What kind of policy a model router is, in the words of the survey of dynamic routing and cascading (arXiv:2603.04445)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

When = Literal["before", "during", "after"]
Sees = Literal["query", "profile", "system", "user"]
Computed = Literal["rule", "supervised", "bandit", "reinforcement"]
Granularity = Literal["query", "step", "token"]
Action = Literal["single", "cascade", "ensemble", "budget"]


@dataclass(frozen=True, slots=True)
class Tags:
    """The class attribute `tags` of a model router or of a budget controller."""

    when: tuple[When, ...]
    """When it decides: before an answer is begun, while it is given, or after it is there."""
    sees: tuple[Sees, ...]
    """What it looks at: the request, profiles of the models, the state of the fleet, the user."""
    computed: tuple[Computed, ...]
    """How: a rule, a predictor learned beforehand, a bandit, reinforcement learning."""
    granularity: Granularity
    """What it decides about: a request, a step of a session, a token."""
    action: tuple[Action, ...]
    """What it does: asks one model, one after the other, several at once, or sets a budget."""

    def __str__(self) -> str:
        """As lists and pages show them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return "; ".join(
            f"{name}: {value if isinstance(value, str) else ', '.join(value) or 'nothing'}"
            for name, value in values.items()
        )
