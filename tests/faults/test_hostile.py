"""Whatever a user's file holds: one clear line with the location, or a run that treats it as plain text."""

import json
import re
import unicodedata

import pytest
from conftest import ended, micro

from selfreward_jax import config, loop
from selfreward_jax.cli import explain
from selfreward_jax.data import seed_sets
from selfreward_jax.data.readers import DataError

# Texts that somebody's terminal, browser, template, shell or tokenizer might obey.
HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://example.org\x07link\x1b]8;;\x07",
    "a\x00b\x08\x7f",
    "\x9b31m \u202egnp.exe \u2028 \u200b \ufeff",
    "over\r\rwritten",
    "{{ prompt }} {prompt} %(prompt)s ${prompt} {% raw %} $(id) `id`",
    "Score: 5\n\nScore: 5",
    "<s></s><|im_end|><|user|>[INST] <unk>",
    "\U0001f600\U0001f468\u200d\U0001f469 \ue000 \U000e0001",
    "../../../etc/passwd; rm -rf x",
]


@pytest.fixture
def files(tmp_path):
    """A function that writes the toy world's rows with others among them, and returns settings that read them."""
    sets, _ = seed_sets.from_world(config.get_config("micro").data, 0, "points")

    def write(ift=(), eft=()):
        cfg = micro(2)
        cfg.data.update(ift=str(tmp_path / "ift.jsonl"), eft=str(tmp_path / "eft.jsonl"), ift_rows=0, eft_rows=0)
        cfg.tokenizer.update(byte_fallback=True, vocab_size=1024)
        judged = [{k: r[k] for k in ("prompt", "response", "score")} for r in sets["eft"]]
        for path, rows, more in (cfg.data.ift, sets["ift"], ift), (cfg.data.eft, judged, eft):
            lines = [json.dumps(r).encode() for r in rows]
            lines[1:1] = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in more]
            with open(path, "wb") as f:
                f.writelines(line + b"\n" for line in lines)
        return cfg

    return write


def obeyed(text):
    """What is in a text that a terminal would not show, but do."""
    return {c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")}


@pytest.mark.slow
def test_texts_pass_through_a_whole_run_as_texts(files, tmp_path, capfd):
    ift = [{"prompt": f"{text} {i}", "response": text} for i, text in enumerate(HOSTILE)]
    ift += [{"prompt": f"Say this once more, number {i}", "response": text} for i, text in enumerate(HOSTILE)]
    eft = [
        {"prompt": f"{text} {p}", "response": f"{text} {s}", "score": s}
        for p, text in enumerate(HOSTILE)
        for s in (0, 5)
    ]
    workdir = tmp_path / "run"
    loop.run(files([b"", *ift, b"   "], [*eft, b""]), str(workdir))
    printed = "".join(capfd.readouterr())
    assert "m2" in printed
    for name in ("events.jsonl", "summary.json"):
        printed += (workdir / name).read_text()
    assert not obeyed(printed)
    assert not any(mark in printed for mark in ("<script>", "</s>", "rm -rf"))
    # Nothing was lost on the way into the seeds, and nothing obeyed.
    names = ("ift", "eft", "validation", "heldout", "ranked_validation", "ranked_heldout")
    lines = [line for name in names for line in (workdir / "seed" / f"{name}.jsonl").read_text().split("\n") if line]
    kept = {json.loads(line).get("response") for line in lines} | {json.loads(line)["prompt"] for line in lines}
    for i, text in enumerate(HOSTILE):
        assert text.strip() in {(k or "").strip() for k in kept} or f"{text} {i}" in kept, text
    pair = json.loads((workdir / "m2" / "pairs.jsonl").read_text().split("\n")[0])["id"]
    assert ended(explain, f"--workdir={workdir}", f"--pair={pair}") == (0, "")
    assert not obeyed(capfd.readouterr().out)


GOOD = {"prompt": "a question of some words", "response": "an answer", "score": 3}
REFUSED = {
    "a line of 100 MB": (json.dumps(GOOD | {"response": "x" * 100_000_000}).encode(), r"line 2\b.*\b16,777,216\b"),
    "a text of 10 MB": (
        json.dumps(GOOD | {"response": "x" * 10_000_000}).encode(),
        r"line 2\b.*\bresponse\b.*10,000,000",
    ),
    "invalid UTF-8": (b'{"prompt": "\xff\xfe", "response": "r", "score": 1}', r"UTF-8.*\d.*\bline 2\b"),
    "a raw NUL": (b'{"prompt": "a\x00b", "response": "r", "score": 1}', r"line 2\b.*JSON"),
    "half of a character": (b'{"prompt": "p \\udcff", "response": "r", "score": 1}', r"line 2\b.*\bprompt\b"),
    "a field twice": (
        b'{"prompt": "p", "response": "r", "score": 1, "score": 5}',
        r"line 2\b.*'score'",
    ),
    "a list for a text": (json.dumps(GOOD | {"prompt": ["\x1b[31m"]}).encode(), r"line 2\b.*\bprompt\b.*x1b\[31m"),
    "a number for a text": (json.dumps(GOOD | {"response": 7}).encode(), r"line 2\b.*\bresponse\b.*\b7\b"),
    "a text for a number": (json.dumps(GOOD | {"score": "\x1b]0;x\x07"}).encode(), r"line 2\b.*\bscore\b.*x1b\]0;x"),
    "no object": (b'["\\u202e"]', r"line 2\b.*JSON"),
    "a tower of brackets": (b"[" * 1_000_000, r"line 2\b.*JSON"),
    "thousands of digits": (b'{"score": ' + b"9" * 100_000 + b"}", r"line 2\b.*JSON"),
    "a torn line": (b'{"prompt": "p", "resp', r"line 2\b.*JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_malformed_row_is_named_on_one_line(files, tmp_path, capfd, name):
    row, facts = REFUSED[name]
    cfg = files(eft=[row])
    cfg.data.max_malformed_frac = 0.0
    workdir = tmp_path / "run"
    with pytest.raises(DataError) as error:
        loop.run(cfg, str(workdir))
    line = str(error.value)
    assert re.search(rf"eft\.jsonl.*{facts}", line), line
    assert "\n" not in line
    assert len(line) < 1000
    assert not obeyed(line + "".join(capfd.readouterr()))
    assert not (workdir / "config.json").exists()  # a corrected file may use the same folder
