"""The rows of a suite, from local files in their published form."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from selfreward_jax.config import ConfigError
from selfreward_jax.config.errors import brief
from selfreward_jax.data.limits import Malformed
from selfreward_jax.data.readers import naming, read_records
from selfreward_jax.method.rows import Row

MAX_ROWS = 100_000


class SuiteRows(NamedTuple):
    """The rows of a suite, and a digest of them: another file gives another one."""

    rows: list[Row]
    digest: str


def read_rows(suite_dir: str, name: str, fields: Mapping[str, type | tuple[type, ...]]) -> SuiteRows:
    """The rows of all JSON files in SUITE_DIR/NAME, in the order of their names.

    Args:
      suite_dir: a folder with one folder for each suite.
      name: the suite's.
      fields: what each row must have, and the types.

    Raises:
      ConfigError: there is no such file.
      DataError: a file cannot be read.
    """
    folder = epath.Path(suite_dir) / name
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".jsonl")) if folder.is_dir() else []
    if not files:
        raise ConfigError(f"--suite={name}: {folder} holds no .json or .jsonl file: put the published file there")
    rows: list[Row] = []
    with naming(f"--suite={name}"):
        for path in files:
            for location, row in read_records(str(path)):
                _check(name, location, row, fields)
                rows.append(row)
                if len(rows) > MAX_ROWS:
                    raise ConfigError(f"--suite={name}: {folder} has more than {MAX_ROWS:,} rows: divide it")
    if not rows:
        raise ConfigError(f"--suite={name}: {folder} holds no row: put the published file there")
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:8]
    return SuiteRows(rows, digest)


def _check(name: str, location: str, row: Any, fields: Mapping[str, type | tuple[type, ...]]) -> None:
    if isinstance(row, Malformed):
        raise ConfigError(f"--suite={name}: {location}: {row.reason}: give the published file")
    for field, kind in fields.items():
        value = row.get(field) if isinstance(row, dict) else None
        if not isinstance(value, kind) or value == "":
            raise ConfigError(f"--suite={name}: {location}: {field} is {brief(value)}: give the published file")
