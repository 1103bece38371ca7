"""When a schedule fires: a cron expression, a time zone, and what to do about a clock that jumps.

What is next is always computed from now, so nothing is caught up with: a firing that passed while the machine slept,
or while a round was played, is told of and left out. Left out: what is done at a firing (`jobs/schedule.py`).
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from pipeline.config import UserError

_GRACE = timedelta(seconds=60)  # a machine under load is late by as much, and the firing still counts
_LOOK = 20.0  # seconds between two looks at the clock: it may have been set
_SET_BACK = timedelta(hours=1)  # a clock set back by less passes the last firing again, which is not a second one
_COUNTED = 1000


@dataclass(frozen=True)
class CronSchedule:
    """When to fire.

    Attributes:
        cron: minute, hour, day of the month, month, day of the week; with six fields, the first is the second.
    """

    cron: str
    zone: tzinfo

    def __post_init__(self) -> None:
        try:
            next(CronSim(self.cron, datetime(2026, 1, 1, tzinfo=UTC)))
        except (CronSimError, StopIteration) as error:
            why = f": {error}" if str(error) else ", which never comes"
            raise UserError(
                f"--cron is {self.cron!r}{why}. It should be minute, hour, day of the month, month and day of the "
                'week, such as "0 2 * * *" for every night at two'
            ) from None

    def next_due(self, now: datetime, last: datetime | None = None) -> datetime:
        """The first firing after now, and not `last` again if the clock was set back a little since. All are in UTC."""
        return next(self._after(last if last and now < last <= now + _SET_BACK else now))

    def passed(self, after: datetime, until: datetime) -> int:
        """How many firings there are after one time and up to another, both in UTC; the counting ends at 1,000."""
        return sum(1 for _ in islice(takewhile(lambda time: time <= until, self._after(after)), _COUNTED))

    def told(self, time: datetime) -> str:
        """A time as a person reads it, in the zone."""
        return f"{time.astimezone(self.zone):%Y-%m-%d %H:%M:%S %Z}"

    def firings(
        self, clock: Callable[[], datetime], sleep: Callable[[float], None], say: Callable[[str], None]
    ) -> Iterator[datetime]:
        """Each firing at its time; those that come before the next is asked for have passed.

        Args:
            clock: the time now, in UTC.
            sleep: waits so many seconds.
            say: is told when the next is due, and what was left out.
        """
        last, due = None, self.next_due(clock())
        while True:
            say(f"the next round is due {self.told(due)}")
            while (now := clock()) < due:
                sleep(min(_LOOK, (due - now).total_seconds()))
                due = min(due, self.next_due(clock(), last))  # sooner, if the clock was set back
            if now - due <= _GRACE:
                yield due
            else:
                say(f"{self.told(due)} was missed: the clock went on to {self.told(now)}")
            last, now = due, clock()
            if count := self.passed(last, now):
                more = " or more" if count == _COUNTED else ""
                say(f"{count}{more} firing{'s' * (count > 1)} came meanwhile, and nothing was started for them")
            due = self.next_due(now, last)

    def _after(self, time: datetime) -> Iterator[datetime]:
        # Within the hour that comes twice, what is found is the first of the two, which has been.
        found = (found.astimezone(UTC) for found in CronSim(self.cron, time.astimezone(self.zone)))
        return (instant for instant in found if instant > time)


def time_zone(name: str | None) -> tzinfo:
    """A time zone by its name; None: the machine's own, by TZ or /etc/localtime.

    Raises:
        UserError: there is no such zone.
    """
    source = "--timezone"
    if name is None and (set_to := os.environ.get("TZ", "").lstrip(":")):
        name, source = set_to, "TZ"
    if name is None:
        try:
            with open("/etc/localtime", "rb") as file:  # not the offset of today: it has another in summer
                return ZoneInfo.from_file(file)
        except FileNotFoundError:
            return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UserError(
            f"{source} is {name!r}, which is no time zone: give --timezone a name such as Europe/Berlin"
        ) from None
