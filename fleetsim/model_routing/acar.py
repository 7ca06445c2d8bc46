"""As many models as the first one is unsure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Query, number_of
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig


class AcarConfig(PolicyConfig):
    """Parameters of ACAR."""

    models: tuple[str, ...] = ()
    """The model that is probed, and those that join it where it disagrees with itself, in this order. Empty: the three with the
    highest mean quality, the cheapest of them by the list first."""
    probes: Annotated[int, Field(ge=2, le=50, strict=True, json_schema_extra={"unit": "count"})] = 3
    """Answers of the first model that are compared."""


class Acar:
    """ACAR: three answers of one model say by how far they differ whether one, two or three models decide.

    Rule: the first model answers `probes` times as a group. If all are equal, that answer is given; if some are, the second model
    answers too; if none are, the second and the third answer. The answer that most of all gave is given, of equally frequent ones
    that of the dearest model.

    Charged: all answers; the probes share one computation of the prompt where the pool has a prefix cache.

    References
    ----------
    ACAR, arXiv:2602.21231. Read as an abstract only: how answers are joined is ours.
    """

    Config: ClassVar = AcarConfig
    tags: ClassVar[Tags] = Tags(("after",), ("query",), ("rule",), "query", ("cascade", "ensemble"))

    def __init__(self, config: AcarConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._probes = models, config.probes
        usd = models.usd_per_prompt_token + models.usd_per_output_token
        top = sorted(range(models.count), key=lambda arm: -models.mean_quality[arm])[:3]
        self._usd = usd
        self._order = [number_of(models, name, "acar") for name in config.models] or sorted(
            top, key=lambda arm: usd[arm]
        )

    def route(self, query: Query) -> Ask:
        """The probes."""
        among = self._models.open()
        order = [arm for arm in self._order if arm in among] or among
        return Ask(order[0], samples=self._probes)

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Accept | list[Ask]:
        """More models, or the answer that most gave."""
        labels = [answer.label for answer in answers]
        first = answers[0].arm
        probed = all(answer.arm == first for answer in answers)
        different = len(set(labels))
        if probed and different > 1:
            among = self._models.open()
            others = [arm for arm in self._order if arm in among and arm != first]
            wanted = others[: 2 if different == len(labels) else 1]
            if wanted:
                return [Ask(arm) for arm in wanted]
        chosen = max(range(len(answers)), key=lambda i: (labels.count(labels[i]), self._usd[answers[i].arm], -i))
        return Accept(chosen)
