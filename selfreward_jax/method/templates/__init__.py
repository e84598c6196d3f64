"""Prompt templates: text files with {named} slots. A file path in place of a name uses the user's own file."""

import re
from importlib import resources

from etils import epath

from selfreward_jax import foreign
from selfreward_jax.config import InputError


class TemplateError(InputError, ValueError):
    """A template that cannot be used; the message names the template, the fault and the remedy."""


def load(name: str, slots: set[str]) -> str:
    """The template of that name, or the file at that path.

    Raises:
      TemplateError: there is no such template, it cannot be read, or it does not have all `slots`.
    """
    packaged = {p.name.removesuffix(".txt"): p for p in resources.files(__package__).iterdir() if p.suffix == ".txt"}
    names = ", ".join(sorted(packaged))
    try:
        text = packaged[name].read_text() if name in packaged or not name else foreign.read_text(epath.Path(name))
    except (KeyError, FileNotFoundError):
        raise TemplateError(f"no template {name!r}: give the path of a file or one of {names}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"template {name!r} cannot be read ({error}): give a text file in UTF-8") from None
    missing = sorted(slots - set(re.findall(r"\{(\w+)\}", text)))
    if missing:
        raise TemplateError(f"template {name!r} has no slot {{{missing[0]}}}: add it")
    return text.rstrip("\n")


def fill(template: str, **values: str) -> str:
    """Fills the slots in one pass, so that "{response}" inside a value stays as it is."""
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), template)
