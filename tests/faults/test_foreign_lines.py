"""Any line in a log or a cache, and any body of a server, is read, left out or refused; no traceback, no wait."""

import contextlib
import json
import time

from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from selfreward_jax import config
from selfreward_jax.evaluate.endpoint import Endpoint, EndpointError
from selfreward_jax.evaluate.endpoint_replies import parse_fault, parse_reply
from selfreward_jax.report import page, time_report
from selfreward_jax.runs.log import read_events
from selfreward_jax.stages.table import TABLE

ANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([2**63, -(2**63), 10**400, float("nan"), float("inf"), -1, "\ud800", "\x1b[2J", "text", "length"])
)
ODD_BYTES = st.binary(max_size=3) | st.sampled_from([b"[" * 3000, b"9" * 5000])
EVENT_FIELDS = (
    "begins settings before committed seconds peak_memory_bytes step model stage loss lr time stopped accepted margin "
    "accuracy tokens_per_s skipped"
).split()
REPLY_FIELDS = "choices message content text type finish_reason error code detail msg object".split()


def values(keys):
    return st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(keys) | st.text(max_size=5), inner),
        max_leaves=12,
    )


@st.composite
def mutated(draw, originals, keys):
    """The bytes of one of the JSON values with fields changed, of any value, or with bytes changed."""
    value = json.loads(json.dumps(draw(st.sampled_from(originals))))
    if draw(st.booleans()):
        node = value
        while isinstance(node, dict | list) and node:
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            if draw(st.booleans()) or not isinstance(node[key], dict | list):
                node[key] = draw(values(keys))
                break
            node = node[key]
    elif draw(st.booleans()):
        value = draw(values(keys))
    data = bytearray(json.dumps(value).encode())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(
            st.binary(max_size=3) | st.sampled_from([b"[" * 3000, b"9" * 5000])
        )
    return bytes(data)


EVENTS = [
    {"time": 1.0, "begins": True, "settings": "a", "before": "b"},
    {"time": 1.0, "committed": True, "seconds": {"m1 sft": {"": 1.5, "compiling": 2.0}}, "peak_memory_bytes": 3},
    {"time": 1.0, "model": "m2", "stage": "dpo", "step": 3, "loss": 0.5, "lr": 0.1, "margin": 1.0},
    {"time": 1.0, "stopped": "m2 checks: too many ties"},
]


@ANY
@given(lines=st.lists(mutated(EVENTS, EVENT_FIELDS), min_size=1, max_size=8))
def test_any_lines_of_a_log(lines, tmp_path):
    log, start = epath.Path(tmp_path / "events.jsonl"), time.monotonic()
    log.write_bytes(b"\n".join(lines))
    report = time_report.read(epath.Path(tmp_path), TABLE.kind_of)
    time_report.format_table(report)
    time_report.format_line(report)
    events = list(read_events(log))
    page._stop_reason(events)
    page._training_charts(events)
    assert len(events) <= len(b"\n".join(lines).split(b"\n"))
    assert all(isinstance(event, dict) for event in events)
    assert time.monotonic() - start < 5


REPLIES = [
    {"choices": [{"message": {"content": "Score: 5"}, "finish_reason": "stop"}]},
    {"choices": [{"message": {"content": [{"type": "text", "text": "5"}]}, "finish_reason": "length"}]},
    {"error": {"message": "too long", "code": "context_length_exceeded", "type": "x"}},
    {"error": "busy"},
    {"detail": [{"loc": ["body"], "msg": "missing", "type": "x"}]},
    {"object": "error", "message": "no", "type": "x", "code": 404},
]


@ANY
@given(body=mutated(REPLIES, REPLY_FIELDS))
def test_any_body_of_a_server(body):
    start = time.monotonic()
    fault = parse_fault(body)
    assert isinstance(fault.code, str)
    assert fault.message.isprintable()
    assert isinstance(fault.is_too_long, bool)
    with contextlib.suppress(ValueError):  # a malformed reply
        reply = parse_reply(body)
        assert isinstance(reply["text"], str | None)
        assert len(reply["finish"].encode()) <= 100
        (reply["text"] or "").encode(errors="strict")
    assert time.monotonic() - start < 5


CACHED = [{"id": "a" * 64, "text": "Score: 5", "finish": "stop"}, {"id": "b", "text": None, "finish": "length"}]


@ANY
@given(lines=st.lists(mutated(CACHED, ["id", "text", "finish"]), min_size=1, max_size=4), torn=st.booleans())
def test_any_lines_of_a_cache_of_replies(lines, torn, tmp_path):
    cache, start = tmp_path / "replies.jsonl", time.monotonic()
    data = b"\n".join([*lines, b""])
    cache.write_bytes(data[: -1 - torn])
    before = cache.read_bytes()
    endpoint = ConfigDict(config.default_config().endpoint.to_dict() | {"base_url": "http://host/v1", "model": "m"})
    refusal = ""
    try:
        replies = Endpoint(endpoint, cache)
    except EndpointError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        assert cache.read_bytes() == before  # somebody's own file
    else:
        assert before.startswith(cache.read_bytes())
        assert all(isinstance(text, str | None) for text in replies._texts.values())
    assert time.monotonic() - start < 5
