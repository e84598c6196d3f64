"""One bounded HTTP request: a total time, whatever drips, and a largest body."""

import contextlib
import http.client
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from typing import Any, NamedTuple


class Response(NamedTuple):
    """What a server answered, whatever the status."""

    status: int
    headers: Message
    body: bytes


class HttpError(Exception):
    """There is no complete answer; the message says why, in a few words."""


class _Deadline:
    """Cuts the connections of a request when its time is over. A socket's own limit begins anew with each byte."""

    def __init__(self, seconds: float) -> None:
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self.is_over = False

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._timer.cancel()
        for sock in self._sockets:
            sock.close()

    def watch(self, connection: http.client.HTTPConnection) -> None:
        """Wraps the method that connects, so that the socket is known before any byte, also before those of TLS."""
        connect = connection._create_connection  # type: ignore[attr-defined]

        def watched(*args: Any) -> socket.socket:
            sock = connect(*args)
            self._sockets.append(sock.dup())  # TLS takes the socket itself away
            if self.is_over:
                self._end()
            return sock

        connection._create_connection = watched  # type: ignore[attr-defined]

    def _end(self) -> None:
        self.is_over = True
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def post(url: str, body: bytes, headers: Mapping[str, str], timeout_s: float, max_bytes: int) -> Response:
    """Sends a POST request through the proxy that the environment names, if any. Follows no redirect: a key may be sent
    only to the address in the settings.

    Args:
      url: the address.
      body: what to send.
      headers: the headers to send.
      timeout_s: seconds for all of it, from the first byte sent to the last one received.
      max_bytes: the largest body of a response.

    Raises:
      HttpError: there is no answer, it is not complete in that time, or it is too large.
    """
    request = urllib.request.Request(url, body, dict(headers), method="POST")
    too_late = HttpError(f"no complete reply within {timeout_s:g} s")
    with _Deadline(timeout_s) as deadline:
        try:
            response = _send(request, deadline, timeout_s, max_bytes)
        except (OSError, ValueError, http.client.HTTPException) as error:
            name = type(getattr(error, "reason", error)).__name__
            raise too_late if deadline.is_over else HttpError(name) from None
        if deadline.is_over:  # a connection that was cut looks like the end of the reply
            raise too_late
    return response


def _send(request: urllib.request.Request, deadline: _Deadline, timeout_s: float, max_bytes: int) -> Response:
    try:
        with _opener(deadline).open(request, timeout=timeout_s) as response:
            return _read(response, max_bytes)
    except urllib.error.HTTPError as error:
        with error:
            try:
                return _read(error, max_bytes)
            except (OSError, http.client.HTTPException):  # the status says enough
                return Response(error.code, error.headers, b"")


def _read(response: Any, max_bytes: int) -> Response:
    data = response.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise HttpError(f"a reply of more than {max_bytes:,} bytes")
    expected = response.headers.get("Content-Length", "")
    if expected.isascii() and expected.isdigit() and len(data) < int(expected):  # read(n) does not tell
        raise http.client.IncompleteRead(data, int(expected) - len(data))
    return Response(response.status, response.headers, data)


def _opener(deadline: _Deadline) -> urllib.request.OpenerDirector:
    def watched(kind: type[http.client.HTTPConnection]) -> Any:
        def connection(*args: Any, **options: Any) -> http.client.HTTPConnection:
            made = kind(*args, **options)
            deadline.watch(made)
            return made

        return connection

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            """Follows none."""

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(watched(http.client.HTTPConnection), req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(watched(http.client.HTTPSConnection), req, context=self._context)

    return urllib.request.build_opener(NoRedirect, Http, Https)
