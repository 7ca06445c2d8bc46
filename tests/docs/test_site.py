"""The documentation site: built without a network and without a warning, and no link of it leads nowhere."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]


def build(source: Path, out: Path, *settings: str) -> Path:
    """Build pages with the configuration of the documentation; a warning is an error."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-E", "-b", "html", "-c", "docs", "-d", f"{out}/doctrees"]
    command += [*settings, str(source), f"{out}/html"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out / "html"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages in a plain theme: the site's own draws the list of all pages again for each, which takes five times as long."""
    pytest.importorskip("sphinx")
    return build(ROOT / "docs", tmp_path_factory.mktemp("site"), "-D", "html_theme=basic")


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
    assert len(check_links(site)) > 100


def test_theme_of_the_site_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """A page with a page below it, in the theme that the configuration names."""
    pytest.importorskip("sphinx")
    source = tmp_path / "source"
    source.mkdir()
    (source / "index.md").write_text("# First\n\n```{toctree}\nsecond\n```\n\n[Second](second.md#part)\n", "utf-8")
    (source / "second.md").write_text("# Second\n\n## Part\n\n```sh\nfleetsim run\n```\n", "utf-8")
    pages = check_links(build(source, tmp_path))
    (first,) = (page for path, page in pages.items() if path.name == "index.html")
    assert any("furo" in target for target in first.loaded)
    assert "second.html#part" in first.links


def check_links(site: Path) -> dict[Path, Page]:
    """Pages of a built site, of which no link is dead and which load nothing from elsewhere."""
    pages = {path: Page(path) for path in site.rglob("*.html")}
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
    return pages


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
