"""The documentation site: built without a network and without a warning, and no link of it leads nowhere."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("sphinx")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "-E",
        "-b",
        "html",
        "-d",
        f"{out}/doctrees",
        "docs",
        f"{out}/html",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out / "html"


class Page(HTMLParser):
    """Where a page leads, what it loads, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {str(given[name]) for name in ("id", "name") if given.get(name)}
        target = given.get("href") or given.get("src")
        if not target:
            return
        if tag == "a":
            self.links.append(target)
        elif tag in ("script", "img", "iframe") or "stylesheet" in (given.get("rel") or ""):
            self.loaded.append(target)


def test_no_link_is_dead_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 100
    dead = []
    for path, page in pages.items():
        assert not [target for target in page.loaded if urlsplit(target).netloc], path
        for target in [*page.links, *page.loaded]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not file.exists() or (file in pages and unquote(parts.fragment) not in pages[file].anchors):
                dead.append(f"{path.relative_to(site)} -> {target}")
    assert not dead, "\n".join(dead[:20])


def test_reference_names_every_field_column_metric_and_command(site: Path) -> None:
    from fleetsim.cli.main import COMMANDS
    from fleetsim.metrics.definitions import METRICS
    from fleetsim.output.tables import TABLES
    from fleetsim.scenario.schema import Pool, Scenario

    def text(name: str) -> str:
        return (site / "reference" / f"{name}.html").read_text(encoding="utf-8")

    fields = [field.alias or name for block in (Scenario, Pool) for name, field in block.model_fields.items()]
    assert not [name for name in fields if f">{name}<" not in text("scenario")]
    assert not [
        column.name for columns in TABLES.values() for column in columns if f">{column.name}<" not in text("tables")
    ]
    assert not [metric.name for metric in METRICS if f">{metric.name}<" not in text("metrics")]
    assert not [name for name in COMMANDS if f"fleetsim {name}" not in text("commands")]
