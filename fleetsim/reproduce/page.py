"""What is written: the page of reproductions, and our figures into the paper files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fleetsim import __version__
from fleetsim.reproduce.paper import VERDICTS, Figure, Ours
from fleetsim.reproduce.reproduce import ORDER_BAND, Outcome

HEAD = """\
# Reproductions

Published figures beside what fleetsim gets from the same rule in a similar setting. Written by `fleetsim reproduce`; one paper
again: `fleetsim reproduce NAME`. Every paper is a file in `scenarios/papers`: setting, arms, accepted bands and the figures below.
`fleetsim/reproduce/paper.py` begins with their format; CONTRIBUTING.md tells how to add one.

- **Ours** is the mean over the seeds with its 95 % confidence interval (Student's t); arms share their random numbers, and ratios
  and differences are taken seed by seed.
- **Verdict**: *reproduced* where the mean lies in the accepted band (where only a direction is claimed: on the published side);
  *direction only* where it lies outside, but on the published side of 1 (ratios) or 0 (differences); *not reproduced* otherwise.
  A paper's verdict is that of its worst headline figure. An order of policies must hold in four of five seeds.
- Bands are set before the run: what a simulator with fitted step times can be held to, ±15-25 % for ratios of two policies under
  one cost model; exact results have a few percent. Nothing is tuned to hit a figure.
"""


def page(outcomes: Sequence[Outcome]) -> str:
    """The whole page as Markdown."""
    counts = {verdict: sum(outcome.verdict == verdict for outcome in outcomes) for verdict in VERDICTS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    parts = [HEAD, f"{len(outcomes)} papers: {told}.\n", _table(outcomes)]
    parts += [_section(outcome) for outcome in outcomes]
    return "\n".join(parts)


def _table(outcomes: Sequence[Outcome]) -> str:
    lines = ["| paper | figure | published | accepted | ours | verdict |", "|---|---|--:|--:|--:|---|"]
    for outcome in outcomes:
        name = outcome.file.name
        for figure, ours in zip(outcome.file.paper.figures, outcome.ours, strict=True):
            word = "skipped" if outcome.skipped else ours.verdict
            title = figure.name if figure.headline else f"{figure.name} (beside)"
            cells = (f"[{name}](#{_anchor(name)})", title, published(figure), accepted(figure), told(ours), word)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _section(outcome: Outcome) -> str:
    paper = outcome.file.paper
    reference = paper.paper
    lines = [f"## {outcome.file.name}", "", f"{reference.title}. {reference.venue}, {reference.link}.", ""]
    lines += [f"**Verdict: {outcome.verdict}**" + (f" ({outcome.skipped})" if outcome.skipped else "") + ".", ""]
    lines += [f"Published setting: {_flat(paper.setting)}", ""]
    if paper.differs:
        lines += [f"Here: {_flat(paper.differs)}", ""]
    if paper.finding:
        lines += [f"Finding: {_flat(paper.finding)}", ""]
    for figure, ours in zip(paper.figures, outcome.ours, strict=True):
        seeds = f", {ours.seeds} seeds" if ours.seeds > 1 else ""
        note = f" {_flat(figure.note)}" if figure.note else ""
        lines.append(f"- {figure.name}: {published(figure)} ({figure.source}); ours {told(ours)}{seeds}.{note}")
    lines += ["", f"`fleetsim reproduce {outcome.file.name}`", ""]
    return "\n".join(lines)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def number(value: float) -> str:
    """A figure as people write it."""
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def published(figure: Figure) -> str:
    """The paper's figure."""
    value = figure.published
    return value if isinstance(value, str) else f"{number(value)} {figure.unit}".rstrip()


def accepted(figure: Figure) -> str:
    """The accepted band, or the side that is."""
    if figure.band is not None:
        return "–".join(number(end) for end in figure.band)
    if figure.order:
        return f"order in {ORDER_BAND[0]:.0%} of seeds"
    assert figure.middle is not None
    assert not isinstance(figure.published, str)
    return f"{'above' if figure.published > figure.middle else 'below'} {number(figure.middle)}"


def told(ours: Ours) -> str:
    """Our figure with its interval."""
    if ours.value is None:
        return "–"
    if ours.low is None or ours.high is None or ours.low == ours.high:
        return number(ours.value)
    return f"{number(ours.value)} ({number(ours.low)} to {number(ours.high)})"


def write_back(outcome: Outcome) -> None:
    """Write what we got into the paper's file; its comments and order stay."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1 << 30  # no line is broken anew
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(outcome.file.path.read_text(encoding="utf-8"))
    for figure, ours in zip(content["figures"], outcome.ours, strict=True):
        block = CommentedMap(ours.model_dump(exclude_none=True))
        block.fa.set_flow_style()
        figure["ours"] = block
    content["recorded"] = CommentedMap({"fleetsim": __version__})
    content["recorded"].fa.set_flow_style()
    part = Path(f"{outcome.file.path}.part")
    with part.open("w", encoding="utf-8") as stream:
        yaml.dump(content, stream)
    part.replace(outcome.file.path)
