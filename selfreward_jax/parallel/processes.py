"""Several processes that run one program: how they connect, agree and stop together.

All processes run the same host code in the same order on the same data. What must not differ between them (does a file
exist?) the primary process decides for all: `broadcast_from_primary`. So every call here is made by all processes or
by none.

Time limits: `broadcast_from_primary`, `all_gather_json` and `barrier` give up after parallel.timeout_s seconds. A
process that no longer responds is noticed after HEARTBEAT_TIMEOUT seconds, wherever the others are, also during a
computation.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from jax.errors import JaxRuntimeError

from selfreward_jax.console import streams
from selfreward_jax.parallel import coordinator

# Exit code (EX_TEMPFAIL of sysexits): another process is lost, or this one was asked to stop. Run the command again.
EXIT_RETRY = 75
HEARTBEAT_TIMEOUT = 100  # seconds

_timeout = 1800.0  # seconds
_wait_total = 0.0  # seconds
peer_stop_requested = threading.Event()  # on the primary process: another one was asked to stop
_local = False


class ProcessError(RuntimeError):
    """The other processes are unknown, unreachable or do not respond; the message names the remedy.

    code: what the program should exit with.
    """

    def __init__(self, message: str, code: int = EXIT_RETRY) -> None:
        super().__init__(message)
        self.code = code


def initialize(address: dict[str, Any], timeout: float) -> None:
    """Connects to the other processes.

    Args:
      address: coordinator_address, num_processes and process_id. If empty, JAX reads them from the environment (Cloud
        TPU, GKE, Slurm, Open MPI).
      timeout: seconds that processes wait for each other.

    Raises:
      ProcessError: the environment does not name the other processes. If they do not connect, this process exits.
    """
    global _timeout
    _timeout = timeout
    seconds = max(1, int(timeout))
    name = f"process {address['process_id']} of {address['num_processes']}" if address else "this process"
    where = f" at {address['coordinator_address']}" if address else ""
    line = f"{name} did not find all the others{where} within {seconds} s: start every process, with the same options"
    # JAX's own limit ends the process by abort(), without our message. So this one is shorter.
    limit = threading.Timer(seconds, exit_now, (EXIT_RETRY, line))
    limit.daemon = True
    limit.start()
    # Takes effect where the devices are a CPU's; other devices have collectives of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's service would handle SIGTERM itself and do nothing.
    jax.config.update("jax_enable_preemption_service", False)
    limits = {"initialization_timeout": seconds + 60, "heartbeat_timeout_seconds": min(HEARTBEAT_TIMEOUT, seconds)}
    try:
        jax.distributed.initialize(**address, **limits)
    except ValueError as error:
        raise ProcessError(
            f"--distributed: the environment does not say which processes belong together ({error}): start it by "
            "Slurm, Open MPI or on a TPU pod, or give --coordinator_address, --num_processes and --process_id",
            code=2,
        ) from None
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ProcessError(f"{name} cannot use the coordinator{where} ({reason}): is the port free?") from None
    finally:
        limit.cancel()
    threading.Thread(target=_watch_for_abort, daemon=True).start()


def process_count() -> int:
    """The number of processes."""
    return coordinator.coordinator().process_count


def process_index() -> int:
    """The number of this process, from 0."""
    return coordinator.coordinator().process_index


def is_primary() -> bool:
    """Whether this is process 0: it writes the shared files and prints for the user."""
    return process_index() == 0


@contextlib.contextmanager
def local_only() -> Iterator[None]:
    """In this context the process does not communicate: for work that the other processes do not do."""
    global _local
    before, _local = _local, True
    try:
        yield
    finally:
        _local = before


def broadcast_from_primary(decide: Callable[[], Any]) -> Any:
    """Returns the value of `decide()` on the primary process, on every process. The value must survive JSON.

    Raises:
      ProcessError: the primary did not decide, or a peer fell far behind, for parallel.timeout_s seconds.
    """
    if process_count() == 1 or _local:
        return decide()
    key = _next_agreement()
    if is_primary():
        value = decide()
        coordinator.set_value(key, json.dumps(value))
        return value
    with _waiting_for("the first process"):
        return json.loads(coordinator.get_value(key, _timeout))


def all_gather_json(value: Any) -> list[Any]:
    """Returns the value of each process, in process order, on every process. The values must survive JSON.

    Raises:
      ProcessError: a process did not make this call for parallel.timeout_s seconds.
    """
    if process_count() == 1 or _local:
        return [value]
    key = _next_agreement()
    with _waiting_for("all processes"):
        coordinator.set_value(f"{key}/{process_index()}", json.dumps(value))
        return [json.loads(coordinator.get_value(f"{key}/{i}", _timeout)) for i in range(process_count())]


def barrier(what: str, timeout: float = 0.0) -> None:
    """Returns when every process has made this call.

    Args:
      what: what the processes wait for; for the message.
      timeout: seconds; 0 is parallel.timeout_s.

    Raises:
      ProcessError: not all processes came in time.
    """
    if process_count() == 1 or _local:
        return
    timeout = timeout or _timeout
    with _waiting_for(f"all processes ({what})", timeout):
        coordinator.wait_at_barrier(timeout)


def wait_seconds() -> float:
    """Seconds that this process has waited for others so far."""
    return _wait_total


def _next_agreement() -> str:
    with _waiting_for("all processes"):
        return coordinator.next_agreement(_timeout)


@contextlib.contextmanager
def _waiting_for(who: str, timeout: float = 0.0) -> Iterator[None]:
    """Counts the seconds spent here as waiting, and turns JAX's errors into ProcessError."""
    global _wait_total
    start = time.monotonic()
    try:
        yield
    except JaxRuntimeError as error:
        raise ProcessError(
            f"process {process_index()} of {process_count()} waited {timeout or _timeout:.0f} s at most "
            f"(parallel.timeout_s) for {who}: start all processes again with the same command "
            f"({str(error).splitlines()[0]})"
        ) from None
    finally:
        _wait_total += time.monotonic() - start


def shutdown() -> None:
    """Disconnects when all processes are done. A process that disconnects earlier would look lost to the others."""
    if process_count() > 1:
        barrier("the end")
        jax.distributed.shutdown()


def _watch_for_abort() -> None:
    """Ends this process, whatever it does, when another one has called `abort_all`."""
    while coordinator.coordinator().client is not None:  # until this process disconnects
        time.sleep(1)
        if is_primary() and coordinator.try_get_value("stop"):
            peer_stop_requested.set()
        if abort := coordinator.try_get_value("abort"):
            reason = json.loads(abort)
            if reason["process"] != process_index():
                _linger()
                exit_now(reason["code"], f"process {reason['process']} ended: {reason['line']}")


def broadcast_stop() -> None:
    """Reports to the primary process that this one was asked to stop."""
    if process_count() > 1:
        with contextlib.suppress(JaxRuntimeError):  # another process was faster
            coordinator.set_value("stop", "requested")


def abort_all(code: int, line: str) -> None:
    """Ends this process and all others, which print the line too. Returns if there is only one process."""
    if coordinator.coordinator().client is None:
        return
    try:
        coordinator.set_value("abort", json.dumps({"process": process_index(), "code": code, "line": line}))
    except JaxRuntimeError:  # another process was faster, or the primary is lost
        if abort := coordinator.try_get_value("abort"):
            code = json.loads(abort)["code"]
    _linger()
    exit_now(code, line)


def _linger() -> None:
    if is_primary():  # it holds the key-value store, which the others must still be able to read
        time.sleep(3)


def exit_now(code: int, line: str) -> None:
    """Ends this process at once, with one line. An exception would wait for the other processes."""
    write_stderr(line)
    os._exit(code)


def write_stderr(line: str) -> None:
    """Writes a line to standard error at once, past all buffers and locks. What cannot be written is lost."""
    streams.write_now(f"selfreward_jax: {line}")


def is_peer_failure(error: BaseException) -> bool:
    """Whether JAX raised this error because another process is lost."""
    signs = ("Gloo", "connection", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat", "coordination")
    return process_count() > 1 and any(sign.lower() in str(error).lower() for sign in signs)


def peer_failure_message(error: BaseException) -> str:
    """The line for such an error."""
    return (
        f"process {process_index()} of {process_count()}: another process is gone ({str(error).splitlines()[0]}): "
        "start all processes again with the same command"
    )


def supervise(run: Callable[[], int]) -> int:
    """Runs `run` in a child process and returns its exit code.

    When the primary process is lost, JAX ends the others by abort(), which their Python code cannot catch. The parent
    turns that into a line and the exit code EXIT_RETRY. It forwards signals; if it is killed, the child exits too.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        _run_child(run, read_end)
    os.close(read_end)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda n, _: os.kill(child, n))
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        return os.WEXITSTATUS(status)
    killed_by = os.WTERMSIG(status)
    if killed_by == signal.SIGABRT:
        line = "another process is lost (JAX's message is above): start all again with the same command"
        write_stderr(line)
        return EXIT_RETRY
    return 128 + killed_by


def _run_child(run: Callable[[], int], read_end: int) -> NoReturn:
    threading.Thread(target=_exit_with_parent, args=(read_end,), daemon=True).start()
    code = 1
    try:
        code = run()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        streams.failure()
    os._exit(code)


def _exit_with_parent(read_end: int) -> None:
    os.read(read_end, 1)  # returns when the parent, which never writes, is gone
    os._exit(EXIT_RETRY)
