"""Public traces that fleetsim knows (``traces/manifest.yaml``): where they are, in what format, under what licence."""

from __future__ import annotations

from dataclasses import dataclass

from fleetsim.errors import DataError, Finding, nearest
from fleetsim.workload.embedded import read_yaml

_FILE = "manifest.yaml"


@dataclass(frozen=True)
class PublicTrace:
    """One entry of the manifest."""

    name: str
    title: str
    format: str
    """Trace format, or ``lengths`` for files without times."""
    licence: str
    source: str
    """Where it is described; of a trace that fleetsim carries, the command that makes it."""
    file: str = ""
    """Name to save it under, or the embedded file's."""
    url: str | None = None
    """None for a trace that fleetsim carries, or one that cannot be fetched by a plain address."""
    sha256: str | None = None
    """Checksum of the complete original."""
    sha256_from: str | None = None
    """How the checksum is known; without one a download cannot be verified."""
    bytes: int | None = None
    columns: str = ""
    cite: str = ""
    note: str = ""

    @property
    def embedded(self) -> bool:
        """Whether fleetsim carries it."""
        return self.file.startswith("embedded:")

    def row(self) -> dict[str, str]:
        """One line of ``fleetsim list traces``."""
        where = self.file if self.embedded else ("fetch" if self.url else "by hand")
        return {
            "name": self.name,
            "title": self.title,
            "format": self.format,
            "licence": self.licence,
            "from": where,
            "checksum": "known" if self.sha256 else "–" if self.embedded else "not known",
        }


def list_traces() -> list[PublicTrace]:
    """Every trace of the manifest, by name."""
    entries = read_yaml(_FILE)["traces"]
    return [PublicTrace(name=name, **entries[name]) for name in sorted(entries)]


def find_trace(name: str) -> PublicTrace:
    """The trace called `name`.

    Raises
    ------
    DataError
        If the manifest has none; the hint lists those that it has.
    """
    traces = {trace.name: trace for trace in list_traces()}
    if name not in traces:
        raise DataError(Finding(f'unknown trace "{name}"', hint=nearest(name, traces, "traces")))
    return traces[name]
