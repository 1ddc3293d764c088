"""When, and how fast, work may go that others would feel: a window of the day, and a rate."""

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta


class PaceError(ValueError):
    """A rate or a window that cannot be understood; the text says what is."""


@dataclass(frozen=True)
class Window:
    """From `begins` to `ends` every day, local time; over midnight when it ends before it begins."""

    begins: time
    ends: time

    def seconds_until_open(self, now: datetime) -> float:
        """0 while it is open."""
        beginning = datetime.combine(now.date(), self.begins)
        length = (datetime.combine(now.date(), self.ends) - beginning) % timedelta(days=1)
        if (now - beginning) % timedelta(days=1) < length:
            return 0.0
        return ((beginning - now) % timedelta(days=1)).total_seconds()


def window_of(text: str) -> Window:
    """`22:00-06:00`. Raises PaceError."""
    found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)-([01]?\d|2[0-3]):([0-5]\d)", text.strip())
    if found is None:
        raise PaceError(f"{text!r} is no window; write it like 22:00-06:00")
    first_hour, first_minute, last_hour, last_minute = map(int, found.groups())
    window = Window(time(first_hour, first_minute), time(last_hour, last_minute))
    if window.begins == window.ends:
        raise PaceError(f"{text!r} begins when it ends; leave it out to go on around the clock")
    return window


def per_minute_of(text: str) -> float:
    """`120/min`, `2/s`, `5000/h`, or a bare number per minute. Raises PaceError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/(s|min|h))?", text.strip())
    if found is None or float(found[1]) <= 0:
        raise PaceError(f"{text!r} is no rate; write it like 120/min")
    return float(found[1]) * {"s": 60.0, "min": 1.0, "h": 1 / 60}[found[2] or "min"]
