"""Records of Parquet files, a few at a time. A value that Python cannot hold spoils itself alone."""

import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import numpy as np

from selfreward_jax.data.limits import (
    MAX_LINE,
    TOO_LONG,
    DataError,
    Located,
    SizeLimit,
    Unreadable,
    check_rows,
    chunks,
    first_line,
    unpacked_limit,
)

_MAX_BATCH = 1 << 30  # bytes
_CHUNK = 1 << 20  # bytes
# What pyarrow raises for a value that Python cannot hold; ArrowInvalid is a ValueError.
_NO_VALUE = (ValueError, OverflowError, TypeError, KeyError, NotImplementedError, RecursionError)


def read_parquet(name: str, file: BinaryIO, size: int) -> Iterator[Located]:
    """The rows of a Parquet file.

    Args:
      name: its name, for messages.
      file: its bytes; it is not read in order.
      size: how many there are, or were before they were unpacked.

    Raises:
      DataError: pyarrow is missing, or the file cannot be read.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"file {name} is Parquet, which needs pyarrow: pip install pyarrow") from None
    try:
        parquet = ParquetFile(file)
        _check_size(name, parquet, unpacked_limit(name, size))
        number = 0
        for batch in parquet.iter_batches(batch_size=_batch_size(parquet)):
            for row in _rows(batch):
                number += 1
                yield f"{name} row {number}", row
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"file {name} is not a complete Parquet file ({first_line(error)}): download it again"
        ) from None
    except Exception as error:  # of pyarrow, for a damaged file: there is no common class
        raise DataError(f"file {name} cannot be read as Parquet ({first_line(error)}): write it again") from None


def unpack(file: BinaryIO, limit: SizeLimit) -> BinaryIO:
    """A file's bytes in memory or in a temporary file, in which any place is reached at once.

    Raises:
      DataError: they are more than the limit.
    """
    unpacked = tempfile.SpooledTemporaryFile(MAX_LINE)  # noqa: SIM115 (the caller closes it)
    for chunk in chunks(file, limit, _CHUNK):
        unpacked.write(chunk)
    unpacked.seek(0)
    return cast(BinaryIO, unpacked)


def _check_size(name: str, parquet: Any, limit: SizeLimit) -> None:
    metadata = parquet.metadata
    check_rows(name, metadata.num_rows)
    limit.check(sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)))
    twice = next((field for field, n in Counter(parquet.schema_arrow.names).items() if n > 1), None)
    if twice is not None:
        raise DataError(f"file {name} has two columns {twice!r:.60}: rename one of them")


def _batch_size(parquet: Any) -> int:
    """The rows to read at once. Each may repeat the largest value, which is at most a whole row group. The size of its
    columns is not asked for: where a column's metadata are damaged, pyarrow 26 then ends the process."""
    groups = map(parquet.metadata.row_group, range(parquet.metadata.num_row_groups))
    return max(4, min(64, _MAX_BATCH // max([1, *(group.total_byte_size for group in groups)])))


def _rows(batch: Any) -> Iterator[Any]:
    """The rows of a record batch in JSON's types."""
    if batch.nbytes <= MAX_LINE:
        try:
            yield from [to_json_types(row) for row in batch.to_pylist()]
            return
        except _NO_VALUE:  # it is not known which
            pass
    columns = list(zip(batch.schema.names, batch.columns, strict=True))
    for i in range(batch.num_rows):
        if batch.nbytes > MAX_LINE and batch.slice(i, 1).nbytes > MAX_LINE:
            yield TOO_LONG
        else:
            yield {field: _value(column[i]) for field, column in columns}


def _value(scalar: Any) -> Any:
    """A pyarrow scalar in JSON's types. Where one value in it cannot be converted, the others are."""
    try:
        return to_json_types(scalar.as_py())
    except _NO_VALUE as error:
        fault = first_line(error)
    try:
        if hasattr(scalar, "keys"):  # an object; those whose fields have equal names have no values by name
            return {field: _value(scalar[field]) for field in scalar}
        if hasattr(scalar, "values") and scalar.values is not None:
            return [_value(item) for item in scalar.values]
    except _NO_VALUE:
        pass
    return Unreadable(fault)


def to_json_types(value: Any) -> Any:
    """A record in JSON's types.

    Bytes become text; those that are not UTF-8 leave lone surrogates, which make that text alone invalid. NaN becomes
    None: in a column of numbers it marks a missing value.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, np.ndarray | np.generic):
        return to_json_types(value.tolist())
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(to_json_types(key)): to_json_types(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_types(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
