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
from conftest import assert_mentions, ended

from selfreward_jax.cli import report
from selfreward_jax.parallel import processes
from selfreward_jax.report import charts, embedded_data, page, summary
from selfreward_jax.runs.run import Run


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
def parts(finished_run):
    """What the page of an uninterrupted run is made from."""
    run = Run.reopen(str(finished_run))
    return summary.gather(run), page._rows(run), page._about(run)


@pytest.fixture(scope="module")
def text(parts):
    return page.render(*parts)


def status(page):
    """How far the run has come, as the page says on top."""
    return re.search('<p class="soft">(.*?)</p>', page)[1]


def test_a_run_leaves_a_report_of_its_end(finished_run, text):
    there = (finished_run / "report.html").read_text()
    assert "M1" not in status(there)
    for model in ("M1", "M2"):
        assert f"<td>{model}</td>" in there
    stamp = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
    # The time that the report itself took is in the later one.
    cut = lambda s: stamp.sub("", s[: s.index('<section id="time">')])  # noqa: E731
    assert cut(there) == cut(text)


def test_figures_are_those_of_the_summary(finished_run, text):
    found = json.loads((finished_run / "summary.json").read_text())
    for of in found["models"].values():
        assert f"<td>{of['oracle']['mean']:.2f}</td><td>{of['oracle']['perfect']:.3f}</td>" in text
        assert f"<td>{of['judge']['pairwise_accuracy']:.3f}</td>" in text
    margin = 100 * found["models"]["m2"]["versus"]["m1"]["margin"]
    assert_mentions(text, f"{margin:+.1f}")
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


def test_every_pair_and_its_votes_are_in_it(finished_run, text):
    texts = Read(text).texts
    columns = unpacked(texts["block-pairs"])
    pairs = [json.loads(line) for line in (finished_run / "m2" / "pairs.jsonl").read_text().splitlines()]
    assert [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] == [
        {name: row[name] for name in columns} for row in pairs
    ]
    votes = unpacked(texts["block-votes-0"])
    answers = [json.loads(line) for line in (finished_run / "m2" / "responses.jsonl").read_text().splitlines()]
    texts_of = {f"{row['id']}/{i}": a["text"] for row in answers for i, a in enumerate(row["responses"])}
    judged = [json.loads(line) for line in (finished_run / "m2" / "judgments.jsonl").read_text().splitlines()]
    for pair, sides in zip(pairs, votes, strict=True):
        for side, said in zip(("chosen", "rejected"), sides, strict=True):
            possible = [
                [[v["score"], v["text"]] for v in row["votes"]]
                for row in judged
                if row["id"].startswith(pair["id"] + "/")
                and (texts_of[row["id"]], row["score"]) == (pair[side], pair[f"{side}_score"])
            ]
            assert said in possible


def test_of_an_unfinished_run_it_shows_what_there_is(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    for name in ("manifest.json", "eval.json", "checks.json"):
        (tmp_path / "run" / "m2" / name).unlink()
    code, said = ended(report, f"--workdir={tmp_path}/run")
    assert (code, said) == (0, "")
    text = (tmp_path / "run" / "report.html").read_text()
    assert_mentions(status(text), "M1", "M2")
    assert "<td>M2</td>" in text  # the round has pairs, which are what is looked at before training
    shutil.rmtree(tmp_path / "run" / "m1")
    shutil.rmtree(tmp_path / "run" / "m2")
    assert ended(report, f"--workdir={tmp_path}/run") == (0, "")
    text = (tmp_path / "run" / "report.html").read_text()
    assert "<table>" not in text[text.index('<section id="models">') : text.index('<section id="judge">')]


def test_where_no_run_is_it_says_so(tmp_path):
    code, said = ended(report, f"--workdir={tmp_path}")
    assert code == 2
    assert_mentions(said, tmp_path)


def test_a_page_that_cannot_be_made_ends_no_run(finished_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished_run, tmp_path / "run")
    before = (tmp_path / "run" / "report.html").read_bytes()
    monkeypatch.setattr(page, "render", lambda *_: 1 / 0)
    page.Page(Run.reopen(str(tmp_path / "run"))).write()
    assert_mentions(capsys.readouterr().err, "report.html", "ZeroDivisionError")
    assert (tmp_path / "run" / "report.html").read_bytes() == before


def test_it_is_rewritten_for_a_small_share_of_the_time(finished_run, tmp_path, monkeypatch):
    shutil.copytree(finished_run, tmp_path / "run")
    now, written = [0.0], []

    def slow(*_):
        written.append(now[0])
        now[0] += 2.0
        return "page"

    monkeypatch.setattr(page.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(page, "render", slow)
    of = page.Page(Run.reopen(str(tmp_path / "run")))
    while now[0] < 400:
        now[0] += 1.0
        of.rewrite()
    assert len(written) >= 8
    assert 2.0 * len(written) <= 0.06 * now[0]
    assert (tmp_path / "run" / "report.html").read_text() == "page"


def test_why_a_run_has_stopped_stands_on_top(parts):
    found, rows, about = parts
    text = page.render(found, rows, about | {"said": "m3 pairs: <b>none</b>"})
    assert '<p class="warn">m3 pairs: &lt;b&gt;none&lt;/b&gt;</p>' in text
    assert status(text) != status(page.render(*parts))


def test_files_that_are_gone_end_no_run(finished_run, tmp_path, capsys):
    """A file that is damaged is found, and made anew, where it is needed, and not by the report."""
    for name in ("m2/prompts.manifest.json", "m2/judgments.jsonl", "m2/checks.json", "m1/eval.json", "events.jsonl"):
        workdir = tmp_path / name.replace("/", "-")
        shutil.copytree(finished_run, workdir)
        run = Run.reopen(str(workdir))
        (workdir / name).unlink()
        capsys.readouterr()
        wrote = page.Page(run).write()
        assert wrote == ("report.html" not in capsys.readouterr().err)
        (workdir / name).write_bytes(b"\xff\x00 damaged")
        page.Page(run).write()


def test_one_process_writes_and_waits_for_none(finished_run, tmp_path, monkeypatch):
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    of = page.Page(Run.reopen(str(tmp_path / "run")))
    monkeypatch.setattr(processes, "count", lambda: 2)  # whom nobody answers
    monkeypatch.setattr(processes, "index", lambda: 1)
    assert not of.write()
    assert not (tmp_path / "run" / "report.html").exists()
    monkeypatch.setattr(processes, "index", lambda: 0)
    assert of.write()
    assert (tmp_path / "run" / "report.html").exists()


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
        "judgments": [
            {"id": f"{r['id']}/{i}", "score": s, "votes": [{"score": s, "text": f"{i} {vote}"}]}
            for r in rows
            for i, s in enumerate((1.5, 4.0))
        ],
    }


def test_votes_go_with_their_sides():
    found = embedded_data.pairs({"m2": round_of([row(i) for i in range(600)])})
    assert (found["count"], found["kept"], found["voted"], len(found["votes"])) == (600, 600, 600, 6)
    assert unpacked(found["votes"][5])[-1] == [[[4.0, "1 good. Score: 4"]], [[1.5, "0 good. Score: 4"]]]


@pytest.mark.parametrize("characters", [300, 3000])
def test_ten_thousand_pairs_fit(characters):
    """In letters at random, which no packing makes much smaller; a text of this world or of people needs less."""
    rng = random.Random(0)
    noise = lambda: "".join(rng.choices("abcdefghijklmnop ", k=characters))  # noqa: E731
    some = [noise() for _ in range(200)]  # drawn once: drawing is what takes the time
    rows = [row(i, f"{i}{some[i % 200][i % 97 :]}{some[i % 199]}") for i in range(10_000)]
    found = embedded_data.pairs({"m2": round_of(rows, some[0])})
    assert len(found["pairs"]) + sum(map(len, found["votes"].values())) <= embedded_data.MAX_BYTES
    assert 0 < found["voted"] <= found["kept"]
    kept = unpacked(found["pairs"])["id"]
    assert len(kept) == found["kept"] <= found["count"] == 10_000
    numbers = [int(i.partition("/")[2]) for i in kept]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] >= 10_000 - 2 * 10_000 / len(kept)  # from everywhere


def test_of_two_equal_texts_the_one_whose_score_it_was_has_its_votes():
    pair = {
        "id": "m2/0",
        "prompt": "p",
        "chosen": "same",
        "rejected": "bad",
        "chosen_score": 4.0,
        "rejected_score": 1.0,
    }
    of = {
        "pairs": [pair],
        "candidates": [{"id": "m2/0", "responses": [{"text": t} for t in ("same", "same", "bad")]}],
        "judgments": [
            {"id": f"m2/0/{i}", "score": score, "votes": [{"score": score, "text": "", "expected": score + 0.25}]}
            for i, score in enumerate((2.0, 4.0, 1.0))
        ],
    }
    assert unpacked(embedded_data.pairs({"m2": of})["votes"][0]) == [[[[4.25, ""]], [[1.25, ""]]]]


def test_texts_are_inert_and_cut():
    assert embedded_data.shown("a\x1b[31mb\u202e") == r"a\x1b[31mb\u202e"
    long = embedded_data.shown("x" * 1_000_000)
    assert_mentions(long[4000:], "996,000")
    assert len(long) < 4100


def test_only_prompts_that_all_models_answered_are_compared():
    said = lambda i, text: {"id": f"h/{i}", "prompt": f"p{i}", "responses": [{"text": text}]}  # noqa: E731
    found = embedded_data.answers({"m1": [said(0, "a"), said(1, "b")], "m2": [said(1, "c")]})
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
