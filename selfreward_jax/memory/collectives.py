"""The collectives of a compiled program, read from its text."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}  # else 4
_BEGIN = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations)=\{?(%[\w.-]+(?:, ?%[\w.-]+)*)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CONSTANT = re.compile(r"%([\w.-]+) = s32\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"ROOT .* compare\([^,]*, %([\w.-]+)\), direction=LT")
_CONDITION = re.compile(r"condition=%([\w.-]+)")
_BODY = re.compile(r"body=%([\w.-]+)")


class Collective(NamedTuple):
    """One collective operation: kind, bytes of its results on each device, elements of the largest, and how often it
    runs."""

    kind: str
    bytes: int
    elements: int
    times: int


def parse_collectives(text: str) -> list[Collective]:
    """The collectives of a program, from `compiled.as_text()`.

    What stands in a loop that counts up to a constant runs that often; in any other loop it is counted as once, such as
    in that over new tokens in decoding, which may end early.
    """
    inside: dict[str, list[tuple[str, Collective]]] = defaultdict(list)
    calls: dict[str, list[str]] = defaultdict(list)
    loops: list[tuple[str, str]] = []  # condition and body of each
    constants: dict[str, int] = {}
    turns: dict[str, int] = {}  # of the loop that has this condition
    name = entry = ""
    for line in text.splitlines():
        if begun := _BEGIN.match(line):
            name = begun[2]
            entry = name if begun[1] else entry
            constants = {}
            continue
        if constant := _CONSTANT.search(line):
            constants[constant[1]] = int(constant[2])
        if (below := _BELOW.search(line)) and below[1] in constants:
            turns[name] = constants[below[1]]
        if (condition := _CONDITION.search(line)) and (body := _BODY.search(line)):
            loops.append((condition[1], body[1]))
        if one := _collective(line):
            inside[name].append(one)
        for called in _CALLED.findall(line):
            calls[name] += called.replace("%", "").replace(" ", "").split(",")
    often = {body: turns[condition] for condition, body in loops if condition in turns}
    times: dict[str, int] = defaultdict(int)

    def visit(computation: str, outer: int) -> None:
        outer *= often.get(computation, 1)
        times[computation] += outer
        for called in calls[computation]:
            visit(called, outer)

    visit(entry, 1)
    whole: dict[str, Collective] = {}
    for computation, ops in inside.items():
        for key, op in ops:
            now = op._replace(times=times[computation])
            whole[key] = max(now, whole.get(key, now), key=lambda c: c.times)
    return [op for op in whole.values() if op.times]


def _collective(line: str) -> tuple[str, Collective] | None:
    """The collective of a line and what it is known by. One that the compiler spreads over several fusions, to hide it
    behind other work, stands in each of them with the same channel."""
    op = _COLLECTIVE.search(line)
    if op is None:
        return None
    shapes = [
        (_BYTES.get(dtype, 4), math.prod(map(int, filter(None, dims.split(",")))))
        for dtype, dims in _SHAPE.findall(op[1])
    ]
    if op[3] and op[2] in ("all-gather", "collective-permute"):
        shapes = sorted(shapes, key=math.prod)[len(shapes) // 2 :]  # an asynchronous start names its operands too
    channel = _CHANNEL.search(line)
    known_by = f"{op[2]} {channel[1]}" if channel else line.strip()
    return known_by, Collective(op[2], sum(map(math.prod, shapes)), max(n for _, n in shapes), 0)


def totals_by_kind(collectives: list[Collective]) -> dict[str, dict[str, int]]:
    """For each kind: how many run, and the bytes of their results on each device, a step."""
    total: dict[str, dict[str, int]] = {}
    for kind, size, _, times in collectives:
        one = total.setdefault(kind, {"count": 0, "bytes": 0})
        one["count"] += times
        one["bytes"] += size * times
    return total
