"""The collectives of a compiled program, parsed from its HLO text."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}  # others: 4
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLEES = re.compile(r"(?:body|condition|to_apply|calls|branch_computations)=\{?(%[\w.-]+(?:, ?%[\w.-]+)*)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CONSTANT = re.compile(r"%([\w.-]+) = [su]32\[\]\S* constant\((\d+)\)")
_LESS_THAN = re.compile(r"ROOT .* compare\([^,]*, %([\w.-]+)\), direction=LT")
_CONDITION = re.compile(r"condition=%([\w.-]+)")
_BODY = re.compile(r"body=%([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')  # where the compiler says it


class Collective(NamedTuple):
    """One collective operation.

    kind: one of KINDS. bytes: of its results on each device. elements: of the largest result. executions: how often it
    runs.
    """

    kind: str
    bytes: int
    elements: int
    executions: int


def parse_collectives(text: str) -> list[Collective]:
    """The collectives of a program, from `compiled.as_text()`.

    A collective in a loop that counts to a constant is counted that many times. In any other loop it is counted once:
    for example the loop over new tokens in decoding, which may end early.
    """
    program = _parse_program(text)
    executions: dict[str, int] = defaultdict(int)  # by computation

    def visit(computation: str, outer: int) -> None:
        outer *= program.trip_counts.get(computation, 1)
        executions[computation] += outer
        for callee in program.callees.get(computation, ()):
            visit(callee, outer)

    visit(program.entry, 1)
    by_key: dict[str, Collective] = {}
    for computation, ops in program.collectives.items():
        for key, op in ops:
            counted = op._replace(executions=executions[computation])
            by_key[key] = max(counted, by_key.get(key, counted), key=lambda c: c.executions)
    return [op for op in by_key.values() if op.executions]


class _Hlo(NamedTuple):
    """An HLO program: its entry, and by computation its collectives, its callees, and the trip count of loop bodies."""

    entry: str
    collectives: dict[str, list[tuple[str, Collective]]]
    callees: dict[str, list[str]]
    trip_counts: dict[str, int]


def _parse_program(text: str) -> _Hlo:
    collectives: dict[str, list[tuple[str, Collective]]] = defaultdict(list)
    callees: dict[str, list[str]] = defaultdict(list)
    loops: list[tuple[str, str]] = []  # condition and body of each
    trip_counts: dict[str, int] = {}
    constants: dict[str, int] = {}
    limits: dict[str, int] = {}  # the constant that a loop's condition compares with
    name = entry = ""
    for line in text.splitlines():
        if computation := _COMPUTATION.match(line):
            name = computation[2]
            entry = name if computation[1] else entry
            constants = {}
            continue
        if constant := _CONSTANT.search(line):
            constants[constant[1]] = int(constant[2])
        if (less_than := _LESS_THAN.search(line)) and less_than[1] in constants:
            limits[name] = constants[less_than[1]]
        if (condition := _CONDITION.search(line)) and (body := _BODY.search(line)):
            loops.append((condition[1], body[1]))
            if trips := _TRIPS.search(line):
                trip_counts[body[1]] = int(trips[1])
        if collective := _parse_collective(line):
            collectives[name].append(collective)
        for names in _CALLEES.findall(line):
            callees[name] += names.replace("%", "").replace(" ", "").split(",")
    trip_counts |= {body: limits[cond] for cond, body in loops if cond in limits and body not in trip_counts}
    return _Hlo(entry, collectives, callees, trip_counts)


def _parse_collective(line: str) -> tuple[str, Collective] | None:
    """The collective of a line, and a key that identifies it.

    The compiler can spread a collective over several fusions, to overlap it with other work. Each of them then holds it
    with the same channel.
    """
    op = _COLLECTIVE.search(line)
    if op is None:
        return None
    shapes = [
        (_BYTES.get(dtype, 4), math.prod(map(int, filter(None, dims.split(",")))))
        for dtype, dims in _SHAPE.findall(op[1])
    ]
    if op[3] and op[2] != "all-reduce" and len(shapes) > 1:  # an asynchronous start also lists its operands
        shapes, half = sorted(shapes, key=math.prod), len(shapes) // 2
        shapes = shapes[:half] if op[2] == "reduce-scatter" else shapes[half:]
    channel = _CHANNEL.search(line)
    key = f"{op[2]} {channel[1]}" if channel else line.strip()
    return key, Collective(op[2], sum(map(math.prod, shapes)), max(n for _, n in shapes), 0)


def totals_by_kind(collectives: list[Collective]) -> dict[str, dict[str, int]]:
    """For each kind: the number of executions in a step, and the bytes of their results on each device."""
    totals: dict[str, dict[str, int]] = {}
    for kind, num_bytes, _, executions in collectives:
        total = totals.setdefault(kind, {"count": 0, "bytes": 0})
        total["count"] += executions
        total["bytes"] += num_bytes * executions
    return totals
