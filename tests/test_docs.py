"""What the README and the docs say: links lead somewhere, commands are ones that the programs take, recipes work."""

import ast
import re
import shlex
import sys

import jax.numpy as jnp
import pytest
from conftest import ROOT
from etils import epath

from selfreward_jax import config
from selfreward_jax.cli import args
from selfreward_jax.config import validate
from selfreward_jax.config.presets import PRESETS
from selfreward_jax.llm import hf_config
from selfreward_jax.train import preference_losses

sys.path.insert(0, str(ROOT / "docs"))
import settings_page

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("launch/*.md")])
FIELDS = args.flatten_config(config.default_config())
# Where the options of a program are declared, beside its own file.
PROGRAMS = {
    "main": ("main", "command"),
    "fits": ("fits", "command"),
    "evaluate": ("evaluation", "command"),
    "generate": ("answer", "command"),
    "export": ("export", "command"),
    "explain": ("explain",),
    "report": ("reporting",),
}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.S | re.M)


def commands():
    """Every command of ours in a block or a line of code, with the page it is on."""
    for page in PAGES:
        text = "\n".join(blocks(page, "sh")).replace("\\\n", " ").replace("&&", "\n").replace(";", "\n")
        spans = re.findall(r"`([^`\n]+)`", page.read_text())
        for line in [*text.split("\n"), *spans]:
            if found := re.search(r"python3? -m (selfreward_jax\.\w+|benchmarks\.\w+)( .*)?$", line.strip()):
                yield pytest.param(found[1], shlex.split(found[2] or "", comments=True), id=f"{page.name}: {found[0]}")


def options(module):
    """The options that a program declares."""
    package, _, name = module.rpartition(".")
    files = PROGRAMS[name] if package == "selfreward_jax" else (name, "side_by_side")
    source = "\n".join(
        (ROOT / package / f"{file}.py").read_text() for file in files if (ROOT / package / f"{file}.py").exists()
    )
    declared = re.findall(r'(?:add_argument|DEFINE_\w+)\(\s*"(?:--)?([\w.]+)"', source)
    return {*declared, *(re.findall(r'"((?:endpoint|compare)\.\w+)": ', source)), "help"}


@pytest.mark.parametrize(("module", "words"), [*commands()])
def test_a_command_is_one_that_the_program_takes(module, words):
    path = ROOT / (module.replace(".", "/") + ".py")
    assert path.exists() or module.rpartition(".")[2] in PROGRAMS
    known = options(module)
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name in ("", "..."):
            continue
        if name.startswith("config."):
            assert name.removeprefix("config.") in FIELDS or name == "config.FIELD"
        else:
            assert name in known, f"{module} has no --{name}"
        if name == "config":
            file, _, scale = value.partition(":")
            assert (ROOT / file).is_file() or "ITER" in file
            assert scale in ("", "tiny", *PRESETS) or scale.isupper()


def test_there_are_commands():
    assert len(list(commands())) > 25


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_settings_that_are_named_are_there(page):
    """In code spans: paths of ours, and dotted names that begin as a group of settings does."""
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


def test_every_setting_is_described():
    assert all(settings_page.described()[field] for field in FIELDS)


def test_the_page_of_settings_is_the_one_that_the_source_makes_now():
    assert settings_page.PAGE.read_text() == settings_page.page(), "python docs/settings_page.py"


@pytest.mark.parametrize(
    ("page", "block"),
    [pytest.param(p, b, id=f"{p.name}-{i}") for p in PAGES for i, b in enumerate(blocks(p, "python"))],
)
def test_python_in_the_docs_is_python(page, block):
    assert ast.parse(block).body


def test_the_recipes_of_contributing_do_what_they_say(monkeypatch, tmp_path):
    monkeypatch.setattr(preference_losses, "LOSSES", dict(preference_losses.LOSSES))
    monkeypatch.setattr(hf_config, "FAMILIES", dict(hf_config.ARCHITECTURES))
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
    with pytest.raises(config.ConfigError, match=r"dpo\.loss\b.*'exponential'"):  # to be named there too
        validate.validate(refused, 1)
