"""What an OpenAI-compatible server answers: replies, and the error bodies of the servers that people use."""

import json
import re
from typing import Any, NamedTuple, TypedDict

_PARSE_ERRORS = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)
# vLLM: "maximum context length is 4096 tokens"; llama.cpp: "exceeds the available context size"; OpenAI: its code.
_TOO_LONG = re.compile(
    r"context.?(length|window|size)|maximum.{0,20}(length|tokens)|(prompt|input|request).{0,30}too (long|large)"
    r"|max_model_len|exceed.{0,40}tokens",
    re.IGNORECASE,
)


class Reply(TypedDict):
    """What the server answered; the text is None if it gave none, or not all of it."""

    text: str | None
    finish: str  # the server's finish_reason


class Fault(NamedTuple):
    """An error body: its code or type, and its words, printable."""

    code: str
    message: str

    @property
    def is_too_long(self) -> bool:
        """Whether the prompt is beyond the server's context."""
        return self.code == "context_length_exceeded" or bool(_TOO_LONG.search(self.message))


def parse_reply(body: bytes) -> Reply:
    """The reply in a response body. A content of several parts is the text of its text parts.

    Raises:
      ValueError: it is malformed.
    """
    try:
        choice = (json.loads(body)["choices"] or [{"message": {}, "finish_reason": "empty"}])[0]
        text, finish = _text(choice["message"].get("content")), ascii(choice.get("finish_reason"))[:100].strip("'")
        complete = text is not None and finish not in ("length", "content_filter")
        # JSON may hold an unpaired surrogate, which cannot be written to a file.
        return {"text": text.encode(errors="replace").decode() if complete else None, "finish": finish}
    except _PARSE_ERRORS:
        raise ValueError("a malformed reply") from None


def _text(content: Any) -> str | None:
    if isinstance(content, list):
        parts = [part.get("text") for part in content if part.get("type") in ("text", "output_text")]
        return "".join(parts) if parts else None
    if content is not None and not isinstance(content, str):
        raise TypeError("content is no text")
    return content


def parse_fault(body: bytes) -> Fault:
    """What a server says with an error status.

    The forms: {"error": {"message", "code", "type"}} of OpenAI and llama.cpp, {"error": text} of Ollama, {"detail":
    text or list} of FastAPI, and {"object": "error", "message", "type", "code"} of older vLLM. Else the body itself, if
    it is a text.
    """
    text = body.decode(errors="replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = "" if "<" in text else text  # a page of a proxy says nothing in one line
    if isinstance(value, dict):
        value = next((value[name] for name in ("error", "detail") if value.get(name)), value)
    if isinstance(value, list) and value:  # FastAPI: [{"loc", "msg", "type"}]
        value = value[0].get("msg", value[0]) if isinstance(value[0], dict) else value[0]
    if not isinstance(value, dict):
        return Fault("", _printable(value if isinstance(value, str) else json.dumps(value) if value else ""))
    code = value.get("code") if isinstance(value.get("code"), str) else value.get("type")
    return Fault(str(code or ""), _printable(str(value.get("message") or value.get("msg") or "")))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:2000]).strip()
