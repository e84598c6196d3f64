"""evaluate: a finished run with each kind of judge."""

import io
import json
import re
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import assert_mentions

from selfreward_jax.cli import program
from selfreward_jax.report import tables


@pytest.fixture(scope="module")
def workdir(finished_run, tmp_path_factory):
    """A copy of the run that tests may write to."""
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("evaluation") / "run")


def ended(*argv):
    """Exit code, standard output and standard error of the program run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        code = program.main(["evaluate", *argv])
    return code, out.getvalue(), err.getvalue()


def report(workdir, judge="oracle"):
    return json.loads((workdir / "evaluation" / f"report_{judge}.json").read_text())


def texts(workdir, model):
    rows = [json.loads(line) for line in (workdir / model / "eval_answers.jsonl").read_text().splitlines()]
    return [[r["text"] for r in row["responses"]] for row in rows]


def test_the_oracle_is_the_default_judge_of_the_toy_world(workdir):
    code, out, _ = ended(f"--workdir={workdir}")
    assert code == 0
    found, summary = report(workdir), json.loads((workdir / "summary.json").read_text())
    assert found["judge"] == "oracle"
    assert list(found["models"]) == ["m1", "m2"]
    assert found["versus"]["m2"]["m1"] == summary["models"]["m2"]["versus"]["m1"]
    assert re.search(r"\bM2\W+M1\b", out)
    assert_mentions(out, "oracle")
    for name in ("m1", "m2"):
        low, high = found["models"][name]["judge"]["interval"]["pairwise_accuracy"]
        assert low <= found["models"][name]["judge"]["pairwise_accuracy"] <= high


def test_a_model_of_the_run_judges_and_its_votes_are_reused(workdir):
    assert ended(f"--workdir={workdir}", "--judge=m1")[0] == 0
    path = workdir / "evaluation" / "m2_m1_by_m1_scores.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    score = {row["id"]: row["score"] for row in rows}
    verdicts = [
        (score[i.replace("/theirs", "/ours")] or 0) - (score[i] or 0)
        for i in score
        if i.endswith("/theirs") and None not in (score[i], score[i.replace("/theirs", "/ours")])
    ]
    versus = report(workdir, "m1")["versus"]["m2"]["m1"]
    matchups = sum(map(len, texts(workdir, "m1")))
    assert versus["win"] == pytest.approx(sum(v > 0 for v in verdicts) / matchups)
    assert versus["lose"] == pytest.approx(sum(v < 0 for v in verdicts) / matchups)
    votes = [vote["score"] for row in rows for vote in row["votes"]]
    assert report(workdir, "m1")["parse_rate"] == sum(v is not None for v in votes) / len(votes)
    before, found = path.stat().st_mtime_ns, report(workdir, "m1")
    assert ended(f"--workdir={workdir}", "--judge=m1")[0] == 0
    assert (path.stat().st_mtime_ns, report(workdir, "m1")) == (before, found)


def test_a_model_of_another_run_is_an_opponent(workdir, finished_run):
    code, out, _ = ended(f"--workdir={workdir}", "--models=m2", f"--opponent={finished_run}", "--opponent_model=m1")
    assert code == 0
    assert f"M2 : m1 of {finished_run.name} " in out
    ((ours, others),) = report(workdir)["versus"].items()
    ((opponent, rates),) = others.items()
    assert ours == "m2"
    assert opponent.startswith("m1-")
    assert opponent not in out.lower()
    assert rates["win"] + rates["tie"] + rates["lose"] == pytest.approx(1)
    shutil.copytree(finished_run, workdir.parent / "elsewhere")  # the same model under another path
    assert ended(f"--workdir={workdir}", f"--opponent={workdir.parent}/elsewhere", "--opponent_model=m1")[0] == 0
    assert len(list((workdir / "evaluation").glob("m1-*_answers.jsonl"))) == 1
    assert program.main(["report", f"--workdir={workdir}"]) == 0
    page = (workdir / "report.html").read_text()
    assert "<td>M2 : m1 of elsewhere</td>" in page
    assert opponent.upper() not in page  # only the list of files has the hash


def test_few_parsed_votes_give_a_line_of_caution():
    def judge(rate):
        return {"judge": {"parse_rate": rate}}

    models = {"m1": judge(0.79), "m2": judge(0.8), "m3": judge(None)}
    lines = tables.parse_cautions({"judge": "m1", "models": models, "parse_rate": 0.423})
    assert [line[:27] for line in lines] == ["caution: 79 % of M1's votes", "caution: 42 % of M1's votes"]
    assert tables.parse_cautions({"judge": "oracle", "models": {"m2": judge(0.8)}}) == []


class PreferLonger(BaseHTTPRequestHandler):
    """A server whose judge prefers the longer answer."""

    prompts: list = []
    verdict: str = ""  # instead of the longer one

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        type(self).prompts.append(prompt)
        first, second = prompt.split("Answer A: ")[1].split("\n\nAnswer B: ")
        second = second.split("\n\nGive your reasons")[0]
        side = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
        text = type(self).verdict or f"Because.\nBetter: {side}"
        reply = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    PreferLonger.prompts = []
    found = ThreadingHTTPServer(("127.0.0.1", 0), PreferLonger)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}/v1"
    found.shutdown()
    thread.join()


def test_an_endpoint_judges_in_both_orders_and_its_replies_are_reused(workdir, server):
    options = [f"--workdir={workdir}", "--judge=endpoint", f"--endpoint.base_url={server}", "--endpoint.model=judge"]
    code, out, err = ended(*options)
    assert code == 0, err
    pairs = [
        (a, b)
        for ours, theirs in zip(texts(workdir, "m2"), texts(workdir, "m1"), strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    found = report(workdir, "endpoint")
    assert (found["base_url"], found["model"]) == (server, "judge")
    versus = found["versus"]["m2"]["m1"]
    assert versus["win"] == pytest.approx(sum(len(a) > len(b) for a, b in pairs) / len(pairs))
    assert versus["lose"] == pytest.approx(sum(len(a) < len(b) for a, b in pairs) / len(pairs))
    assert_mentions(out, "endpoint")
    assert (found["parse_rate"], any("of the endpoint's votes" in line for line in found["cautions"])) == (1.0, False)
    paid = len(PreferLonger.prompts)
    assert paid == len({(a, b) for a, b in pairs} | {(b, a) for a, b in pairs}) or paid <= 2 * len(pairs)
    assert ended(*options)[0] == 0
    assert len(PreferLonger.prompts) == paid


def test_replies_without_a_verdict_give_a_caution(workdir, server, tmp_path, monkeypatch):
    run = shutil.copytree(workdir, tmp_path / "run")
    (run / "evaluation" / "endpoint.jsonl").unlink(missing_ok=True)
    monkeypatch.setattr(PreferLonger, "verdict", "I cannot say.")
    options = ["--judge=endpoint", f"--endpoint.base_url={server}", "--endpoint.model=judge"]
    code, out, err = ended(f"--workdir={run}", *options)
    assert code == 0, err
    found = report(run, "endpoint")
    assert (found["parse_rate"], found["versus"]["m2"]["m1"]["tie"]) == (0, 1)
    assert "caution: 0 % of the endpoint's votes" in found["cautions"][-1]
    assert all(line in out for line in found["cautions"])


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--models=m7"], ["--models=m7", "m1, m2", "'m7'"]),
        (["--judge=m9"], ["--judge=m9", "oracle, endpoint, m1, m2"]),
        (["--judge=gpt-4"], ["--judge=gpt-4", "oracle, endpoint, m1, m2"]),
        (["--judge=endpoint"], ["endpoint.base_url is missing", "--endpoint.base_url=http://localhost:8000/v1"]),
        (
            ["--judge=endpoint", "--endpoint.base_url=http://x/v1"],
            ["endpoint.model is missing", "--endpoint.model=NAME"],
        ),
        (["--opponent=/nowhere/at/all"], ["/nowhere/at/all"]),
        (["--opponents=2"], ["--opponents", "--opponent"]),
        (["--pairwise.method=stars"], ["pairwise.method", "'stars'"]),
        (["--pairwise.max_new_tokens=many"], ["--pairwise.max_new_tokens", "'many'"]),
    ],
)
def test_invalid_options_are_refused_on_one_line(workdir, options, facts):
    code, _, err = ended(f"--workdir={workdir}", *options)
    assert code == 2
    assert_mentions(err.strip().splitlines()[-1], *facts)
    assert "Traceback" not in err


def test_max_requests_limits_the_whole_evaluation(workdir, server, tmp_path):
    three = shutil.copytree(workdir, tmp_path / "run")
    (three / "evaluation" / "endpoint.jsonl").unlink(missing_ok=True)
    options = [f"--workdir={three}", "--judge=endpoint", f"--endpoint.base_url={server}", "--endpoint.model=judge"]
    options += [f"--opponent={workdir}", "--opponent_model=m1"]  # three models, three comparisons
    code, _, err = ended(*options, "--endpoint.max_requests=7")
    assert (code, len(PreferLonger.prompts)) == (2, 7)
    assert "endpoint.max_requests" in err.strip().splitlines()[-1]


def test_a_run_without_a_trained_model_is_refused(workdir, tmp_path):
    untrained = tmp_path / "run"
    shutil.copytree(workdir / "m0", untrained / "m0")
    shutil.copy(workdir / "config.json", untrained)
    code, _, err = ended(f"--workdir={untrained}")
    assert code == 2
    assert_mentions(err, untrained, "m1", "selfreward-jax run")


def test_a_folder_without_a_run_is_refused(tmp_path):
    code, _, err = ended(f"--workdir={tmp_path}")
    assert code == 2
    assert_mentions(err, tmp_path)
