"""--help of every command is short and names every option; an unknown option gets the nearest one as a suggestion."""

import contextlib
import re

import pytest
from conftest import ROOT, assert_mentions, ended
from test_docs import options

from selfreward_jax import __main__ as commands
from selfreward_jax.__main__ import COMMANDS

# Options that every subcommand below needs, a misspelt option and the right one.
TYPOS = {
    "evaluate": (["--workdir=w"], "--workidr", "--workdir"),
    "generate": (["--model=m"], "--temprature", "--temperature"),
    "export": (["--workdir=w", "--out=t"], "--modle", "--model"),
    "explain": (["--workdir=w", "--time"], "--workidr", "--workdir"),
    "report": (["--workdir=w"], "--workidr", "--workdir"),
}


def help_of(capsys, *words):
    with contextlib.suppress(SystemExit):  # argparse ends the program
        assert commands.main(["selfreward_jax", *words, "--help"]) in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_short_and_complete(name, capsys):
    text = help_of(capsys, name)
    assert len(text.splitlines()) <= 60
    source = (ROOT / (COMMANDS[name].replace(".", "/") + ".py")).read_text()
    declared = options(COMMANDS[name]) - {"help", "config"}
    declared -= {option for option in declared if option.removeprefix("no") in declared - {option}}
    if name == "fits":  # the others, of cli/args.py, are those of a run
        declared &= set(re.findall(r'DEFINE_\w+\("(\w+)"', source))
    assert declared
    assert [option for option in declared if f"--{option}" not in text] == []


def test_help_of_the_program_names_every_command(capsys):
    assert_mentions(help_of(capsys), *COMMANDS)


def test_an_unknown_command_is_refused_with_the_known_ones():
    code, err = ended(commands, "evalute")
    assert (code, err.count("\n")) == (2, 1)
    assert_mentions(err, "'evalute'", *COMMANDS)


@pytest.mark.parametrize("name", TYPOS)
def test_a_typo_gets_the_nearest_option(name):
    needed, wrong, right = TYPOS[name]
    code, err = ended(commands, name, *needed, f"{wrong}=1")
    assert (code, err.count("\n")) == (2, 1)
    assert_mentions(err, "selfreward_jax", wrong, right)
