"""The rows of a suite, from local files in their published form."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from selfreward_jax.config import ConfigError
from selfreward_jax.config.errors import brief
from selfreward_jax.data.limits import Malformed
from selfreward_jax.data.readers import naming, read_records
from selfreward_jax.method.rows import Row

MAX_ROWS = 100_000
ENDINGS = (".json", ".jsonl", ".parquet", ".json.gz", ".jsonl.gz")
ONE_FILE = ("ifeval", "gsm8k")  # whose other files are other splits


class SuiteRows(NamedTuple):
    """The rows of a suite, and a digest of them: another file gives another one."""

    rows: list[Row]
    digest: str


def read_rows(suite_dir: str, name: str, fields: Mapping[str, type | tuple[type, ...]]) -> SuiteRows:
    """The rows of all files in SUITE_DIR/NAME and the folders in it, in the order of their names.

    Args:
      suite_dir: a folder with one folder for each suite.
      name: the suite's.
      fields: what each row must have, and the types.

    Raises:
      ConfigError: there is no such file, or more than one where one is the suite.
      DataError: a file cannot be read.
    """
    folder = epath.Path(suite_dir) / name
    rows: list[Row] = []
    with naming(f"--suite={name}"):
        for path in _files(folder, name):
            for location, row in read_records(str(path)):
                _check(name, location, row, fields)
                rows.append(row)
                if len(rows) > MAX_ROWS:
                    raise ConfigError(f"--suite={name}: {folder} has more than {MAX_ROWS:,} rows: divide it")
    if not rows:
        raise ConfigError(f"--suite={name}: {folder} holds no row: put the published file there")
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:8]
    return SuiteRows(rows, digest)


def _files(folder: epath.Path, name: str) -> list[epath.Path]:
    """The files of a suite. In a folder of LLMBar's repository only `dataset.json` has pairs."""
    files = list(_walk(folder)) if folder.is_dir() else []
    files = [path for path in files if path.name == "dataset.json"] or files
    if not files:
        raise ConfigError(
            f"--suite={name}: {folder} holds no file that ends in {', '.join(ENDINGS)}: put the published file there"
        )
    if name in ONE_FILE and len(files) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in files[:5])
        raise ConfigError(f"--suite={name}: {folder} holds {len(files)} files ({names}): keep the one to measure on")
    return files


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
    """Files that may have rows. Hidden ones, those of macOS and the hub's list of data sets have none."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_")) or path.name == "dataset_infos.json":
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.name.endswith(ENDINGS):
            yield path


def _check(name: str, location: str, row: Any, fields: Mapping[str, type | tuple[type, ...]]) -> None:
    if isinstance(row, Malformed):
        raise ConfigError(f"--suite={name}: {location}: {row.reason}: give the published file")
    for field, kind in fields.items():
        value = row.get(field) if isinstance(row, dict) else None
        if not isinstance(value, kind) or value == "":
            raise ConfigError(f"--suite={name}: {location}: {field} is {brief(value)}: give the published file")
