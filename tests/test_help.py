"""--help of every command names every option at once; a mistake on the command line gets the right word."""

import subprocess
import sys

import pytest
from conftest import ROOT, assert_mentions

from selfreward_jax.cli import parser, program
from selfreward_jax.config import default_config
from selfreward_jax.config.comments import flatten_config
from selfreward_jax.config.presets import PRESETS
from selfreward_jax.main import main

# Arguments, and what the answer names.
MISTAKES = {
    "no command": (["evalute", "--workdir=w"], ["'evalute'", "evaluate"]),
    "an option first": (["--config=iter2"], ["'--config=iter2'", *parser.COMMANDS]),
    "a typo": (["evaluate", "--workidr=w", "--workdir=w"], ["--workidr", "--workdir"]),
    "a typo in generate": (
        ["generate", "--workdir=w", "--prompts=p", "--out=o", "--temprature=1"],
        ["--temprature", "--temperature"],
    ),
    "an abbreviation": (["export", "--workdir=w", "--out=o", "--mod=m2"], ["--mod", "--model"]),
    "nothing that is needed": (["export", "--workdir=w"], ["--out"]),
    "no value": (["report", "--workdir"], ["--workdir"]),
    "a word for a number": (["chat", "--workdir=w", "--seed=one"], ["--seed", "'one'"]),
    "an unknown choice": (
        ["generate", "--workdir=w", "--prompts=p", "--out=o", "--format=csv"],
        ["--format", "'csv'", "alpaca_eval"],
    ),
    "no prefix": (["run", "iter2:micro", "--dpo.beta=0.2"], ["--config.dpo.beta=0.2"]),
    "no prefix, a switch": (["check", "iter2:micro", "--sft_baseline"], ["--config.sft_baseline=VALUE"]),
    "an old way to chat": (["generate", "--workdir=w", "--interactive"], ["selfreward-jax chat"]),
    "an old name of a model": (["chat", "--model=w", "--name=m1"], ["--name", "--workdir", "--model"]),
    "a flag of another library": (["run", "iter2", "--model_name_or_path=x"], ["--config.model.init"]),
    "a preset as an option": (["run", "iter2", "--preset=micro"], ["iter2:PRESET"]),
    "two configurations": (["run", "iter2", "--config=iter3"], ["'iter2'", "--config=iter3"]),
    "a configuration that is not there": (["run", "iter4:micro"], ["'iter4'", "iter1", "iter2", "iter3"]),
    "a preset that is not there": (["run", "iter2:mikro"], ["'mikro'", *PRESETS]),
    "a second word": (["run", "iter2", "resume"], ["'resume'"]),
    "a setting that is not there": (["run", "iter2", "--config.dpo.betta=1"], ["dpo.betta", "dpo.beta"]),
    "a group for a setting": (["run", "iter2", "--config.dpo", "3"], ["dpo", "'3'"]),
    "a word for a group": (["run", "iter2", "--config.model=gpt2"], ["'gpt2'", "group", "one of it: model.init"]),
    "a setting of another library": (
        ["run", "iter2", "--config.dpo.learning_rate=1e-6"],
        ["the nearest one is dpo.lr\n"],
    ),
    "a setting of peft": (["run", "iter2", "--config.lora.r=8"], ["the nearest one is lora.rank\n"]),
    "no run and no model": (["chat"], ["--workdir", "--model"]),
    "a run that is not there": (["report", "--workdir=nowhere"], ["nowhere"]),
    "an empty folder name": (["run", "iter2:micro", "--workdir="], ["--workdir"]),
    "an empty output": (["generate", "--workdir=w", "--prompts=p", "--out="], ["--out"]),
    "a learning rate": (["run", "iter2", "--learning_rate=1e-6"], ["--config.sft.lr", "--config.dpo.lr"]),
    "the end of a setting's name": (["run", "iter2", "--beta=0.2"], ["--config.dpo.beta=0.2"]),
    "a model for a run": (["run", "iter2", "--model=gpt2"], ["--config.model.init"]),
    "nothing like an option": (["chat", "--workdir=w", "--quantize=4"], ["--quantize", "selfreward-jax chat --help"]),
    "a preset alone": (["run", "micro"], ["'micro'", "iter2:micro"]),
    "an empty preset": (["run", "iter2:"], ["'iter2:'"]),
    "two configurations in a row": (["run", "iter2:micro", "iter3:micro"], ["'iter3:micro'"]),
    "no batch": (["run", "iter2:micro", "--config.dpo.batch_size=-1"], ["dpo.batch_size", "-1", "0"]),
}


def test_the_program_says_which_commands_there_are(capsys):
    assert program.main(["--help"]) == 0
    assert_mentions(capsys.readouterr().out, *parser.COMMANDS)
    assert program.main([]) == 0


@pytest.mark.parametrize("name", parser.COMMANDS)
def test_help_is_short_and_complete(name, capsys):
    assert program.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    for action in parser._parser(name)._actions:
        if action.help != "==SUPPRESS==":
            assert_mentions(text, *action.option_strings[-1:])
    assert len(text.splitlines()) <= 60 or name == "run"


def test_help_of_a_run_lists_presets_and_settings(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert_mentions(text, *PRESETS, "iter1", "ablations/no_eft")
    for field, value in flatten_config(default_config()).items():
        assert f"  {field}={value if value != '' else repr(value)}  # " in text


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["generate", "--help"], ["rnu"]], ids=" ".join)
def test_help_does_without_jax(words):
    script = "import sys; from selfreward_jax.cli.program import main; main(sys.argv[1:]); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_package_is_imported_without_jax():
    script = "import sys, selfreward_jax; print('jax' in sys.modules, selfreward_jax.__version__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False 0.1.0\n"


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_the_right_word_on_one_line(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv, facts = MISTAKES[name]
    assert program.main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("selfreward_jax: ")
    assert_mentions(err, *facts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--config.dpo.beta=0.2"], "dpo.beta", 0.2),
        (["--config.dpo.beta", "0.2"], "dpo.beta", 0.2),
        (["--config.seed", "3", "--config.sft_baseline"], "sft_baseline", True),
        (["--noconfig.sft_baseline"], "sft_baseline", False),
        (["--config.sft.sets=('ift',)"], "sft.sets", ("ift",)),
        (["--config.data.ift=a=b"], "data.ift", "a=b"),
    ],
)
@pytest.mark.parametrize("spec", [["iter2:micro"], ["--config=iter2:micro"], ["--config", "iter2:micro"]])
def test_settings_on_the_command_line(spec, words, field, value):
    from selfreward_jax.cli import settings

    options = parser.parse(["run", *words, *spec])
    cfg = settings.load(options.config, options.fields)
    assert flatten_config(cfg)[field] == value
    assert cfg.iterations == 2
