"""The collectives of a compiled program, read from its text."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
_BEGIN = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations)=\{?(%[\w.-]+(?:, ?%[\w.-]+)*)")
_TRIPS = re.compile(r"known_trip_count[^0-9]*(\d+)")


class Collective(NamedTuple):
    """One collective operation: kind, bytes of its results on each device, elements of the largest, and how often it
    runs."""

    kind: str
    bytes: int
    elements: int
    times: int


def found(text: str) -> list[Collective]:
    """The collectives of a program, from `compiled.as_text()`.

    What stands in a loop with a known number of turns runs that often; in any other loop it is counted as once, such
    as the loop over new tokens in decoding.
    """
    inside: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    name = entry = ""
    for line in text.splitlines():
        if begun := _BEGIN.match(line):
            name = begun[2]
            entry = name if begun[1] else entry
            continue
        if op := _COLLECTIVE.search(line):
            # An asynchronous start gives its operand and its result: the larger of the two moves.
            shapes = [
                (_BYTES.get(t, 4), math.prod(map(int, filter(None, d.split(","))))) for t, d in _SHAPE.findall(op[1])
            ]
            width, elements = max(shapes, key=math.prod)
            inside[name].append((op[2], width * elements, elements))
        trips = _TRIPS.search(line)
        for called in _CALLED.findall(line):
            for one in called.replace("%", "").split(","):
                calls[name].append((one.strip(), int(trips[1]) if trips and "while(" in line else 1))
    times: dict[str, int] = defaultdict(int)

    def visit(computation: str, turns: int) -> None:
        times[computation] += turns
        for called, more in calls[computation]:
            visit(called, turns * more)

    visit(entry, 1)
    return [Collective(*op, times[name]) for name, ops in inside.items() for op in ops if times[name]]


def _elements(dims: str) -> int:
    return math.prod(map(int, filter(None, dims.split(","))))


def summed(collectives: list[Collective]) -> dict[str, dict[str, int]]:
    """For each kind: how many run, and the bytes of their results on each device, a step."""
    total: dict[str, dict[str, int]] = {}
    for kind, size, _, times in collectives:
        one = total.setdefault(kind, {"count": 0, "bytes": 0})
        one["count"] += times
        one["bytes"] += size * times
    return total
