"""README and docs: links resolve, commands and their options exist, examples run."""

import ast
import re
import shlex
import sys

import jax.numpy as jnp
import pytest
from conftest import ROOT
from etils import epath

from configs.real import checkable
from selfreward_jax import config
from selfreward_jax.cli import parser
from selfreward_jax.config import files, validate
from selfreward_jax.config.comments import field_comments, flatten_config
from selfreward_jax.config.presets import PRESETS
from selfreward_jax.llm import families, hf_config
from selfreward_jax.train import preference_losses

sys.path.insert(0, str(ROOT / "docs"))
import settings_page

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("launch/*.md")])
FIELDS = flatten_config(config.default_config())


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.S | re.M)


def commands():
    """Every command of this repository in a code block or code span: the program, its arguments and its page."""
    of_modules = r"python3? -m (?:selfreward_jax\.main|selfreward_jax|benchmarks\.\w+)"
    command = re.compile(rf"(selfreward-jax|{of_modules})( .*)?$")
    for page in PAGES:
        indented = re.findall(r"^    ((?:python3? -m|selfreward-jax) .*)$", page.read_text(), re.M)
        text = "\n".join(blocks(page, "sh")).replace("\\\n", " ").replace("&&", "\n").replace(";", "\n")
        spans = re.findall(r"`([^`\n]+)`", page.read_text())
        for line in [*text.split("\n"), *indented, *spans]:
            if m := command.search(line.strip()):
                program, words = m[1].split()[-1], shlex.split(m[2] or "", comments=True)
                if program == "selfreward_jax.main":
                    words = ["run", *words]
                if words or "benchmarks" in program:
                    yield pytest.param(program, words, id=f"{page.name}: {m[0]}")


def options(program, command):
    """The options of a command of this program, or of a benchmark."""
    if not program.startswith("benchmarks"):
        actions = parser._parser(command)._actions
        return {option.removeprefix("--") for action in actions for option in action.option_strings}
    source = (ROOT / (program.replace(".", "/") + ".py")).read_text()
    if "side_by_side" in source:
        source += (ROOT / "benchmarks" / "side_by_side.py").read_text()
    switches = {f"no{name}" for name in re.findall(r'DEFINE_bool\(\s*"(\w+)"', source)}
    return switches | {*re.findall(r'(?:add_argument|DEFINE_\w+)\(\s*"(?:--)?([\w.]+)"', source), "help"}


@pytest.mark.parametrize(("program", "words"), [*commands()])
def test_documented_commands_and_options_exist(program, words):
    command = "" if program.startswith("benchmarks") else words[0]
    if command in ("COMMAND", "X", "--help", "--version"):
        return
    known = options(program, command)
    positional = [word for word in words[1:] if command in parser.TAKES_CONFIG and not word.startswith("-")]
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name in ("", "..."):
            continue
        if name.startswith("config."):
            assert name.removeprefix("config.") in FIELDS or name == "config.FIELD"
            assert "config" in known
        else:
            assert name in known, f"{program} {command} has no --{name}"
        if name == "config":
            positional.append(value)
    for spec in positional:
        file, _, preset = spec.partition(":")
        assert files.find(file.replace("ITER", "iter2").replace("iterN", "iter2"))
        presets = checkable.MACHINES if file.endswith("checkable.py") else ("tiny", *PRESETS)
        assert preset in ("", *presets) or preset.isupper()


def test_every_command_is_documented():
    documented = [parameters.values for parameters in commands()]
    assert len(documented) > 25
    assert set(parser.COMMANDS) <= {words[0] for program, words in documented if not program.startswith("benchmarks")}


def test_the_readme_has_fewer_than_900_words():
    assert len((ROOT / "README.md").read_text().split()) < 900


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_link_targets_exist(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            assert target == "settings.md" or (page.parent / target.partition("#")[0]).exists(), (
                target
            )  # made at a build


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_settings_in_code_spans_exist(page):
    """Paths of this repository, and dotted names that start with a group of settings."""
    groups = {field.partition(".")[0] for field in FIELDS if "." in field}
    roots = [ROOT, ROOT / "selfreward_jax", ROOT / "tests", ROOT / "docs", ROOT / "selfreward_jax" / "method"]
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)):
        if re.fullmatch(r"[\w/.-]+/[\w.-]*\.(py|md|txt|sh|ipynb)", span) and not span.startswith(
            ("runs/", "out/", "configs/iterN")
        ):
            assert any((root / span).exists() for root in (*roots, page.parent)), span
        name = re.match(r"(\w+)\.\w+(\.\w+)?(?==|$)", span)
        if name and name[1] in groups and not span.endswith((".py", ".md", ".json", ".jsonl", ".html")):
            assert name[0] in FIELDS, span


def test_every_setting_has_a_comment():
    comments = field_comments()
    assert all(comments[field] for field in FIELDS)


def test_the_settings_page_has_every_field():
    rows = re.findall(r"^\| `([\w.]+)` \| `.*` \| (.+) \|$", settings_page.page(), re.M)
    assert sorted(field for field, _ in rows) == sorted(FIELDS)
    assert all(comment.strip() for _, comment in rows)


@pytest.mark.parametrize(
    ("page", "block"),
    [pytest.param(p, b, id=f"{p.name}-{i}") for p in PAGES for i, b in enumerate(blocks(p, "python"))],
)
def test_python_blocks_parse(page, block):
    assert ast.parse(block).body


def test_the_examples_of_contributing_run(monkeypatch, tmp_path):
    monkeypatch.setattr(preference_losses, "LOSSES", dict(preference_losses.LOSSES))
    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES.copy())
    monkeypatch.setattr(hf_config, "FAMILIES", families.FAMILIES)
    for block in blocks(ROOT / "CONTRIBUTING.md", "python"):
        assert len(block.split("\n\n\n")[-1].splitlines()) <= 10
        exec(block, {})
    two = jnp.zeros(2)
    x = preference_losses.PairLogProbs(jnp.array([-1.0, -2.0]), two, two, two, two + 1, two + 1)
    losses, margins = preference_losses.pair_loss("exponential", x, 0.5)
    assert margins.tolist() == [-0.5, -1.0]
    assert losses == pytest.approx(jnp.exp(jnp.array([0.5, 1.0])))
    (tmp_path / "config.json").write_text(
        '{"architectures": ["CousinForCausalLM"], "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, '
        '"num_hidden_layers": 1, "num_attention_heads": 2}'
    )
    assert hf_config.read_config(epath.Path(tmp_path))[0].rope_theta == 500_000.0
    assert "LOSSES" in (ROOT / "CONTRIBUTING.md").read_text()
    refused = config.get_config("micro")
    with refused.unlocked():
        refused.dpo.loss = "exponential"
    with pytest.raises(config.ConfigError, match=r"dpo\.loss\b.*'exponential'"):  # validate has to be changed too
        validate.validate(refused, 1)
