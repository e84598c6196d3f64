"""Records of JSON Lines, of JSON lists, and of JSON objects over several lines, one at a time."""

import codecs
import json
import re
from collections.abc import Iterator
from json.decoder import WHITESPACE
from typing import Any, BinaryIO

from selfreward_jax.data.fields import KNOWN_NAMES
from selfreward_jax.data.limits import (
    MAX_DEPTH,
    MAX_LINE,
    TOO_DEEP,
    TOO_LONG,
    DataError,
    Located,
    Malformed,
    SizeLimit,
    check_rows,
    chunks,
    first_line,
    is_too_deep,
)

_CHUNK = 1 << 20  # bytes
_BOM = b"\xef\xbb\xbf"
# The first line of an object over several lines, and what the next one begins with.
_OPEN_LINE = re.compile(rb'\{[^\S\n]*\n\s*["}]|\{\s*"[^"\\]*"\s*:\s*[\[{][^\S\n]*\n')
_WRAPPERS = ("data", "rows", "examples", "items", "records", "train")  # fields that hold all records of a file


def read_json(name: str, file: BinaryIO, limit: SizeLimit) -> Iterator[Located]:
    """The records of a file of JSON Lines, of one JSON list, or of objects over several lines.

    Args:
      name: its name, for messages.
      file: its bytes, at the beginning.
      limit: how many there may be.

    Raises:
      DataError: the file as a whole cannot be read. One line that is not JSON gives `Malformed`.
    """
    kind = _kind(file, limit)
    if kind == "list":
        return _read_list(name, file, limit)
    return _read_objects(name, file, limit) if kind == "objects" else _read_lines(name, file, limit)


def _kind(file: BinaryIO, limit: SizeLimit) -> str:
    """What the beginning of a file shows: "list", "objects" over several lines, or "lines". Rewinds the file."""
    text = b""
    for chunk in chunks(file, limit):
        if text := chunk.removeprefix(_BOM).lstrip():
            break
    file.seek(0)
    if text.startswith(b"["):
        return "list"
    return "objects" if _OPEN_LINE.match(text) else "lines"


def _read_lines(name: str, file: BinaryIO, limit: SizeLimit) -> Iterator[Located]:
    end = number = 0
    while line := file.readline(MAX_LINE + 1):  # bytes, because only \n ends a line, not other separators of Unicode
        start, end, number = end, end + len(line), number + 1
        limit.check(end)
        check_rows(name, number)
        if line.isspace():
            continue
        if len(line) > MAX_LINE and not line.endswith(b"\n"):
            while not line.endswith(b"\n") and (line := file.readline(_CHUNK)):
                end += len(line)
                limit.check(end)
            yield f"{name} line {number}", TOO_LONG
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"file {name} is not UTF-8 at byte {start + error.start} (line {number}): save it as UTF-8"
            ) from None
        if text.strip():
            yield from _unwrap(f"{name} line {number}", _parse_line(text))


def _unwrap(location: str, value: Any) -> Iterator[Located]:
    """A record, or the records in it where it is the one object around them: {"version": 1, "data": [...]}."""
    name = next((n for n in _WRAPPERS if n in value), None) if isinstance(value, dict) else None
    items = value[name] if name else None
    if not isinstance(items, list) or not items or KNOWN_NAMES & value.keys() or not KNOWN_NAMES & _keys(items[0]):
        yield location, value
        return
    for number, item in enumerate(items, 1):
        yield f"{location} {name} {number}", item


def _keys(value: Any) -> set[str]:
    return set(value) if isinstance(value, dict) else set()


def _parse_line(text: str) -> Any:
    try:
        return _bounded(json.loads(text, object_pairs_hook=_unique_fields), text, 0, len(text))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[error.pos :].strip() == ",":  # of a list without its brackets
            return _parse_line(text[: error.pos])
        return Malformed(f"not JSON ({error.msg})")
    except (ValueError, RecursionError) as error:  # a duplicate field, thousands of digits or brackets
        return Malformed(f"not JSON ({first_line(error)})")


def _bounded(value: Any, text: str, start: int, end: int) -> Any:
    """A value that was parsed from `text[start:end]`, or TOO_DEEP. To count brackets is fast, and mostly enough."""
    brackets = text.count("[", start, end) + text.count("{", start, end)
    return TOO_DEEP if brackets > MAX_DEPTH and is_too_deep(value) else value


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. A field that appears twice is refused: nobody knows which value is meant."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        duplicate = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the field {duplicate[:60]!r:.60} appears twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_fields)


def _read_list(name: str, file: BinaryIO, limit: SizeLimit) -> Iterator[Located]:
    text = _ListText(_decode(name, file, limit))
    number = 0
    try:
        text.expect("[")
        if text.peek() == "]":
            text.expect("]")
        else:
            while number == 0 or text.expect(",]") == ",":
                number += 1
                check_rows(name, number)
                yield f"{name} item {number}", text.next_value()
        if text.peek():
            raise ValueError("text after its end")
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
        raise DataError(
            f"file {name} is not a JSON list (item {number}: {reason}): repair it, or write JSON lines"
        ) from None


def _read_objects(name: str, file: BinaryIO, limit: SizeLimit) -> Iterator[Located]:
    """The records of a file of JSON objects over several lines, with or without commas between them."""
    text = _ListText(_decode(name, file, limit))
    number = 0
    try:
        while text.peek():
            number += 1
            check_rows(name, number)
            yield from _unwrap(f"{name} item {number}", text.next_value(in_list=False))
            if text.peek() == ",":
                text.expect(",")
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
        raise DataError(
            f"file {name} is not made of JSON objects (item {number}: {reason}): write each record on a line of its own"
        ) from None


def _decode(name: str, file: BinaryIO, limit: SizeLimit) -> Iterator[str]:
    """The text of a file in parts, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = 0  # of the next chunk in the file
    for chunk in chunks(file, limit, _CHUNK):
        pending = len(decoder.getstate()[0])  # the beginning of a character that is not complete
        try:
            text = decoder.decode(chunk)
        except UnicodeDecodeError as error:
            position = start - pending + error.start
            raise DataError(f"file {name} is not UTF-8 at byte {position}: save it as UTF-8") from None
        yield text if start else text.removeprefix("\ufeff")
        start += len(chunk)
    if pending := len(decoder.getstate()[0]):
        raise DataError(f"file {name} is not UTF-8 at byte {start - pending}: save it as UTF-8")


class _ListText:
    """The text of a JSON list, of which only the item that is being parsed is in memory.

    position: the index in `text` of what comes next.
    """

    def __init__(self, parts: Iterator[str]) -> None:
        self.parts, self.text, self.position = parts, "", 0

    def peek(self) -> str:
        """The next character after white space; empty at the end."""
        self.position = WHITESPACE.match(self.text, self.position).end()
        while self.position == len(self.text) and self.grow():
            self.position = WHITESPACE.match(self.text, self.position).end()
        return self.text[self.position : self.position + 1]

    def expect(self, characters: str) -> str:
        """The next character, which must be one of `characters`."""
        character = self.peek()
        if not character or character not in characters:
            raise ValueError(f"Expecting {' or '.join(map(repr, characters))}")
        self.position += 1
        return character

    def grow(self) -> bool:
        """Reads at least as much again as there is. False at the end."""
        rest = [self.text[self.position :]]
        wanted, size = 2 * len(rest[0]) + 1, len(rest[0])
        for part in self.parts:
            rest.append(part)
            if (size := size + len(part)) >= wanted:
                break
        self.text, self.position = "".join(rest), 0
        return len(rest) > 1

    def next_value(self, in_list: bool = True) -> Any:
        """The next item, behind which a list goes on or ends.

        Of one that has no end yet, more is read: twice as much each time, so the time is linear.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
                after = WHITESPACE.match(self.text, end).end()
                ends = not in_list or self.text[after : after + 1] in (",", "]")
                fault = None if ends else ValueError("Expecting ',' or ']'")
            except json.JSONDecodeError as error:
                end, fault = len(self.text), error
            if end - self.position > MAX_LINE:
                reason = f"; {fault.msg}" if isinstance(fault, json.JSONDecodeError) else ""
                raise ValueError(f"longer than {MAX_LINE:,} characters{reason}")
            if fault is None:
                break
            if not self.grow():  # so the text is at fault, not its end
                raise fault
        start, self.position = self.position, end
        return _bounded(value, self.text, start, end)
