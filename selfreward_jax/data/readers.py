"""Raw records of the user's data: local files, TFDS data sets and Hugging Face hub data sets."""

import contextlib
import glob
import gzip
import io
import zlib
from collections.abc import Iterator
from itertools import chain

from etils import epath

from selfreward_jax import foreign
from selfreward_jax.data.csv_files import is_table, read_table
from selfreward_jax.data.json_files import read_json
from selfreward_jax.data.limits import DataError as DataError  # also part of this module's API
from selfreward_jax.data.limits import Located, file_size, first_line, stored_limit, unpacked_limit
from selfreward_jax.data.limits import Malformed as Malformed
from selfreward_jax.data.parquet_files import read_parquet, to_json_types, unpack
from selfreward_jax.data.unread import READ_KINDS, describe_unread


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
        hf:OWNER/NAME[/CONFIG]/SPLIT. A file holds JSON lines, JSON objects, one JSON list, CSV (all may be gzipped) or
        Parquet. A TFDS or hub data set is downloaded if it is not there yet.

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
            limit = stored_limit(name)
            limit.check(size := file_size(raw))
            if unread := describe_unread(name, raw):
                raise DataError(f"file {name} {unread}")
            file, packed = raw, plain_name != name
            if packed:
                file, limit = io.BufferedReader(gzip.GzipFile(fileobj=raw)), unpacked_limit(name, size)
            if plain_name.endswith(".parquet"):
                with unpack(file, limit) if packed else file as seekable:
                    yield from read_parquet(name, seekable, size)
            elif is_table(name, file):
                yield from read_table(name, file, limit)
            else:
                yield from read_json(name, file, limit)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"file {name} is damaged ({first_line(error)}): download or compress it again") from None
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise DataError(f"file {name} cannot be read ({reason}): {_remedy(name, error)}") from None
    except DataError:
        raise
    except (ValueError, ImportError) as error:  # a name with a NUL byte, a file system that epath does not know
        raise DataError(f"file {name} cannot be read ({first_line(error)}): give a local file") from None


def _remedy(name: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "correct the path"
    if isinstance(error, IsADirectoryError):
        return f"name the files in it, such as {name.rstrip('/')}/*.jsonl"
    return "make it readable" if isinstance(error, PermissionError) else f"give a file of {READ_KINDS}"


def _read_tfds(source: str) -> Iterator[Located]:
    name, _, split = source.removeprefix("tfds:").rpartition("/")
    if not name or not split:
        raise DataError(f"source {source} has no split: write tfds:NAME/SPLIT, such as tfds:my_data:1.0.0/train")
    try:
        import tensorflow_datasets

        for number, value in enumerate(tensorflow_datasets.data_source(name, split=split), 1):
            yield f"{source} row {number}", to_json_types(value)
    except Exception as error:  # from TFDS, the data set's own code or the network: there is no common class
        raise DataError(
            f"source {source} cannot be read ({first_line(error)}): give a data set and a split that TFDS has, or one "
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
            yield f"{source} row {number}", to_json_types(value)
    except Exception as error:  # from the package, the hub or the network: there is no common class
        raise DataError(
            f"source {source} cannot be read ({first_line(error)}): "
            "give a data set, configuration and split that the hub has"
        ) from None
