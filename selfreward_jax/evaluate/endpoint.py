"""A judge behind an OpenAI-compatible chat endpoint. Whatever it answered is kept, and never paid for twice."""

import hashlib
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from etils import epath
from ml_collections import ConfigDict

from selfreward_jax import storage
from selfreward_jax.storage.artifacts import Row, encode_rows

WORKERS = 4  # requests under way at the same time
LONGEST_WAIT = 60.0  # seconds between two attempts
_UNREADABLE = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)


class EndpointError(RuntimeError):
    """The endpoint cannot be used or asked further; one line names the setting and the remedy."""


class _PassingError(Exception):
    """A failure that may pass: its words, and how many seconds the server wants us to wait."""

    wait: float | None = None


class _UnreadableError(_PassingError):
    """A reply that is none; the fault may be this one prompt's."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follows nothing: the key is for the address in the settings alone."""


class Endpoint:
    """A chat model of a server, and a file of its answers. `sent` counts the requests, attempts included."""

    def __init__(self, settings: ConfigDict, cache: epath.PathLike, sleep: Callable = time.sleep) -> None:
        """Reads `cache`, JSON lines to which each answer is added; raises EndpointError if a setting cannot work."""
        self.settings, self.sent = settings, 0
        self._key = os.environ.get(settings.api_key_env, "").strip()
        _check(settings, self._key)
        self._authorization = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._address = settings.base_url.rstrip("/") + "/chat/completions"
        self._open = urllib.request.build_opener(_NoRedirect).open
        self._sleep, self._lock = sleep, threading.Lock()
        self._halt: str | None = None  # why nothing more is sent
        self._cache = epath.Path(cache)
        try:
            self._answers = _kept(self._cache)
        except _UNREADABLE:
            raise EndpointError(f"{cache} is not a file of an endpoint's answers: move it away") from None

    def ask(self, prompts: Sequence[str], max_tokens: int) -> list[str | None]:
        """The answer to each prompt, in order, at temperature 0.

        None stands for an answer that was filtered, empty, cut off at `max_tokens` or, after all attempts, unreadable.

        Raises:
          EndpointError: the endpoint refuses or fails, or the most requests are sent. Earlier answers are kept.
        """
        ids = [self._id(p, max_tokens) for p in prompts]
        missing = {i: p for i, p in zip(ids, prompts, strict=True) if i not in self._answers}
        self._halt = None
        pool = ThreadPoolExecutor(WORKERS)
        try:
            for future in [pool.submit(self._fetch, i, p, max_tokens) for i, p in missing.items()]:
                future.result()
        except BaseException:
            self._halt = "stopped"
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        if self._halt:
            left = sum(i not in self._answers for i in ids)
            kept = f"{len(ids) - left} of {len(ids)} prompts are answered and kept, {left} are left"
            raise EndpointError(f"{self._halt}; {kept}: running again goes on from there")
        return [self._answers.get(i) for i in ids]

    def _id(self, prompt: str, max_tokens: int) -> str:
        return hashlib.sha256(json.dumps([self._address, self.settings.model, prompt, max_tokens]).encode()).hexdigest()

    def _fetch(self, row_id: str, prompt: str, max_tokens: int) -> None:
        """Asks until there is an answer, and keeps it."""
        attempts = self.settings.retries + 1
        for attempt in range(attempts):
            if not self._may_send():
                return
            try:
                row = {"id": row_id, **self._send(prompt, max_tokens)}
            except _PassingError as error:
                failure = error
            except EndpointError as error:
                self._halt = self._halt or str(error)
                return
            else:
                with self._lock:
                    storage.append(self._cache, encode_rows([row]))
                    self._answers[row_id] = row["text"]
                return
            if attempt + 1 < attempts:
                self._sleep(_backoff(row_id, attempt) if failure.wait is None else failure.wait)
        if not isinstance(failure, _UnreadableError):
            self._halt = (
                self._halt or f"endpoint.base_url gives no answer ({failure}, {attempts} attempts): see if it is up"
            )

    def _may_send(self) -> bool:
        """Counts a request, unless there is a reason to send none."""
        with self._lock:
            if self._halt is None and self.sent >= self.settings.max_requests:
                self._halt = f"endpoint.max_requests {self.settings.max_requests} is reached"
            self.sent += self._halt is None
            return self._halt is None

    def _send(self, prompt: str, max_tokens: int) -> Row:
        """One request: {text, finish}."""
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.settings.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        headers = {"Content-Type": "application/json"} | self._authorization
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers, method="POST")
        try:
            with self._open(request, timeout=self.settings.timeout_s) as reply:
                return _read(reply.read())
        except urllib.error.HTTPError as error:
            return self._refused(error)
        except (OSError, http.client.HTTPException) as error:
            raise _PassingError(type(getattr(error, "reason", error)).__name__) from None

    def _refused(self, error: urllib.error.HTTPError) -> Row:
        """What an error status means: a failure that may pass, a filtered answer, or the end."""
        status, variable = error.code, self.settings.api_key_env
        if status == 429 or status >= 500:
            failure, asked = _PassingError(f"status {status}"), error.headers.get("Retry-After") or ""
            failure.wait = min(float(asked), LONGEST_WAIT) if asked.isascii() and asked.isdigit() else None
            raise failure
        code, words = _said(error)
        words = words.replace(self._key, "...")[:200] if self._key else words[:200]
        if status == 400 and code == "content_filter":
            return {"text": None, "finish": code}
        if status in (401, 403):
            state = "holds another" if self._key else "is not set"
            fault = f"the endpoint wants a key (status {status}) and the environment variable {variable} {state}"
            raise EndpointError(f"{fault}: put the key there, or name another variable in endpoint.api_key_env")
        if 300 <= status < 400:
            raise EndpointError(f"endpoint.base_url leads elsewhere (status {status}): give the address it leads to")
        fault = f"the endpoint refuses the request (status {status}{words and ': '}{words})"
        raise EndpointError(f"{fault}: see that endpoint.base_url and endpoint.model {self.settings.model!r} are right")


def _check(settings: ConfigDict, key: str) -> None:
    """Refuses an address, a model or a key that cannot work, and repeats nothing that may hold a key."""
    url = settings.base_url
    try:
        good = urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname and urlsplit(url).port != 0
    except ValueError:
        good = False
    if not good or not (url.isascii() and url.isprintable()) or set(url) & set(" @?#"):
        raise EndpointError("endpoint.base_url must be http(s)://HOST[:PORT]/v1, with no user, query or fragment")
    if not settings.model:
        raise EndpointError("endpoint.model is empty: name the model to ask for")
    if not (key.isascii() and key.isprintable()):
        raise EndpointError(f"{settings.key_variable} (endpoint.api_key_env) holds no key, but characters of no key")


def _kept(cache: epath.Path) -> dict[str, str | None]:
    """The answers in a file of them; a last line that a kill has torn is cut off."""
    data = cache.read_bytes() if cache.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    found = {row["id"]: row["text"] for row in map(json.loads, whole.splitlines())}
    if whole != data:
        storage.write_atomic(cache, whole)
    return found


def _read(body: bytes) -> Row:
    """{text, finish} of a reply; the text is None if the server gave none, or not all of it."""
    try:
        choice = (json.loads(body)["choices"] or [{"message": {}, "finish_reason": "empty"}])[0]
        text, finish = choice["message"].get("content"), ascii(choice.get("finish_reason")).strip("'")
        whole = text is not None and finish not in ("length", "content_filter")
        # JSON may hold half a surrogate pair, which no file takes.
        return {"text": text.encode(errors="replace").decode() if whole else None, "finish": finish}
    except _UNREADABLE:
        raise _UnreadableError("an unreadable reply") from None


def _said(error: urllib.error.HTTPError) -> tuple[Any, str]:
    """The code and the words that a server sends along with an error status."""
    try:
        said = json.loads(error.read())["error"]
        return said.get("code"), "".join(filter(str.isprintable, str(said.get("message", ""))))
    except (*_UNREADABLE, OSError, http.client.HTTPException):
        return None, ""


def _backoff(row_id: str, attempt: int) -> float:
    """Seconds after an attempt: doubling from 1, moved by up to a quarter so that requests do not come together."""
    fraction = int(hashlib.sha256(f"{row_id}:{attempt}".encode()).hexdigest()[:8], 16) / 2**32
    return min(LONGEST_WAIT, 2.0 ** min(attempt, 10) * (0.75 + 0.5 * fraction))
