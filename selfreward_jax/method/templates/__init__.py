"""Prompt templates: text files with {named} places. A path in place of a name uses the reader's own file."""

import re
from importlib import resources

from etils import epath


class TemplateError(ValueError):
    """A template that cannot be used; the message says which and why."""


def load(name: str, slots: set[str]) -> str:
    """The template of that name, or the file at that path.

    Raises:
      TemplateError: there is no such template, or it lacks one of `places`.
    """
    packaged = resources.files(__package__).joinpath(f"{name}.txt")
    if packaged.is_file():
        text = packaged.read_text()
    elif name and epath.Path(name).is_file():
        try:
            text = epath.Path(name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"template {name!r} cannot be read ({error}): save it as UTF-8") from None
    else:
        names = sorted(
            p.name.removesuffix(".txt") for p in resources.files(__package__).iterdir() if p.name.endswith(".txt")
        )
        raise TemplateError(f"no template {name!r}: give a file's path or one of {', '.join(names)}")
    missing = sorted(slots - set(re.findall(r"\{(\w+)\}", text)))
    if missing:
        raise TemplateError(f"template {name!r} lacks the place {{{missing[0]}}}")
    return text.rstrip("\n")


def fill(template: str, **values: str) -> str:
    """Puts values in their places in one pass, so that a value holding "{response}" stays as it is."""
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), template)
