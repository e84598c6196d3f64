"""A judge behind an OpenAI-compatible chat endpoint. Every reply is cached on disk, so none is paid for twice."""

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
from typing import Any, TypedDict
from urllib.parse import urlsplit

from etils import epath
from ml_collections import ConfigDict

from selfreward_jax import storage
from selfreward_jax.config import InputError
from selfreward_jax.storage.artifacts import encode_rows

NUM_WORKERS = 4  # concurrent requests
MAX_WAIT_S = 60.0  # seconds between two attempts
_PARSE_ERRORS = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)


class Reply(TypedDict):
    """What the server answered; the text is None if it gave none, or not all of it."""

    text: str | None
    finish: str  # the server's finish_reason


class EndpointError(InputError, RuntimeError):
    """The endpoint cannot be used, or not any further; the message is one line with the setting and the remedy."""


class _TransientError(Exception):
    """A failure that a retry may solve, with the seconds that the server asks us to wait."""

    retry_after_s: float | None = None


class _MalformedReplyError(_TransientError):
    """A reply that cannot be parsed; only this one prompt may be the cause."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follows no redirect: the key may be sent only to the address in the settings."""


class Endpoint:
    """A chat model of a server, with a file that caches its replies.

    `num_requests` counts the requests that were sent, retries included. `replies` are those that `complete` returned
    last.
    """

    def __init__(self, settings: ConfigDict, cache: epath.PathLike, sleep: Callable = time.sleep) -> None:
        """Reads the cache.

        Args:
          settings: the section `endpoint` of the settings.
          cache: JSON lines {id, text, finish}; each new reply is appended.
          sleep: waits so many seconds.

        Raises:
          EndpointError: a setting cannot work, or the cache file is of another kind.
        """
        self.settings, self.num_requests = settings, 0
        self.replies: list[str | None] = []
        self._key = os.environ.get(settings.api_key_env, "").strip()
        _check_settings(settings, self._key)
        self._authorization = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._url = settings.base_url.rstrip("/") + "/chat/completions"
        self._open = urllib.request.build_opener(_NoRedirect).open
        self._sleep, self._lock = sleep, threading.Lock()
        self._stop_reason: str | None = None  # once set, no further request is sent
        self._cache = epath.Path(cache)
        try:
            self._texts = _load_cache(self._cache)
        except _PARSE_ERRORS:
            raise EndpointError(f"{cache} is not a file of cached endpoint replies: move it away") from None

    def complete(self, prompts: Sequence[str], max_tokens: int) -> list[str | None]:
        """The reply to each prompt, in order, at temperature 0.

        None stands for a reply that was filtered, empty, cut off at `max_tokens` or, after all attempts, malformed.

        Raises:
          EndpointError: the endpoint refuses or fails, or endpoint.max_requests is reached; earlier replies stay
            cached.
        """
        ids = [self._id(p, max_tokens) for p in prompts]
        missing = {i: p for i, p in zip(ids, prompts, strict=True) if i not in self._texts}
        self._stop_reason = None
        pool = ThreadPoolExecutor(NUM_WORKERS)
        try:
            for future in [pool.submit(self._fetch, i, p, max_tokens) for i, p in missing.items()]:
                future.result()
        except BaseException:
            self._stop_reason = "stopped"
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        if self._stop_reason:
            left = sum(i not in self._texts for i in ids)
            progress = f"{len(ids) - left} of {len(ids)} prompts are answered and cached, {left} are left"
            raise EndpointError(f"{self._stop_reason}; {progress}: run the same command again to resume")
        self.replies = [self._texts.get(i) for i in ids]
        return self.replies

    def _id(self, prompt: str, max_tokens: int) -> str:
        return hashlib.sha256(json.dumps([self._url, self.settings.model, prompt, max_tokens]).encode()).hexdigest()

    def _fetch(self, row_id: str, prompt: str, max_tokens: int) -> None:
        """Sends a prompt until there is a reply, and caches the reply."""
        attempts = self.settings.retries + 1
        for attempt in range(attempts):
            if not self._may_send():
                return
            try:
                row = {"id": row_id, **self._send(prompt, max_tokens)}
            except _TransientError as error:
                failure = error
            except EndpointError as error:
                self._stop_reason = self._stop_reason or str(error)
                return
            else:
                with self._lock:
                    storage.append(self._cache, encode_rows([row]))
                    self._texts[row_id] = row["text"]
                return
            if attempt + 1 < attempts:
                self._sleep(_backoff(row_id, attempt) if failure.retry_after_s is None else failure.retry_after_s)
        if not isinstance(failure, _MalformedReplyError):
            reason = f"endpoint.base_url does not answer ({failure}, {attempts} attempts): check that the server is up"
            self._stop_reason = self._stop_reason or reason

    def _may_send(self) -> bool:
        """Counts a request and returns True, unless there is a reason to send none."""
        with self._lock:
            if self._stop_reason is None and self.num_requests >= self.settings.max_requests:
                self._stop_reason = f"endpoint.max_requests {self.settings.max_requests} is reached"
            self.num_requests += self._stop_reason is None
            return self._stop_reason is None

    def _send(self, prompt: str, max_tokens: int) -> Reply:
        """Sends one request."""
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.settings.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        headers = {"Content-Type": "application/json"} | self._authorization
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers, method="POST")
        try:
            with self._open(request, timeout=self.settings.timeout_s) as response:
                return _parse_reply(response.read())
        except urllib.error.HTTPError as error:
            return self._handle_status(error)
        except (OSError, http.client.HTTPException) as error:
            raise _TransientError(type(getattr(error, "reason", error)).__name__) from None

    def _handle_status(self, error: urllib.error.HTTPError) -> Reply:
        """Turns an error status into a filtered reply, a transient failure or an EndpointError."""
        status, variable = error.code, self.settings.api_key_env
        if status == 429 or status >= 500:
            failure, retry_after = _TransientError(f"status {status}"), error.headers.get("Retry-After") or ""
            if retry_after.isascii() and retry_after.isdigit():
                failure.retry_after_s = min(float(retry_after), MAX_WAIT_S)
            raise failure
        code, message = _error_details(error)
        message = message.replace(self._key, "...")[:200] if self._key else message[:200]
        if status == 400 and code == "content_filter":
            return {"text": None, "finish": code}
        if status in (401, 403):
            state = "holds another" if self._key else "is not set"
            fault = f"the endpoint wants a key (status {status}) and the environment variable {variable} {state}"
            raise EndpointError(f"{fault}: put the key there, or name another variable in endpoint.api_key_env")
        if 300 <= status < 400:
            raise EndpointError(f"endpoint.base_url redirects (status {status}): give the address it redirects to")
        fault = f"the endpoint refuses the request (status {status}{message and ': '}{message})"
        raise EndpointError(f"{fault}: check endpoint.base_url and endpoint.model {self.settings.model!r}")


def _check_settings(settings: ConfigDict, key: str) -> None:
    """Refuses an address, a model or a key that cannot work. The message repeats nothing that may hold a key."""
    url = settings.base_url
    if not url:
        raise EndpointError(
            "endpoint.base_url is missing: give the address of the server, such as "
            "--endpoint.base_url=http://localhost:8000/v1, and --endpoint.model=NAME"
        )
    try:
        valid = urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname and urlsplit(url).port != 0
    except ValueError:
        valid = False
    if not valid or not (url.isascii() and url.isprintable()) or set(url) & set(" @?#"):
        raise EndpointError("endpoint.base_url must be http(s)://HOST[:PORT]/v1, with no user, query or fragment")
    if not settings.model:
        raise EndpointError(
            "endpoint.model is missing: give --endpoint.model=NAME, the name of the model on the server"
        )
    if not (key.isascii() and key.isprintable()):
        raise EndpointError(
            f"{settings.api_key_env} (endpoint.api_key_env) holds characters that no key has: set a key"
        )


def _load_cache(cache: epath.Path) -> dict[str, str | None]:
    """The cached texts by id; a last line that a kill has torn is removed from the file."""
    data = cache.read_bytes() if cache.exists() else b""
    complete = data[: data.rfind(b"\n") + 1]
    texts = {row["id"]: row["text"] for row in map(json.loads, complete.splitlines())}
    if complete != data:
        storage.write_atomic(cache, complete)
    return texts


def _parse_reply(body: bytes) -> Reply:
    """The reply in a response body."""
    try:
        choice = (json.loads(body)["choices"] or [{"message": {}, "finish_reason": "empty"}])[0]
        text, finish = choice["message"].get("content"), ascii(choice.get("finish_reason")).strip("'")
        complete = text is not None and finish not in ("length", "content_filter")
        # JSON may hold an unpaired surrogate, which cannot be written to a file.
        return {"text": text.encode(errors="replace").decode() if complete else None, "finish": finish}
    except _PARSE_ERRORS:
        raise _MalformedReplyError("a malformed reply") from None


def _error_details(error: urllib.error.HTTPError) -> tuple[Any, str]:
    """The code and the printable message that a server sends with an error status."""
    try:
        details = json.loads(error.read())["error"]
        return details.get("code"), "".join(filter(str.isprintable, str(details.get("message", ""))))
    except (*_PARSE_ERRORS, OSError, http.client.HTTPException):
        return None, ""


def _backoff(row_id: str, attempt: int) -> float:
    """Seconds after an attempt: doubling from 1, with jitter of up to a quarter so that requests spread out."""
    fraction = int(hashlib.sha256(f"{row_id}:{attempt}".encode()).hexdigest()[:8], 16) / 2**32
    return min(MAX_WAIT_S, 2.0 ** min(attempt, 10) * (0.75 + 0.5 * fraction))
