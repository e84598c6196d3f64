"""Chat templates as text: the built-in ones, those of a folder, and how they are rendered."""

from functools import cache
from importlib import resources
from typing import Any

from etils import epath

from selfreward_jax import foreign
from selfreward_jax.config import InputError
from selfreward_jax.config.errors import brief
from selfreward_jax.console.escape import escape
from selfreward_jax.llm import rendering, worker_process
from selfreward_jax.llm.hf_config import ModelFormatError, read_json_object

BUILTIN_TEMPLATES = ("control", "plain")  # roles are special tokens, or words
_NAMES = ("default", "chat")  # of several templates of a folder, the first of these is used


class ChatError(InputError, ValueError):
    """A chat template cannot be used; the message gives the reason."""


@cache
def builtin_template(name: str) -> str:
    """A built-in template, one of BUILTIN_TEMPLATES."""
    return resources.files(__package__).joinpath("templates", f"{name}.jinja").read_text().rstrip("\n")


def render(template: str, **values: Any) -> str:
    """The rendered text of a template: in this process if it is ours, in one that can be ended if it came with a model.

    Raises:
      ChatError: the template cannot be rendered, or takes too long.
    """
    try:
        if template in map(builtin_template, BUILTIN_TEMPLATES):
            return rendering.render(template, values)
        return worker_process.render(template, values)
    except ValueError as error:
        line = escape(" ".join(str(error).split()))[:1000]
        raise ChatError(f"the chat template cannot be rendered: {line}") from None


def read_template(folder: epath.Path, tokenizer_config: dict[str, Any]) -> tuple[str | None, str]:
    """The chat template of a folder, and a line about it for the user.

    The first of chat_template.jinja, tokenizer_config.json and chat_template.json is used. The last two hold one
    template, a list of {name, template}, or an object of templates by name. Of several, `default` or else `chat` is
    used.

    Returns:
      The template, None if there is none; the line is "" if there is nothing to say.

    Raises:
      ModelFormatError: a file cannot be read, or what it holds is no template.
    """
    if (path := folder / "chat_template.jinja").exists():
        try:
            return foreign.read_text(path), ""
        except (OSError, ValueError) as error:
            raise ModelFormatError(f"{path} cannot be read ({error}): it must be a text file") from None
    path, template = folder / "tokenizer_config.json", tokenizer_config.get("chat_template")
    if template is None and (other := folder / "chat_template.json").exists():
        path, template = other, read_json_object(other).get("chat_template")
    if isinstance(template, list) and all(isinstance(t, dict) for t in template):
        template = {t["name"]: t.get("template") for t in template if isinstance(t.get("name"), str)}
    if isinstance(template, dict):
        names = list(template)
        chosen = next((name for name in _NAMES if name in template), names[0] if len(names) == 1 else None)
        if chosen is None:
            line = f"{path} has the chat templates {brief(names)} and none named {' or '.join(_NAMES)}"
            return None, f"{line}: the built-in template 'plain' is used instead"
        template = template[chosen]
    if not isinstance(template, str | None):
        raise ModelFormatError(
            f"{path}: chat_template is {brief(template)}; it must be a text, or a list of named texts"
        )
    return template, ""
