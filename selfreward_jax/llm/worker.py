"""The program of `worker_process.py`: one request a line, one reply a line, within a limit of memory."""

import contextlib
import json
import os
import resource
import sys
from typing import Any

from selfreward_jax.llm.rendering import render
from selfreward_jax.llm.trial import use_tokenizer


def _answer(memory: int, **arguments: Any) -> str:
    with contextlib.suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    if "template" in arguments:
        return render(**arguments)
    use_tokenizer(**arguments)
    return ""


def _serve() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads would count as memory
    print(end="\n", flush=True)  # it is there
    for line in sys.stdin:
        try:
            reply = {"text": _answer(**json.loads(line))}
        except MemoryError:
            reply = {"fault": "it needs too much memory"}
        except ValueError as error:
            reply = {"fault": str(error)[:1000]}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    _serve()
