"""How long does report.html take to open and to search, with 100 pairs and with 10,000?

    python -m benchmarks.report [--pairs=100,10000] [--turns=5]

Pairs of the embedded world with three votes on each side, in headless Chromium. Prints a JSON line for each number of
pairs, with medians over new tabs in turn: seconds from the request until the list of pairs is there, and milliseconds
from a keystroke until the list shows what matches, of the slowest of four searches; the size of the page; and seconds
that writing it takes. The last line has the ratios. Needs Chromium, and playwright (requirements-dev.txt).
"""

import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags
from playwright.sync_api import sync_playwright

from selfreward_jax.report import page as report
from selfreward_jax.worlds.toy import generator

_PAIRS = flags.DEFINE_list("pairs", ["100", "10000"], "Numbers of pairs.")
_TURNS = flags.DEFINE_integer("turns", 5, "Tabs opened for each.")
SEARCHES = ("e", "Hanna", "m2/77", "no such text")
SEARCH = """(words) => new Promise((done) => {
  const field = document.querySelector("#pairs [name=search]"), start = performance.now();
  field.value = words;
  field.dispatchEvent(new Event("input"));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})"""


def parts(count: int) -> tuple[dict, dict, dict]:
    """What a page is made from: a run that has pairs and nothing else."""
    rng = random.Random(count)
    pairs, candidates, judgments = [], [], []
    for i in range(count):
        asked = generator.write_request(rng)
        sides = [generator.write_answer(asked, fault, rng) for fault in (0.1, 0.6)]
        texts = [f"{side.text}{' ' * number}" for number, side in enumerate(sides)]
        scores = {"chosen_score": 4.0, "rejected_score": rng.choice((0.0, 1.0, 2.5))}
        pairs.append({"id": f"m2/{i}", "prompt": asked.text, "chosen": texts[0], "rejected": texts[1], **scores})
        candidates.append({"id": f"m2/{i}", "responses": [{"text": text} for text in texts]})
        for number, side in enumerate(sides):
            seen = [side, *(generator.write_answer(asked, 0.3, rng) for _ in "12")]  # votes are not all alike
            written = [generator.write_judgment(asked, of) for of in seen]
            votes = [{"score": float(score), "text": text} for text, score in written]
            score = scores["rejected_score" if number else "chosen_score"]
            judgments.append({"id": f"m2/{i}/{number}", "score": score, "votes": votes})
    found = {"models": {}, "rounds": {}, "stages": [], "seeds": None, "eft": None}
    rows = {"rounds": {"m2": {"pairs": pairs, "responses": candidates, "judgments": judgments}}, "answers": {}}
    about = {
        "name": "benchmark",
        "workdir": "runs/benchmark",
        "settings": {"seed": "0"},
        "written": "",
        "goal": "m2",
        "said": "",
    }
    return found, rows, about | {"weights": {}, "files": [], "log": []}


def main(_: list[str]) -> None:
    """Measures, prints."""
    counts, found = [int(n) for n in _PAIRS.value], {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        pages = {}
        for count in counts:
            given, start = parts(count), time.monotonic()
            text = report.render(*given)
            found[count] = {
                "pairs": count,
                "writing_s": round(time.monotonic() - start, 3),
                "bytes": len(text.encode()),
            }
            pages[count] = Path(folder) / f"{count}.html"
            pages[count].write_text(text)
        taken: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
        for _turn in range(_TURNS.value):
            for count in counts:
                taken[count].append(opened_and_searched(browser, pages[count].as_uri()))
        for count in counts:
            opening, search = (statistics.median(column) for column in zip(*taken[count], strict=True))
            found[count] |= {"open_s": round(opening, 3), "search_ms": round(search, 1)}
            print(json.dumps(found[count]), flush=True)
        first, last = found[counts[0]], found[counts[-1]]
        names = ("open_s", "search_ms", "bytes", "writing_s")
        print(json.dumps({"ratio": {name: round(last[name] / first[name], 2) for name in names}}))
        browser.close()


def opened_and_searched(browser: Any, url: str) -> tuple[float, float]:
    """Seconds until the list is there, and milliseconds of the slowest search, in a new tab."""
    with browser.new_context() as context:
        tab, start = context.new_page(), time.monotonic()
        tab.goto(url)
        tab.wait_for_selector("#pairs[data-ready=yes]", state="attached")
        opening = time.monotonic() - start
        return opening, max(tab.evaluate(SEARCH, words) for words in SEARCHES)


if __name__ == "__main__":
    app.run(main)
