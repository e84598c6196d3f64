"""--help of every program is short and names every option; an unknown option is answered with the nearest one."""

import contextlib
import importlib
import re

import pytest
from conftest import ROOT, assert_mentions, ended
from test_docs import PROGRAMS, options

ARGPARSE = ["evaluate", "generate", "export", "explain", "report"]


def said(capsys, module):
    with contextlib.suppress(SystemExit):  # argparse's way
        assert module.main(["program", "--help"]) in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_is_short_and_complete(name, capsys):
    text = said(capsys, importlib.import_module(f"selfreward_jax.{PROGRAMS[name][0]}"))
    assert len(text.splitlines()) <= 60
    declared = options(f"selfreward_jax.{name}") - {"help", "config"}
    own = (ROOT / "selfreward_jax" / f"{PROGRAMS[name][0]}.py").read_text()
    if name not in ("main", "fits"):  # whose options are absl's, in cli/args.py
        declared &= {*re.findall(r'"(?:--)?([\w.]+)"', own), "compile_cache" if "compiles=True" in own else ""}
    elif name == "fits":
        declared &= set(re.findall(r'DEFINE_\w+\("(\w+)"', own))
    missing = [option for option in declared if f"--{option}" not in text]
    assert missing == []


@pytest.mark.parametrize("name", ARGPARSE)
def test_a_typo_is_answered_with_the_right_name(name):
    module = importlib.import_module(f"selfreward_jax.{PROGRAMS[name][0]}")
    needed = {
        "evaluate": ["--workdir=w"],
        "generate": ["--model=m"],
        "export": ["--workdir=w", "--to=t"],
        "explain": ["--workdir=w", "--time"],
        "report": ["--workdir=w"],
    }[name]
    wrong, right = {"generate": ("--temprature", "--temperature"), "export": ("--modle", "--model")}.get(
        name, ("--workidr", "--workdir")
    )
    code, err = ended(module, *needed, f"{wrong}=1")
    assert (code, err.count("\n")) == (2, 1)
    assert_mentions(err, "selfreward_jax", wrong, right)
