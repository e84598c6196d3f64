"""The working directory: row files that survive a kill, manifests, and small JSON files.

A row file in the making is `NAME.jsonl.partial`, appended to and synced batch by batch. When it is whole it is
written in its final order under its own name, and then `NAME.manifest.json` says so, with row count and hash.
Only the manifest makes a file count as whole.

Of several processes each appends its share of a batch to a file of its own, `NAME.jsonl.partial-I-of-N`, which the
next start gathers into one. All else is written by the first process alone, and whether a file is there, and what a
small one says, it tells the others: a shared file system may show them late what it wrote.

A working directory in an object store has no appending and no renaming, but every object is whole or not there: what
would be appended becomes an object of its own, `NAME.jsonl.partial-I-of-N.NUMBER`.
"""

import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from selfreward_jax.parallel import processes

Row = dict[str, Any]


class StorageError(RuntimeError):
    """A file of the working directory is not what it should be; the message names it and the remedy."""


def is_remote(path: epath.Path) -> bool:
    """Whether the path is in an object store."""
    return "://" in str(path)


def write_atomic(path: epath.Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old bytes or the new ones, never a part."""
    if not processes.first():
        return
    if is_remote(path):
        path.write_bytes(data)
        return
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def write_json(path: epath.Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: epath.Path) -> Any:
    """The value of a JSON file, None if there is no such file.

    Raises:
      StorageError: it is damaged.
    """

    def read() -> Any:
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except ValueError as error:
            raise StorageError(f"{path} is damaged ({error}): put it back, or use another --workdir") from None

    return processes.agreed(read)


def exists(path: epath.Path) -> bool:
    """Whether there is such a file or directory."""
    return processes.agreed(path.exists)


def remove(path: epath.Path) -> None:
    """Removes a file or a directory with all that is in it, if it is there."""
    if not processes.first() or not path.exists():
        return
    if path.is_dir():
        path.rmtree()
    else:
        path.unlink()


def encode_rows(rows: Iterable[Row]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def read_rows(path: epath.Path) -> list[Row]:
    """Rows of a JSON-lines file; a last line without its line break was torn by a kill and is left out."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.split(b"\n") if line]


def append(path: epath.Path, data: bytes) -> None:
    """Adds to a file of a file system, and returns when that is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


class RowFile:
    """A file of rows, each with a unique `id`."""

    PATIENCE = 60.0  # seconds within which a shared file system must show what another process wrote

    def __init__(self, path: epath.Path) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.manifest_path = path.with_name(path.name.removesuffix(".jsonl") + ".manifest.json")
        self._appended = 0  # rows, of all processes together
        self._objects = itertools.count()

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What `finish` wrote; None while the file is not whole."""
        return read_json(self.manifest_path)

    def rows(self) -> list[Row]:
        """The rows of the whole file.

        Raises:
          StorageError: the file is not the one that its manifest describes.
        """
        manifest = self.manifest
        data = _read(self.path, manifest and manifest["sha256"], self.PATIENCE)
        if data is None:
            raise StorageError(
                f"{self.path} is not the file that its manifest describes; put it back, or delete "
                f"{self.manifest_path.name} and everything made after it"
            )
        return [json.loads(line) for line in data.split(b"\n") if line]

    def begun(self) -> list[Row]:
        """Rows kept by an earlier, interrupted run, whatever its number of processes. Cuts off torn last lines, so that
        appending is safe."""
        digest = processes.agreed(self._gather)
        if digest is None:
            return []
        data = _read(self.partial, digest, self.PATIENCE)
        if data is None:
            raise StorageError(f"{self.partial} is not what the first process wrote: is the folder shared by all?")
        processes.wait(f"all have read {self.partial.name}")  # before anybody changes it
        return [json.loads(line) for line in data.split(b"\n") if line]

    def _gather(self) -> str | None:
        """Makes one file of those of all processes; its hash, None if there are none."""
        kept = read_rows(self.partial) if self.partial.exists() else []
        shards = self._shards()
        lines = [[row for path in shards[number] for row in read_rows(path)] for number in sorted(shards)]
        # Each batch was dealt out row by row: one from each file in turn is the order in which they were appended.
        turns = itertools.zip_longest(*lines)
        kept += [row for turn in turns for row in turn if row is not None]
        if not kept and not self.partial.exists() and not shards:
            return None
        data = encode_rows({row["id"]: row for row in kept}.values())
        write_atomic(self.partial, data)
        for path in itertools.chain(*shards.values()):
            path.unlink()
        return hashlib.sha256(data).hexdigest()

    def _shards(self) -> dict[int, list[epath.Path]]:
        """The files of each process, in the order in which they were written."""
        found: dict[int, list[epath.Path]] = {}
        if self.path.parent.exists():
            for path in sorted(self.path.parent.iterdir(), key=lambda p: p.name):
                if named := re.fullmatch(re.escape(self.partial.name) + r"-(\d+)-of-\d+(\.\d+)?", path.name):
                    found.setdefault(int(named[1]), []).append(path)
        return found

    def restart_from(self, rows: Sequence[Row]) -> None:
        """Makes `rows` the content of the file in the making."""
        write_atomic(self.partial, encode_rows(rows))

    def append(self, rows: Sequence[Row]) -> None:
        """Adds rows, and returns when they are on disk. Every process has all of them and writes its share."""
        count, mine = processes.count(), processes.index()
        share = [row for i, row in enumerate(rows, self._appended) if i % count == mine]
        self._appended += len(rows)
        path = self.partial
        if count > 1 or is_remote(path):
            path = path.with_name(f"{path.name}-{mine}-of-{count}")
        if is_remote(path):
            path.with_name(f"{path.name}.{next(self._objects):08}").write_bytes(encode_rows(share))
        else:
            append(path, encode_rows(share))

    def finish(self, rows: Sequence[Row], **facts: Any) -> None:
        """Makes `rows` the whole file; `facts` go into the manifest beside row count and hash."""
        if self._appended:
            processes.wait(f"the last rows of {self.path.name}")
        data = encode_rows(rows)
        write_atomic(self.path, data)
        write_json(
            self.manifest_path,
            {"rows": len(rows), "sha256": hashlib.sha256(data).hexdigest(), **facts},
        )
        if processes.first():
            for path in (self.partial, *itertools.chain(*self._shards().values())):
                path.unlink(missing_ok=True)


def _read(path: epath.Path, digest: str | None, patience: float) -> bytes | None:
    """The bytes of a file with this SHA-256 (any, if None); None if it is another or not there. What other processes
    write is waited for."""
    given_up = time.monotonic() + (0 if processes.first() else patience)
    while True:
        data = path.read_bytes() if path.exists() else None
        if data is not None and (digest is None or hashlib.sha256(data).hexdigest() == digest):
            return data
        if time.monotonic() >= given_up:
            return None
        time.sleep(0.2)
