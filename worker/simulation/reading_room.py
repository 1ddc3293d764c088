"""A reading room, minute by minute: who waits, who is read next, how long a reading takes.

Times are minutes from a midnight. A study's index is its place by arrival.
"""

import heapq
import math
from bisect import bisect_right
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import simpy
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

DAY_MINUTES = 24 * 60

Floats: TypeAlias = npt.NDArray[np.float64]
Booleans: TypeAlias = npt.NDArray[np.bool_]


class SimulationError(ValueError):
    """The question cannot be simulated as asked."""


Share: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Factor: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Arrivals: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Minutes: TypeAlias = Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value), Field(gt=0)]

# 100 films a day: few at night, a busy morning; read quickly from 07 to 20 h, now and then outside. Chosen so that FIFO
# gives about the mean and maximum that Baltruschat et al. (2021) report for their hospital.
_HOURLY = (*[1.5] * 7, 6, 9, 9, 9, 8, 7, 7, 7, 6, 5, 4, 4, 3, 3, 2, 2, 1.5)
ARRIVALS_PER_HOUR = tuple(100 * hour / sum(_HOURLY) for hour in _HOURLY)
READING_MINUTES = (*[80.0] * 7, *[4.0] * 13, *[80.0] * 4)


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class Department:
    """One day of a department, hour by hour; every simulated day is like it.

    `reading_minutes`: the mean time to read one study during each hour (infinity: nobody reads). Reading times are
    exponential around it. A reading that runs into the next hour goes on at that hour's pace or, with
    `pace_from_start`, keeps the pace of the hour in which it began, as a slow reader's work that nobody takes over.
    """

    arrivals_per_hour: Annotated[tuple[Arrivals, ...], Field(min_length=24, max_length=24)] = ARRIVALS_PER_HOUR
    reading_minutes: Annotated[tuple[Minutes, ...], Field(min_length=24, max_length=24)] = READING_MINUTES
    readers: Annotated[int, Field(strict=True, ge=1)] = 1
    pace_from_start: bool = False
    stat_share: Share = 0.0  # of studies that a human marked STAT
    stat_reading_factor: Factor = 1.0  # reading time of STAT studies relative to the others
    abnormal_reading_factor: Factor = 1.0  # reading time of studies with any finding relative to normal ones

    def __post_init__(self) -> None:
        if self.pace_from_start and math.inf in self.reading_minutes:
            raise SimulationError("a reading that keeps its pace would never end where nobody reads")


@dataclass(frozen=True)
class Discipline:
    """A rule for who is read next: STAT, then overdue, then the categories in `ahead` one by one, then all others.

    Within these by urgency if `by_urgency`, else by arrival. With `preemptive` a study stops the reading of one that a
    category (or STAT) places behind it; that reading goes on later where it stopped.
    """

    name: str
    ahead: str = ""
    by_urgency: bool = False
    max_wait_minutes: float = math.inf
    preemptive: bool = False


@dataclass(frozen=True)
class Studies:
    """Studies of one seed, or of one history: arrays of length N in order of arrival."""

    arrived: Floats
    stat: Booleans
    category: npt.NDArray[np.str_]
    urgency: Floats
    groups: Mapping[str, Booleans]  # name -> which studies belong; a study may belong to several

    def classes(self, ahead: str) -> npt.NDArray[np.int64]:
        """1, 2, ... for the categories `ahead`, and one class after them for the rest."""
        classes = np.full(len(self.arrived), len(ahead) + 1)
        for number, category in enumerate(ahead, start=1):
            classes[self.category == category] = number
        return classes


class Worklist:
    """The waiting studies of one discipline; `take` is the reading order of `worker.ranking.priority.reading_key`.

    The place of a study that is not overdue never changes, so a heap of places and a heap of arrivals are enough.
    """

    def __init__(self, studies: Studies, discipline: Discipline) -> None:
        classes = studies.classes(discipline.ahead)
        urgency = studies.urgency if discipline.by_urgency else np.zeros(len(studies.arrived))
        order = np.lexsort((-urgency, classes, ~studies.stat))  # stable: equals stay in order of arrival
        self.interrupting_class: list[int] = np.where(studies.stat, 0, classes).tolist()
        self._study_at: list[int] = order.tolist()
        self._place: list[int] = np.argsort(order).tolist()
        self._arrived: list[float] = studies.arrived.tolist()
        self._stat: list[bool] = studies.stat.tolist()
        self._max_wait = discipline.max_wait_minutes
        self._waiting: tuple[set[int], set[int]] = (set(), set())  # others, STAT
        self._by_place: tuple[list[int], list[int]] = ([], [])
        self._by_arrival: tuple[list[tuple[float, int]], list[tuple[float, int]]] = ([], [])  # arrival, place

    def __len__(self) -> int:
        return len(self._waiting[0]) + len(self._waiting[1])

    def overdue(self, study: int, now: float) -> bool:
        """Whether `study` has waited the maximum wait or longer."""
        return now - self._arrived[study] >= self._max_wait

    def add(self, study: int) -> None:
        """Let `study` wait (again)."""
        lane = self._stat[study]
        self._waiting[lane].add(study)
        heapq.heappush(self._by_place[lane], self._place[study])
        if self._max_wait < math.inf:
            heapq.heappush(self._by_arrival[lane], (self._arrived[study], self._place[study]))

    def take(self, now: float) -> int:
        """Remove and return the study to read next at `now`; the list must not be empty."""
        lane = bool(self._waiting[True])
        waiting, by_place, by_arrival = self._waiting[lane], self._by_place[lane], self._by_arrival[lane]
        while by_arrival and self._study_at[by_arrival[0][1]] not in waiting:  # taken earlier by its place
            heapq.heappop(by_arrival)
        if by_arrival and now - by_arrival[0][0] >= self._max_wait:
            study = self._study_at[heapq.heappop(by_arrival)[1]]
        else:
            while (study := self._study_at[heapq.heappop(by_place)]) not in waiting:  # taken earlier as overdue
                pass
        waiting.remove(study)
        return study


class ReadingClock:
    """How long readings take in a department; a work of 1 is an average study."""

    def __init__(self, department: Department) -> None:
        self._speed = [1 / minutes for minutes in department.reading_minutes]  # studies per minute; 1 / inf is 0
        self._done = list(accumulate((60 * speed for speed in self._speed), initial=0.0))  # by each full hour
        self._pace_from_start = department.pace_from_start
        if not self.per_day:
            raise SimulationError("nobody ever reads")

    @property
    def per_day(self) -> float:
        """Studies that one reader who never pauses reads in a day."""
        return self._done[-1]

    def finish(self, start: float, work: float) -> float:
        """When `work` that begins at `start` is done."""
        if self._pace_from_start:
            return start + work / self._speed_at(start)
        days, rest = divmod(self._done_by(start) + work, self.per_day)
        hour = bisect_right(self._done, rest) - 1
        return max(start, days * DAY_MINUTES + 60 * hour + (rest - self._done[hour]) / self._speed[hour])

    def done_between(self, start: float, end: float) -> float:
        """The work that a reading begun at `start` has behind it at `end`."""
        if self._pace_from_start:
            return (end - start) * self._speed_at(start)
        return self._done_by(end) - self._done_by(start)

    def _speed_at(self, time: float) -> float:
        return self._speed[int(time % DAY_MINUTES // 60)]

    def _done_by(self, time: float) -> float:
        days, minute = divmod(time, DAY_MINUTES)
        hour = int(minute // 60)
        return days * self.per_day + self._done[hour] + (minute - 60 * hour) * self._speed[hour]


class Outcome(NamedTuple):
    """When each study was reported, and for how many minutes a reader worked on it; both (N,)."""

    reported: Floats
    reading: Floats


class ReadingRoom:
    """Readers, a worklist and a clock, as SimPy processes."""

    def __init__(self, studies: Studies, work: Floats, discipline: Discipline, department: Department) -> None:
        self._environment = simpy.Environment()
        self._clock = ReadingClock(department)
        self._worklist = Worklist(studies, discipline)
        self._preemptive = discipline.preemptive
        self._arrived: list[float] = studies.arrived.tolist()
        self._left: list[float] = work.tolist()
        self._outcome = Outcome(np.full(len(work), np.nan), np.zeros(len(work)))
        self._idle: list[simpy.Event] = []
        self._being_read: dict[int, int] = {}  # reader -> study
        self._environment.process(self._arrivals())
        self._readers = [self._environment.process(self._reader(number)) for number in range(department.readers)]

    def run(self) -> Outcome:
        """Read until every study is reported."""
        self._environment.run()
        return self._outcome

    def _arrivals(self) -> Generator[simpy.Event, None, None]:
        for study, time in enumerate(self._arrived):
            yield self._environment.timeout(max(0.0, time - self._environment.now))
            self._worklist.add(study)
            if self._idle:
                self._idle.pop().succeed()
            elif self._preemptive:
                self._interrupt_for(study)

    def _reader(self, me: int) -> Generator[simpy.Event, None, None]:
        environment = self._environment
        while True:
            while not self._worklist:
                self._idle.append(environment.event())
                yield self._idle[-1]
            start = environment.now
            study = self._being_read[me] = self._worklist.take(start)
            try:
                yield environment.timeout(self._clock.finish(start, self._left[study]) - start)
                self._outcome.reported[study] = environment.now
            except simpy.Interrupt:
                self._left[study] -= self._clock.done_between(start, environment.now)
                self._worklist.add(study)
            del self._being_read[me]
            self._outcome.reading[study] += environment.now - start

    def _interrupt_for(self, study: int) -> None:
        last = max(self._being_read, key=lambda reader: self._class_being_read(self._being_read[reader]), default=None)
        if last is not None and self._worklist.interrupting_class[study] < self._class_being_read(
            self._being_read[last]
        ):
            self._readers[last].interrupt()

    def _class_being_read(self, study: int) -> int:
        """Nothing but STAT interrupts the reading of an overdue study."""
        number = self._worklist.interrupting_class[study]
        return min(number, 1) if self._worklist.overdue(study, self._environment.now) else number
