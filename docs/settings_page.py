"""Writes docs/settings.md from selfreward_jax/config.py: python docs/settings_page.py"""

import ast
import re
from pathlib import Path

from selfreward_jax import config
from selfreward_jax.cli.args import flatten_config

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings, field by field

Written by `docs/settings_page.py` from `selfreward_jax/config.py`; do not edit it here. On the command line a field is
`--config.FIELD=VALUE`. Defaults are those of the scale `tiny`, the embedded world on a CPU; what the other scales
change is in `selfreward_jax/config/presets.py`. What of them may change in a working directory that is begun says
`selfreward_jax/config/diff.py`.
"""


def described() -> dict[str, str]:
    """What the comments of config.py say of each field, and of each group of fields under its name."""
    source = Path(config.__file__).read_text()
    (function,) = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "defaults"]
    lines = source.splitlines()
    found: dict[str, str] = {}

    def read(body: list[ast.stmt], names: tuple[str, ...] = ()) -> None:
        for statement in body:
            if isinstance(statement, ast.For):
                read(statement.body, tuple(pair[0] for pair in ast.literal_eval(statement.iter)))
            elif isinstance(statement, ast.Assign):
                said = re.search(r"  # (.*)$", lines[statement.end_lineno - 1])
                target = ast.unparse(statement.targets[0])
                for name in names or ("",):
                    found[target.replace("c[name]", f"c.{name}").removeprefix("c.")] = said[1] if said else ""

    read(function.body)
    return found


def page() -> str:
    """The page."""
    said, groups = described(), {}
    for field, value in flatten_config(config.default_config()).items():
        groups.setdefault(field.rpartition(".")[0], []).append((field, value))
    lines = [HEAD]
    for group, rows in sorted(groups.items()):
        about = f": {said[group]}" if said.get(group) else ""
        lines += [
            f"## {f'`{group}`' if group else 'The run'}{about}",
            "",
            "| field | default | what it is |",
            "|---|---|---|",
        ]
        lines += [f"| `{field}` | `{value!r}` | {said[field].replace('|', '/')} |" for field, value in rows]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
