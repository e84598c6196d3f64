"""Raw records of the user's data: local files, data sets of TFDS by name, data sets of the Hugging Face hub by name."""

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

Located = tuple[str, Any]  # where a record stands, and the record


class DataError(ValueError):
    """Seed data that cannot be used; the message names the place, the fault and the remedy."""


class Malformed(NamedTuple):
    """Stands where a record cannot be read.

    reason: what is wrong with it.
    """

    reason: str


def read(source: str) -> Iterator[Located]:
    """The records of a source, in order, each with its place ("seeds.jsonl.gz line 3").

    Args:
      source: a file or a glob of local files (`**` for any folders) of JSON lines or of one JSON list, either of them
        gzipped, or Parquet; or tfds:NAME/SPLIT; or hf:OWNER/NAME[/CONFIG]/SPLIT. A data set that TFDS or the hub has
        by that name is downloaded where it is not there yet.

    Raises:
      SeedError: the source, or a whole file of it, cannot be read. One line that is not JSON gives `Malformed`.
    """
    if source.startswith("tfds:"):
        return _tfds(source)
    if source.startswith("hf:"):
        return _hub(source)
    return chain.from_iterable(map(_read_file, files(source)))


def files(source: str) -> list[str]:
    """The local files of a source: the one of that name, or those that a glob matches, sorted. None for a data set.

    Raises:
      SeedError: a glob matches nothing.
    """
    if source.startswith(("tfds:", "hf:")):
        return []
    if not glob.has_magic(source) or epath.Path(source).exists():
        return [source]
    found = sorted(name for name in glob.glob(source, recursive=True) if not epath.Path(name).is_dir())
    if not found:
        raise DataError(f"files {source} cannot be read (no file has such a name): correct the pattern")
    return found


def _read_file(name: str) -> Iterator[Located]:
    """The records of one file, and its faults in words."""
    plain = name.removesuffix(".gz")
    try:
        with epath.Path(name).open("rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if plain != name else raw
            if plain.endswith(".parquet"):
                yield from _parquet(name, file)
            elif _is_list(file):
                yield from _json_list(name, file)
            else:
                yield from _json_lines(name, file)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"file {name} is damaged ({_first_line(error)}): fetch or compress it anew") from None
    except UnicodeDecodeError as error:
        raise DataError(f"file {name} is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise DataError(f"file {name} cannot be read ({reason}): give a file of JSON lines") from None
    except DataError:
        raise
    except (ValueError, ImportError) as error:  # a name with a NUL byte, a file system that epath does not know
        raise DataError(f"file {name} cannot be read ({_first_line(error)}): give a local file") from None


def _is_list(file: BinaryIO) -> bool:
    """Whether the first mark of the file opens a JSON list; the file is at its start again afterwards."""
    first = b""
    while (piece := file.read(4096)) and not (first := piece.removeprefix(b"\xef\xbb\xbf").lstrip()):
        pass
    file.seek(0)
    return first.startswith(b"[")


def _json_list(name: str, file: BinaryIO) -> Iterator[Located]:
    text = file.read().decode("utf-8-sig")
    try:
        values = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"file {name} is not a JSON list ({_first_line(error)}): mend it, or write JSON lines"
        ) from None
    yield from ((f"{name} item {number}", value) for number, value in enumerate(values, 1))


def _json_lines(name: str, file: BinaryIO) -> Iterator[Located]:
    begins = 0
    for number, line in enumerate(file, 1):  # of bytes: only \n ends a line, whatever else Unicode has
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"file {name} is not UTF-8 at byte {begins + error.start} (line {number}): save it as UTF-8"
            ) from None
        begins += len(line)
        if not text.strip():
            continue
        try:
            value = json.loads(text, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            value = Malformed(f"not JSON ({error.msg})")
        except (ValueError, RecursionError) as error:  # a field twice, thousands of digits or brackets
            value = Malformed(f"not JSON that can be read ({_first_line(error)})")
        yield f"{name} line {number}", value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a field that stands in it twice nobody knows which one is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"the field {twice!r:.60} stands there twice")
    return found


def _parquet(name: str, file: BinaryIO) -> Iterator[Located]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"file {name} is Parquet, which pyarrow reads: pip install pyarrow") from None
    try:
        batches = ParquetFile(file).iter_batches(batch_size=1024)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((f"{name} row {number}", _plain(row)) for number, row in enumerate(rows, 1))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"file {name} is no whole Parquet file ({_first_line(error)}): fetch it anew") from None


def _tfds(source: str) -> Iterator[Located]:
    name, _, split = source.removeprefix("tfds:").rpartition("/")
    if not name or not split:
        raise DataError(f"source {source} names no split: write tfds:NAME/SPLIT, as in tfds:my_data:1.0.0/train")
    try:
        import tensorflow_datasets

        for number, value in enumerate(tensorflow_datasets.data_source(name, split=split), 1):
            yield f"{source} row {number}", _plain(value)
    except Exception as error:  # of TFDS, of a data set's own code or of the network: there is no common class
        raise DataError(
            f"source {source} cannot be read ({_first_line(error)}): give a data set and a split that TFDS has, or one "
            "prepared under TFDS_DATA_DIR in the array_record format"
        ) from None


def _hub(source: str) -> Iterator[Located]:
    owner, *parts = source.removeprefix("hf:").split("/")
    if not owner or len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"source {source} is not understood: write hf:OWNER/NAME/SPLIT or .../CONFIG/SPLIT")
    name, *config, split = parts
    try:
        import datasets
    except ImportError:
        raise DataError(f"source {source} needs the package datasets: pip install datasets") from None
    try:
        for number, value in enumerate(datasets.load_dataset(f"{owner}/{name}", *config, split=split), 1):
            yield f"{source} row {number}", _plain(value)
    except Exception as error:  # of the package, of the hub or of the network: there is no common class
        raise DataError(
            f"source {source} cannot be read ({_first_line(error)}): give a data set, configuration and split of the hub"
        ) from None


def _plain(value: Any) -> Any:
    """A record in JSON's own types. Bytes are text (those that are not UTF-8 leave lone surrogates, a fault of that
    text alone); NaN is how columns of numbers spell nothing."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {key: _plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
