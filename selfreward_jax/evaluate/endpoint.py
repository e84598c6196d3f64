"""A judge or writer behind an OpenAI-compatible chat endpoint. Replies are cached on disk: none is paid for twice."""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from etils import epath
from ml_collections import ConfigDict

from selfreward_jax import foreign, storage
from selfreward_jax.config import InputError
from selfreward_jax.evaluate.endpoint_replies import Reply, parse_fault, parse_reply
from selfreward_jax.evaluate.http_post import HttpError, Response, post
from selfreward_jax.storage.artifacts import encode_rows
from selfreward_jax.telemetry.numbers import counted
from selfreward_jax.telemetry.terminal import log_line

NUM_WORKERS = 4  # concurrent requests
MAX_WAIT_S = 60.0  # seconds between two attempts
MIN_TOLD_S = 5.0  # a wait of so many seconds is told
NEWER_FIELD = "max_completion_tokens"  # the name of max_tokens that OpenAI's newer models want
MAX_BODY = 16 << 20  # bytes of a response
_CACHE_START = b'{"id": "'
MAX_CACHE = 1 << 34  # bytes of all cached replies
TOO_LONG = "context_length_exceeded"  # the finish of a prompt that the server cannot take


class EndpointError(InputError, RuntimeError):
    """The endpoint cannot be used, or not any further; the message is one line with the setting and the remedy."""


class _TransientError(Exception):
    """A failure that a retry may solve, with the seconds to wait, if they are known."""

    def __init__(self, why: str, retry_after_s: float | None = None) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class _MalformedReplyError(_TransientError):
    """A reply that cannot be parsed; only this one prompt may be the cause."""


class Endpoint:
    """A chat model of a server, with a file that caches its replies.

    `num_requests` counts the requests that were sent, retries included. `replies` are those that `complete` returned
    last.
    """

    def __init__(
        self,
        settings: ConfigDict,
        cache: epath.PathLike,
        sleep: Callable = time.sleep,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> None:
        """Reads the cache.

        Args:
          settings: the section `endpoint` of the settings.
          cache: JSON lines {id, text, finish}; each new reply is appended.
          sleep: waits so many seconds.
          temperature, top_p: how the server samples; by default greedily.

        Raises:
          EndpointError: a setting cannot work, or the cache file is of another kind.
        """
        self.settings, self.num_requests = settings, 0
        self.replies: list[str | None] = []
        self._key = os.environ.get(settings.api_key_env, "").strip()
        _check_settings(settings, self._key)
        self._authorization = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._url = settings.base_url.rstrip("/") + "/chat/completions"
        self._limit_field = "max_tokens"
        # Not every server knows top_p, so it is sent only where it matters.
        self._sampling = {"temperature": temperature} | ({"top_p": top_p} if temperature and top_p < 1 else {})
        self._sleep, self._lock = sleep, threading.Lock()
        self._stop_reason: str | None = None  # once set, no further request is sent
        self._cache = epath.Path(cache)
        rows = _load_cache(self._cache)
        self._texts = {row["id"]: row["text"] for row in rows}
        self._too_long = {row["id"] for row in rows if row["finish"] == TOO_LONG}

    def complete(self, prompts: Sequence[str], max_tokens: int, names: Sequence[str] | None = None) -> list[str | None]:
        """The reply to each prompt, in order.

        None stands for a reply that was filtered, empty, cut off at `max_tokens` or, after all attempts, malformed; and
        for a prompt beyond the server's context.

        Args:
          prompts: the user's messages.
          max_tokens: most tokens of a reply.
          names: of the replies, where equal prompts are to get replies of their own.

        Raises:
          EndpointError: the endpoint refuses or fails, or endpoint.max_requests is reached; earlier replies stay
            cached.
        """
        ids = [self._id(p, max_tokens, *name) for p, *name in zip(prompts, *([names] if names else []), strict=True)]
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
        if too_long := self._too_long & set(ids):
            log_line(
                f"  endpoint: {counted(len(too_long), 'prompt')} of {len(ids)} beyond the server's context: no reply"
            )
        self.replies = [self._texts.get(i) for i in ids]
        return self.replies

    def _id(self, prompt: str, max_tokens: int, *name: str) -> str:
        sampling = [self._sampling] if self._sampling["temperature"] else []
        key = [self._url, self.settings.model, prompt, max_tokens, *sampling, *name]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()

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
                    _append(self._cache, row)
                    self._texts[row_id] = row["text"]
                    self._too_long |= {row_id} if row["finish"] == TOO_LONG else set()
                return
            if attempt + 1 < attempts:
                seconds = _backoff(row_id, attempt) if failure.retry_after_s is None else failure.retry_after_s
                self._wait(seconds, str(failure))
        if not isinstance(failure, _MalformedReplyError):
            remedy = "wait, or lower the load" if "429" in str(failure) else "check that the server is up"
            reason = f"endpoint.base_url does not answer ({failure}; {attempts} attempts): {remedy}"
            self._stop_reason = self._stop_reason or reason

    def _may_send(self) -> bool:
        """Counts a request and returns True, unless there is a reason to send none."""
        with self._lock:
            if self._stop_reason is None and self.num_requests >= self.settings.max_requests:
                self._stop_reason = f"endpoint.max_requests {self.settings.max_requests} is reached"
            self.num_requests += self._stop_reason is None
            return self._stop_reason is None

    def _send(self, prompt: str, max_tokens: int) -> Reply:
        """Sends one request; a second one where the server wants another name for the limit."""
        messages, field = [{"role": "user", "content": prompt}], self._limit_field
        body = {"model": self.settings.model, "messages": messages, **self._sampling, field: max_tokens}
        headers = {"Content-Type": "application/json"} | self._authorization
        try:
            response = post(self._url, json.dumps(body).encode(), headers, self.settings.timeout_s, MAX_BODY)
        except HttpError as error:
            raise _TransientError(str(error)) from None
        if response.status == 400 and field == "max_tokens" and NEWER_FIELD.encode() in response.body:
            self._limit_field = NEWER_FIELD
            if not self._may_send():
                raise EndpointError(str(self._stop_reason))
            return self._send(prompt, max_tokens)
        if not 200 <= response.status < 300:
            return self._handle_status(response)
        try:
            text, finish = parse_reply(response.body).values()
        except ValueError as error:
            raise _MalformedReplyError(str(error)) from None
        return {"text": text and self._without_key(text), "finish": self._without_key(finish)}

    def _handle_status(self, response: Response) -> Reply:
        """Turns an error status into a reply without a text, a transient failure or an EndpointError."""
        status, variable, fault = response.status, self.settings.api_key_env, parse_fault(response.body)
        message = self._without_key(fault.message)[:200]
        reason = f"status {status}" + f": {message}" * bool(message)
        if fault.code == "insufficient_quota":
            raise EndpointError(
                f"the account of the endpoint's key has no quota left ({reason}): add some, or wait for it"
            )
        if status == 429 or status >= 500:
            failure, retry_after = _TransientError(reason), response.headers.get("Retry-After") or ""
            if retry_after.isascii() and retry_after.isdigit():
                failure.retry_after_s = min(float(retry_after), MAX_WAIT_S)
            raise failure
        if status == 400 and fault.code == "content_filter":
            return {"text": None, "finish": fault.code}
        if status in (400, 413, 422) and (status == 413 or fault.is_too_long):
            return {"text": None, "finish": TOO_LONG}
        if status in (401, 403):
            state = "holds another" if self._key else "is not set"
            why = f"the endpoint wants a key (status {status}) and the environment variable {variable} {state}"
            raise EndpointError(f"{why}: put the key there, or name another variable in endpoint.api_key_env")
        if 300 <= status < 400:
            raise EndpointError(f"endpoint.base_url redirects (status {status}): give the address it redirects to")
        why = f"the endpoint refuses the request ({reason})"
        raise EndpointError(f"{why}: check endpoint.base_url and endpoint.model {self.settings.model!r}")

    def _without_key(self, text: str) -> str:
        """The text without the key, in whatever case the server repeats it."""
        return re.sub(re.escape(self._key), "...", text, flags=re.IGNORECASE) if self._key else text

    def _wait(self, seconds: float, why: str) -> None:
        if seconds >= MIN_TOLD_S:
            log_line(f"  endpoint: {why}; trying again in {seconds:.0f} s")
        self._sleep(seconds)


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


def _append(cache: epath.Path, row: dict[str, Any]) -> None:
    """Stores a reply; in a bucket, which cannot append, as an object of its own."""
    if storage.is_remote(cache):
        cache.with_name(f"{cache.name}.{row['id']}").write_bytes(encode_rows([row]))
    else:
        storage.append(cache, encode_rows([row]))


def _load_cache(cache: epath.Path) -> list[dict[str, Any]]:
    """The cached replies {id, text, finish}. A last line that a kill has torn is removed from the file. A damaged line
    costs its reply, not the others.

    Raises:
      EndpointError: it is a file of another kind, or cannot be read.
    """
    try:
        if storage.is_remote(cache):
            names = cache.parent.iterdir() if cache.parent.exists() else ()
            ours = (path for path in names if path.name.startswith(f"{cache.name}."))
            return [row for path in ours if (row := _cached_reply(path.read_bytes()))]
        data = foreign.read_bytes(cache, MAX_CACHE) if cache.exists() else b""
    except OSError as error:
        raise EndpointError(f"{cache} cannot be read ({error.strerror}): repair it, or move it away") from None
    complete = data[: data.rfind(b"\n") + 1]
    lines = complete.split(b"\n")[:-1]
    rows = [row for line in lines if (row := _cached_reply(line))]
    if not rows and not data.startswith(_CACHE_START[: len(data)]):
        raise EndpointError(f"{cache} is not a file of cached endpoint replies: move it away")
    if len(rows) < len(lines):
        storage.warn(f"{cache}: {len(lines) - len(rows)} of {len(lines)} lines are damaged, and are requested again")
    if complete != data:
        storage.write_atomic(cache, complete)
    return rows


def _cached_reply(line: bytes) -> dict[str, Any] | None:
    """The reply in a line of the cache; None if the line holds none."""
    try:
        row = json.loads(line)
        (row["text"] or "").encode()  # no unpaired surrogate
        kinds = {"id": str, "text": str | None, "finish": str}
        return row if all(isinstance(row[name], kind) for name, kind in kinds.items()) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _backoff(row_id: str, attempt: int) -> float:
    """Seconds after an attempt: doubling from 1, with jitter of up to a quarter so that requests spread out."""
    fraction = int(hashlib.sha256(f"{row_id}:{attempt}".encode()).hexdigest()[:8], 16) / 2**32
    return min(MAX_WAIT_S, 2.0 ** min(attempt, 10) * (0.75 + 0.5 * fraction))
