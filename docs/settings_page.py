"""The page of all settings, from their comments. docs/conf.py writes it at each build of the book."""

from pathlib import Path

from selfreward_jax import config
from selfreward_jax.config.comments import field_comments, flatten_config

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings, field by field

Made from `selfreward_jax/config/defaults.py`. On the command line,
set a field with `--config.FIELD=VALUE`. The defaults are those of the preset `tiny`, the toy world on a CPU. The
other presets, and what they change, are in `selfreward_jax/config/presets.py`. Which fields may change between two runs
in one working directory is decided in `selfreward_jax/config/diff.py`.
"""


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
