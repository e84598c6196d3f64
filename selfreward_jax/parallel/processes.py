"""Several processes that run one program: how they find each other, agree, and stop together.

All of them run the same host code in the same order on the same data; what they must not decide each for itself
(is a file there?) the first one decides for all, by `agreed`. So every call here is made by all processes or by none.
The limits of waiting: `agreed` and `wait` give up after parallel.timeout_s seconds; a process that no longer answers at
all is noticed after HEARTBEAT seconds, wherever the others are, also in the midst of a computation.
"""

import contextlib
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

# The key-value store and the barriers with a time limit have no public name in JAX yet; Orbax takes them from here too.
from jax._src import distributed
from jax.errors import JaxRuntimeError

EXIT_RETRY = (
    75  # exit code (sysexits' EX_TEMPFAIL): another process is gone, or this one was asked to stop; start again
)
HEARTBEAT_TIMEOUT = 100  # seconds

_timeout = 1800.0  # seconds
_wait_total = 0.0  # seconds
peer_stop_requested = threading.Event()  # on the first process: another one was asked to stop
_local = False
_sequence = itertools.count()  # names of agreements, the same on every process since all make the same calls


class ProcessError(RuntimeError):
    """The other processes are not known, cannot be reached or do not come; the message says what to do.

    code: what the program should exit with.
    """

    def __init__(self, message: str, code: int = EXIT_RETRY) -> None:
        super().__init__(message)
        self.code = code


def initialize(address: dict[str, Any], timeout: float) -> None:
    """Joins the other processes.

    Args:
      given: coordinator_address, num_processes and process_id; empty: they are found from the environment (Cloud TPU,
        GKE, Slurm, Open MPI).
      timeout: seconds that processes wait for each other.

    Raises:
      ProcessError: the environment does not say who the others are. Where they do not come, this process ends.
    """
    global _timeout
    _timeout = timeout
    patience = max(1, int(timeout))
    who = f"process {address['process_id']} of {address['num_processes']}" if address else "this process"
    where = f" at {address['coordinator_address']}" if address else ""
    line = f"{who} did not find all the others{where} within {patience} s: start every process, with the same options"
    # JAX's own limit ends the process by abort(), without a word of ours: this one comes first.
    impatience = threading.Timer(patience, exit_now, (EXIT_RETRY, line))
    impatience.daemon = True
    impatience.start()
    # Takes effect where the devices are a CPU's; other devices have collectives of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Which would take SIGTERM for itself and do nothing.
    jax.config.update("jax_enable_preemption_service", False)
    limits = {"initialization_timeout": patience + 60, "heartbeat_timeout_seconds": min(HEARTBEAT_TIMEOUT, patience)}
    try:
        jax.distributed.initialize(**address, **limits)
    except ValueError as error:
        raise ProcessError(
            f"--distributed: the environment does not say which processes belong together ({error}): start it by "
            "Slurm, Open MPI or on a TPU pod, or give --coordinator_address, --num_processes and --process_id",
            code=2,
        ) from None
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        raise ProcessError(f"{who} cannot use the coordinator{where} ({said}): is the port free?") from None
    finally:
        impatience.cancel()
    threading.Thread(target=_watch_for_abort, daemon=True).start()


def process_count() -> int:
    """How many processes there are."""
    return distributed.global_state.num_processes or 1


def process_index() -> int:
    """Which of them this is."""
    return distributed.global_state.process_id or 0


def is_primary() -> bool:
    """Whether this is the first process: the one that writes what all share, and speaks to the user."""
    return process_index() == 0


@contextlib.contextmanager
def local_only() -> Iterator[None]:
    """Within it this process asks no other one: for what it does while the others go on."""
    global _local
    before, _local = _local, True
    try:
        yield
    finally:
        _local = before


def broadcast_from_primary(decide: Callable[[], Any]) -> Any:
    """What `decide()` gives on the first process, on every process. The value must survive JSON."""
    if process_count() == 1 or _local:
        return decide()
    name = f"agreed/{next(_sequence)}"
    if is_primary():
        value = decide()
        _client().key_value_set(name, json.dumps(value))
        return value
    try:
        with _timed_wait():
            return json.loads(_client().blocking_key_value_get(name, int(_timeout * 1000)))
    except JaxRuntimeError as error:
        raise ProcessError(_timeout_message("the first process", _timeout, error)) from None


def all_gather_json(value: Any) -> list[Any]:
    """The value of each process, on every process, in their order. It must survive JSON."""
    if process_count() == 1 or _local:
        return [value]
    name = f"gathered/{next(_sequence)}"
    try:
        _client().key_value_set(f"{name}/{process_index()}", json.dumps(value))
        found = (_client().blocking_key_value_get(f"{name}/{i}", int(_timeout * 1000)) for i in range(process_count()))
        with _timed_wait():
            return [json.loads(x) for x in found]
    except JaxRuntimeError as error:
        raise ProcessError(_timeout_message("all processes", _timeout, error)) from None


def barrier(what: str, timeout: float = 0.0) -> None:
    """Returns when every process has come here; `what` is being waited for, `limit` seconds if not parallel.timeout_s."""
    if process_count() == 1 or _local:
        return
    timeout = timeout or _timeout
    try:
        with _timed_wait():
            _client().wait_at_barrier(f"wait/{next(_sequence)}", int(timeout * 1000))
    except JaxRuntimeError as error:
        raise ProcessError(_timeout_message(f"all processes ({what})", timeout, error)) from None


def wait_seconds() -> float:
    """Seconds that this process has waited for others so far."""
    return _wait_total


@contextlib.contextmanager
def _timed_wait() -> Iterator[None]:
    global _wait_total
    start = time.monotonic()
    try:
        yield
    finally:
        _wait_total += time.monotonic() - start


def shutdown() -> None:
    """Leaves the others, when all have come to the end: whoever left before would look lost."""
    if process_count() > 1:
        barrier("the end")
        jax.distributed.shutdown()


def _timeout_message(who: str, limit: float, error: Exception) -> str:
    return (
        f"process {process_index()} of {process_count()} waited {limit:.0f} s at most (parallel.timeout_s) for {who}: start all "
        f"processes again with the same command ({str(error).splitlines()[0]})"
    )


def _client() -> Any:
    return distributed.global_state.client


def _watch_for_abort() -> None:
    """Ends this process when another one has said why it ended, wherever this one is."""
    while _client() is not None:  # until this one has parted from the others
        time.sleep(1)
        with contextlib.suppress(JaxRuntimeError, AttributeError):  # nobody was
            if is_primary() and _client().key_value_try_get("stop"):
                peer_stop_requested.set()
        try:
            said = json.loads(_client().key_value_try_get("ended"))
        except (JaxRuntimeError, AttributeError):  # nobody has said so, or this one parted while it slept
            continue
        if said["process"] != process_index():
            _linger()
            exit_now(said["code"], f"process {said['process']} ended: {said['line']}")


def broadcast_stop() -> None:
    """Tells the first process that this one was asked to stop."""
    if process_count() > 1:
        with contextlib.suppress(JaxRuntimeError):  # another one was faster
            _client().key_value_set("stop", "asked")


def abort_all(code: int, line: str) -> None:
    """Tells the other processes why this one ends, and ends it. Returns where there is only one."""
    if distributed.global_state.client is None:
        return
    try:
        _client().key_value_set("ended", json.dumps({"process": process_index(), "code": code, "line": line}))
    except JaxRuntimeError:  # another one was faster, or the first process is gone
        with contextlib.suppress(JaxRuntimeError):
            code = json.loads(_client().key_value_try_get("ended"))["code"]
    _linger()
    exit_now(code, line)


def _linger() -> None:
    if is_primary():  # it keeps what is said, and must outlive the others' asking
        time.sleep(3)


def exit_now(code: int, line: str) -> None:
    """Ends this process at once, with one line. Not by an exception: the others would be waited for."""
    print(f"selfreward_jax: {line}", file=sys.stderr, flush=True)
    os._exit(code)


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error is what JAX says when another process is gone."""
    signs = ("Gloo", "connection", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat", "coordination")
    return process_count() > 1 and any(sign.lower() in str(error).lower() for sign in signs)


def peer_failure_message(error: BaseException) -> str:
    """The line for such an error."""
    return (
        f"process {process_index()} of {process_count()}: another process is gone ({str(error).splitlines()[0]}): start all processes "
        "again with the same command"
    )


def supervise(run: Callable[[], int]) -> int:
    """Runs `run` in a child process and returns its exit code.

    When the first process is gone, JAX ends the others by abort(), which no Python code of theirs survives. The parent
    turns that into a line and the exit code LOST. It passes on signals; if it is killed itself, so is the child.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        threading.Thread(target=_exit_with_parent, args=(reading,), daemon=True).start()
        code = 1
        try:
            code = run()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os.close(reading)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda n, _: os.kill(child, n))
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        return os.WEXITSTATUS(status)
    killed = os.WTERMSIG(status)
    if killed == signal.SIGABRT:
        words = "another process is gone (JAX's own words are above): start all again with the same command"
        print(f"selfreward_jax: {words}", file=sys.stderr)
        return EXIT_RETRY
    return 128 + killed


def _exit_with_parent(reading: int) -> None:
    os.read(reading, 1)  # returns when the parent, which never writes, is gone
    os._exit(EXIT_RETRY)
