"""report.html: what it holds, what it leaves out, and that nothing in it is obeyed."""

import base64
import gzip
import hashlib
import json
import random
import re
import shutil
from html.parser import HTMLParser

import pytest
from conftest import ended

from selfreward_jax import reporting
from selfreward_jax.report import blocks, charts, page, summary
from selfreward_jax.run import Run


def unpacked(block):
    return json.loads(gzip.decompress(base64.b64decode(block)))


class Read(HTMLParser):
    """Elements with their attributes, and the text of each element that has an id or is a script or a style."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._at = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._at = dict(attrs).get("id") or (tag if tag in ("script", "style") else None)

    def handle_data(self, data):
        if self._at:
            self.texts[self._at] = self.texts.get(self._at, "") + data

    def handle_endtag(self, tag):
        self._at = None


@pytest.fixture(scope="module")
def parts(made):
    """What the page of an uninterrupted run is made from."""
    run = Run.reopen(str(made))
    return summary.gather(run), page._rows(run), page._about(run)


@pytest.fixture(scope="module")
def text(parts):
    return page.render(*parts)


def test_a_run_leaves_a_report_of_its_end(made, text):
    there = (made / "report.html").read_text()
    assert "finished" in there
    for model in ("M1", "M2"):
        assert f"<td>{model}</td>" in there
    stamp = re.compile(r"written [0-9: UTC-]+")
    # The time that the report itself took is in the later one.
    cut = lambda s: stamp.sub("", s[: s.index('<section id="time">')])  # noqa: E731
    assert cut(there) == cut(text)


def test_figures_are_those_of_the_summary(made, text):
    found = json.loads((made / "summary.json").read_text())
    for of in found["models"].values():
        assert f"<td>{of['oracle']['mean']:.2f}</td><td>{of['oracle']['perfect']:.3f}</td>" in text
        assert f"<td>{of['judge']['pairwise_accuracy']:.3f}</td>" in text
    margin = 100 * found["models"]["m2"]["versus"]["m1"]["margin"]
    assert f"{margin:+.1f} points" in text
    assert "the paper's M2" in text
    assert "<td>0.804</td>" in text


def test_its_policy_allows_its_own_script_and_style_and_nothing_else(text):
    read = Read(text)
    (policy,) = [a["content"] for tag, a in read.elements if a.get("http-equiv") == "Content-Security-Policy"]
    digest = lambda part: base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()  # noqa: E731
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest(read.texts['style'])}';" in policy
    assert f"script-src 'sha256-{digest(read.texts['script'])}';" in policy
    assert "unsafe" not in policy
    assert not [(tag, a) for tag, a in read.elements if "style" in a or any(name.startswith("on") for name in a)]
    assert not [a for _, a in read.elements if a.get("src") or not a.get("href", "#").startswith("#")]


def test_every_pair_and_its_votes_are_in_it(made, text):
    texts = Read(text).texts
    columns = unpacked(texts["block-pairs"])
    pairs = [json.loads(line) for line in (made / "m2" / "pairs.jsonl").read_text().splitlines()]
    assert [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] == [
        {name: row[name] for name in columns} for row in pairs
    ]
    votes = unpacked(texts["block-votes-0"])
    judged = [json.loads(line) for line in (made / "m2" / "judgements.jsonl").read_text().splitlines()]
    for pair, sides in zip(pairs, votes, strict=True):
        for said in sides:
            assert any(
                [[v["score"], v["text"]] for v in row["votes"]] == said
                for row in judged
                if row["id"].startswith(pair["id"] + "/")
            )


def test_of_an_unfinished_run_it_shows_what_there_is(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    for name in ("manifest.json", "eval.json", "guards.json"):
        (tmp_path / "run" / "m2" / name).unlink()
    code, said = ended(reporting, f"--workdir={tmp_path}/run")
    assert (code, said) == (0, "")
    text = (tmp_path / "run" / "report.html").read_text()
    assert "M1 of M2 is measured" in text
    assert "<td>M2</td>" in text  # the round has pairs, which are what is looked at before training
    shutil.rmtree(tmp_path / "run" / "m1")
    shutil.rmtree(tmp_path / "run" / "m2")
    assert ended(reporting, f"--workdir={tmp_path}/run") == (0, "")
    assert "No model is measured yet." in (tmp_path / "run" / "report.html").read_text()


def test_where_no_run_is_it_says_so(tmp_path):
    code, said = ended(reporting, f"--workdir={tmp_path}")
    assert code == 2
    assert "holds no run" in said


def test_a_page_that_cannot_be_made_ends_no_run(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made, tmp_path / "run")
    before = (tmp_path / "run" / "report.html").read_bytes()
    monkeypatch.setattr(page, "render", lambda *_: 1 / 0)
    page.Page(Run.reopen(str(tmp_path / "run"))).write()
    assert "report.html is not written, ZeroDivisionError" in capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").read_bytes() == before


def test_it_is_rewritten_for_a_small_share_of_the_time(made, tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(page.time, "monotonic", lambda: now[0])

    class Slow(page.Page):
        def write(self):
            written.append(now[0])
            now[0] += 2.0
            self._written, self._took = now[0], 2.0

    slow = Slow(Run.reopen(str(made)))
    while now[0] < 400:
        now[0] += 1.0
        slow.rewrite()
    assert len(written) >= 8
    assert 2.0 * len(written) <= 0.06 * now[0]


# --- rows --------------------------------------------------------------------------------------------------------


def row(i, text="answer"):
    return {
        "id": f"m2/{i}",
        "prompt": f"prompt {i}",
        "chosen": f"{text} {i}",
        "rejected": f"worse {text} {i}",
        "chosen_score": 4.0,
        "rejected_score": 1.5,
    }


def round_of(rows, vote="good. Score: 4"):
    return {
        "pairs": rows,
        "candidates": [{"id": r["id"], "responses": [{"text": r["rejected"]}, {"text": r["chosen"]}]} for r in rows],
        "judgements": [
            {"id": f"{r['id']}/{i}", "votes": [{"score": 1.5 + 2.5 * i, "text": f"{i} {vote}"}]}
            for r in rows
            for i in (0, 1)
        ],
    }


def test_votes_go_with_their_sides():
    found = blocks.pairs({"m2": round_of([row(i) for i in range(600)])})
    assert (found["count"], found["kept"], found["voted"], len(found["votes"])) == (600, 600, 600, 3)
    assert unpacked(found["votes"][2])[-1] == [[[4.0, "1 good. Score: 4"]], [[1.5, "0 good. Score: 4"]]]


@pytest.mark.parametrize("characters", [300, 3000])
def test_ten_thousand_pairs_fit(characters):
    """In letters at random, which no packing makes much smaller; a text of this world or of people needs less."""
    rng = random.Random(0)
    noise = lambda: "".join(rng.choices("abcdefghijklmnop ", k=characters))  # noqa: E731
    some = [noise() for _ in range(200)]  # drawn once: drawing is what takes the time
    rows = [row(i, f"{i}{some[i % 200][i % 97 :]}{some[i % 199]}") for i in range(10_000)]
    found = blocks.pairs({"m2": round_of(rows, some[0])})
    assert len(found["pairs"]) + sum(map(len, found["votes"])) <= blocks.MOST_BYTES
    kept = unpacked(found["pairs"])["id"]
    assert len(kept) == found["kept"] <= found["count"] == 10_000
    numbers = [int(i.partition("/")[2]) for i in kept]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] >= 10_000 - 2 * 10_000 / len(kept)  # from everywhere


def test_texts_are_inert_and_cut():
    assert blocks.shown("a\x1b[31mb\u202e") == r"a\x1b[31mb\u202e"
    long = blocks.shown("x" * 1_000_000)
    assert long.endswith("[…996,000 more characters]")
    assert len(long) < 4100


def test_only_prompts_that_all_models_answered_are_compared():
    said = lambda i, text: {"id": f"h/{i}", "prompt": f"p{i}", "responses": [{"text": text}]}  # noqa: E731
    found = blocks.answers({"m1": [said(0, "a"), said(1, "b")], "m2": [said(1, "c")]})
    assert unpacked(found["block"]) == {"models": ["m1", "m2"], "prompts": ["p1"], "said": [[["b"], ["c"]]]}


# --- charts ------------------------------------------------------------------------------------------------------

CHARTS = {
    "scores": lambda: charts.scores({"M1": 2.5, "M2": 4.0}, "means", 5),
    "records": lambda: charts.records([("M2 : M1", 0.8, 0.15, 0.05)], "wins"),
    "histograms": lambda: charts.histograms({"M1": {"0": 3, "5": 1}, "M2": {}}, "votes"),
    "lengths": lambda: charts.lengths({"M1": [3, 4, 200], "M2": [7]}, "lengths"),
    "curves": lambda: charts.curves({"loss": [(i, 1 / (1 + i)) for i in range(5000)]}, "loss"),
}


@pytest.mark.parametrize("kind", CHARTS)
def test_a_chart_takes_its_colours_from_the_page(kind):
    svg = CHARTS[kind]()
    assert svg == CHARTS[kind]()
    assert "style" not in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert "var(--" in svg
    assert len(svg) < 60_000
    for reference in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg):
        assert f'id="{"".join(reference)}"' in svg
