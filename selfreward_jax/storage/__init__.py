"""The working directory: files that are whole or absent, checksummed JSON, JSON Lines artifacts, the lock."""

from selfreward_jax.storage.files import (
    CorruptionError,
    StorageError,
    append,
    cannot_write,
    exists,
    is_remote,
    quarantine,
    read_checksummed,
    read_json,
    remove,
    translate_os_errors,
    warn,
    write_atomic,
    write_checksummed,
    write_json,
)

__all__ = [
    "CorruptionError",
    "StorageError",
    "append",
    "cannot_write",
    "exists",
    "is_remote",
    "read_json",
    "read_checksummed",
    "remove",
    "quarantine",
    "warn",
    "write_atomic",
    "write_json",
    "write_checksummed",
    "translate_os_errors",
]
