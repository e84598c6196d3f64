"""Renders chat templates.

A template is data that came with a model: it runs in Jinja's immutable sandbox. The sandbox does not bound its work, so
`worker.py` renders in a process that can be ended.
"""

from typing import Any

import jinja2
import jinja2.sandbox

MAX_CHARACTERS = 4_000_000  # of a rendered text


def render(template: str, values: dict[str, Any]) -> str:
    """The rendered text of a template.

    The sandbox has no clock: a template that can write today's date takes its branch for a missing date.

    Raises:
      ValueError: the template cannot be rendered; the message says why.
    """

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    try:
        text = environment.from_string(template).render(**values)
    except MemoryError:
        raise ValueError("it needs too much memory") from None
    except Exception as error:  # a template is a program: it can fail in any way
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it writes {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    return text
