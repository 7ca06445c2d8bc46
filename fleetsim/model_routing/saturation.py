"""As many samples as are worth it, and as the pool has room for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil, log
from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Query, number_of
from fleetsim.plugins import PolicyConfig

_Ratio = Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})]


class SaturationConfig(PolicyConfig):
    """Parameters of sampling until saturation."""

    model: str = ""
    """Arm that answers. Empty: the cheapest by the list."""
    gain: Annotated[float, Field(gt=0, lt=1, json_schema_extra={"unit": "ratio"})] = 0.01
    """Expected gain of one more sample below which none is taken."""
    reachable: _Ratio = 1.0
    """Quality that ever so many samples reach."""
    most: Annotated[int, Field(ge=1, le=1000, strict=True, json_schema_extra={"unit": "count"})] = 32
    """Samples at most."""
    load_limit: Annotated[float, Field(gt=0, json_schema_extra={"unit": "ratio"})] = 1.0
    """Requests at the arm's replicas over those that run at a time, from which one sample is all; below, the number of samples
    falls with the room that is left."""
    choose: Literal["judge", "vote"] = "judge"
    """Who chooses: the judge's highest score (best of n), or the most frequent answer (self-consistency)."""


class Saturation:
    """Samples up to where one more is not worth it, by the predicted chance of a good answer; fewer where the pool is full.

    Rule: ``F(N) = F_max (1 - (1 - p)^N)`` for N samples with the chance p each; one more brings ``F_max p (1 - p)^N``, which is
    below the least gain from ``N* = ceil(ln(gain / (F_max p)) / ln(1 - p))`` on. N* samples are taken, no more than `most`, times
    the room that is left (1 - load / `load_limit`), and at least one. The best by the judge's score, or the most frequent answer,
    is given.

    Charged: all samples as a group, whose prompt is computed once where the pool has a prefix cache; the judge for each.

    References
    ----------
    TTSPM, arXiv:2505.20522; the room that is left is ours.
    """

    Config: ClassVar = SaturationConfig

    def __init__(self, config: SaturationConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models
        usd = models.usd_per_prompt_token + models.usd_per_output_token
        cheapest = min(range(models.count), key=lambda arm: (usd[arm], arm))
        self._arm = number_of(models, config.model, "saturation") if config.model else cheapest

    def route(self, query: Query) -> Ask:
        """So many samples."""
        config, among = self._config, self._models.open()
        arm = self._arm if self._arm in among or not among else among[0]
        wanted = min(samples_until(float(query.chance[arm]), config.gain, config.reachable), config.most)
        room = max(1.0 - self._models.load(arm) / config.load_limit, 0.0)
        samples = max(int(wanted * room), 1)
        return Ask(arm, samples, judge=config.choose == "judge" and samples > 1, last=samples == 1)

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Accept:
        """The best, or the most frequent."""
        if self._config.choose == "judge":
            return Accept(max(range(len(answers)), key=lambda i: (answers[i].score or 0.0, -i)))
        label = Counter(answer.label for answer in answers).most_common(1)[0][0]
        return Accept(next(i for i, answer in enumerate(answers) if answer.label == label))


def samples_until(chance: float, gain: float, reachable: float = 1.0) -> int:
    """Samples of a chance from which on one more brings less than so much; one where the first brings less."""
    if not 0.0 < chance < 1.0 or gain >= reachable * chance:
        return 1
    return max(ceil(log(gain / (reachable * chance)) / log(1.0 - chance) - 1e-9), 1)
