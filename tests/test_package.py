"""The package's own files: what an installation needs, and where the configurations are."""

import itertools
import re
import tomllib

import pytest
from conftest import ROOT

import selfreward_jax
from selfreward_jax import config
from selfreward_jax.config import files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_requirements_and_package_agree():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert PROJECT["dependencies"] == [line for line in lines if line and not line.startswith("#")]


def test_no_dependency_is_a_file_or_has_no_lower_bound():
    for name in [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]:
        assert re.fullmatch(r"[\w.-]+(\[\w+\])?(>=|==|<)[\d.]+", name), name


def test_every_extra_that_a_message_names_exists():
    extras = set(PROJECT["optional-dependencies"])
    assert {"tpu", "cuda", "gs", "hf", "eval", "wandb", "dev", "docs"} == extras
    texts = [p.read_text() for p in (ROOT / "selfreward_jax").rglob("*.py")]
    assert {m for text in texts for m in re.findall(r"selfreward-jax\[(\w+)\]", text)} <= extras


def test_the_address_of_the_repository_is_the_same_everywhere():
    address = PROJECT["urls"]["Repository"]
    owner_and_name = address.removeprefix("https://github.com/")
    for path in [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "CITATION.cff"]:
        for found in re.findall(r"github\.com/([\w.-]+/[\w.-]*selfreward[\w.-]*)", path.read_text()):
            assert found.removesuffix(".git") == owner_and_name, path
    assert selfreward_jax.__version__


@pytest.mark.parametrize(
    "spec", ["iter2:micro", "configs/iter2.py:micro", "iter2.py:micro", f"{ROOT}/configs/iter2.py:micro"]
)
def test_a_configuration_is_found_from_anywhere(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = config.get_config("micro")
    expected.iterations = 2
    assert files.load(spec).to_dict() == expected.to_dict()


def test_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from selfreward_jax import config\n"
        "def get_config(preset='micro'):\n    c = config.get_config(preset)\n    c.seed = 9\n    return c\n"
    )
    assert files.load("mine.py").seed == 9
    assert files.load("mine.py:scratch").seed == 9


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import nothing_of_this_name\n", "nothing_of_this_name"),
        ("x = 1\n", "get_config"),
        ("def get_config():\n    return {}\n", "dict"),
        ("def get_config():\n    raise SystemError('no')\n", "SystemError"),
    ],
)
def test_a_file_that_does_not_load_is_refused(text, fact, tmp_path):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(config.ConfigError, match=fact) as caught:
        files.load(f"{tmp_path}/bad.py")
    assert "bad.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_configuration_is_refused(tmp_path):
    (tmp_path / "data.csv").write_text("prompt,response\n")
    with pytest.raises(config.ConfigError, match=r"data\.csv.*\.py"):
        files.load(f"{tmp_path}/data.csv")
