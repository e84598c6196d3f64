"""JSON Lines artifacts that survive a kill, and the manifest that marks them complete.

An incomplete artifact is `NAME.jsonl.partial`. It is appended to and synced batch by batch, each line with a CRC-32.
The complete artifact is written in its final order to `NAME.jsonl`. Then `NAME.manifest.json` is written, with row
count and SHA-256. Only the manifest makes the artifact complete.

With several processes, each appends its share of a batch to its own shard, `NAME.jsonl.partial-I-of-N`. The next start
merges the shards into one file. An object store can neither append nor rename, but each object is complete or absent.
There, each append writes a new object, `NAME.jsonl.partial-I-of-N.NUMBER`.
"""

import hashlib
import itertools
import json
import re
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from etils import epath

from selfreward_jax import foreign, storage
from selfreward_jax.parallel import processes
from selfreward_jax.telemetry import timing

Row = dict[str, Any]
MAX_BYTES = 1 << 40


def encode_rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def encode_crc(rows: Iterable[Mapping[str, Any]], owner: str = "") -> bytes:
    """Rows as JSON Lines, each line after the CRC-32 of the owner and the line, in 8 hex digits and a space."""
    lines = (json.dumps(row, ensure_ascii=False).encode() for row in rows)
    start = zlib.crc32(owner.encode())
    return b"".join(b"%08x %s\n" % (zlib.crc32(line, start), line) for line in lines)


def decode_crc(data: bytes, owner: str = "") -> tuple[list[Row], int]:
    """Decodes what `encode_crc` wrote. Drops a last line without a line break: a kill cut it off.

    Returns:
      The rows with a correct CRC, and the number of lines without one: damaged, or of another owner.
    """
    rows: list[Row] = []
    start = zlib.crc32(owner.encode())
    lines = data.rpartition(b"\n")[0].split(b"\n") if data else []
    lines = [line for line in lines if line]
    for line in lines:
        crc, _, row = line.partition(b" ")
        if crc == b"%08x" % zlib.crc32(row, start):
            rows.append(json.loads(row))
    return rows, len(lines) - len(rows)


class JsonlArtifact:
    """A JSON Lines file whose rows have a unique `id`.

    Args:
      path: the path of the complete file.
      owner: the digest of the step that makes it. Its manifest has it, and rows that another owner appended are none.
      metadata: further fields of its manifest.
    """

    FS_SYNC_TIMEOUT = 60.0  # seconds within which a shared file system must show what another process wrote

    def __init__(self, path: epath.Path, owner: str = "", **metadata: Any) -> None:
        self.path, self.owner, self.metadata = path, owner, {"owner": owner, **metadata}
        self.partial_path = path.with_name(path.name + ".partial")
        self.manifest_path = path.with_name(path.name.removesuffix(".jsonl") + ".manifest.json")
        self._num_appended = 0  # rows, over all processes
        self._object_numbers = itertools.count()

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What `finish` wrote; None while the artifact is incomplete.

        Raises:
          storage.CorruptionError: the manifest does not match its checksum.
        """
        return storage.read_checksummed(self.manifest_path)

    def rows(self) -> list[Any]:
        """The rows of the complete file; their type is one of method/rows.py.

        Raises:
          storage.CorruptionError: the file does not match its manifest.
        """
        manifest = self.manifest
        data = self._read(self.path, manifest["sha256"] if manifest else None)
        if data is None:
            self._raise_corruption()
        return [json.loads(line) for line in data.split(b"\n") if line]

    def verify(self) -> None:
        """Raises storage.CorruptionError if the file is complete and does not match its manifest."""
        manifest = self.manifest
        if manifest and not processes.broadcast_from_primary(
            lambda: _read_bytes(self.path, manifest["sha256"]) is not None
        ):
            self._raise_corruption()

    def _raise_corruption(self) -> NoReturn:
        reason = f"{self.path} does not match its manifest"
        raise storage.CorruptionError(reason, self.path, self.manifest_path)

    def load_partial(self) -> list[Any]:
        """The rows that an interrupted run appended, with any number of processes.

        Cuts off incomplete last lines, so that appending is safe. Drops damaged lines, and keeps a copy of their file.

        Raises:
          storage.StorageError: this process does not see what the primary process sees.
        """
        sha256 = processes.broadcast_from_primary(self._merge_shards)
        if sha256 is None:
            return []
        data = self._read(self.partial_path, sha256)
        processes.barrier(f"all have read {self.partial_path.name}")  # before any process changes it
        return decode_crc(data or b"", self.owner)[0]

    def count_partial(self) -> int:
        """The number of rows that an interrupted run appended, as far as one process sees them."""
        paths = [self.partial_path, *itertools.chain(*self._shards().values())]
        return sum(_read_file(path).count(b"\n") for path in paths if path.exists())

    def _read(self, path: epath.Path, sha256: str | None) -> bytes | None:
        """The bytes of a file with this SHA-256 (any, if None), on every process; None if the file has another one."""
        data = _read_bytes(path, sha256)
        if not processes.broadcast_from_primary(lambda: data is not None):
            return None
        deadline = time.monotonic() + self.FS_SYNC_TIMEOUT
        while data is None:  # a shared file system will show what the primary process sees
            if time.monotonic() >= deadline:
                raise storage.StorageError(
                    f"{path} differs from what the primary process sees: use a --workdir that all processes share"
                )
            time.sleep(0.2)
            data = _read_bytes(path, sha256)
        return data

    def _merge_shards(self) -> str | None:
        """Merges the shards of all processes into the partial file.

        Returns:
          The SHA-256 of that file; None if there is neither a partial file nor a shard.
        """
        shards = self._shards()
        if not self.partial_path.exists() and not shards:
            return None
        rows = self._read_valid_rows(self.partial_path) if self.partial_path.exists() else []
        by_process = [[row for path in shards[i] for row in self._read_valid_rows(path)] for i in sorted(shards)]
        # Each batch was dealt out row by row. One row from each shard in turn restores the order of appending.
        rows += [row for turn in itertools.zip_longest(*by_process) for row in turn if row is not None]
        data = encode_crc({row["id"]: row for row in rows}.values(), self.owner)
        storage.write_atomic(self.partial_path, data)
        for path in itertools.chain(*shards.values()):
            path.unlink()
        return hashlib.sha256(data).hexdigest()

    def _read_valid_rows(self, path: epath.Path) -> list[Row]:
        data = _read_file(path)
        rows, num_damaged = decode_crc(data, self.owner)
        if num_damaged:
            copy = storage.damaged_path(path)
            storage.write_atomic(copy, data)
            storage.warn(
                f"{path}: {num_damaged} of {num_damaged + len(rows)} lines are damaged or of another run, and are "
                f"regenerated; a copy of the file is {copy.name}"
            )
        return rows

    def _shards(self) -> dict[int, list[epath.Path]]:
        """The shards of each process index, in the order in which they were written."""
        shards: dict[int, list[epath.Path]] = {}
        if self.path.parent.exists():
            for path in sorted(self.path.parent.iterdir(), key=lambda p: p.name):
                if match := re.fullmatch(re.escape(self.partial_path.name) + r"-(\d+)-of-\d+(\.\d+)?", path.name):
                    shards.setdefault(int(match[1]), []).append(path)
        return shards

    def rewrite_partial(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replaces the content of the partial file by `rows`."""
        storage.write_atomic(self.partial_path, encode_crc(rows, self.owner))

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows, and returns when they are on disk. Every process passes all rows and writes its share."""
        count, index = processes.process_count(), processes.process_index()
        share = [row for i, row in enumerate(rows, self._num_appended) if i % count == index]
        self._num_appended += len(rows)
        path = self.partial_path
        if count > 1 or storage.is_remote(path):
            path = path.with_name(f"{path.name}-{index}-of-{count}")
        if storage.is_remote(path):
            path.with_name(f"{path.name}.{next(self._object_numbers):08}").write_bytes(encode_crc(share, self.owner))
        else:
            storage.append(path, encode_crc(share, self.owner))
        timing.commit()

    def finish(self, rows: Sequence[Mapping[str, Any]], **metadata: Any) -> None:
        """Writes `rows` as the complete file, then its manifest with row count, SHA-256 and `metadata`."""
        if self._num_appended:
            processes.barrier(f"the last rows of {self.path.name}")
        data = encode_rows(rows)
        storage.write_atomic(self.path, data)
        storage.write_checksummed(
            self.manifest_path,
            {"rows": len(rows), "sha256": hashlib.sha256(data).hexdigest(), **self.metadata, **metadata},
        )
        if processes.is_primary():
            for path in (self.partial_path, *itertools.chain(*self._shards().values())):
                path.unlink(missing_ok=True)


def _read_bytes(path: epath.Path, sha256: str | None) -> bytes | None:
    """The bytes of a file with this SHA-256 (any, if None); None if there is no such file."""
    try:
        data = _read_file(path) if path.exists() else None
    except storage.CorruptionError:
        return None
    return data if data is not None and sha256 in (None, hashlib.sha256(data).hexdigest()) else None


def _read_file(path: epath.Path) -> bytes:
    """The bytes of a file.

    Raises:
      storage.CorruptionError: what is there is no regular file.
    """
    try:
        return foreign.read_bytes(path, MAX_BYTES)
    except OSError as error:
        if error.errno not in foreign.NO_FILE:
            raise
        raise storage.CorruptionError(f"{path} is damaged ({error.strerror})", path) from None
