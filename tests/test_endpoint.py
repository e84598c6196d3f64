"""The endpoint judge, against a local server with all kinds of failures."""

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import arguments, assert_mentions, ended, run
from ml_collections import ConfigDict

from benchmarks.artifacts import fork
from selfreward_jax import config, main
from selfreward_jax.evaluate.endpoint import Endpoint, EndpointError
from selfreward_jax.sampling.engine import Request, SamplingParams
from selfreward_jax.stages.endpoint_writer import EndpointWriter

KEY = "sk-very-secret-0123456789"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
            count = self.server.counts[body["messages"][0]["content"]]
            self.server.counts[body["messages"][0]["content"]] += 1
        self.server.behave(self, body["messages"][0]["content"], count)

    do_GET = do_POST

    def give(self, data, status=200, **headers):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, text, finish="stop"):
        self.give({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]})

    def cut(self):
        """Sends less than Content-Length announces."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [{"mess')
        self.close_connection = True


def echo(handler, prompt, count):
    handler.answer(f"re: {prompt}")


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.counts, server.lock, server.behave = [], Counter(), threading.Lock(), echo
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def make(server, tmp_path, monkeypatch):
    """Makes endpoints of the server; `naps` are the seconds for which they would sleep."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def endpoint(sampling=None, **changes):
        settings = ConfigDict(
            config.default_config().endpoint.to_dict()
            | {"base_url": f"http://127.0.0.1:{server.server_port}/v1", "model": "judge-1", "api_key_env": "JUDGE_KEY"}
            | changes
        )
        return Endpoint(settings, tmp_path / "answers.jsonl", make.naps.append, **sampling or {})

    make = endpoint
    make.naps, make.cache = [], tmp_path / "answers.jsonl"
    yield make
    if make.cache.exists():
        assert KEY.encode() not in make.cache.read_bytes()
    assert all(0 <= nap <= 60 for nap in make.naps)


def fails_once(fault):
    def behave(handler, prompt, count):
        echo(handler, prompt, count) if count else fault(handler)

    return behave


def refusal(endpoint, prompts=("one",)):
    """The one-line error of a call."""
    with pytest.raises(EndpointError) as caught:
        endpoint.complete(prompts, 9)
    line = str(caught.value)
    assert "\n" not in line
    assert KEY not in line + repr(caught.value.__cause__) + repr(caught.value.__context__)
    return line


def test_a_request_follows_the_protocol(make, server):
    assert make().complete(["Grüße, 世界 🌍\n\u2028"], 112) == ["re: Grüße, 世界 🌍\n\u2028"]
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["Authorization"] == f"Bearer {KEY}"
    assert request["headers"]["Content-Type"] == "application/json"
    assert request["body"] == {
        "model": "judge-1",
        "messages": [{"role": "user", "content": "Grüße, 世界 🌍\n\u2028"}],
        "temperature": 0,
        "max_tokens": 112,
    }
    assert make().complete(["Grüße, 世界 🌍\n\u2028"], 112) == ["re: Grüße, 世界 🌍\n\u2028"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("key", [None, "", "  "])
def test_without_a_key_no_header_is_sent(key, make, server, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    if key is not None:
        monkeypatch.setenv("JUDGE_KEY", key)
    assert make().complete(["one"], 9) == ["re: one"]
    assert "Authorization" not in server.requests[0]["headers"]


def test_replies_are_in_the_order_of_the_prompts(make, server):
    together, most = [0], [0]

    def behave(handler, prompt, count):
        with server.lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        time.sleep(0.03 * (1 + int(prompt) % 3))
        with server.lock:
            together[0] -= 1
        echo(handler, prompt, count)

    server.behave = behave
    prompts = [str(i) for i in range(20)]
    assert make().complete(prompts, 9) == [f"re: {p}" for p in prompts]
    assert 1 < most[0] <= 4


def test_equal_prompts_are_sent_once(make, server):
    assert make().complete(["a", "b", "a", "a"], 9) == ["re: a", "re: b", "re: a", "re: a"]
    assert len(server.requests) == 2
    assert make().complete([], 9) == []


def test_a_rerun_sends_only_new_requests(make, server):
    prompts = [f"prompt {i}" for i in range(9)]
    first = make().complete(prompts, 9)
    again = make(max_requests=0)
    assert again.complete(prompts, 9) == first
    assert (again.num_requests, len(server.requests)) == (0, 9)
    make().complete(prompts[:1], 10)
    make(model="judge-2").complete(prompts[:1], 9)
    assert len(server.requests) == 11


def test_a_torn_line_of_the_cache_is_requested_again(make, server):
    endpoint = make()
    for prompt in "abc":
        endpoint.complete([prompt], 9)
    make.cache.write_bytes(make.cache.read_bytes()[:-7])
    for _ in range(2):
        assert make().complete(["a", "b", "c"], 9) == ["re: a", "re: b", "re: c"]
        assert server.counts == {"a": 1, "b": 1, "c": 2}
    assert len([json.loads(line) for line in make.cache.read_text().splitlines()]) == 3


@pytest.mark.parametrize("line", [b"\xff", b"[" * 100_000, b'{"id": 3, "text": "x", "finish": "stop"}', b'{"id": "x"}'])
def test_a_damaged_line_of_the_cache_costs_that_line(line, make, server, capsys):
    make().complete(["a", "b"], 9)
    first, second = make.cache.read_bytes().splitlines()
    make.cache.write_bytes(b"\n".join([first, line, second, b""]))
    assert sorted(make().complete(["a", "b", "c"], 9)) == ["re: a", "re: b", "re: c"]
    assert len(server.requests) == 3
    assert_mentions(capsys.readouterr().err, make.cache, "1 of 3")


@pytest.mark.parametrize("content", ["no JSON\n", "no JSON, no end", '{"other": 1}\n', "[1]\n"])
def test_a_file_of_another_kind_is_refused_and_unchanged(content, make):
    make.cache.write_text(content)
    with pytest.raises(EndpointError, match=r"answers\.jsonl"):
        make()
    assert make.cache.read_text() == content


@pytest.mark.parametrize(
    "fault",
    [
        lambda h: h.give({"error": {"message": "slow down"}}, 429),
        lambda h: h.give(b"", 500),
        lambda h: h.give(b"<html>bad gateway", 502),
        lambda h: h.give(b"", 599),
        lambda h: h.cut(),
        lambda h: h.connection.close(),
        lambda h: h.wfile.write(b"what?\r\n"),
        lambda h: h.give(b'{"choices": ['),
        lambda h: h.give(b"\xff\xfe"),
        lambda h: h.give({}),
        lambda h: h.give([]),
        lambda h: h.give(None),
        lambda h: h.give({"error": {"message": "an error with status 200"}}),
        lambda h: h.give({"choices": [{"message": {"content": 7}}]}),
        lambda h: h.give({"choices": [7]}),
        lambda h: h.give(b"[" * 200_000),
    ],
)
def test_transient_failures_are_retried(fault, make, server):
    server.behave = fails_once(fault)
    endpoint = make()
    assert endpoint.complete(["one"], 9) == ["re: one"]
    assert endpoint.num_requests == len(server.requests) == 2
    assert len(make.naps) == 1
    assert 0.75 <= make.naps[0] <= 1.25


def test_a_timeout_is_retried(make, server):
    server.behave = fails_once(lambda h: time.sleep(1.0))
    assert make(timeout_s=0.5).complete(["one"], 9) == ["re: one"]
    assert len(server.requests) == 2


@pytest.mark.parametrize(("retry_after", "nap"), [("7", 7.0), ("0", 0.0), ("3600", 60.0), ("9" * 999, 60.0)])
def test_retry_after_is_the_wait(retry_after, nap, make, server):
    server.behave = fails_once(lambda h: h.give(b"", 429, Retry_After=retry_after))
    assert make().complete(["one"], 9) == ["re: one"]
    assert make.naps == [nap]


@pytest.mark.parametrize("retry_after", ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "nan", ""])
def test_an_invalid_retry_after_is_ignored(retry_after, make, server):
    server.behave = fails_once(lambda h: h.give(b"", 429, Retry_After=retry_after))
    assert make().complete(["one"], 9) == ["re: one"]
    assert 0.75 <= make.naps[0] <= 1.25


def test_waits_double_and_are_deterministic(make, server):
    server.behave = lambda handler, prompt, count: handler.give(b"", 503)
    line = refusal(make(retries=9))
    assert_mentions(line, "endpoint.base_url", 503, 10)
    assert all(0.75 * 2**i <= nap <= 1.25 * 2**i for i, nap in enumerate(make.naps[:6]))
    assert make.naps[6:] == [60.0, 60.0, 60.0] or min(make.naps[6:]) >= 48
    first = list(make.naps)
    make.naps.clear()
    refusal(make(retries=9))
    assert make.naps == first
    assert not make.cache.exists() or not make.cache.read_text()


def test_a_server_that_is_down(make, server):
    endpoint = make(base_url="http://127.0.0.1:1/v1", retries=2)
    assert_mentions(refusal(endpoint), "endpoint.base_url", "ConnectionRefusedError", 3)
    assert endpoint.num_requests == 3


@pytest.mark.parametrize(
    ("status", "body", "fact"),
    [
        (400, {"error": {"message": f"max_tokens is too large\nkey {KEY}"}}, "max_tokens"),
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, "JUDGE_KEY"),
        (403, {}, "JUDGE_KEY"),
        (404, {"error": {"message": "no such model", "code": "model_not_found"}}, "'judge-1'"),
        (404, {"error": "text"}, "endpoint.base_url"),
        (422, ["odd"], "endpoint.model"),
    ],
)
def test_permanent_failures_are_not_retried(status, body, fact, make, server):
    server.behave = lambda handler, prompt, count: handler.give(body, status)
    assert_mentions(refusal(make()), fact, status, 0, 1)  # no prompt of one was answered
    assert len(server.requests) == 1
    assert not make.naps


def test_a_missing_key_is_named(make, server, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    server.behave = lambda handler, prompt, count: handler.give({}, 401)
    assert_mentions(refusal(make()), "JUDGE_KEY", "endpoint.api_key_env")


def test_replies_before_a_refusal_stay_cached(make, server):
    prompts = [f"{i}" for i in range(30)]
    endpoint = make()

    def refuse_the_twenty_first(handler, prompt, count):
        def wait(done):  # however slow this machine is
            deadline = time.monotonic() + 30
            while not done() and time.monotonic() < deadline:
                time.sleep(0.001)

        if prompt == "20":
            wait(lambda: len(make.cache.read_text().splitlines()) == 20)  # all before it are cached
            return handler.give({}, 401)
        if int(prompt) > 20:
            wait(lambda: endpoint._stop_reason is not None)  # the refusal has arrived
        return handler.answer(f"re: {prompt}")

    server.behave = refuse_the_twenty_first
    line = refusal(endpoint, prompts)
    cached = len(make.cache.read_text().splitlines())
    assert 20 <= cached <= 23  # at most three others were in flight
    assert_mentions(line, cached, len(prompts))
    assert sum(server.counts.values()) == cached + 1
    server.behave = echo
    endpoint = make()
    assert endpoint.complete(prompts, 9) == [f"re: {p}" for p in prompts]
    assert endpoint.num_requests == 30 - cached


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status, make, server):
    target = f"http://localhost:{server.server_port}/elsewhere"
    server.behave = lambda handler, prompt, count: handler.give(b"", status, Location=target)
    assert_mentions(refusal(make()), "endpoint.base_url", status)
    assert [r["path"] for r in server.requests] == ["/v1/chat/completions"]


def test_max_requests_is_exact_and_a_rerun_resumes(make, server):
    prompts = [f"{i}" for i in range(25)]
    line = refusal(make(max_requests=10), prompts)
    assert_mentions(line, "endpoint.max_requests", 10, 25, 15)
    assert len(server.requests) == 10
    refusal(make(max_requests=10), prompts)
    endpoint = make(max_requests=10)
    assert endpoint.complete(prompts, 9) == [f"re: {p}" for p in prompts]
    assert (endpoint.num_requests, len(server.requests)) == (5, 25)
    assert set(server.counts.values()) == {1}


def test_retries_count_towards_max_requests(make, server):
    server.behave = fails_once(lambda h: h.give(b"", 500))
    endpoint = make(max_requests=7)
    assert_mentions(refusal(endpoint, [f"{i}" for i in range(6)]), "endpoint.max_requests", 7)
    assert endpoint.num_requests == len(server.requests) == 7
    assert_mentions(refusal(endpoint, ["another"]), "endpoint.max_requests", 7)  # one limit for all calls
    assert len(server.requests) == 7


@pytest.mark.parametrize(
    "fault",
    [
        lambda h: h.give({"choices": []}),
        lambda h: h.give({"choices": [{"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"}]}),
        lambda h: h.answer("Bet", "length"),
        lambda h: h.answer("", "content_filter"),
        lambda h: h.give({"error": {"code": "content_filter", "message": "filtered"}}, 400),
    ],
)
def test_a_prompt_without_a_reply_is_none_and_is_not_sent_again(fault, make, server):
    server.behave = lambda handler, prompt, count: fault(handler) if prompt == "bad" else handler.answer("good")
    for _ in range(2):
        assert make().complete(["one", "bad", "two"], 9) == ["good", None, "good"]
        assert server.counts == {"one": 1, "bad": 1, "two": 1}


def test_a_malformed_reply_is_none_and_is_requested_again_next_time(make, server):
    server.behave = lambda h, prompt, count: h.give(b"{") if prompt == "bad" else h.answer("good")
    assert make(retries=2).complete(["one", "bad"], 9) == ["good", None]
    assert server.counts == {"one": 1, "bad": 3}
    server.behave = echo
    assert make().complete(["one", "bad"], 9) == ["good", "re: bad"]


def test_a_lone_surrogate_becomes_a_question_mark(make, server):
    server.behave = lambda handler, prompt, count: handler.answer("a\ud83d", "\ud83d")
    for _ in range(2):
        assert make().complete(["b\ud83d"], 9) == ["a?"]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:80/v1",
        "ftp://host/v1",
        "file:///etc/passwd",
        "http:///v1",
        "http://host:port/v1",
        "http://host:0/v1",
        f"https://user:{KEY}@host/v1",
        f"https://host/v1?key={KEY}",
        f"https://host/v1#{KEY}",
        "http://host/a b",
        "http://host/\r\nX: y",
        "http://[host/v1",
    ],
)
def test_an_invalid_base_url_is_refused_at_once(url, make):
    with pytest.raises(EndpointError, match=r"endpoint\.base_url\b") as caught:
        make(base_url=url)
    assert KEY not in str(caught.value)


def test_an_invalid_model_or_key_is_refused_at_once(make, monkeypatch):
    with pytest.raises(EndpointError, match=r"endpoint\.model\b"):
        make(model="")
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\nX-More: header")
    with pytest.raises(EndpointError, match=r"endpoint\.api_key_env\b") as caught:
        make()
    assert KEY not in str(caught.value)
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")  # a line break at the end, as from $(cat FILE)
    make()


def test_replies_are_cached_by_the_request(make, server):
    make().complete(["one"], 9)
    request = [f"http://127.0.0.1:{server.server_port}/v1/chat/completions", "judge-1", "one", 9]
    row = {"id": hashlib.sha256(json.dumps(request).encode()).hexdigest(), "text": "re: one", "finish": "stop"}
    assert [json.loads(line) for line in make.cache.read_text().splitlines()] == [row]
    make(base_url=f"http://127.0.0.1:{server.server_port}/v1/").complete(["one"], 9)  # the same address
    assert len(server.requests) == 1


# --- whatever the server does ---------------------------------------------------------------------------------


def drip(handler, head, every=0.05):
    """Sends a byte now and then, for 60 s at most."""
    handler.wfile.write(head)
    with contextlib.suppress(OSError):
        for _ in range(int(60 / every)):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(every)
    handler.close_connection = True


DRIPS = {
    "the body": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    "a body without an end": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    "a header": b"HTTP/1.1 200 OK\r\nX-Filler: ",
    "the status": b"HTTP/1.1 ",
    "an error's body": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 100000\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("part", DRIPS)
def test_a_request_ends_in_time_whatever_drips(part, make, server):
    server.behave = lambda handler, prompt, count: drip(handler, DRIPS[part])
    start = time.monotonic()
    with pytest.raises(EndpointError):
        make(timeout_s=0.5, retries=0).complete(["a"], 5)
    assert time.monotonic() - start < 3


def test_a_handshake_that_drips_ends_in_time(make):
    """TLS announces a record of 64 KB, of which a byte comes now and then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                connection.sendall(b"\x16\x03\x03\x40\x00")
                for _ in range(600):
                    connection.sendall(b"\x02")
                    time.sleep(0.05)

        threading.Thread(target=serve, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(EndpointError):
            make(base_url=f"https://127.0.0.1:{listener.getsockname()[1]}/v1", timeout_s=0.5, retries=0).complete(
                ["a"], 5
            )
        assert time.monotonic() - start < 3


def test_a_reply_has_a_largest_size(make, server, monkeypatch):
    monkeypatch.setattr("selfreward_jax.evaluate.endpoint.MAX_BODY", 1000)
    server.behave = lambda handler, prompt, count: handler.answer("x" * (900 if count else 2000))
    assert make(retries=1).complete(["a"], 5) == ["x" * 900]
    with pytest.raises(EndpointError, match=r"\b1,000 bytes\b"):
        make(retries=0).complete(["b"], 5)


BODIES = {
    "OpenAI": {"error": {"message": "no such model", "type": "invalid_request_error", "code": "model_not_found"}},
    "Ollama": {"error": "no such model"},
    "FastAPI": {"detail": "no such model"},
    "FastAPI, a list": {"detail": [{"loc": ["body"], "msg": "no such model", "type": "missing"}]},
    "vLLM": {"object": "error", "message": "no such model", "type": "NotFoundError", "code": 404},
    "plain text": b"no such model",
}


@pytest.mark.parametrize("kind", BODIES)
def test_the_words_of_the_server_are_shown(kind, make, server):
    server.behave = lambda handler, prompt, count: handler.give(BODIES[kind], 404)
    with pytest.raises(EndpointError) as caught:
        make().complete(["a"], 5)
    assert_mentions(str(caught.value), "status 404: no such model", "endpoint.model")


@pytest.mark.parametrize("body", [b"<html>a page</html>", b"[]", b"{}", b"null", b"[" * 100_000, b"\xff\x00", b""])
def test_an_error_body_without_words_is_left_out(body, make, server):
    server.behave = lambda handler, prompt, count: handler.give(body, 404)
    with pytest.raises(EndpointError, match=r"status 404") as caught:
        make().complete(["a"], 5)
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).isprintable()


TOO_LONG = {
    "OpenAI": (400, {"error": {"message": "Please reduce it.", "code": "context_length_exceeded"}}),
    "vLLM": (400, {"object": "error", "message": "This model's maximum context length is 4096 tokens.", "code": 400}),
    "llama.cpp": (400, {"error": {"message": "the request exceeds the available context size", "type": "x"}}),
    "a proxy": (413, b"<html>Request Entity Too Large</html>"),
    "FastAPI": (422, {"detail": "prompt is too long"}),
}


@pytest.mark.parametrize("kind", TOO_LONG)
def test_a_prompt_beyond_the_context_costs_that_prompt_alone(kind, make, server, capsys):
    status, body = TOO_LONG[kind]

    def behave(handler, prompt, count):
        handler.give(body, status) if prompt == "long" else echo(handler, prompt, count)

    server.behave = behave
    assert make().complete(["a", "long", "b"], 5) == ["re: a", None, "re: b"]
    assert_mentions(capsys.readouterr().err, "1 prompt of 3")
    assert make().complete(["a", "long", "b", "c"], 5) == ["re: a", None, "re: b", "re: c"]  # a rerun goes on
    assert server.counts["long"] == 1
    assert_mentions(capsys.readouterr().err, "1 prompt of 4")


CONTENTS = {
    "parts": (
        [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "A"}, {"type": "text", "text": "B"}],
        "AB",
    ),
    "a newer part": ([{"type": "output_text", "text": "A"}], "A"),
    "no text part": ([{"type": "thinking", "thinking": "hm"}], None),
    "no part": ([], None),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_the_text_parts_of_a_content_are_read(kind, make, server):
    content, text = CONTENTS[kind]
    server.behave = lambda handler, prompt, count: handler.answer(content)
    assert make().complete(["a"], 5) == [text]


def test_a_server_may_want_the_newer_name_of_the_limit(make, server):
    def behave(handler, prompt, count):
        body = server.requests[-1]["body"]
        if "max_tokens" in body:
            return handler.give(
                {"error": {"message": "Use 'max_completion_tokens' instead.", "code": "unsupported"}}, 400
            )
        return handler.answer(f"{body['max_completion_tokens']}")

    server.behave = behave
    judge = make(retries=0)
    assert judge.complete(["a"], 5) == ["5"]
    assert judge.complete(["b"], 5) == ["5"]
    assert ["max_tokens" in request["body"] for request in server.requests] == [True, False, False]
    assert judge.num_requests == 3


def test_a_used_up_quota_is_told_from_overload(make, server):
    error = {"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota"}}
    server.behave = lambda handler, prompt, count: handler.give(error, 429)
    with pytest.raises(EndpointError, match=r"\bquota\b.*status 429\b"):
        make().complete(["a"], 5)
    assert len(server.requests) == 1
    assert make.naps == []


def test_waiting_is_told(make, server, capsys):
    server.behave = lambda handler, prompt, count: (
        echo(handler, prompt, count) if count else handler.give({"error": "busy"}, 429, Retry_After=30)
    )
    assert make().complete(["a"], 5) == ["re: a"]
    assert_mentions(capsys.readouterr().err, "30 s", "429", "busy")


@pytest.mark.parametrize("spelt", [str.upper, str.lower, str.title])
def test_the_key_is_taken_out_of_what_the_server_repeats(spelt, make, server):
    server.behave = lambda handler, prompt, count: handler.answer(f"with {spelt(KEY)} I say A")
    assert make().complete(["a"], 5) == ["with ... I say A"]
    assert KEY.lower() not in make.cache.read_text().lower()
    server.behave = lambda handler, prompt, count: handler.give({"error": f"bad key {spelt(KEY)}"}, 404)
    with pytest.raises(EndpointError) as caught:
        make().complete(["b"], 5)
    assert KEY.lower() not in str(caught.value).lower()


def test_sampling_is_part_of_a_request_and_of_what_is_cached(server, make):
    make().complete(["one"], 9)
    make({"temperature": 0.6, "top_p": 0.9}).complete(["one"], 9)
    make({"temperature": 0.6}).complete(["one"], 9)
    make({"top_p": 0.9}).complete(["one"], 9)  # greedy: top_p changes nothing, and the reply is there
    bodies = [request["body"] for request in server.requests]
    assert [(body["temperature"], body.get("top_p")) for body in bodies] == [(0, None), (0.6, 0.9), (0.6, None)]


def test_an_endpoint_writes_prompts(server, make):
    replies = {"a": " List three birds. ", "b": None, "c": ""}
    server.behave = lambda handler, prompt, _: (
        handler.answer(replies[prompt]) if replies[prompt] is not None else handler.answer("List thr", "length")
    )
    writer = EndpointWriter(make({"temperature": 0.6}))
    made = writer.generate([Request(f"m2/{name}", name) for name in "abc"], SamplingParams(1, 0.6, 1.0, 9), None)
    assert [(c.id, c.text, c.finished) for c in made] == [
        ("m2/a", "List three birds.", True),
        ("m2/b", "", False),
        ("m2/c", "", True),
    ]


def test_a_round_takes_its_prompts_from_an_endpoint(server, make, finished_run, tmp_path, monkeypatch):
    """Each prompt comes from a reply; another model behind the endpoint is refused."""
    words = iter(f"Name {n} kinds of bird for my play." for n in range(10_000))
    server.behave = lambda handler, prompt, count: handler.answer(next(words))
    workdir, address = tmp_path / "run", f"--config.endpoint.base_url=http://127.0.0.1:{server.server_port}/v1"
    fork(finished_run, workdir, ("seed", "tokenizer", "m0", "m1"), 2)
    options = ["--config.prompts.writer=endpoint", address, "--allow_config_changes"]
    code, err = ended(main, *arguments(workdir, 2, *options))
    assert (code, "endpoint.model" in err) == (2, True)
    options.append("--config.endpoint.api_key_env=JUDGE_KEY")
    run(workdir, 2, *options, "--config.endpoint.model=writer-1")
    rows = [json.loads(line) for line in (workdir / "m2" / "prompts.jsonl").read_text().splitlines()]
    assert rows
    assert all(row["prompt"].startswith("Name ") for row in rows)
    assert len(server.requests) >= len(rows)
    assert server.requests[0]["body"]["temperature"] == 1.0
    assert KEY not in (workdir / "config.json").read_text()
    code, err = ended(main, *arguments(workdir, 3, *options, "--config.endpoint.model=writer-2"))
    assert code == 2
    assert_mentions(err, "prompts.writer", "writer-1", "writer-2")
