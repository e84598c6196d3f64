"""The working directory: atomic files, checksummed JSON, JSON Lines artifacts, and the lock."""

from selfreward_jax.storage.files import (
    CorruptionError,
    StorageError,
    append,
    exists,
    is_remote,
    open_to_append,
    quarantine,
    read_checksummed,
    read_json,
    remove,
    translate_os_errors,
    warn,
    write_atomic,
    write_checksummed,
    write_error_message,
    write_json,
)

__all__ = [
    "CorruptionError",
    "StorageError",
    "append",
    "exists",
    "is_remote",
    "open_to_append",
    "quarantine",
    "read_checksummed",
    "read_json",
    "remove",
    "translate_os_errors",
    "warn",
    "write_atomic",
    "write_checksummed",
    "write_error_message",
    "write_json",
]
