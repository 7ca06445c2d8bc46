"""What can be seen of an answer: a judge's score, a model's verdict, and whether two answers are the same."""

from __future__ import annotations

from math import exp, sqrt

import numpy as np
from scipy.special import ndtri

from fleetsim.quality.api import Truth, World
from fleetsim.quality.draws import key_of, uniform
from fleetsim.scenario.quality import Quality, WrongAnswers


class Signals:
    """Draws of everything that is seen of answers, by request, arm and sample alone.

    A judge's score is ``sigmoid(k (2 quality - 1) + N(0, 1))`` with ``AUC = Phi(2 k / sqrt 2)``. Wrong answers to a question are
    drawn from the same few, by Zipf's law, whoever gives them.
    """

    def __init__(self, config: Quality, seed: int, world: World) -> None:
        self._config = config
        self._world = world
        self._k = float(ndtri(config.judge.auc)) / sqrt(2.0)
        keys = {
            what: [key_of(seed, f"quality.{what}.{arm.name}") for arm in world.arms]
            for what in ("judge", "wrong", "verify")
        }
        self._judge, self._wrong, self._verify = keys["judge"], keys["wrong"], keys["verify"]
        self._graded = key_of(seed, "quality.graded")
        self._ends = np.cumsum(zipf_of(config.wrong_answers)).tolist()

    def score(self, truth: Truth, arm: int, sample: int, quality: float | None = None) -> float:
        """What the judge says of an answer, 0 to 1; `quality` is that of an answer that is not as it was drawn."""
        if quality is None:
            quality = self._world.quality_of(truth, arm, sample)
        noise = float(ndtri(uniform(self._judge[arm] + sample, truth.number)))
        return 1.0 / (1.0 + exp(-self._k * (2.0 * quality - 1.0) - noise))

    def identity(self, truth: Truth, arm: int, sample: int) -> int:
        """Which answer it is: 0 the right one, else one of the wrong ones."""
        if self._world.quality_of(truth, arm, sample) > 0.5:
            return 0
        u = uniform(self._wrong[arm] + sample, truth.number)
        return 1 + next((i for i, end in enumerate(self._ends) if u < end), len(self._ends) - 1)

    def agrees(
        self, truth: Truth, arm: int, sample: int, verifier: int, vote: int, quality: float | None = None
    ) -> bool:
        """Whether a verifier says yes to an answer; `quality` is that of an answer that is not as it was drawn."""
        config = self._config.verification
        right = (self._world.quality_of(truth, arm, sample) if quality is None else quality) > 0.5
        u = uniform(self._verify[verifier] + 1000 * (arm + 1) + 100_003 * sample + vote, truth.number)
        return u < (config.agrees_right if right else config.agrees_wrong)

    def graded(self, truth: Truth) -> bool:
        """Whether anybody will say how good the answer to a request was."""
        share = self._config.feedback.share
        return share >= 1.0 or uniform(self._graded, truth.number) < share


def zipf_of(config: WrongAnswers) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Shares of the wrong answers under the law whose exponent makes two of them coincide as often as is said."""
    ranks = np.arange(1, config.count + 1, dtype=np.float64)
    if config.coincide >= 1.0 or config.count == 1:
        return np.asarray((ranks == 1.0).astype(np.float64))
    low, high = 0.0, 200.0
    for _ in range(200):
        middle = (low + high) / 2.0
        shares = ranks**-middle
        shares /= shares.sum()
        low, high = (middle, high) if (shares**2).sum() < config.coincide else (low, middle)
    return np.asarray(shares)
