"""How long does report.html take to open and to search, with 100 pairs and with 10,000?

    python -m benchmarks.report [--pairs=100,10000] [--turns=5]

Uses pairs of the toy world with three votes on each side, in headless Chromium. Prints a JSON line for each number of
pairs, with medians over new tabs: seconds from the request until the list of pairs is shown, and milliseconds from a
keystroke until the list shows the matches, for the slowest of four searches. Also prints the size of the page and the
seconds to write it. The last line has the ratios. Needs Chromium, and playwright (the extra dev).
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

from selfreward_jax.config import default_config
from selfreward_jax.config.comments import flatten_config
from selfreward_jax.report import page as report
from selfreward_jax.report.run_state import RunState
from selfreward_jax.worlds.toy import generator

_PAIRS = flags.DEFINE_list("pairs", ["100", "10000"], "Numbers of pairs.")
_TURNS = flags.DEFINE_integer("turns", 5, "Tabs opened per number of pairs.")
SEARCHES = ("e", "Hanna", "m2/77", "no such text")
SEARCH = """(query) => new Promise((done) => {
  const field = document.querySelector("#pairs [name=search]"), start = performance.now();
  field.value = query;
  field.dispatchEvent(new Event("input"));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})"""


def page_inputs(count: int) -> tuple[dict, dict, dict]:
    """The arguments of `page.render` for a run that has `count` pairs and nothing else."""
    rng = random.Random(count)
    pairs, responses, judgments = [], [], []
    for i in range(count):
        request = generator.write_request(rng)
        sides = [generator.write_answer(request, fault, rng) for fault in (0.1, 0.6)]
        texts = [f"{side.text}{' ' * number}" for number, side in enumerate(sides)]
        scores = {"chosen_score": 4.0, "rejected_score": rng.choice((0.0, 1.0, 2.5))}
        pairs.append({"id": f"m2/{i}", "prompt": request.text, "chosen": texts[0], "rejected": texts[1], **scores})
        responses.append({"id": f"m2/{i}", "responses": [{"text": text} for text in texts]})
        for number, side in enumerate(sides):
            judged = [side, *(generator.write_answer(request, 0.3, rng) for _ in "12")]  # so that the votes differ
            written = [generator.write_judgment(request, answer) for answer in judged]
            votes = [{"score": float(score), "text": text} for text, score in written]
            score = scores["rejected_score" if number else "chosen_score"]
            judgments.append({"id": f"m2/{i}/{number}", "score": score, "votes": votes})
    results = {"models": {}, "rounds": {}, "stages": [], "seeds": None, "eft": None}
    rows = {"rounds": {"m2": {"pairs": pairs, "responses": responses, "judgments": judgments}}, "answers": {}}
    metadata = {
        "name": "benchmark",
        "workdir": "runs/benchmark",
        "settings": {name: str(value) for name, value in flatten_config(default_config()).items()},
        "written": "",
        "state": RunState("stopped", "m2 dpo", 2, 2, None, 0.0, (), 0.0),
        "measured": {"score_intervals": {}, "judges": {}, "evaluations": {}},
        "stop_reason": "",
    }
    no_time = {"starts": 0, "peak_memory_bytes": 0, "stages": {}, "lost": {}}
    return results, rows, metadata | {"weights": {}, "files": [], "log": [], "time": no_time}


def main(_: list[str]) -> None:
    """Measures and prints."""
    counts, rows = [int(n) for n in _PAIRS.value], {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        pages = {}
        for count in counts:
            inputs, start = page_inputs(count), time.monotonic()
            text = report.render(*inputs)
            rows[count] = {
                "pairs": count,
                "writing_s": round(time.monotonic() - start, 3),
                "bytes": len(text.encode()),
            }
            pages[count] = Path(folder) / f"{count}.html"
            pages[count].write_text(text)
        times: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
        for _turn in range(_TURNS.value):
            for count in counts:
                times[count].append(time_tab(browser, pages[count].as_uri()))
        for count in counts:
            opening, search = (statistics.median(column) for column in zip(*times[count], strict=True))
            rows[count] |= {"open_s": round(opening, 3), "search_ms": round(search, 1)}
            print(json.dumps(rows[count]), flush=True)
        first, last = rows[counts[0]], rows[counts[-1]]
        names = ("open_s", "search_ms", "bytes", "writing_s")
        print(json.dumps({"ratio": {name: round(last[name] / first[name], 2) for name in names}}))
        browser.close()


def time_tab(browser: Any, url: str) -> tuple[float, float]:
    """Seconds until the list is shown, and milliseconds of the slowest search, in a new tab."""
    with browser.new_context() as context:
        tab, start = context.new_page(), time.monotonic()
        tab.goto(url)
        tab.wait_for_selector("#pairs[data-ready=yes]", state="attached")
        opening = time.monotonic() - start
        return opening, max(tab.evaluate(SEARCH, query) for query in SEARCHES)


if __name__ == "__main__":
    app.run(main)
