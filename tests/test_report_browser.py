"""report.html in a browser: its controls work, and text of a model is never markup. Needs Chromium."""

import copy
import re
import shutil

import pytest

from selfreward_jax.report import page as report
from selfreward_jax.report import summary
from selfreward_jax.runs.run import open_run
from selfreward_jax.stages.table import TABLE

pytestmark = pytest.mark.browser

OPTIONS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
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
    run = open_run(str(finished_run))
    return summary.gather(run, TABLE), report._load_rows(run), report._describe_run(run, TABLE)


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens a page. At the end there must be no console message, no error and no network request."""
    complaints, requests, contexts = [], [], []

    def open_page(parts, **how):
        path = tmp_path / "report.html"
        path.write_text(report.render(*parts))
        contexts.append(browser.new_context(**how))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1000, 1600])
def test_the_page_fits_every_screen(opened, parts, width, scheme):
    page = opened(parts, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.locator("svg").count() >= 6
    shown = page.locator("svg text").first.evaluate("(e) => getComputedStyle(e).fill")
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert shown == ink


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
    page = opened((results, rows, metadata))
    for section in ("pairs", "answers"):
        for i in range(entries(page, section).count()):
            entries(page, section).nth(i).locator("summary").click()
    page.wait_for_function("document.querySelectorAll('#pairs .side.rejected .vote').length === 7")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, b:has-text('bold'), textarea").count() == 0
    assert page.locator("script").count() == 3 + 1  # pairs, votes, answers and the page's own
    texts = page.locator("#pairs .side.chosen > .content").all_text_contents()
    assert texts[:3] == list(HOSTILE.values())[:3]
    assert texts[3:5] == [r"good \u202e dab", r"\x1b]0;title\x07\x1b[31mred"]
    assert len(texts[5]) < 5000
    assert texts[6] == HOSTILE["template"]
    assert page.locator("h1").inner_text() == HOSTILE["script"] + HOSTILE["image"]


def test_without_javascript_the_charts_are_shown(opened, parts):
    page = opened(parts, java_script_enabled=False)
    assert page.locator("svg").count() >= 6
    assert "python -m selfreward_jax explain" in page.locator("#pairs").inner_text()
