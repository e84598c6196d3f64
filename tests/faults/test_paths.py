"""Folders and files of any name, and users without a home: everything works there, or one line says why not."""

import json
import os
import pwd
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, arguments, assert_mentions
from environment import simulated
from etils import epath
from ml_collections import ConfigDict
from test_loop import contents

from selfreward_jax import config, foreign, storage
from selfreward_jax.cli import parser, program, settings
from selfreward_jax.config import comments
from selfreward_jax.config.paths import PATH_FIELDS, expand_settings
from selfreward_jax.data.readers import DataError, source_files
from selfreward_jax.method import templates
from selfreward_jax.runs.workspace import Workspace
from selfreward_jax.train import checkpoints

LONG = "x" * 300
NAMES = {
    "brackets": "lr=[5e-5]",
    "star": "a*b",
    "question": "x?",
    "percent": "%20#q",
    "line break": "n\nl",
    "escape": "\x1b[31mred\u202e",
    "bytes": "byte\udcff",
    "shell": "a b;&|$(id)'\"",
    "unicode": "\u00e9\U0001f600",
}


@pytest.fixture
def nobody(monkeypatch):
    """A user whose id has no name and no home."""

    def unknown(key):
        raise KeyError(f"not found: {key}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "brackets",
        "star",
        "bytes",
        *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES if n not in ("brackets", "star", "bytes")),
    ],
)
def test_checkpoints_are_saved_and_restored_below_any_name(name, tmp_path, monkeypatch, tmp_path_factory):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("links")))
    tree = {"a": jnp.arange(4.0), "b": {"c": jnp.ones((2, 2))}}
    for folder in ("lr=5", "axb", "xy"):  # what a pattern would match instead
        (tmp_path / folder / "m1" / "checkpoint" / "state" / "ocdbt.process_9").mkdir(parents=True)
    path = epath.Path(tmp_path) / NAMES[name] / "m1" / "checkpoint"
    checkpoints.save(path, tree, "owner")
    shardings = {"a": tree["a"].sharding, "b": {"c": tree["b"]["c"].sharding}}
    restored = checkpoints.restore(path, tree, shardings, "owner")
    np.testing.assert_array_equal(restored["a"], tree["a"])
    np.testing.assert_array_equal(restored["b"]["c"], tree["b"]["c"])
    assert os.listdir(tempfile.tempdir) == []
    assert sorted(os.listdir(tmp_path)) == sorted([NAMES[name], "lr=5", "axb", "xy"])
    assert sorted(p.name for p in path.parent.iterdir()) == ["checkpoint", "checkpoint.json"]


@pytest.mark.parametrize("name", NAMES)
def test_json_files_hold_any_name(name, tmp_path):
    value = {"data": {"ift": NAMES[name]}, NAMES[name]: 1}
    for write, read in (
        (storage.write_json, storage.read_json),
        (storage.write_checksummed, storage.read_checksummed),
    ):
        path = epath.Path(tmp_path) / NAMES[name] / "x.json"
        write(path, value)
        path.read_bytes().decode()  # UTF-8
        read_value = read(path)
        assert {key: read_value[key] for key in value} == value


@pytest.mark.parametrize("name", ["brackets", "star", "question", "bytes", "line break"])
def test_a_file_of_that_name_wins_over_a_pattern(name, tmp_path):
    folder = tmp_path / NAMES[name]
    for other in (folder, tmp_path / "lr=5", tmp_path / "axb", tmp_path / "xy"):
        other.mkdir()
        for file in ("1.jsonl", "2.jsonl", "[12].jsonl"):
            (other / file).write_text("{}\n")
    assert source_files(f"{folder}/[12].jsonl") == [f"{folder}/[12].jsonl"]  # an existing file
    (folder / "[12].jsonl").unlink()
    assert source_files(f"{folder}/[12].jsonl") == [f"{folder}/1.jsonl", f"{folder}/2.jsonl"]
    assert source_files(f"{folder}/*.jsonl") == [f"{folder}/1.jsonl", f"{folder}/2.jsonl"]
    assert len(source_files(f"{tmp_path}/**/2.jsonl")) == 4
    with pytest.raises(DataError):
        source_files(f"{folder}/3*.jsonl")


@pytest.mark.parametrize("name", ["judge_short", "a/../judge_short"])
def test_a_template_is_built_in_by_its_name_alone(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "judge_short":
        assert "{prompt}" in templates.load(name, {"prompt"})
    else:
        with pytest.raises(templates.TemplateError):
            templates.load(name, {"prompt"})
    (tmp_path / "own").write_text("ours {prompt}")
    (tmp_path / "own.txt").write_text("another {prompt}")
    assert templates.load(f"{tmp_path}/own", {"prompt"}) == "ours {prompt}"
    with pytest.raises(templates.TemplateError):
        templates.load(LONG, set())


# --- one line ------------------------------------------------------------------------------------------------------

REFUSED = {
    "a long workdir": (["run", "iter1:micro", f"--workdir={LONG}"], [LONG]),
    "a long workdir to check": (["check", "iter1:micro", f"--workdir={LONG}"], [LONG]),
    "a long workdir to read": (["report", f"--workdir={LONG}"], [LONG]),
    "a workdir below a file": (["run", "iter1:micro", "--workdir=file/x/y"], ["file/x/y"]),
    "a workdir below a file to check": (["check", "iter1:micro", "--workdir=file/x"], ["file/x"]),
    "a file": (["explain", "--time", "--workdir=file"], ["file"]),
    "an empty workdir": (["run", "iter1:micro", "--workdir="], ["--workdir"]),
    "an empty workdir as a word": (["explain", "--time", "--workdir", ""], ["--workdir"]),
    "an empty output as a word": (["export", "--workdir=w", "--out", ""], ["--out"]),
    "a long config": (["run", LONG], [LONG]),
    "a long template": (["run", "iter1:micro", "--workdir=w", f"--config.judge.template={LONG}"], [LONG]),
    "a long seed file": (
        ["run", "iter1:micro", "--workdir=w", f"--config.data.ift={LONG}", f"--config.data.eft={LONG}"],
        [LONG],
    ),
    "bytes in a model": (["chat", "--model=no\udcff\n\x1b"], ["'no\\udcff\\n\\x1b'"]),
    "a line break in a workdir": (["report", "--workdir=a\nb"], ["a\\nb"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_path_that_cannot_work_is_refused_on_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    argv, facts = REFUSED[name]
    assert program.main(argv) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("workdir ")]  # how a run begins
    assert (out, len(lines)) == ("", 1), err
    assert lines[0].startswith("selfreward_jax: ")
    assert_mentions(lines[0].replace(f"{tmp_path}/", ""), *facts)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_workdir_whose_name_ends_in_an_equals_sign_is_not_empty():
    assert parser.parse(["report", "--workdir=lr="]).workdir == "lr="


# --- the home folder -----------------------------------------------------------------------------------------------

OPTIONS = {
    "workdir": ["explain", "--time", "--workdir=~/a"],
    "out": ["export", "--workdir=w", "--out=~/a"],
    "prompts": ["generate", "--workdir=w", "--out=o", "--prompts=~/a"],
    "opponent": ["evaluate", "--workdir=w", "--opponent", "~/a"],
    "model": ["chat", "--model=~/a"],
    "config": ["check", "~/a"],
    "compile_cache": ["chat", "--compile_cache=~/a"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_tilde_is_the_home_folder_in_every_option(name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of a")
    assert getattr(parser.parse(OPTIONS[name]), name) == "/home/of a/a"


@pytest.mark.parametrize("name", OPTIONS)
def test_a_tilde_without_a_home_is_refused(name, nobody):
    with pytest.raises(config.ConfigError) as error:
        parser.parse(OPTIONS[name])
    assert_mentions(str(error.value), f"--{name}", "'~/a'", "HOME")


def test_every_setting_that_names_a_file_or_a_folder_is_expanded():
    named = [
        field
        for field, comment in comments.field_comments().items()
        if re.search(r"\b(file|folder|source of)\b", comment)
        and isinstance(comments.flatten_config(config.get_config("micro")).get(field), str)
    ]
    assert sorted(named) == sorted(PATH_FIELDS)


@pytest.mark.parametrize("field", PATH_FIELDS)
def test_a_tilde_is_the_home_folder_in_every_setting(field, monkeypatch, nobody):
    with pytest.raises(config.ConfigError) as error:
        settings.load("iter1:micro", [f"--config.{field}=~/x"])
    assert_mentions(str(error.value), field, "'~/x'", "HOME")
    monkeypatch.setenv("HOME", "/h")
    for given, meant in {
        "~/x": "/h/x",
        "~": "/h",
        "./~/x": "./~/x",
        "a~": "a~",
        "~nobody_here/x": "~nobody_here/x",
    }.items():
        cfg = settings.load("iter1:micro", [f"--config.{field}={given}"])
        assert cfg[field.split(".")[0]][field.split(".")[1]] == meant


def test_settings_without_a_tilde_stay_the_same_object():
    cfg: ConfigDict = config.get_config("micro")
    assert expand_settings(cfg) is cfg


def test_a_user_without_a_name_reads_files_and_opens_a_workdir(nobody, tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert foreign.read_bytes(epath.Path(tmp_path / "x")) == b"12345"
    assert foreign.size(epath.Path(tmp_path / "x")) == 5
    cfg = config.get_config("micro")
    assert Workspace(cfg, str(tmp_path / "r")).path == epath.Path(tmp_path / "r")
    with pytest.raises(config.ConfigError):
        Workspace(cfg, "~/r")


# --- a complete run ------------------------------------------------------------------------------------------------

# Commands of a user id without a name, one after the other.
NOBODY = """
import json, os, pwd, sys
def unknown(key):
    raise KeyError(f"not found: {key}")
pwd.getpwuid = pwd.getpwnam = unknown
from selfreward_jax.cli.program import main
for argv in json.loads(sys.argv[1]):
    code = main(argv)
    assert code == 0, (code, argv)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byte\udcff [5e-5] a*b? \u00e9%20#c\nx\x1b[31m\u202e", "link"])
def test_a_run_in_a_folder_of_any_name_by_a_user_without_a_name(name, finished_run, tmp_path):
    workdir = Path(tmp_path / name)
    if name == "link":
        (tmp_path / "target").mkdir()
        workdir.symlink_to(tmp_path / "target")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Name three fish."}\n')
    at = f"--workdir={name}/"
    out = f"{name}.out"
    commands = [
        ["run", *arguments(name, 2)],
        ["run", *arguments(f"{name}/", 2)],
        ["generate", at, "--prompts=prompts.jsonl", f"--out={out}.jsonl", "--max_new_tokens=4"],
        ["evaluate", at],
        ["report", at],
        ["explain", at, "--time"],
        ["export", at, f"--out={out}"],
        ["export", at, "--pairs=m2", f"--out={out}.pairs"],
        ["generate", f"--model={out}", "--prompts=prompts.jsonl", f"--out={out}2.jsonl", "--max_new_tokens=4"],
    ]
    environment = {k: v for k, v in simulated(1).items() if k not in ("HOME", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, json.dumps(commands)],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:].decode()
    printed = (done.stdout + done.stderr).decode() + (workdir / "log.txt").read_text()
    assert not {"\x1b", "\u202e", "\r", "\udcff"} & set(printed)
    (tmp_path / "plain").symlink_to(workdir)  # Orbax cannot read all of these names
    made, expected = contents(tmp_path / "plain"), contents(finished_run)
    assert {name: made.get(name) for name in expected} == expected
