"""Makes the two pictures of docs/report.md: a sweep, its page, and what a browser shows of it.

``python docs/report_screens.py`` needs the extra ``test`` and Debian's chromium. It takes about two minutes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

import fleetsim

HERE = Path(__file__).parent


def main() -> None:
    """Run, draw, look."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "routers"
        sweep = HERE.parent / "scenarios/sweeps/routers.yaml"
        subprocess.run([sys.executable, "-m", "fleetsim", "sweep", sweep, "-o", study, "-q"], check=True)
        run = fleetsim.run("embedded:autoscale", out=Path(folder) / "autoscale")
        pages = {"study": fleetsim.report(study), "run": fleetsim.report(run.out)}
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1240, "height": 1180})
            look(page, pages["study"], "#answer", HERE / "report-study.png")
            look(page, pages["run"], "#heat", HERE / "report-run.png")
            browser.close()


def look(page: Page, html: Path, place: str, picture: Path) -> None:
    """What stands from `place` on, in the window."""
    page.goto(html.absolute().as_uri())
    page.wait_for_selector("html[data-drawn]")
    page.evaluate(f"document.querySelector('{place}').scrollIntoView({{behavior: 'instant'}})")
    page.wait_for_timeout(500)
    page.screenshot(path=picture)


if __name__ == "__main__":
    main()
