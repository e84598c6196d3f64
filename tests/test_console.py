"""What people see: one file prints, nothing foreign is obeyed, and every message is one line."""

import ast
import io
import logging
import os
import shlex
import subprocess
import sys
import unicodedata
import warnings

import pytest
from conftest import ROOT
from etils import epath
from hypothesis import example, given
from hypothesis import strategies as st

from selfreward_jax.cli import chat, program
from selfreward_jax.config import ConfigError
from selfreward_jax.console import streams
from selfreward_jax.console.escape import escape_line, shell_word
from selfreward_jax.telemetry import progress, terminal

PRINTS = "console/streams.py"
# Files that use one of these names, each with the reason.
ALLOWED = {
    "telemetry/progress.py": ({"sys.stderr", "tqdm"}, "asks whether it is a terminal; a bar draws itself"),
    "telemetry/terminal.py": ({"tqdm"}, "prints above a bar"),
    "integrations/lm_eval.py": ({"tqdm"}, "a bar of numbers, as lm-eval draws them"),
    "llm/worker.py": ({"print", "sys.stdin"}, "its output is a pipe, of JSON"),
    "cli/chat.py": ({"sys.stdin"}, "reads"),
    "train/checkpoints.py": ({"logging"}, "makes a library silent"),
    "report/charts.py": ({"logging"}, "makes a library silent"),
}
RAW = {
    "print",
    "tqdm",
    "logging",
    "warnings",
    "traceback.print_exc",
    "os.write",
    "sys.excepthook",
    "breakpoint",
    "input",
}
RAW |= {"sys.stdout", "sys.stderr", "sys.stdin", "sys.__stdout__", "sys.__stderr__"}


def raw(source):
    """The names in a file that could print."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id in RAW:
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in RAW:
                yield name


def test_one_file_prints():
    package = ROOT / "selfreward_jax"
    for path in package.rglob("*.py"):
        name = str(path.relative_to(package))
        allowed = RAW if name == PRINTS else ALLOWED.get(name, (set(), ""))[0]
        assert set(raw(path.read_text())) <= allowed, name


def test_what_could_print_is_recognised():
    source = "import sys, os\nprint(1)\nsys.stderr.write('x')\nos.write(2, b'')\nlogging.info('x')\nrow.warnings(2)"
    assert set(raw(source)) == {"print", "sys.stderr", "os.write", "logging"}


# What a terminal would obey, or show as another line.
HOSTILE = {
    "colour": "a\x1b[31mb",
    "title": "\x1b]0;x\x07",
    "C1": "\x9b31m",
    "return": "good\rbad",
    "override": "\u202egnp.exe",
    "isolate": "\u2066x\u2069",
    "line": "a\nselfreward_jax: done",
    "separator": "a\u2028b",
    "byte": "a\udcffb",
    "backspace": "rm x\x08\x08",
}


def assert_inert(text, lines=1):
    assert text.count("\n") == lines
    assert not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")], repr(text)


@pytest.mark.parametrize("name", HOSTILE)
def test_every_way_to_print_is_inert(name, capsys, tmp_path, monkeypatch):
    text = HOSTILE[name]
    streams.message(text)
    streams.result(text)
    with streams.libraries():
        warnings.showwarning(text.replace("\n", " "), UserWarning, "file", 1)
    with terminal.log_to(epath.Path(tmp_path)):
        terminal.log_line(text)
        terminal.show(text)
        progress.Progress(text, 0).close(text)
        out, err = capsys.readouterr()
    assert_inert(out, 2)
    assert_inert(err, 4)
    log = (tmp_path / "log.txt").read_text()
    assert_inert(log, 3)
    with pytest.raises(ConfigError), terminal.log_to(epath.Path(tmp_path)):
        raise ConfigError(text)
    assert_inert((tmp_path / "log.txt").read_text(), 4)
    monkeypatch.chdir(tmp_path)
    for argv in ([f"x{text}"], ["report", f"--workdir={text}"], ["run", "iter1:micro", f"--config.{text}=1"]):
        assert program.main(argv) == 2
        assert_inert(capsys.readouterr().err)


def test_what_libraries_log_is_inert():
    script = (
        "import logging, sys; from selfreward_jax.console import streams\n"
        "with streams.libraries():\n    logging.info('x')\n    logging.getLogger('a').warning('b\\x1b[31m\\rc')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == "b\\x1b[31m\\rc\n"
    assert logging.root.handlers  # pytest's own: the program adds none


def test_an_error_of_the_program_is_a_traceback_without_escape_sequences(monkeypatch, capsys):
    def broken(argv):
        raise RuntimeError("\x1b[31mred\x1b[0m")

    monkeypatch.setattr(program.parser, "parse", broken)
    assert program.main(["run"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert_inert(err, err.count("\n"))
    assert err.endswith("RuntimeError: \\x1b[31mred\\x1b[0m\n")


def test_an_answer_in_a_chat_is_inert(capsys):
    class Completion:
        text = "one\x1b[2J\ntwo\u202e"

    class Model:
        name, max_length = "m\x1b1", 100

        def engine(self, *_, **__):
            return self

        def fits(self, *_):
            return True

        def generate(self, *_):
            return [Completion]

    options = program.parser.parse(["chat", "--workdir=w", "--max_new_tokens=4"])
    chat.chat(Model(), options, io.StringIO("hello\n"))
    out, err = capsys.readouterr()
    assert out == "one\\x1b[2J\ntwo\\u202e\n"
    assert_inert(err)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_stream_of_any_encoding_is_written(encoding, tmp_path, monkeypatch):
    with (tmp_path / "out").open("w", encoding=encoding) as file:
        monkeypatch.setattr(sys, "stdout", file)
        streams.result("caf\u00e9 \u4e2d \udcff")
    assert "\\u4e2d \\udcff\n" in (tmp_path / "out").read_text(encoding=encoding)


FULL = "/dev/full"
RESULTS = {"help": ["--help"], "help of a command": ["run", "--help"], "version": ["--version"]}


@pytest.mark.skipif(not os.path.exists(FULL), reason=f"there is no {FULL}")
@pytest.mark.parametrize("name", RESULTS)
def test_results_that_cannot_be_written_end_a_command(name):
    command = [sys.executable, "-m", "selfreward_jax", *RESULTS[name]]
    with open(FULL, "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    assert_inert(done.stderr)
    assert "standard output" in done.stderr
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as pipe:
        done = subprocess.run(command, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists(FULL), reason=f"there is no {FULL}")
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_lost_output_of_a_run_is_noted_in_its_log(name, tmp_path, monkeypatch):
    with open(FULL, "w", buffering=1) as file, terminal.log_to(epath.Path(tmp_path)):
        monkeypatch.setattr(sys, name, file)
        for line in ("first", "second"):
            terminal.show(line) if name == "stdout" else terminal.log_line(line)
    lines = [line[20:] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [lines[1], *lines[2:]] == ["first", "second"]
    assert f"sys.{name} cannot be written" in lines[0]


@pytest.mark.parametrize("text", [*HOSTILE.values(), "plain", "a b", "it's", "\\x41'\x01"])
def test_a_shell_reads_the_word_that_was_meant(text):
    word = shell_word(text)
    assert_inert(word, 0)
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, timeout=60)
    assert done.stdout == os.fsencode(text)
    assert escape_line(text) != text or word == shlex.quote(text)


@given(st.text())
@example("a\tb\nc")
def test_any_text_is_one_line(text):
    assert_inert(escape_line(text), 0)
