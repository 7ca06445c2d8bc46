"""The page in a real browser: what a reader sees and does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

import fleetsim
from tests.report.conftest import HOSTILE

LOOKS = {"desktop": (1440, "light"), "phone": (390, "dark")}


@pytest.fixture(scope="module")
def pages(hostile: Path, study: Path, routed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of one run, one of a study, and one of a study of model routers."""
    out = tmp_path_factory.mktemp("pages")
    return {
        "run": fleetsim.report(hostile, out=out / "run.html"),
        "study": fleetsim.report(study, out=out / "study.html"),
        "models": fleetsim.report(routed, out=out / "models.html"),
    }


class Opened:
    """Pages by how they are looked at, opened once; what went wrong, or was asked of a network, is noted."""

    def __init__(self, browser: Browser, pages: dict[str, Path]) -> None:
        self._browser, self._paths = browser, pages
        self._pages: dict[tuple[str, int, str], Page] = {}
        self.wrong: list[str] = []

    def __call__(self, name: str, width: int = 1440, scheme: str = "light") -> Page:
        known = self._pages.get((name, width, scheme))
        if known is not None:
            return known
        context = self._browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = self._pages[name, width, scheme] = context.new_page()
        page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: _note(request.url, self.wrong))
        page.goto(self._paths[name].as_uri())
        page.wait_for_selector("html[data-drawn]", timeout=600_000)
        return page


@pytest.fixture(scope="module")
def every_page(browser: Browser, pages: dict[str, Path]) -> Opened:
    """Opened pages of this module."""
    return Opened(browser, pages)


@pytest.fixture
def opened(every_page: Opened) -> Iterator[Opened]:
    """Opens a page and waits until all figures are drawn; nothing may go wrong meanwhile."""
    yield every_page
    assert every_page.wrong == []


def _note(url: str, wrong: list[str]) -> None:
    if not url.startswith(("file:", "data:", "blob:")):
        wrong.append(f"request: {url}")


SIZES = """() => [...document.querySelectorAll(".plot")].filter(n => !n.closest("[hidden]")).map(n => {
  const svg = n.querySelector("svg.main-svg"), box = svg && svg.getBoundingClientRect();
  return [n.id, box ? box.width : 0, box ? box.height : 0, n.querySelectorAll(".trace, .hm, .heatmaplayer image").length];
})"""


@pytest.mark.parametrize("name", ["run", "study", "models"])
@pytest.mark.parametrize(("width", "scheme"), LOOKS.values(), ids=LOOKS)
def test_all_figures_are_drawn_and_nothing_overflows(
    opened: Opened, name: str, width: int, scheme: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    page = opened(name, width, scheme)
    sizes = page.evaluate(SIZES)
    assert len(sizes) >= 9
    for figure, wide, high, traces in sizes:
        assert wide > 250, figure
        assert high > 120, figure
        assert traces > 0, f"{figure} is empty"
    across, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert across <= window
    screens = tmp_path_factory.mktemp("screens", numbered=True)
    shot = screens / f"{name}-{width}-{scheme}.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 100_000


def test_a_hostile_name_is_only_text(opened: Opened) -> None:
    page = opened("run")
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.title() == f"{HOSTILE} · fleetsim"
    assert page.locator("b", has_text="bold").count() == 0
    assert page.get_by_role("cell", name="<b>bold</b>").count() >= 1


def test_hovering_tells_the_value(opened: Opened) -> None:
    page = opened("run")
    plot = page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    point = plot.locator(".points path.point").first.bounding_box()
    assert point is not None
    page.mouse.move(point["x"] + point["width"] / 2 + 30, point["y"] + 2)
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2, steps=4)
    page.wait_for_selector(".hoverlayer .hovertext", timeout=60_000)
    told = plot.locator(".hoverlayer").text_content()
    assert "p50" in told or "within" in told


def test_a_click_in_the_legend_hides_a_line(opened: Opened) -> None:
    page = opened("study")
    plot = page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    before = plot.locator(".scatterlayer .trace").count()
    toggle = plot.locator(".legendtoggle").first.bounding_box()
    assert toggle is not None
    page.mouse.click(toggle["x"] + 20, toggle["y"] + toggle["height"] / 2)
    page.wait_for_function(
        "before => document.querySelector('.plot').querySelectorAll('.scatterlayer .trace').length < before", arg=before
    )


def test_tables_sort_by_value(opened: Opened) -> None:
    page = opened("study")
    table = page.locator("table.sortable").first
    head = table.locator("th", has_text="TTFT p99")
    column = head.evaluate("node => node.cellIndex")
    read = f"node => [...node.tBodies[0].rows].map(row => Number(row.cells[{column}].dataset.value))"
    head.click()
    values = table.evaluate(read)
    assert len(set(values)) > 1
    assert values == sorted(values, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    head.click()
    assert table.evaluate(read) == sorted(values)
    assert head.get_attribute("aria-sort") == "ascending"


def test_the_button_and_the_system_choose_light_or_dark(opened: Opened) -> None:
    page = opened("run", 390, "dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('.plot .xtitle').style.fill"
    assert page.evaluate(paper) == "rgb(15, 18, 23)"
    dark = page.evaluate(ink)
    page.locator("#theme").click()
    page.wait_for_function(f"before => {ink} !== before", arg=dark)
    assert page.evaluate(paper) == "rgb(246, 247, 249)"
    page.locator("#theme").click()
    page.wait_for_function(f"before => {ink} === before", arg=dark)


def test_a_reader_switches_between_runs(opened: Opened) -> None:
    page = opened("study")
    section = page.locator("#heat")
    buttons = section.locator(".choices button")
    assert buttons.count() >= 2
    shown = section.locator("figure:visible")
    first = shown.get_attribute("data-run")
    buttons.nth(1).click()
    assert shown.count() == 1
    assert shown.get_attribute("data-run") not in (None, first)
    shown.locator("svg.main-svg").first.wait_for()


@pytest.mark.parametrize("width", [1440, 390])
def test_figures_of_answers_fit_and_switch(opened: Opened, width: int) -> None:
    page = opened("models", width, "light" if width > 1000 else "dark")
    for title in page.locator("#quality .plot .xtitle, #quality .plot .ytitle").all():
        text, plot = title.bounding_box(), title.locator("xpath=ancestor::div[contains(@class, 'plot ')]").first
        around = plot.bounding_box()
        assert text is not None
        assert around is not None
        assert text["x"] >= around["x"] - 1, title.text_content()
        assert text["x"] + text["width"] <= around["x"] + around["width"] + 1, title.text_content()
    section = page.locator("#models")
    for button in section.locator(".choices button").all():
        button.click()
        assert section.locator("figure:visible").get_attribute("data-run") == button.get_attribute("data-run")
        assert section.locator("figure:visible .scatterlayer .trace").count() >= 1


def test_formulas_are_told_on_hover(opened: Opened) -> None:
    page = opened("run")
    tile = page.locator(".tile", has_text="TTFT p99")
    assert "first_token_s" in (tile.get_attribute("title") or "")


def test_it_prints_white_with_all_figures_within_the_page(opened: Opened, tmp_path: Path) -> None:
    page = opened("study")
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("[...document.querySelectorAll('.plot svg.main-svg')].every(n => n.clientWidth <= 700)")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("header.top").is_visible()
    pdf = tmp_path / "page.pdf"
    page.pdf(path=pdf, format="A4")
    assert pdf.read_bytes().count(b"/Type /Page") >= 4
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")


def test_nothing_but_the_file_is_needed(pages: dict[str, Path]) -> None:
    text = pages["run"].read_text(encoding="utf-8")
    assert len(text.encode()) < 8e6
    head = text[: text.index("<script>", text.index("</main>"))]
    assert 'src="' not in head.replace('src="data:', "")
    assert "http" not in head.split("</style>")[0]
