"""Writes docs/settings.md from the settings and their comments: python -m docs.settings_page"""

import ast
import re
from pathlib import Path

from selfreward_jax import config
from selfreward_jax.cli.args import flatten_config
from selfreward_jax.config import defaults

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings, field by field

Written by `docs/settings_page.py` from `selfreward_jax/config/defaults.py`; do not edit this page. On the command line,
set a field with `--config.FIELD=VALUE`. The defaults are those of the preset `tiny`, the toy world on a CPU. The
other presets, and what they change, are in `selfreward_jax/config/presets.py`. Which fields may change between two runs
in one working directory is decided in `selfreward_jax/config/diff.py`.
"""


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


def page() -> str:
    """The text of the page."""
    comments, groups = field_comments(), {}
    for field, value in flatten_config(config.default_config()).items():
        groups.setdefault(field.rpartition(".")[0], []).append((field, value))
    lines = [HEAD]
    for group, rows in sorted(groups.items()):
        about = f": {comments[group]}" if comments.get(group) else ""
        title = f"`{group}`" if group else "The run"
        lines += [f"## {title}{about}", "", "| field | default | what it is |", "|---|---|---|"]
        lines += [f"| `{field}` | `{value!r}` | {comments[field].replace('|', '/')} |" for field, value in rows]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
