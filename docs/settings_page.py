"""The page of all settings, from their comments. docs/conf.py writes it at each build of the book."""

from pathlib import Path

from selfreward_jax import config
from selfreward_jax.config.comments import field_comments, flatten_config
from selfreward_jax.config.presets import PRESETS, SUMMARIES

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings, field by field

On the command line, set a field with `--config.FIELD=VALUE`. The defaults are those of the preset `tiny`, the toy world
on a CPU. What the other presets change is at the end of the page. In one working directory a setting may change as long
as no artifact was made with it.
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
    for preset, changed in PRESETS.items():
        lines += [f"## Preset `{preset}`: {SUMMARIES[preset]}", "", "| field | value |", "|---|---|"]
        lines += [f"| `{field}` | `{value!r}` |" for field, value in changed.items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
