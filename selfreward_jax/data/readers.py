"""Raw records of the user's data: local files, TFDS data sets and Hugging Face hub data sets."""

import contextlib
import glob
import gzip
import json
import math
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from etils import epath

from selfreward_jax import foreign
from selfreward_jax.config import InputError
from selfreward_jax.data.unread import READ_KINDS, describe_unread

Located = tuple[str, Any]  # the location of a record, such as "seeds.jsonl line 3", and the record


class DataError(InputError, ValueError):
    """Seed data that cannot be used; the message names the location, the fault and the remedy."""


class Malformed(NamedTuple):
    """Takes the place of a record that cannot be read.

    reason: what is wrong with it.
    """

    reason: str


@contextlib.contextmanager
def naming(field: str) -> Iterator[None]:
    """In this context the message of a `DataError` begins with the setting that names the source."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{field}: {error}") from None


def read_records(source: str) -> Iterator[Located]:
    """The records of a source, in order, each with its location ("seeds.jsonl.gz line 3").

    Args:
      source: a file or a glob of local files (`**` matches any folders); or tfds:NAME/SPLIT; or
        hf:OWNER/NAME[/CONFIG]/SPLIT. A file holds JSON lines, one JSON list (both may be gzipped) or Parquet. A TFDS or
        hub data set is downloaded if it is not there yet.

    Raises:
      DataError: the source, or a whole file of it, cannot be read. One line that is not JSON gives `Malformed`.
    """
    if source.startswith("tfds:"):
        return _read_tfds(source)
    if source.startswith("hf:"):
        return _read_hub(source)
    return chain.from_iterable(map(_read_file, source_files(source)))


def source_files(source: str) -> list[str]:
    """The local files of a source: the file of that name, or else the sorted matches of a glob. Empty for a data set.

    Raises:
      DataError: a glob matches nothing.
    """
    if source.startswith(("tfds:", "hf:")):
        return []
    if not glob.has_magic(source) or epath.Path(source).exists():
        return [source]
    # A folder that exists is no pattern either: data[1]/*.jsonl does not mean data1.
    folder = next((str(p) for p in epath.Path(source).parents if p.exists()), "")
    pattern = glob.escape(folder) + source.removeprefix(folder) if source.startswith(folder) else source
    matches = sorted(name for name in glob.glob(pattern, recursive=True) if not epath.Path(name).is_dir())
    if not matches:
        raise DataError(f"files {source} cannot be read (no file matches): correct the pattern")
    return matches


def _read_file(name: str) -> Iterator[Located]:
    """The records of one file. Every way to fail becomes a `DataError`."""
    plain_name = name.removesuffix(".gz")
    try:
        with foreign.open_regular(epath.Path(name)) as raw:
            if unread := describe_unread(name, raw):
                raise DataError(f"file {name} {unread}")
            file = gzip.GzipFile(fileobj=raw) if plain_name != name else raw
            if plain_name.endswith(".parquet"):
                yield from _read_parquet(name, file)
            elif _is_json_list(file):
                yield from _read_json_list(name, file)
            else:
                yield from _read_json_lines(name, file)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"file {name} is damaged ({_first_line(error)}): download or compress it again") from None
    except UnicodeDecodeError as error:
        raise DataError(f"file {name} is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise DataError(f"file {name} cannot be read ({reason}): {_remedy(name, error)}") from None
    except DataError:
        raise
    except (ValueError, ImportError) as error:  # a name with a NUL byte, a file system that epath does not know
        raise DataError(f"file {name} cannot be read ({_first_line(error)}): give a local file") from None


def _remedy(name: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "correct the path"
    if isinstance(error, IsADirectoryError):
        return f"name the files in it, such as {name.rstrip('/')}/*.jsonl"
    return "make it readable" if isinstance(error, PermissionError) else f"give a file of {READ_KINDS}"


def _is_json_list(file: BinaryIO) -> bool:
    """Whether the first character of the file opens a JSON list. Rewinds the file."""
    text = b""
    while (chunk := file.read(4096)) and not (text := chunk.removeprefix(b"\xef\xbb\xbf").lstrip()):
        pass
    file.seek(0)
    return text.startswith(b"[")


def _read_json_list(name: str, file: BinaryIO) -> Iterator[Located]:
    text = file.read().decode("utf-8-sig")
    try:
        values = json.loads(text, object_pairs_hook=_unique_fields)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"file {name} is not a JSON list ({_first_line(error)}): repair it, or write JSON lines"
        ) from None
    yield from ((f"{name} item {number}", value) for number, value in enumerate(values, 1))


def _read_json_lines(name: str, file: BinaryIO) -> Iterator[Located]:
    offset = 0
    for number, line in enumerate(file, 1):  # bytes, because only \n ends a line, not the other separators of Unicode
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"file {name} is not UTF-8 at byte {offset + error.start} (line {number}): save it as UTF-8"
            ) from None
        offset += len(line)
        if not text.strip():
            continue
        try:
            value = json.loads(text, object_pairs_hook=_unique_fields)
        except json.JSONDecodeError as error:
            value = Malformed(f"not JSON ({error.msg})")
        except (ValueError, RecursionError) as error:  # a duplicate field, thousands of digits or brackets
            value = Malformed(f"not JSON ({_first_line(error)})")
        yield f"{name} line {number}", value


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. A field that appears twice is refused: nobody knows which value is meant."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        duplicate = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"the field {duplicate!r:.60} appears twice")
    return fields


def _read_parquet(name: str, file: BinaryIO) -> Iterator[Located]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"file {name} is Parquet, which needs pyarrow: pip install pyarrow") from None
    try:
        batches = ParquetFile(file).iter_batches(batch_size=1024)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((f"{name} row {number}", _to_json_types(row)) for number, row in enumerate(rows, 1))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"file {name} is not a complete Parquet file ({_first_line(error)}): download it again"
        ) from None


def _read_tfds(source: str) -> Iterator[Located]:
    name, _, split = source.removeprefix("tfds:").rpartition("/")
    if not name or not split:
        raise DataError(f"source {source} has no split: write tfds:NAME/SPLIT, such as tfds:my_data:1.0.0/train")
    try:
        import tensorflow_datasets

        for number, value in enumerate(tensorflow_datasets.data_source(name, split=split), 1):
            yield f"{source} row {number}", _to_json_types(value)
    except Exception as error:  # from TFDS, the data set's own code or the network: there is no common class
        raise DataError(
            f"source {source} cannot be read ({_first_line(error)}): give a data set and a split that TFDS has, or one "
            "prepared under TFDS_DATA_DIR in the array_record format"
        ) from None


def _read_hub(source: str) -> Iterator[Located]:
    owner, *parts = source.removeprefix("hf:").split("/")
    if not owner or len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"source {source} is not valid: write hf:OWNER/NAME/SPLIT or hf:OWNER/NAME/CONFIG/SPLIT")
    name, *config, split = parts
    try:
        import datasets
    except ImportError:
        raise DataError(f'source {source} needs the package datasets: pip install "selfreward-jax[hf]"') from None
    try:
        for number, value in enumerate(datasets.load_dataset(f"{owner}/{name}", *config, split=split), 1):
            yield f"{source} row {number}", _to_json_types(value)
    except Exception as error:  # from the package, the hub or the network: there is no common class
        raise DataError(
            f"source {source} cannot be read ({_first_line(error)}): "
            "give a data set, configuration and split that the hub has"
        ) from None


def _to_json_types(value: Any) -> Any:
    """A record in JSON's types.

    Bytes become text; those that are not UTF-8 leave lone surrogates, which make that text alone invalid. NaN becomes
    None: in a column of numbers it marks a missing value.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, np.ndarray | np.generic):
        return _to_json_types(value.tolist())
    if isinstance(value, dict):
        return {key: _to_json_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_types(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
