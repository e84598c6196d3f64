"""report.html: its contents, its limits, and that text in it is never markup."""

import base64
import gzip
import hashlib
import json
import random
import re
import shutil
from html.parser import HTMLParser

import markupsafe
import pytest
from conftest import assert_mentions, ended

from selfreward_jax.cli import report
from selfreward_jax.parallel import processes
from selfreward_jax.report import charts, embedded_data, page
from selfreward_jax.report.meanings import MEANINGS
from selfreward_jax.report.tables import EXTRA_COLUMNS, JUDGE_COLUMNS
from selfreward_jax.runs.run import open_run
from selfreward_jax.stages.table import TABLE


def unpacked(block):
    return json.loads(gzip.decompress(base64.b64decode(block)))


class ParsedPage(HTMLParser):
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
    """Results, rows and metadata of an uninterrupted run."""
    return page.gather(open_run(str(finished_run)), TABLE)


@pytest.fixture(scope="module")
def text(parts):
    return page.render(*parts)


def status(page):
    """The line at the top that shows how far the run is."""
    return re.search('<p class="soft">(.*?)</p>', page)[1]


def test_a_finished_run_has_its_report(finished_run, text):
    stored = (finished_run / "report.html").read_text()
    assert "; finished; " in status(stored)
    assert "<tr><th>metric</th><th>M1</th><th>M2</th></tr>" in stored
    stamp = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
    # Only the second page includes the time that the first one took to write.
    cut = lambda s: stamp.sub("", s[: s.index('<section id="time">')])  # noqa: E731
    assert cut(stored) == cut(text)


def test_metrics_are_those_of_the_summary(finished_run, text):
    found = json.loads((finished_run / "summary.json").read_text())
    models = found["models"].values()
    assert re.search(".*".join(rf"<td>{m['oracle']['mean']:.2f}<br>" for m in models), text)
    assert "".join(f"<td>{m['oracle']['perfect']:.3f}</td>" for m in models) in text
    paper = ("0.787", "0.804")  # M1 and M2
    cells = zip(models, paper, strict=True)
    pairwise = "".join(f"<td>{m['judge']['pairwise_accuracy']:.3f}<br><small>{p}</small></td>" for m, p in cells)
    assert re.search(rf'<td class="text">pairwise<br><small>[^<]+</small></td>{re.escape(pairwise)}</tr>', text)
    for name in (JUDGE_COLUMNS | EXTRA_COLUMNS).values():
        assert f"<small>{markupsafe.escape(MEANINGS['judge'][name])}</small>" in text
    margin = 100 * found["models"]["m2"]["versus"]["m1"]["margin"]
    assert_mentions(text, f"{margin:+.1f}")


def test_the_content_security_policy_allows_its_own_script_and_style_only(text):
    read = ParsedPage(text)
    (policy,) = [a["content"] for tag, a in read.elements if a.get("http-equiv") == "Content-Security-Policy"]
    digest = lambda part: base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()  # noqa: E731
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest(read.texts['style'])}';" in policy
    assert f"script-src 'sha256-{digest(read.texts['script'])}';" in policy
    assert "unsafe" not in policy
    assert not [(tag, a) for tag, a in read.elements if "style" in a or any(name.startswith("on") for name in a)]
    assert not [a for _, a in read.elements if a.get("src") or not a.get("href", "#").startswith("#")]


def test_every_pair_and_its_votes_are_included(finished_run, text):
    texts = ParsedPage(text).texts
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
        for side, shown in zip(("chosen", "rejected"), sides, strict=True):
            possible = [
                [[v["score"], v["text"]] for v in row["votes"]]
                for row in judged
                if row["id"].startswith(pair["id"] + "/")
                and (texts_of[row["id"]], row["score"]) == (pair[side], pair[f"{side}_score"])
            ]
            assert shown in possible


def test_an_unfinished_run_has_a_report(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    for name in ("manifest.json", "eval.json", "checks.json"):
        (tmp_path / "run" / "m2" / name).unlink()
    assert ended(report, f"--workdir={tmp_path}/run") == (0, "")
    text = (tmp_path / "run" / "report.html").read_text()
    assert_mentions(status(text), "stopped at m2 checks")
    assert "<tr><th>round</th><th>M2</th></tr>" in text  # its pairs, which a user inspects before training
    shutil.rmtree(tmp_path / "run" / "m1")
    shutil.rmtree(tmp_path / "run" / "m2")
    assert ended(report, f"--workdir={tmp_path}/run") == (0, "")
    text = (tmp_path / "run" / "report.html").read_text()
    assert "<table>" not in text[text.index('<section id="models">') : text.index('<section id="training">')]


def test_a_folder_without_a_run_is_refused(tmp_path):
    code, err = ended(report, f"--workdir={tmp_path}")
    assert (code, err.count("\n")) == (2, 1)
    assert_mentions(err, tmp_path)


def test_a_page_that_cannot_be_rendered_does_not_end_the_run(finished_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished_run, tmp_path / "run")
    before = (tmp_path / "run" / "report.html").read_bytes()
    monkeypatch.setattr(page, "render", lambda *_: 1 / 0)
    assert not page.Page(open_run(str(tmp_path / "run")), TABLE).write()
    assert_mentions(capsys.readouterr().err, "report.html", "ZeroDivisionError")
    assert (tmp_path / "run" / "report.html").read_bytes() == before


def test_rewriting_takes_a_small_fraction_of_the_time(finished_run, tmp_path, monkeypatch):
    shutil.copytree(finished_run, tmp_path / "run")
    now, written = [0.0], []

    def slow(*_):
        written.append(now[0])
        now[0] += 2.0
        return "page"

    monkeypatch.setattr(page.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(page, "render", slow)
    report_page = page.Page(open_run(str(tmp_path / "run")), TABLE)
    while now[0] < 400:
        now[0] += 1.0
        report_page.write_if_due()
    assert len(written) >= 8
    assert 2.0 * len(written) <= 0.06 * now[0]
    assert (tmp_path / "run" / "report.html").read_text() == "page"


def test_the_reason_for_a_stop_is_at_the_top(parts):
    results, rows, metadata = parts
    text = page.render(results, rows, metadata | {"stop_reason": "m3 pairs: <b>none</b>"})
    assert '<p class="warn">m3 pairs: &lt;b&gt;none&lt;/b&gt;</p>' in text
    assert '<p class="warn">' not in page.render(*parts)


def test_missing_and_damaged_files_do_not_end_the_run(finished_run, tmp_path, capsys):
    """A damaged file is regenerated by the stage that needs it, not by the report."""
    for name in ("m2/prompts.manifest.json", "m2/judgments.jsonl", "m2/checks.json", "m1/eval.json", "events.jsonl"):
        workdir = tmp_path / name.replace("/", "-")
        shutil.copytree(finished_run, workdir)
        run = open_run(str(workdir))
        (workdir / name).unlink()
        capsys.readouterr()
        wrote = page.Page(run, TABLE).write()
        assert wrote == ("report.html" not in capsys.readouterr().err)
        (workdir / name).write_bytes(b"\xff\x00 damaged")
        page.Page(run, TABLE).write()


def test_only_the_primary_process_writes_and_it_waits_for_none(finished_run, tmp_path, monkeypatch):
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    report_page = page.Page(open_run(str(tmp_path / "run")), TABLE)
    monkeypatch.setattr(processes, "process_count", lambda: 2)  # the other one never answers
    monkeypatch.setattr(processes, "process_index", lambda: 1)
    assert not report_page.write()
    assert not (tmp_path / "run" / "report.html").exists()
    monkeypatch.setattr(processes, "process_index", lambda: 0)
    assert report_page.write()
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
        "responses": [{"id": r["id"], "responses": [{"text": r["rejected"]}, {"text": r["chosen"]}]} for r in rows],
        "judgments": [
            {"id": f"{r['id']}/{i}", "score": s, "votes": [{"score": s, "text": f"{i} {vote}"}]}
            for r in rows
            for i, s in enumerate((1.5, 4.0))
        ],
    }


def test_votes_belong_to_their_sides():
    found = embedded_data.pack_pairs({"m2": round_of([row(i) for i in range(600)])})
    assert (found["count"], found["kept"], found["voted"], len(found["votes"])) == (600, 600, 600, 6)
    assert unpacked(found["votes"][5])[-1] == [[[4.0, "1 good. Score: 4"]], [[1.5, "0 good. Score: 4"]]]


@pytest.mark.parametrize("characters", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_ten_thousand_pairs_fit(characters):
    """Random letters, which gzip compresses less than any real text."""
    rng = random.Random(0)
    noise = lambda: "".join(rng.choices("abcdefghijklmnop ", k=characters))  # noqa: E731
    some = [noise() for _ in range(200)]  # drawn once, as drawing is slow
    rows = [row(i, f"{i}{some[i % 200][i % 97 :]}{some[i % 199]}") for i in range(10_000)]
    found = embedded_data.pack_pairs({"m2": round_of(rows, some[0])})
    assert len(found["pairs"]) + sum(map(len, found["votes"].values())) <= embedded_data.MAX_BYTES
    assert 0 < found["voted"] <= found["kept"]
    kept = unpacked(found["pairs"])["id"]
    assert len(kept) == found["kept"] <= found["count"] == 10_000
    numbers = [int(i.partition("/")[2]) for i in kept]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] >= 10_000 - 2 * 10_000 / len(kept)  # evenly spread


def test_of_two_equal_texts_the_one_with_the_pairs_score_gives_the_votes():
    pair = {
        "id": "m2/0",
        "prompt": "p",
        "chosen": "same",
        "rejected": "bad",
        "chosen_score": 4.0,
        "rejected_score": 1.0,
    }
    round_rows = {
        "pairs": [pair],
        "responses": [{"id": "m2/0", "responses": [{"text": t} for t in ("same", "same", "bad")]}],
        "judgments": [
            {"id": f"m2/0/{i}", "score": score, "votes": [{"score": score, "text": "", "expected": score + 0.25}]}
            for i, score in enumerate((2.0, 4.0, 1.0))
        ],
    }
    assert unpacked(embedded_data.pack_pairs({"m2": round_rows})["votes"][0]) == [[[[4.25, ""]], [[1.25, ""]]]]


def test_texts_are_escaped_and_truncated():
    assert embedded_data.display_text("a\x1b[31mb\u202e") == r"a\x1b[31mb\u202e"
    long = embedded_data.display_text("x" * 1_000_000)
    assert_mentions(long[4000:], "996,000")
    assert len(long) < 4100


def test_only_prompts_that_all_models_answered_are_compared():
    row_of = lambda i, text: {"id": f"h/{i}", "prompt": f"p{i}", "responses": [{"text": text}]}  # noqa: E731
    found = embedded_data.pack_responses({"m1": [row_of(0, "a"), row_of(1, "b")], "m2": [row_of(1, "c")]})
    assert unpacked(found["block"]) == {"models": ["m1", "m2"], "prompts": ["p1"], "responses": [[["b"], ["c"]]]}


# --- charts ------------------------------------------------------------------------------------------------------

CHARTS = {
    "models": lambda: charts.model_points(
        {"M1": (0.7, [0.6, 0.8]), "M2": (0.4, None)}, "Judge", "accuracy", (0.5, 1), {"chance": 0.5}
    ),
    "records": lambda: charts.win_rate_bars([("M2 : M1", 0.8, 0.15, 0.05)], "wins"),
    "histograms": lambda: charts.vote_histograms({"M1": {"0": 3, "5": 1}, "M2": {}}, "votes"),
    "lengths": lambda: charts.length_histograms({"M1": [3, 4, 200], "M2": [7]}, "lengths"),
    "curves": lambda: charts.training_curves({"loss": [(i, 1 / (1 + i)) for i in range(5000)]}, "Loss", "nats"),
}


@pytest.mark.parametrize("kind", CHARTS)
def test_a_chart_takes_its_colors_from_the_page(kind):
    svg = CHARTS[kind]()
    assert svg == CHARTS[kind]()
    assert "style" not in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert "var(--" in svg
    assert len(svg) < 60_000
    for reference in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg):
        assert f'id="{"".join(reference)}"' in svg
