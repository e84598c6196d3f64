"""docs/report.png and docs/chart.png: the head of a run's report, and its chart.

python docs/pictures.py --report=runs/default/report.html

Needs Chromium, and playwright (the extra dev).
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent
CHARTS = 2  # of the page's first charts: the answers, and the judge


def main() -> None:
    """Takes both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", required=True, help="report.html of a run")
    report = Path(parser.parse_args().report).resolve()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 1150}, color_scheme="light")
        page.goto(report.as_uri())
        boxes = [page.locator("#chart > div").nth(i).bounding_box() for i in range(CHARTS)]
        left, top = min(b["x"] for b in boxes), min(b["y"] for b in boxes)
        right, bottom = max(b["x"] + b["width"] for b in boxes), max(b["y"] + b["height"] for b in boxes)
        head = {"x": 0, "y": 0, "width": 1000, "height": bottom + 14}
        page.screenshot(path=DOCS / "report.png", clip=head)
        chart = {"x": left - 8, "y": top - 8, "width": right - left + 16, "height": bottom - top + 16}
        page.screenshot(path=DOCS / "chart.png", clip=chart)
        browser.close()


if __name__ == "__main__":
    main()
