"""Row files that survive a kill, and what says that they are whole.

A row file in the making is `NAME.jsonl.partial`, appended to and synced batch by batch, each line behind its checksum.
When it is whole it is written in its final order under its own name, and then `NAME.manifest.json` says so, with row
count and hash. Only the manifest makes a file count as whole.

Of several processes each appends its share of a batch to a file of its own, `NAME.jsonl.partial-I-of-N`, which the
next start gathers into one. A working directory in an object store has no appending and no renaming, but every object
is whole or not there: what would be appended becomes an object of its own, `NAME.jsonl.partial-I-of-N.NUMBER`.
"""

import hashlib
import itertools
import json
import re
import time
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from etils import epath

from selfreward_jax import storage
from selfreward_jax.parallel import processes
from selfreward_jax.telemetry import timing

Row = dict[str, Any]


def encode_rows(rows: Iterable[Row]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def encode_crc(rows: Iterable[Row]) -> bytes:
    """Rows as JSON lines, each behind its checksum."""
    lines = (json.dumps(row, ensure_ascii=False).encode() for row in rows)
    return b"".join(b"%08x %s\n" % (zlib.crc32(line), line) for line in lines)


def decode_crc(data: bytes) -> tuple[list[Row], int]:
    """Rows that `framed` wrote, and how many lines are not what it wrote. A last line without its line break was torn
    by a kill and is left out."""
    rows: list[Row] = []
    lines = data.rpartition(b"\n")[0].split(b"\n") if data else []
    lines = [line for line in lines if line]
    for line in lines:
        checksum, _, row = line.partition(b" ")
        if checksum == b"%08x" % zlib.crc32(row):
            rows.append(json.loads(row))
    return rows, len(lines) - len(rows)


class JsonlArtifact:
    """A file of rows, each with a unique `id`.

    Args:
      path: where it is, or will be.
      facts: what its manifest holds beside all else.
    """

    FS_SYNC_TIMEOUT = 60.0  # seconds within which a shared file system must show what another process wrote

    def __init__(self, path: epath.Path, **metadata: Any) -> None:
        self.path, self.metadata = path, metadata
        self.partial = path.with_name(path.name + ".partial")
        self.manifest_path = path.with_name(path.name.removesuffix(".jsonl") + ".manifest.json")
        self._appended = 0  # rows, of all processes together
        self._objects = itertools.count()

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What `finish` wrote; None while the file is not whole."""
        return storage.read_checksummed(self.manifest_path)

    def rows(self) -> list[Row]:
        """The rows of the whole file.

        Raises:
          storage.Damaged: the file is not the one that its manifest describes.
        """
        manifest = self.manifest
        data = self._read(self.path, manifest and manifest["sha256"])
        if data is None:
            self._damaged()
        return [json.loads(line) for line in data.split(b"\n") if line]

    def verify(self) -> None:
        """Raises storage.Damaged where the whole file is not the one that its manifest describes."""
        manifest = self.manifest
        if manifest and not processes.broadcast_from_primary(lambda: _bytes(self.path, manifest["sha256"]) is not None):
            self._damaged()

    def _damaged(self) -> NoReturn:
        why = f"{self.path} is not the file that its manifest describes"
        raise storage.CorruptionError(why, self.path, self.manifest_path)

    def load_partial(self) -> list[Row]:
        """Rows kept by an earlier, interrupted run, whatever its number of processes. Cuts off torn last lines, so that
        appending is safe; leaves out lines that are not what was written, and keeps a copy of the file with them."""
        digest = processes.broadcast_from_primary(self._merge_shards)
        if digest is None:
            return []
        data = self._read(self.partial, digest)
        processes.barrier(f"all have read {self.partial.name}")  # before anybody changes it
        return decode_crc(data or b"")[0]

    def _read(self, path: epath.Path, digest: str | None) -> bytes | None:
        """The bytes of a file with this SHA-256 (any, if None), on every process; None if it is another."""
        data = _bytes(path, digest)
        if not processes.broadcast_from_primary(lambda: data is not None):
            return None
        given_up = time.monotonic() + self.FS_SYNC_TIMEOUT
        while data is None:  # what the first process sees, a shared file system will show
            if time.monotonic() >= given_up:
                raise storage.StorageError(f"{path} is not what the first process sees: is the folder shared by all?")
            time.sleep(0.2)
            data = _bytes(path, digest)
        return data

    def _merge_shards(self) -> str | None:
        """Makes one file of those of all processes; its hash, None if there are none."""
        shards = self._shards()
        if not self.partial.exists() and not shards:
            return None
        kept = self._valid_rows(self.partial) if self.partial.exists() else []
        lines = [[row for path in shards[number] for row in self._valid_rows(path)] for number in sorted(shards)]
        # Each batch was dealt out row by row: one from each file in turn is the order in which they were appended.
        turns = itertools.zip_longest(*lines)
        kept += [row for turn in turns for row in turn if row is not None]
        data = encode_crc({row["id"]: row for row in kept}.values())
        storage.write_atomic(self.partial, data)
        for path in itertools.chain(*shards.values()):
            path.unlink()
        return hashlib.sha256(data).hexdigest()

    def _valid_rows(self, path: epath.Path) -> list[Row]:
        data = path.read_bytes()
        rows, damaged = decode_crc(data)
        if damaged:
            copy = path.with_name(f"{path.name}.damaged")
            storage.write_atomic(copy, data)
            storage.warn(
                f"{path}: {damaged} of {damaged + len(rows)} lines are damaged and made anew; kept as {copy.name}"
            )
        return rows

    def _shards(self) -> dict[int, list[epath.Path]]:
        """The files of each process, in the order in which they were written."""
        found: dict[int, list[epath.Path]] = {}
        if self.path.parent.exists():
            for path in sorted(self.path.parent.iterdir(), key=lambda p: p.name):
                if named := re.fullmatch(re.escape(self.partial.name) + r"-(\d+)-of-\d+(\.\d+)?", path.name):
                    found.setdefault(int(named[1]), []).append(path)
        return found

    def rewrite_partial(self, rows: Sequence[Row]) -> None:
        """Makes `rows` the content of the file in the making."""
        storage.write_atomic(self.partial, encode_crc(rows))

    def append(self, rows: Sequence[Row]) -> None:
        """Adds rows, and returns when they are on disk. Every process has all of them and writes its share."""
        count, mine = processes.process_count(), processes.process_index()
        share = [row for i, row in enumerate(rows, self._appended) if i % count == mine]
        self._appended += len(rows)
        path = self.partial
        if count > 1 or storage.is_remote(path):
            path = path.with_name(f"{path.name}-{mine}-of-{count}")
        if storage.is_remote(path):
            path.with_name(f"{path.name}.{next(self._objects):08}").write_bytes(encode_crc(share))
        else:
            storage.append(path, encode_crc(share))
        timing.commit()

    def finish(self, rows: Sequence[Row], **metadata: Any) -> None:
        """Makes `rows` the whole file; `facts` go into the manifest beside row count and hash."""
        if self._appended:
            processes.barrier(f"the last rows of {self.path.name}")
        data = encode_rows(rows)
        storage.write_atomic(self.path, data)
        storage.write_checksummed(
            self.manifest_path,
            {"rows": len(rows), "sha256": hashlib.sha256(data).hexdigest(), **self.metadata, **metadata},
        )
        if processes.is_primary():
            for path in (self.partial, *itertools.chain(*self._shards().values())):
                path.unlink(missing_ok=True)


def _bytes(path: epath.Path, digest: str | None) -> bytes | None:
    data = path.read_bytes() if path.exists() else None
    return data if data is not None and digest in (None, hashlib.sha256(data).hexdigest()) else None
