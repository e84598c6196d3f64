"""How messages write measured numbers, durations and counts."""

import math
from collections.abc import Mapping


def three_digits(value: float | None) -> str:
    """A number with three significant digits: 9925.4 is "9,930", 0.1 + 0.2 is "0.3". None and NaN are "-"."""
    if value is None or math.isnan(value):
        return "-"
    text = f"{value:.3g}"
    return f"{float(text):,.0f}" if 1000 <= abs(value) < math.inf or "e+" in text else text


def duration(seconds: float) -> str:
    """A time in the units that suit it: "1.6 s", "26 s", "2 min 5 s", "12 min", "3 h 20 min", "5.2 days"."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 100 * 60:
        hours, rest = divmod(minutes, 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{three_digits(seconds / 86400)} days"


def counted(count: int, noun: str) -> str:
    """A count with its noun: "1 row", "1,200 rows"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def counts(by_name: Mapping[str, int]) -> str:
    """Counts by name without those that are 0: "8 duplicate, 3 too short"; "none" if all are."""
    return ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in by_name.items() if n) or "none"
