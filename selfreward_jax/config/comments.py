"""The documentation of the settings: the comments of config/defaults.py."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from selfreward_jax.config import defaults


def flatten_config(cfg: ConfigDict) -> dict[str, Any]:
    """Every field by its dotted name, with its value."""
    return flatten(cfg.to_dict())


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The same for settings as nested dictionaries; `prefix` comes before each name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def field_comments() -> dict[str, str]:
    """The comment of each setting in config/defaults.py, and of each group of settings under the group's name."""
    source = Path(defaults.__file__).read_text()
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    lines = source.splitlines()
    comments: dict[str, str] = {}

    def collect(body: list[ast.stmt], groups: tuple[str, ...] = ()) -> None:
        for statement in body:
            if isinstance(statement, ast.For):  # over the names of groups with the same settings
                collect(statement.body, tuple(pair[0] for pair in ast.literal_eval(statement.iter)))
            elif isinstance(statement, ast.Assign):
                comment = re.search(r"  # (.*)$", lines[statement.targets[0].lineno - 1])
                target = ast.unparse(statement.targets[0])
                for group in groups or ("",):
                    field = target.replace("c[name]", f"c.{group}").removeprefix("c.")
                    comments[field] = comment[1] if comment else ""

    collect(functions["default_config"].body)
    return comments
