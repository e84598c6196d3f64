"""Records of CSV and TSV files, one at a time. The first line names the fields."""

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePath
from typing import BinaryIO

from selfreward_jax.data.limits import MAX_LINE, DataError, Located, Malformed, SizeLimit, check_rows, first_line

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def is_table(name: str, file: BinaryIO) -> bool:
    """Whether a file is a table: by the end of its name, unless it begins as JSON does. Rewinds the file."""
    if PurePath(name.removesuffix(".gz")).suffix.lower() not in _DELIMITERS:
        return False
    first = file.read(16).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    file.seek(0)
    return first not in (b"{", b"[")


def read_table(name: str, file: BinaryIO, limit: SizeLimit) -> Iterator[Located]:
    """The rows of a table as objects of texts. An empty field is null.

    Args:
      name: its name, for messages.
      file: its bytes, at the beginning.
      limit: how many there may be.

    Raises:
      DataError: there is no header, a column occurs twice, or the file as a whole cannot be read. A row with more or
        fewer fields than the header gives `Malformed`.
    """
    csv.field_size_limit(MAX_LINE)  # of the whole process; the default is smaller than a long answer
    lines = _Lines(name, file, limit)
    reader = csv.reader(lines, delimiter=lines.delimiter(), strict=True)
    try:
        header = next(reader, None)
        if not header or not all(field.strip() for field in header):
            raise DataError(f"file {name} has no header: its first line must name each column, such as prompt,response")
        header = [field.strip() for field in header]
        if twice := next((field for field, count in Counter(header).items() if count > 1), None):
            raise DataError(f"file {name} has two columns {twice!r:.60}: rename one of them")
        while True:
            lines.size, number = 0, reader.line_num + 1
            if (row := next(reader, None)) is None:
                return
            check_rows(name, number)
            if len(row) == len(header):
                yield f"{name} line {number}", {f: v or None for f, v in zip(header, row, strict=True)}
            elif row:
                fault = f"of {len(row)} fields, and the header has {len(header)}"
                yield f"{name} line {number}", Malformed(fault, "put texts with commas and line breaks in quotes")
    except csv.Error as error:
        raise DataError(
            f"file {name} is not CSV at line {reader.line_num} ({first_line(error)}): write texts in double quotes, "
            "and a quote in them twice"
        ) from None


class _Lines:
    """The lines of a file as text.

    size: bytes of the record that is being read; it may have many lines.
    """

    def __init__(self, name: str, file: BinaryIO, limit: SizeLimit) -> None:
        self.name, self.file, self.limit, self.size, self.end = name, file, limit, 0, 0

    def delimiter(self) -> str:
        """What separates the fields of the first line. Spreadsheets of many countries write a semicolon."""
        first = self.file.readline(MAX_LINE)
        self.file.seek(0)
        usual = _DELIMITERS[PurePath(self.name.removesuffix(".gz")).suffix.lower()]
        return usual if usual.encode() in first else ";" if b";" in first else usual

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.file.readline(MAX_LINE + 1)
        if not line:
            raise StopIteration
        start, self.end, self.size = self.end, self.end + len(line), self.size + len(line)
        self.limit.check(self.end)
        if self.size > MAX_LINE:
            raise DataError(
                f"file {self.name} has a record longer than {MAX_LINE:,} bytes at byte {start}: divide it, or close "
                "its quotes"
            )
        try:
            return line.decode("utf-8-sig" if start == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"file {self.name} is not UTF-8 at byte {start + error.start}: save it as UTF-8") from None
