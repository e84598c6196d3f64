"""The working directory: files that are whole or absent, checksummed JSON, JSON Lines artifacts, the lock."""

from selfreward_jax.storage.files import (
    Damaged,
    StorageError,
    append,
    cannot_write,
    exists,
    is_remote,
    read_json,
    read_sealed,
    remove,
    set_aside,
    warn,
    write_atomic,
    write_json,
    write_sealed,
    writing,
)

__all__ = [
    "Damaged",
    "StorageError",
    "append",
    "cannot_write",
    "exists",
    "is_remote",
    "read_json",
    "read_sealed",
    "remove",
    "set_aside",
    "warn",
    "write_atomic",
    "write_json",
    "write_sealed",
    "writing",
]
