"""Renders chat templates.

A template is data that came with a model: it runs in Jinja's immutable sandbox. The sandbox does not bound its work, so
`worker.py` renders in a process that can be ended.
"""

import datetime
import json
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MAX_CHARACTERS = 4_000_000  # of a rendered text
# Today for every template: prompts must be the same on every day.
TODAY = datetime.datetime(2024, 7, 26)


class _GenerationTag(jinja2.ext.Extension):
    """{% generation %} marks what the assistant writes. It changes nothing in the text."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def render(template: str, values: dict[str, Any]) -> str:
    """The rendered text of a template.

    There is no clock: a template that asks whether there is one takes its branch for a missing date. One that does not
    ask gets the same date on every day.

    Raises:
      ValueError: the template cannot be rendered; the message says why.
    """

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = _to_json
    try:
        text = _render(environment, template, values)
    except MemoryError:
        raise ValueError("it needs too much memory") from None
    except Exception as error:  # a template is a program: it can fail in any way
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it writes {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    return text


def _render(environment: jinja2.Environment, template: str, values: dict[str, Any]) -> str:
    try:
        return environment.from_string(template).render(**values)
    except jinja2.UndefinedError as error:
        if "strftime_now" not in str(error):
            raise
    environment.globals["strftime_now"] = TODAY.strftime
    return environment.from_string(template).render(**values)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """JSON as transformers writes it: Jinja's own filter escapes HTML."""
    known = {name: options.get(name) for name in ("separators", "sort_keys")}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **known)
