"""What a scenario may say about answers: how good those of each LLM are, what they cost, what a model router may know of that."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fleetsim.units import Quantity, Seconds, SecondsOrZero

_Number = Annotated[float, Field(strict=True)]
_Ratio = Annotated[_Number, Field(ge=0, le=1)]
_Share = Annotated[_Number, Field(gt=0)]
_Usd = Annotated[_Number, Field(ge=0)]
_Name = Annotated[str, Field(min_length=1)]
_EnergyJ = Annotated[float, Quantity("energy", "J", ge=0)]


class _Block(BaseModel):
    """As every part of a scenario."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, populate_by_name=True
    )


class TokenPrice(_Block):
    """What a list says that tokens cost [USD per million tokens]."""

    input: _Usd = 0.0
    """Of prompts."""
    output: _Usd = 0.0
    """Of answers, reasoning included."""


class Answering(_Block):
    """An LLM of the fleet as one that answers."""

    known_as: _Name | None = None
    """Its name in `profile` or `outcomes`; default: as in the catalogue."""
    ability: _Number | None = None
    """Ability of item response theory, in the units of difficulties; default: the profile's."""
    skills: dict[str, _Number] = {}
    """By domain, what it is able to do more there than elsewhere; laid over the profile's."""
    budgets: Annotated[
        tuple[Annotated[int, Field(ge=0, le=1_000_000, strict=True)], ...], Field(min_length=1, max_length=16)
    ] = (0,)
    """Reasoning budgets with which it may be asked [tokens]; each is an arm of its own."""
    verbosity: Annotated[_Number, Field(gt=0, le=100)] = 1.0
    """Length of its answers over the workload's."""
    shortening: Literal["hbpo", "drqa"] | None = None
    """Training that makes its answers, reasoning included, shorter: `hbpo` by a factor of 0.25 for the easiest to 0.8 for the
    hardest requests of a domain, 0.394 on average; `drqa` by 0.675. What it does to `ability` is for the scenario to say
    (published: 3 points more, and nothing)."""
    price: TokenPrice = TokenPrice()
    """List price of its tokens, for figures in `list_usd`; what the fleet costs is another matter."""
    energy_per_token: _EnergyJ | None = None
    """What its profile says that a token takes; default: a decode step of eight requests, by the step times of its pool."""
    joins: SecondsOrZero = 0.0
    """Routers may choose it from then on."""
    leaves: Seconds | None = None
    """And no more from then on; what it has begun it ends."""

    @model_validator(mode="after")
    def _once(self) -> Self:
        if len(set(self.budgets)) < len(self.budgets):
            raise ValueError("budgets: each may stand there once")
        if self.leaves is not None and self.leaves <= self.joins:
            raise ValueError(f"leaves {self.leaves:g} s is not after joins {self.joins:g} s")
        return self


class Domain(_Block):
    """What some of the requests are about."""

    share: _Share = 1.0
    """How many of the requests, relative to the other domains."""
    difficulty: _Number = 0.0
    """Mean of their difficulties."""
    spread: Annotated[_Number, Field(ge=0, le=100)] = 1.0
    """Standard deviation of these."""
    guess: Annotated[_Number, Field(ge=0, lt=1)] = 0.0
    """Chance of a right answer without any ability: 0.25 where there are four to choose from."""


class Outcomes(_Block):
    """A table of real answers: one row for each prompt and model, replayed instead of drawn."""

    path: _Name
    """Parquet or CSV file, relative to the scenario, or `data:` and its place in the folder that FLEETSIM_DATA names. Columns:
    prompt_id, model, quality (0 to 1); optional: category, prompt_tokens, output_tokens, cost_usd, energy_j, source."""
    source: _Name | None = None
    """Only rows with this in the column `source`."""
    prompts: Annotated[int, Field(ge=1, strict=True)] | None = None
    """So many prompts, the first of the table; default: all that have a row for each of the models."""
    shuffle: bool = True
    """Requests take prompts in an order drawn by the seed; off: as they stand in the table. Both begin again at the end."""
    lengths: bool = True
    """Prompts, and answers where they are known, are as long as in the table; off: as the workload says."""


class Features(_Block):
    """How well a router sees a request: a predictor with errors of a stated size."""

    difficulty_sd: Annotated[_Number, Field(ge=0, le=1e6)] = 0.5
    """Standard deviation of the error of the difficulty that is seen; or …"""
    auc: Annotated[_Number, Field(gt=0.5, lt=1)] | None = None
    """… the error that gives its predictions of success this area under the curve, mean over the arms; takes the place of
    `difficulty_sd`."""
    domain_accuracy: _Ratio = 1.0
    """How often the domain that is seen is the right one; else it is another one, each as likely."""


class Price(_Block):
    """What deciding, or judging, takes."""

    time: SecondsOrZero | None = None
    """Time of each [s]; default: for decisions the policy's own, for judgements 10 ms."""
    energy: _EnergyJ | None = None
    """Energy of each, on the gateway's meter and charged to the request; default: for decisions the policy's own, else 0."""
    list_usd: _Usd | None = None
    """List price of each [USD], part of `list_usd`; default: for decisions the policy's own, else 0."""


class Judge(Price):
    """Scores answers, for routers that ask for it."""

    auc: Annotated[_Number, Field(ge=0.5, lt=1)] = 0.8
    """Chance that a right answer's score is above a wrong one's."""


class Verification(_Block):
    """A model that is asked whether an answer is right: short answers behind the prompt and the answer."""

    tokens: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 10
    """Length of each such answer [tokens]."""
    agrees_right: _Ratio = 0.75
    """How often it says yes to a right answer (assumption)."""
    agrees_wrong: _Ratio = 0.4
    """How often it says yes to a wrong one (assumption)."""


class Feedback(_Block):
    """What a router learns of how good an answer was, once that has been given."""

    delay: SecondsOrZero = 0.0
    """Time from the end of the answer until it is known."""
    share: _Ratio = 1.0
    """Requests about whose answers anybody says anything."""


class WrongAnswers(_Block):
    """How wrong answers to one question are spread."""

    count: Annotated[int, Field(ge=1, le=100, strict=True)] = 5
    """Different ones that there are."""
    coincide: Annotated[_Number, Field(gt=0, le=1)] = 0.4
    """Chance that two wrong answers are the same; at least 1 / count. Zipf's law with the exponent that gives it."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.coincide < 1.0 / self.count - 1e-12:
            raise ValueError(f"coincide {self.coincide:g} is below 1 / count = {1.0 / self.count:g}")
        return self


class Quality(_Block):
    """How good the answers of each LLM are. Without this block all are equally good and nobody chooses among models."""

    models: Annotated[dict[_Name, Answering], Field(min_length=1)]
    """The LLMs that may answer requests which name none, by name in the catalogue; pools serve them."""
    profile: _Name | None = None
    """Item response theory with fitted abilities and domains (`models/quality`); or …"""
    outcomes: Outcomes | None = None
    """… real answers, replayed; without either, `models` and `domains` say all."""
    domains: dict[_Name, Domain] = {}
    """What requests are about; takes the place of the profile's."""
    domain_by: Literal["draw", "class", "tenant"] = "draw"
    """Whether the domain of a request is drawn, or is its class or tenant where that is the name of a domain."""
    discrimination_sd: Annotated[_Number, Field(ge=0, le=5)] = 0.3
    """Standard deviation of the logarithm of how sharply requests tell abilities apart (assumption)."""
    reasoning_gain: Annotated[_Number, Field(ge=0, le=100)] = 0.35
    """Ability that a budget of u tokens adds is this times ln(1 + u / reasoning_unit) (assumption)."""
    reasoning_unit: Annotated[_Number, Field(gt=0)] = 512.0
    """See `reasoning_gain` [tokens]."""
    length_slope: Annotated[_Number, Field(ge=0, le=5)] = 0.2
    """Answers to a request that is harder by one are longer by this factor's exponential (assumption)."""
    length_spread: Annotated[_Number, Field(ge=0, le=5)] = 0.3
    """Standard deviation of the logarithm of the length of further samples over that of the first (assumption)."""
    expected_output_tokens: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = 256
    """Length of an answer that routers expect before any has ended, where no predictor says [tokens]."""
    features: Features = Features()
    """How well routers see requests."""
    decision: Price = Price()
    """What a decision of the model router takes."""
    judge: Judge = Judge()
    """Scores of answers."""
    verification: Verification = Verification()
    """Answers checked by a model."""
    feedback: Feedback = Feedback()
    """What routers learn afterwards."""
    wrong_answers: WrongAnswers = WrongAnswers()
    """How wrong answers are spread."""

    @model_validator(mode="after")
    def _one_world(self) -> Self:
        if self.profile is not None and self.outcomes is not None:
            raise ValueError("profile and outcomes: one or the other")
        shorter = [name for name, model in self.models.items() if model.shortening is not None]
        if self.outcomes is not None and shorter:
            raise ValueError(f"models.{shorter[0]}.shortening: with outcomes, lengths are the table's")
        if self.outcomes is not None and self.domains:
            raise ValueError("domains: with outcomes, domains are the table's categories")
        if self.profile is None and self.outcomes is None:
            lacking = [name for name, model in self.models.items() if model.ability is None]
            if lacking:
                raise ValueError(f"models.{lacking[0]}.ability is missing: give it, or a profile, or outcomes")
        return self
