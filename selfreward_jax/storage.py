"""The working directory: row files that survive a kill, manifests, and small JSON files.

A row file in the making is `NAME.jsonl.partial`, appended to and synced batch by batch. When it is whole it is
written in its final order under its own name, and then `NAME.manifest.json` says so, with row count and hash.
Only the manifest makes a file count as whole.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

Row = dict[str, Any]


class StorageError(RuntimeError):
    """A file of the working directory is not what it should be; the message names it and the remedy."""


def write_atomic(path: epath.Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old bytes or the new ones, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("wb") as f:
        f.write(data)
        f.flush()
        _sync(f)
    temporary.replace(path)


def write_json(path: epath.Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: epath.Path) -> Any:
    """The value of a JSON file, None if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else None


def encode_rows(rows: Iterable[Row]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def read_rows(path: epath.Path) -> list[Row]:
    """Rows of a JSON-lines file; a last line without its line break was torn by a kill and is left out."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.split(b"\n") if line]


def _sync(file: Any) -> None:
    if hasattr(file, "fileno"):  # an object store's file has none; closing it is its commit
        os.fsync(file.fileno())


class RowFile:
    """A file of rows, each with a unique `id`."""

    def __init__(self, path: epath.Path) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.manifest_path = path.with_name(path.name.removesuffix(".jsonl") + ".manifest.json")

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What `finish` wrote; None while the file is not whole."""
        return read_json(self.manifest_path)

    def rows(self) -> list[Row]:
        """The rows of the whole file.

        Raises:
          StorageError: the file is not the one that its manifest describes.
        """
        data, manifest = self.path.read_bytes(), self.manifest
        if manifest and hashlib.sha256(data).hexdigest() != manifest["sha256"]:
            raise StorageError(
                f"{self.path} is not the file that its manifest describes; put it back, or delete "
                f"{self.manifest_path.name} and everything made after it"
            )
        return [json.loads(line) for line in data.split(b"\n") if line]

    def begun(self) -> list[Row]:
        """Rows kept by an earlier, interrupted run. Cuts off a torn last line, so that appending is safe."""
        if not self.partial.exists():
            return []
        rows = read_rows(self.partial)
        write_atomic(self.partial, encode_rows(rows))
        return rows

    def restart_from(self, rows: Sequence[Row]) -> None:
        """Makes `rows` the content of the file in the making."""
        write_atomic(self.partial, encode_rows(rows))

    def append(self, rows: Sequence[Row]) -> None:
        """Adds rows, and returns when they are on disk."""
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        with self.partial.open("ab") as f:
            f.write(encode_rows(rows))
            f.flush()
            _sync(f)

    def finish(self, rows: Sequence[Row], **facts: Any) -> None:
        """Makes `rows` the whole file; `facts` go into the manifest beside row count and hash."""
        data = encode_rows(rows)
        write_atomic(self.path, data)
        write_json(
            self.manifest_path,
            {"rows": len(rows), "sha256": hashlib.sha256(data).hexdigest(), **facts},
        )
        self.partial.unlink(missing_ok=True)
