"""Messages between processes: the key-value store of JAX's coordination service.

The service runs in the primary process and keeps every key until somebody deletes it. Training makes an agreement at
every step, so this module deletes the keys of past agreements, a block at a time:

    primary  |-- block 0 --|-- block 1 --|-- block 2 --     Entering block 2, it waits until all peers have entered
    peer     |-- block 0 --|-- block 1 --                   block 1, then deletes the keys of block 0.

A process enters block b only after it has read every value of block b - 1. So no key is deleted before all processes
have read it, however slow a peer is, and the store holds the keys of two blocks at most.
"""

import itertools
from typing import Any, NamedTuple

# The key-value store and barriers with a time limit have no public name in JAX. Only this file imports jax._src.
from jax._src import distributed
from jax.errors import JaxRuntimeError

BLOCK = 256  # agreements
PREFIX = "selfreward_jax"

# Numbers of agreements and barriers. They are equal on all processes, which make the same calls in the same order.
_agreements = itertools.count()
_barriers = itertools.count()


class Coordinator(NamedTuple):
    """This process among all processes of a run.

    client: JAX's connection to the coordination service; None where this process is on its own.
    process_index: the number of this process; 0 is the primary.
    process_count: the number of processes.
    """

    client: Any
    process_index: int
    process_count: int


def coordinator() -> Coordinator:
    """The current connection. Unlike `jax.process_index` and `jax.process_count` this does not start the devices."""
    state = distributed.global_state
    return Coordinator(state.client, state.process_id or 0, state.num_processes or 1)


def set_value(key: str, value: str) -> None:
    """Stores a value that all processes can read.

    Raises:
      JaxRuntimeError: the key has a value already, or the service cannot be reached.
    """
    coordinator().client.key_value_set(f"{PREFIX}/{key}", value)


def get_value(key: str, timeout: float) -> str:
    """Waits for the value of a key.

    Raises:
      JaxRuntimeError: there is no value after `timeout` seconds, or the service cannot be reached.
    """
    return coordinator().client.blocking_key_value_get(f"{PREFIX}/{key}", int(timeout * 1000))


def try_get_value(key: str) -> str | None:
    """The value of a key. None if it has none, or if the service cannot be reached."""
    client = coordinator().client
    if client is None:  # this process has disconnected
        return None
    try:
        return client.key_value_try_get(f"{PREFIX}/{key}")
    except JaxRuntimeError:
        return None


def wait_at_barrier(timeout: float) -> None:
    """Returns when every process has made this call.

    Raises:
      JaxRuntimeError: not all processes came within `timeout` seconds, or the service cannot be reached.
    """
    # A barrier leaves about a kilobyte in the service. Runs make a few for each file, none for each step.
    coordinator().client.wait_at_barrier(f"{PREFIX}/barrier/{next(_barriers)}", int(timeout * 1000))


def next_agreement(timeout: float) -> str:
    """The key of the next agreement. Its caller must read all earlier values before this call.

    The first agreement of each block deletes keys that all processes have read.

    Raises:
      JaxRuntimeError: for `timeout` seconds a peer was more than a block behind the primary, or the service cannot be
        reached.
    """
    number = next(_agreements)
    block, offset = divmod(number, BLOCK)
    if offset == 0 and block > 0:
        _enter_block(block, timeout)
    return f"agreement/{block}/{number}"


def _enter_block(block: int, timeout: float) -> None:
    client, index, count = coordinator()
    if index > 0:
        set_value(f"entered/{block}/{index}", "")
    elif block > 1:
        for peer in range(1, count):
            get_value(f"entered/{block - 1}/{peer}", timeout)
        for past in (f"entered/{block - 1}", f"agreement/{block - 2}"):
            client.key_value_delete(f"{PREFIX}/{past}")  # with all keys below it
