"""A paper file: what was published, the runs that should show it, and what we got.

::

    paper: {title: …, venue: …, link: …}
    setting: What they ran, in words.
    differs: What is different here.            # optional
    finding: What did not reproduce, and why.   # optional
    speed: fast                                 # or slow: left out by --fast
    seeds: 5                                    # runs of every arm, with common random numbers
    scenario: {workload: …, pools: …}           # as in a scenario file, or the path of one
    traces:                                     # made anew for every seed; `path: made:NAME` in a workload names one
      burst: {function: stations.exponential, requests: 5000}
    arms:                                       # overrides by path, as --set
      baseline: {}
      better: {gateway.router: power-of-two-choices}
    figures:
      - name: Mean time to first token, better / baseline
        metric: ttft_mean_s                     # a key of the summary, or a block, see `Metric`
        arm: better
        over: baseline                          # ratio; `minus` is the difference; neither is the value itself
        published: 0.68
        band: [0.54, 0.82]                      # accepted; without it only the side of 1 (of 0 for differences) counts
        source: Fig. 5
        ours: {…}                               # written by `fleetsim reproduce --write`

`path: data:FILE` in a workload is a file in the folder that FLEETSIM_DATA names; without it the paper is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from fleetsim.errors import Finding, ScenarioError, nearest
from fleetsim.output.tables import arrow_schema
from fleetsim.reproduce import functions
from fleetsim.scenario.explain import findings_of, place
from fleetsim.scenario.load import LoadedScenario, load_tree
from fleetsim.scenario.merge import read_with_parents
from fleetsim.scenario.schema import Block, Count, Number, Ratio
from fleetsim.scenario.shape import Shape
from fleetsim.scenario.source import Located, path_text, read_tree
from fleetsim.scenario.template import scenarios_folder

Verdict = Literal["reproduced", "direction only", "not reproduced", "skipped"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "direction only", "not reproduced", "skipped")
"""Best first."""
Text = Annotated[str, Field(min_length=1)]
DATA, MADE = "data:", "made:"


class Reference(Block):
    """The publication."""

    title: Text
    venue: Text
    """Where and when."""
    link: Text
    """arXiv number or DOI."""


class Named(Block):
    """A function of `fleetsim.reproduce.functions`; the other keys are its arguments."""

    model_config = ConfigDict(extra="allow")

    function: Text
    """``module.function``."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Its arguments, with names of data files as paths."""
        return {key: with_files(value) for key, value in (self.model_extra or {}).items()}


class Capacity(Block):
    """The highest rate at which figures of the run keep their limits, by bisection."""

    path: Text
    """What is varied, e.g. workload.arrivals.rate or workload.rate_scale."""
    low: Annotated[Number, Field(gt=0)]
    """A rate that is surely low enough; if it is not, this is the answer."""
    high: Annotated[Number, Field(gt=0)]
    """A rate that is surely too high; if it is not, this is the answer."""
    at_least: dict[str, Number] = Field(default_factory=dict)
    """The limits are kept while these figures of the summary (or ``class.NAME.FIGURE`` of a class) are at least so much, …"""
    at_most: dict[str, Number] = Field(default_factory=dict)
    """… and these at most so much."""
    tolerance: Annotated[Number, Field(gt=0, le=0.5)] = 0.02
    """Relative width at which the bisection ends."""

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if not self.at_least and not self.at_most:
            raise ValueError("give at_least, at_most or both")
        if self.high <= self.low:
            raise ValueError(f"high {self.high:g} is not above low {self.low:g}")
        return self


class Metric(Block):
    """One figure of a run: a key of its summary, something of its requests table, a function, or a capacity."""

    summary: str | None = None
    """Key of the summary (`fleetsim list metrics`); a text alone means this."""
    column: str | dict[str, Number] | None = None
    """A column of the requests table, or a weighted sum of columns; after the warm-up; empty values are left out."""
    where: dict[str, str | tuple[Number, Number]] = Field(default_factory=dict)
    """Only these requests: a column's text, or [low, high) of its number."""
    quantile: Ratio | None = None
    """This quantile of the column instead of its mean."""
    share_below: Number | None = None
    """The share of the requests in which the column is at most this; requests without a value count as above."""
    total: bool = False
    """The column's sum, over all requests: warm-up too."""
    share: bool = False
    """That sum where `where` holds over the sum without it."""
    function: str | None = None
    """A figure of `fleetsim.reproduce.functions`."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Its arguments."""
    capacity: Capacity | None = None
    """The highest rate that keeps limits."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"summary": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> Self:
        kinds = ("summary", "column", "function", "capacity")
        if sum(getattr(self, kind) is not None for kind in kinds) != 1:
            raise ValueError(f"a metric is one of {', '.join(kinds)}")
        details = [self.quantile is not None, self.share_below is not None, self.total, self.share]
        if any(details) and self.column is None:
            raise ValueError("quantile, share_below, total and share need a column")
        if sum(details) > 1:
            raise ValueError("quantile, share_below, total and share exclude each other")
        known = arrow_schema("requests").names
        columns = [self.column] if isinstance(self.column, str) else list(self.column or ())
        for name in (*columns, *self.where):
            if name not in known:
                raise ValueError(f'the requests table has no column "{name}". {nearest(name, known)}')
        if self.function is not None:
            _known(self.function, "figure")
        return self


def _known(name: str, kind: str) -> None:
    try:
        functions.named(name, kind)
    except LookupError as error:
        raise ValueError(str(error)) from None


class Ours(Block):
    """What we got when the file was last written."""

    value: float | None
    """Mean over the seeds."""
    low: float | None = None
    """Low end of its 95 % confidence interval, …"""
    high: float | None = None
    """… and the high end; none with one seed."""
    seeds: int = 1
    """Runs of each arm."""
    verdict: Verdict = "skipped"


class Figure(Block):
    """One published figure."""

    name: Text
    """What it is."""
    metric: Metric | None = None
    """Figure of a run."""
    arm: str | None = None
    """Whose."""
    over: str | None = None
    """Ratio to this arm's, seed by seed."""
    minus: str | None = None
    """Difference to this arm's, seed by seed."""
    order: tuple[str, ...] = ()
    """Arms whose metric should rise in this order; the figure is the share of seeds in which it does."""
    check: Named | None = None
    """A function that needs no scenario."""
    published: Number | str
    """The paper's figure."""
    band: tuple[Number, Number] | None = None
    """Accepted range."""
    neutral: Number | None = None
    """What separates the directions: 1 for ratios and 0 for differences unless it is given here."""
    unit: str = ""
    source: Text
    """Where in the paper."""
    headline: bool = True
    """Whether the paper's verdict depends on it."""
    note: str = ""
    """For readers of the page."""
    seeds: Count | None = None
    """Instead of the paper's."""
    ours: Ours | None = None
    """Written by the command."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = [self.check is not None, self.arm is not None, bool(self.order)]
        if sum(forms) != 1:
            raise ValueError("a figure has one of arm, order and check")
        if (self.metric is None) == (self.check is None):
            raise ValueError("a check has no metric" if self.check else "a metric is missing")
        if (self.over and self.minus) or ((self.over or self.minus) and not self.arm):
            raise ValueError("over and minus need an arm, and exclude each other")
        if self.check is not None:
            _known(self.check.function, "check")
        if self.band is not None and self.band[0] > self.band[1]:
            raise ValueError(f"the band {self.band[0]:g} to {self.band[1]:g} is empty")
        if self.band is None and not self.order and (self.middle is None or isinstance(self.published, str)):
            raise ValueError("without a band, the published figure must be a number on one side of 1 (ratio) or 0")
        return self

    @property
    def arms(self) -> tuple[str, ...]:
        """Arms that it needs, in the order of its formula."""
        return self.order or tuple(arm for arm in (self.arm, self.over or self.minus) if arm)

    @property
    def middle(self) -> float | None:
        """What separates the directions, if anything does."""
        return self.neutral if self.neutral is not None else 1.0 if self.over else 0.0 if self.minus else None


class Paper(Block):
    """A paper file."""

    paper: Reference
    setting: Text
    """What they ran."""
    differs: str = ""
    """What is different here."""
    finding: str = ""
    """What did not reproduce, and why; what the check taught."""
    speed: Literal["fast", "slow"] = "slow"
    """Fast ones take some seconds and are part of the tests."""
    seeds: Count = 5
    scenario: dict[str, Any] | str | None = None
    """A scenario, or the path of its file."""
    traces: dict[str, Named] = Field(default_factory=dict)
    """Traces that are made for each seed."""
    arms: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    """Overrides of the scenario by path."""
    figures: Annotated[tuple[Figure, ...], Field(min_length=1)]
    recorded: dict[str, str] = Field(default_factory=dict)
    """Versions with which `ours` were made; written by the command."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.arms and self.scenario is None:
            raise ValueError("arms need a scenario")
        for made in self.traces.values():
            _known(made.function, "trace")
        return self


class MissingDataError(Exception):
    """A file of the data folder is not there."""


@dataclass(frozen=True, slots=True)
class PaperFile:
    """A paper with its file."""

    name: str
    path: Path
    paper: Paper
    tree: Located

    def loaded(self, arm: str, seed: int, made: Mapping[str, Path], more: Mapping[str, object]) -> LoadedScenario:
        """Scenario of an arm.

        Parameters
        ----------
        arm : str
            Its name.
        seed : int
            Root of its random streams.
        made : mapping
            Files of the paper's traces.
        more : mapping
            Further overrides, laid over the arm's.

        Raises
        ------
        ScenarioError
            If it is not valid, with the places in this file.
        MissingDataError
            If a file of the data folder is not there.
        """
        tree = self._base()
        head: dict[str, object] = {"seed": seed}
        if tree.child("schema") is None:
            head["schema"] = 1
        if tree.child("name") is None:
            head["name"] = f"{self.name} {arm}"
        found = {key: self._files(value, made) for key, value in self._overrides(arm).items()}
        tree = self._files(tree, made)
        return load_tree(tree, {**head, **found, **more}, self.path, self.path.absolute().parent)

    def _base(self) -> Located:
        base = self.tree.child("scenario")
        assert base is not None
        if not isinstance(base.value, str):
            return base
        file = self.path.parent / base.value
        tree, findings = read_with_parents(file, os.fspath(file))
        if findings:
            raise ScenarioError(findings)
        return tree

    def _overrides(self, arm: str) -> dict[str, Located]:
        node, _ = self.tree.descend(("arms", arm))
        return dict(node.value) if isinstance(node.value, dict) else {}

    def _files(self, node: Located, made: Mapping[str, Path]) -> Located:
        """The same with names of made traces and of data files as paths."""
        if isinstance(node.value, dict):
            return replace(node, value={key: self._files(child, made) for key, child in node.value.items()})
        if isinstance(node.value, list):
            return replace(node, value=[self._files(child, made) for child in node.value])
        if not isinstance(node.value, str):
            return node
        if node.value.startswith(MADE):
            name = node.value.removeprefix(MADE)
            if name not in self.paper.traces:
                hint = nearest(name, self.paper.traces, "traces")
                raise ScenarioError(Finding(f'no trace "{name}" is made', file=node.file, line=node.line, hint=hint))
            return replace(node, value=os.fspath(made.get(name, node.value)))
        if node.value.startswith(DATA):
            return replace(node, value=os.fspath(_data_file(node.value.removeprefix(DATA))))
        return node


def with_files(value: Any) -> Any:
    """An argument of a function, with names of data files as paths.

    Raises
    ------
    MissingDataError
        If one is not there.
    """
    if isinstance(value, str) and value.startswith(DATA):
        return os.fspath(_data_file(value.removeprefix(DATA)))
    return value


def _data_file(name: str) -> Path:
    path = data_folder() / name
    if not path.is_file():
        raise MissingDataError(f"needs {name} in the folder that FLEETSIM_DATA names")
    return path


def data_folder() -> Path:
    """Folder of public traces and measurements."""
    return Path(os.environ.get("FLEETSIM_DATA", Path("..", "shared", "data"))).absolute()


def papers_folder() -> Path:
    """Folder of the papers that fleetsim carries."""
    return scenarios_folder() / "papers"


def paper_names() -> list[str]:
    """Names of these papers."""
    return sorted(path.stem for path in papers_folder().glob("*.yaml"))


def paper_path(name: str) -> Path:
    """File of a paper by its name, or a file of one's own.

    Raises
    ------
    ScenarioError
        If there is no such paper.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in paper_names():
        raise ScenarioError(Finding(f'no paper "{name}"', hint=nearest(name, paper_names(), "papers")))
    return papers_folder() / f"{name}.yaml"


def load_paper(path: Path) -> PaperFile:
    """Read and validate a paper file.

    Raises
    ------
    ScenarioError
        With every finding at once.
    """
    tree, findings = read_tree(path, os.fspath(path))
    try:
        paper = Paper.model_validate(tree.plain())
    except ValidationError as error:
        raise ScenarioError([*findings, *findings_of(error, tree, Shape(Paper))]) from None
    findings += _unknown_arms(paper, tree)
    if findings:
        raise ScenarioError(findings)
    return PaperFile(path.stem, path, paper, tree)


def _unknown_arms(paper: Paper, tree: Located) -> list[Finding]:
    found = []
    for number, figure in enumerate(paper.figures):
        for key in ("arm", "over", "minus", "order"):
            named = getattr(figure, key)
            for arm in named if isinstance(named, tuple) else [named]:
                if arm is not None and arm not in paper.arms:
                    where = ("figures", number, key)
                    hint = nearest(arm, paper.arms, "arms")
                    found.append(Finding(f'no arm "{arm}"', path_text(where), hint=hint, **place(tree, where)))
    return found
