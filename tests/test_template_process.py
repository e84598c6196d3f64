"""Chat templates are programs of strangers: their time, memory and output are bounded, and others go on."""

import os
import resource
import signal
import time

import pytest

from selfreward_jax.llm import rendering, worker_process
from selfreward_jax.llm.chat import ChatError, builtin_template, render

GOOD = "{{ messages[0]['content'] }}!"
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(worker_process, "MAX_SECONDS", 0.8)


FOREVER = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{{ 3 ** (10 ** 9) > 1 }}",
    "a loop that writes": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
}
TOO_MUCH = {
    "a long text": "{{ 'x' * 5000000 }}",
    "more than the memory": "{{ 'x' * 10 ** 11 }}",
    "a wide field": "{{ '%2000000000d' % 1 }}",
    "a centred text": "{{ 'x'.center(3000000000) }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a doubled list": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
}


@pytest.mark.parametrize("template", FOREVER.values(), ids=FOREVER)
def test_a_template_that_takes_too_long_is_ended(template):
    start = time.monotonic()
    with pytest.raises(ChatError):
        render(template, messages=MESSAGES)
    assert time.monotonic() - start < 6
    assert render(GOOD, messages=MESSAGES) == "Hi!"


@pytest.mark.parametrize("template", TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_template_that_needs_too_much_is_refused(template):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ChatError) as caught:
        render(template, messages=MESSAGES)
    assert str(caught.value).count("\n") == 0
    assert len(str(caught.value)) < 1500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
    assert render(GOOD, messages=MESSAGES) == "Hi!"


@pytest.mark.parametrize("text", ["Hi", "Hi" * 100_000])  # shorter and longer than a pipe holds
@pytest.mark.parametrize("gone", [True, False])  # at the next request, or perhaps not yet
def test_a_process_that_somebody_ended_is_started_again(gone, text):
    assert render(GOOD, messages=MESSAGES) == "Hi!"
    process = worker_process._process
    os.kill(process.pid, signal.SIGKILL)
    if gone:
        process.wait()
    assert render(GOOD, messages=[{"role": "user", "content": text}]) == f"{text}!"
    assert worker_process._process is not process


@pytest.mark.parametrize("text", ["a\nb", "\u2028", "\ud800", "\x00", "é" * 100_000])
def test_any_text_survives_the_way_there_and_back(text):
    assert render(GOOD, messages=[{"role": "user", "content": text}]) == f"{text}!"


def test_our_own_templates_need_no_process(monkeypatch):
    monkeypatch.setattr(worker_process, "render", None)
    assert "Hi" in render(builtin_template("plain"), messages=MESSAGES, bos_token="", eos_token="")


def test_the_same_text_comes_from_both():
    template = (
        "{% for m in messages %}{{ loop.index }} {{ m | tojson }}{% if loop.last %}{% break %}{% endif %}{% endfor %}"
    )
    assert worker_process.render(template, {"messages": MESSAGES}) == rendering.render(template, {"messages": MESSAGES})
