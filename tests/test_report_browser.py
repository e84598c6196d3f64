"""report.html in a browser: its controls work, and text of a model is never markup. Needs Chromium."""

import copy
import re
import shutil
import subprocess

import pytest

from selfreward_jax.report import page as report
from selfreward_jax.runs.run import open_run
from selfreward_jax.stages.table import TABLE

pytestmark = pytest.mark.browser

OPTIONS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()


def read_by_a_shell(command):
    """The words that a shell makes of a command."""
    out = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True).stdout
    return out.decode().split("\0")[:-1]


HOSTILE = {
    "script": "<script>window.hacked = 1</script>",
    "image": '<img src=x onerror="window.hacked = 2">',
    "textarea": "</textarea></script></style><b>bold</b>",
    "override": "good \u202e dab",
    "terminal": "\x1b]0;title\x07\x1b[31mred",
    "long": "long " + "y" * 1_000_000,
    "template": "{{ 7 * 7 }} {% raw %}",
}


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def parts(finished_run):
    return report.gather(open_run(str(finished_run)), TABLE)


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens a page, with a clock that the test moves if `clock` is given. At the end there must be no
    console message, no error and no network request."""
    complaints, requests, contexts = [], [], []

    def open_page(parts, clock=None, **how):
        path = tmp_path / "report.html"
        path.write_text(report.render(*parts))
        contexts.append(browser.new_context(**how))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        if clock is not None:
            page.clock.install(time=clock)
        page.goto(path.as_uri())
        if how.get("java_script_enabled", True):
            page.wait_for_selector("#pairs[data-ready=yes]", state="attached")
            page.wait_for_selector("#answers[data-ready=yes]", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.endswith("/report.html")] == []


def cut_off(page):
    """Texts of charts, cells and tiles that reach beyond what contains them."""
    return page.evaluate("""() => {
      const outside = (part, whole) => {
        const a = part.getBoundingClientRect(), b = whole.getBoundingClientRect();
        const beyond = [b.left - a.left, a.right - b.right, b.top - a.top, a.bottom - b.bottom];
        return a.width > 0 && Math.max(...beyond) > 1;
      };
      const found = [];
      for (const svg of document.querySelectorAll("svg"))
        for (const text of svg.querySelectorAll("text")) if (outside(text, svg)) found.push(text.textContent);
      for (const box of document.querySelectorAll(".scroll, .charts > div, .tile"))
        for (const part of box.querySelectorAll("td, th, span")) if (outside(part, box)) found.push(part.textContent);
      return found;
    }""")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1000, 1600])
def test_the_page_fits_every_screen(opened, parts, width, scheme):
    page = opened(parts, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.locator("svg").count() >= 6
    assert cut_off(page) == []
    options = page.locator("#next code span", has_text=re.compile("^--model"))  # a line breaks between options only
    assert options.count() == 2
    assert all(option.bounding_box()["height"] < 30 for option in options.all())
    shown = page.locator("svg text").first.evaluate("(e) => getComputedStyle(e).fill")
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert shown == ink


def test_a_tile_has_a_sign_and_leads_to_its_reason(opened, parts):
    page = opened(parts, viewport={"width": 1000, "height": 700})
    tiles = page.locator(".tile")
    assert tiles.locator(".question").all_inner_texts() == ["better?", "judge beyond length?", "checks", "time"]
    assert page.locator("#next code").count() >= 2
    first_screen = page.evaluate("document.querySelector('#next').getBoundingClientRect().bottom")
    assert first_screen < 700
    for i in range(4):
        symbol, _, word = tiles.nth(i).locator(".sign").inner_text().partition(" ")
        assert (len(symbol), symbol.isalnum(), bool(re.search(r"\w", word))) == (1, False, True)
        tiles.nth(i).click()
        section = page.locator(tiles.nth(i).get_attribute("href"))
        assert section.locator("h2").count() == 1
        assert section.bounding_box()["y"] < 700
        page.evaluate("scrollTo(0, 0)")
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1


def test_the_chart_has_each_model_and_what_to_compare_with(opened, parts):
    page = opened(parts)
    charts = page.locator("#chart svg")
    score, judge, wins = (charts.nth(i).locator("text").all_text_contents() for i in range(3))
    assert all({"M1", "M2", "model"} <= set(texts) for texts in (score, judge))
    results = parts[0]["models"].values()
    assert {f"{m['oracle']['mean']:.2f}" for m in results} <= set(score)
    assert {f"{m['judge']['pairwise_accuracy']:.2f}" for m in results} <= set(judge)
    assert "chance" in "".join(judge)
    assert "answer" in "".join(judge)
    assert "M2 : M1" in wins
    assert charts.nth(1).locator("[stroke-dasharray]").count() >= 1
    assert charts.nth(0).locator("[stroke-dasharray]").count() == 0
    for svg in page.locator("svg").all():  # each axis says what it shows; of bars, the names of rows do
        labels = svg.get_attribute("aria-label") or ""
        assert labels
        assert svg.locator("text").count() >= 5


def running(parts, **changes):
    """The same page, of a run in progress."""
    state = parts[2]["state"]._replace(word="running", stage="m2 dpo", left=600.0, stage_left=60.0, at=NOW, **changes)
    return parts[0], parts[1], parts[2] | {"state": state}


NOW = 1_000_000.0


def test_the_page_of_a_run_in_progress_reloads_itself(opened, parts, tmp_path):
    page = opened(running(parts), clock=NOW + 120)
    tile = page.locator(".tile.running")
    for words in (
        "▶ running",
        "round 2 of 2",
        "At m2 dpo, about 60 s left",
        "About 10 min left",
        "1970-01-12 13:56 UTC",
    ):
        assert words in tile.inner_text()
    assert "2 min ago" in page.locator("#age").inner_text()
    file = tmp_path / "report.html"
    later = file.read_text().replace("At m2 dpo", "At m2 eval_answers")
    file.write_text(later)
    page.fill("#pairs [name=search]", "e")  # a reader would lose it
    page.clock.fast_forward(1000 * (report.RELOAD_SECONDS + 1))
    assert "At m2 dpo" in page.locator(".tile.running").inner_text()
    page.fill("#pairs [name=search]", "")
    page.locator("h1").click()  # leaves the field
    page.clock.fast_forward(1000 * (report.RELOAD_SECONDS + 1))
    page.wait_for_selector(".tile.running:has-text('At m2 eval_answers')")
    file.write_text(report.render(*parts))
    page.clock.fast_forward(1000 * (report.RELOAD_SECONDS + 1))
    page.wait_for_selector("#time")
    page.wait_for_function("!document.querySelector('.tile.running')")
    assert "✓ finished" in page.locator(".tile").last.inner_text()
    file.write_text(later)
    page.clock.fast_forward(1000 * (report.RELOAD_SECONDS + 1))  # a finished page stays
    assert "✓ finished" in page.locator(".tile").last.inner_text()


def test_a_page_that_nobody_rewrites_tells_its_age(opened, parts):
    page = opened(running(parts), clock=NOW + 7200)
    assert "120 min ago; if the run has ended" in page.locator("#age").inner_text()
    page = opened(running(parts), java_script_enabled=False)
    assert page.locator("meta[http-equiv=refresh]").get_attribute("content") == str(report.RELOAD_SECONDS)


def test_a_run_on_own_data_says_what_is_not_measured(opened, parts):
    results, rows, metadata = copy.deepcopy(parts)
    for metrics in results["models"].values():
        del metrics["oracle"], metrics["versus"]
    metadata["measured"]["score_intervals"] = {}
    for width in (400, 1600):
        page = opened((results, rows, metadata), viewport={"width": width, "height": 900})
        assert "○ not measured" in page.locator(".tile").first.inner_text()
        for place in ("#next", "#progress"):
            assert "selfreward-jax evaluate --workdir=" in page.locator(place).inner_text()
        assert page.locator("#chart svg").count() == 1
        assert cut_off(page) == []
    rates = parts[0]["models"]["m2"]["versus"]["m1"]
    metadata["measured"]["evaluations"] = {"m2": {"m2": {"m1": rates}}}
    page = opened((results, rows, metadata))
    assert "Judged by M2 of this run" in page.locator(".tile").first.inner_text()
    assert "points, judged by M2" in page.locator("#chart svg").first.locator("text").all_text_contents()


def test_the_examples_are_open(opened, parts):
    pairs = parts[1]["rounds"]["m2"]["pairs"]
    page = opened(parts, java_script_enabled=False)
    articles = page.locator("#prefers article")
    assert articles.count() == min(6, len(pairs))
    gaps = [p["chosen_score"] - p["rejected_score"] for p in pairs]
    assert articles.first.locator("code").inner_text() == pairs[gaps.index(max(gaps))]["id"]
    assert articles.first.locator(".side.chosen .vote .content").first.is_visible()


def entries(page, section="pairs"):
    return page.locator(f"#{section} .list > details")


def numbers(element):
    return [int(x) for x in re.findall(r"\d+", element.inner_text())]


def same(shown, texts):
    """Whether these are the texts. The page shows a note in place of an empty one."""
    return all(a == b or (a and not b) for a, b in zip(shown, texts, strict=True))


def test_search_filter_and_order(opened, parts):
    pairs = parts[1]["rounds"]["m2"]["pairs"]
    page = opened(parts)
    count = page.locator("#pairs output")
    assert numbers(count) == [len(pairs)] * 2
    assert entries(page).count() == min(50, len(pairs))
    word = max(pairs[0]["prompt"].split(), key=len)
    matching = [
        p["id"] for p in pairs if word.lower() in "\n".join([p["id"], p["prompt"], p["chosen"], p["rejected"]]).lower()
    ]
    page.fill("#pairs [name=search]", word.upper())
    assert numbers(count) == [len(matching), len(pairs)]
    assert entries(page).locator("code").all_inner_texts() == matching[:50]
    page.fill("#pairs [name=search]", "no such text anywhere")
    assert entries(page).count() == 0
    page.fill("#pairs [name=search]", "")
    gaps = [p["chosen_score"] - p["rejected_score"] for p in pairs]
    middle = sorted(gaps)[len(gaps) // 2]
    page.fill("#pairs [name=gap]", str(middle))
    assert numbers(count) == [sum(g >= middle for g in gaps), len(pairs)]
    page.fill("#pairs [name=gap]", "0")
    page.select_option("#pairs [name=order]", "widest")
    assert entries(page).locator("code").first.inner_text() == pairs[gaps.index(max(gaps))]["id"]
    page.select_option("#pairs [name=round]", "m2")
    assert numbers(count) == [len(pairs)] * 2


def test_a_pair_shows_both_sides_and_their_votes(opened, parts):
    rows = parts[1]["rounds"]["m2"]
    pair = rows["pairs"][0]
    page = opened(parts)
    entries(page).first.locator("summary").click()
    page.wait_for_selector("#pairs .side.rejected")
    for side in ("chosen", "rejected"):
        box = entries(page).first.locator(f".side.{side}")
        assert box.locator("> .content").text_content() == pair[side]
        (answers,) = [c["responses"] for c in rows["responses"] if c["id"] == pair["id"]]
        ids = {f"{pair['id']}/{i}" for i, a in enumerate(answers) if a["text"] == pair[side]}
        judged = [j["votes"] for j in rows["judgments"] if j["id"] in ids and j["score"] == pair[f"{side}_score"]]
        assert same(box.locator(".vote .content").all_text_contents(), [v["text"] for v in judged[0]])
    assert f"--pair='{pair['id']}'" in entries(page).first.inner_text()


def test_the_same_prompt_answered_by_every_model(opened, parts):
    answers = {name: rows[0] for name, rows in parts[1]["answers"].items()}
    page = opened(parts)
    first = entries(page, "answers").first
    first.locator("summary").click()
    first.locator(".side").first.wait_for()  # a row is filled after the click
    assert first.locator(".side h4").all_inner_texts() == [name.upper() for name in answers]
    for i, row in enumerate(answers.values()):
        texts = first.locator(".side").nth(i).locator(".content").all_text_contents()
        assert same(texts, [r["text"] for r in row["responses"]])


def test_hostile_text_stays_text(opened, parts):
    results, rows, metadata = copy.deepcopy(parts)
    round_rows = rows["rounds"]["m2"]
    pair = round_rows["pairs"][0]
    hostile = []
    for i, text in enumerate(HOSTILE.values()):
        hostile.append(pair | {"id": f"m2/{9000 + i}", "prompt": text, "chosen": text, "rejected": f"{text}!"})
    round_rows["pairs"] = hostile
    round_rows["responses"] = [
        {"id": p["id"], "responses": [{"text": p["chosen"]}, {"text": p["rejected"]}]} for p in hostile
    ]
    round_rows["judgments"] = [
        {"id": f"{p['id']}/{i}", "score": p[f"{side}_score"], "votes": [{"score": 3.0, "text": p["chosen"]}]}
        for p in hostile
        for i, side in enumerate(("chosen", "rejected"))
    ]
    for answers in rows["answers"].values():
        for i, text in enumerate(HOSTILE.values()):
            answers[i % len(answers)]["responses"][0]["text"] = text
            answers[i % len(answers)]["prompt"] = text
    metadata["name"] = metadata["settings"]["judge.template"] = HOSTILE["script"] + HOSTILE["image"]
    metadata["workdir"] = f"runs/o'brien {HOSTILE['script']}{HOSTILE['override']}"
    page = opened((results, rows, metadata))
    for section in ("pairs", "answers"):
        for i in range(entries(page, section).count()):
            entries(page, section).nth(i).locator("summary").click()
    page.wait_for_function("document.querySelectorAll('#pairs .side.rejected .vote').length === 7")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, b:has-text('bold'), textarea").count() == 0
    assert page.locator("script").count() == 3 + 1  # pairs, votes, answers and the page's own
    examples = page.locator("#prefers .prompt").all_text_contents()
    assert (len(examples), examples[:3]) == (6, list(HOSTILE.values())[:3])
    assert max(map(len, examples)) < 700
    command = page.locator("#next code").first.inner_text()
    assert HOSTILE["script"] in command
    assert "\u202e" not in command
    words = read_by_a_shell(entries(page).first.locator("p code").inner_text())
    workdir = f"runs/o'brien {HOSTILE['script']}{HOSTILE['override']}"
    assert words == ["selfreward-jax", "explain", f"--workdir={workdir}", "--pair=m2/9000"]
    texts = page.locator("#pairs .side.chosen > .content").all_text_contents()
    assert texts[:3] == list(HOSTILE.values())[:3]
    assert texts[3:5] == [r"good \u202e dab", r"\x1b]0;title\x07\x1b[31mred"]
    assert len(texts[5]) < 5000
    assert texts[6] == HOSTILE["template"]
    assert page.locator("h1").inner_text() == HOSTILE["script"] + HOSTILE["image"]


def test_without_javascript_the_charts_are_shown(opened, parts):
    page = opened(parts, java_script_enabled=False)
    assert page.locator("svg").count() >= 6
    assert page.locator("meta[http-equiv=refresh]").count() == 0  # the run is finished
    assert "selfreward-jax explain" in page.locator("#pairs").inner_text()
