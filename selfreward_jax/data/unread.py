"""Kinds of files that are not read as records, and how to convert each."""

from pathlib import PurePath
from typing import BinaryIO

READ_KINDS = "JSON Lines, a JSON list, CSV with a header (all also gzipped, as .gz) and Parquet (.parquet)"

# By the end of the name: what the file is, and what pandas reads it with.
_TABLES = {
    ".xlsx": ("an Excel workbook", "read_excel({name!r})"),
    ".xls": ("an Excel workbook", "read_excel({name!r})"),
    ".ods": ("a spreadsheet", "read_excel({name!r})"),
    ".pkl": ("a pickle", "read_pickle({name!r})"),
    ".pickle": ("a pickle", "read_pickle({name!r})"),
    ".feather": ("Feather", "read_feather({name!r})"),
    ".orc": ("ORC", "read_orc({name!r})"),
}
_REWRITE = "write each record as a JSON object on a line of its own"
_UNPACK = "unpack it, or compress it with gzip"
_OTHERS = {
    ".arrow": ("Arrow", "datasets.Dataset.from_file({name!r}).to_json({out!r})"),
    ".bz2": ("compressed with bzip2", _UNPACK),
    ".xz": ("compressed with xz", _UNPACK),
    ".zst": ("compressed with zstd", _UNPACK),
    ".zip": ("a zip archive", _UNPACK),
    ".tar": ("a tar archive", _UNPACK),
    ".tgz": ("a tar archive", _UNPACK),
    **{f".{kind}": (kind.upper(), _REWRITE) for kind in ("yaml", "yml", "xml", "html", "pdf", "docx", "npy", "npz")},
    **{f".{kind}": (f"of the kind .{kind}", _REWRITE) for kind in ("db", "sqlite", "tfrecord", "safetensors", "pt")},
}
# By the first bytes, where the name does not tell.
_SIGNATURES = {
    b"PK\x03\x04": ("a zip archive or an Office file", _REWRITE),
    b"BZh": _OTHERS[".bz2"],
    b"\xfd7zXZ": _OTHERS[".xz"],
    b"\x28\xb5\x2f\xfd": _OTHERS[".zst"],
    b"SQLite format 3": ("an SQLite database", _REWRITE),
    b"ARROW1": ("Arrow or Feather", "convert it to Parquet"),
    b"%PDF": ("PDF", _REWRITE),
    **{bytes([0x80, version]): ("a pickle", _REWRITE) for version in (2, 3, 4, 5)},
}
_MISNAMED = {b"PAR1": ".parquet", b"\x1f\x8b": ".gz"}


def describe_unread(name: str, file: BinaryIO) -> str | None:
    """What a file is and how to convert it, if it is of a kind that is not read; None if it may hold records.

    Args:
      name: its name. A .gz at its end says nothing of what is inside.
      file: its bytes as they are stored, at the beginning; rewound.
    """
    plain = PurePath(name.removesuffix(".gz"))
    first = file.read(16)
    file.seek(0)
    is_json = first.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")  # maybe under another name
    if plain.suffix == ".parquet" or is_json:
        return None
    compressed = name.endswith(".gz")
    for start, ending in _MISNAMED.items():
        if first.startswith(start) and not compressed:
            return f"is a {ending} file under another name: let its name end in {ending}"
    base = PurePath(name).name
    if table := _TABLES.get(plain.suffix.lower()):
        kind, reader = table
        to_json = f"to_json({plain.stem + '.jsonl'!r}, orient='records', lines=True)"
        return _sentence(kind, f"convert it, for example pandas.{reader.format(name=base)}.{to_json}")
    if other := _OTHERS.get(plain.suffix.lower()):
        return _sentence(other[0], other[1].format(name=base, out=f"{plain.stem}.jsonl"))
    signatures = {} if compressed else _SIGNATURES
    return next((_sentence(*sentence) for start, sentence in signatures.items() if first.startswith(start)), None)


def _sentence(kind: str, remedy: str) -> str:
    return f"is {kind}, which is not read ({READ_KINDS} are): {remedy}"
