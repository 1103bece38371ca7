"""Computes when a schedule fires, from a cron expression and a time zone, even if the clock jumps.

The next firing is always computed from the present time, so a missed firing is never repeated later. A firing that came
while the machine slept, or while a round was running, is reported and left out.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from pipeline.config import UserError

_GRACE = timedelta(seconds=60)  # on a busy machine a firing that is this late still counts
_SECONDS_BETWEEN_LOOKS = 20.0  # how often to look at the clock, which somebody may set meanwhile
_SMALL_STEP_BACK = timedelta(hours=1)  # after a smaller step back the last firing does not fire again
_MAX_COUNT = 1000


@dataclass(frozen=True)
class CronSchedule:
    """The times at which to fire.

    Attributes:
        cron: minute, hour, day of the month, month, day of the week. With six fields, the first is the second.
        zone: the time zone of the expression.

    Raises:
        UserError: the expression is wrong, or names a time that never comes.
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
        """The first firing after `now`. All times are in UTC.

        If the clock was set back a little after the firing `last`, that firing does not come again.
        """
        return next(self._after(last if last and now < last <= now + _SMALL_STEP_BACK else now))

    def passed(self, after: datetime, until: datetime) -> int:
        """How many firings there are after one time and up to another, both in UTC. Counting stops at 1,000."""
        return sum(1 for _ in islice(takewhile(lambda time: time <= until, self._after(after)), _MAX_COUNT))

    def format(self, time: datetime) -> str:
        """Format a time in the schedule's zone."""
        return f"{time.astimezone(self.zone):%Y-%m-%d %H:%M:%S %Z}"

    def firings(
        self, clock: Callable[[], datetime], sleep: Callable[[float], None], say: Callable[[str], None]
    ) -> Iterator[datetime]:
        """Yield each firing at its time. Firings that come while the caller is busy are left out.

        Args:
            clock: returns the present time, in UTC.
            sleep: waits for some seconds.
            say: is called with a line about the next firing, and about firings that were left out.
        """
        last, due = None, self.next_due(clock())
        while True:
            say(f"the next round is due {self.format(due)}")
            while (now := clock()) < due:
                sleep(min(_SECONDS_BETWEEN_LOOKS, (due - now).total_seconds()))
                due = min(due, self.next_due(clock(), last))  # sooner, if the clock was set back
            if now - due <= _GRACE:
                yield due
            else:
                say(f"{self.format(due)} was missed: the clock went on to {self.format(now)}")
            last, now = due, clock()
            if count := self.passed(last, now):
                more = " or more" if count == _MAX_COUNT else ""
                say(f"{count}{more} firing{'s' * (count > 1)} came meanwhile, and nothing was started for them")
            due = self.next_due(now, last)

    def _after(self, time: datetime) -> Iterator[datetime]:
        # In an hour that comes twice (the end of summer time), CronSim gives the first of the two, which may be past.
        firings = (firing.astimezone(UTC) for firing in CronSim(self.cron, time.astimezone(self.zone)))
        return (firing for firing in firings if firing > time)


def time_zone(name: str | None) -> tzinfo:
    """A time zone by its name; None: the machine's, from TZ or /etc/localtime.

    Raises:
        UserError: there is no such zone.
    """
    source = "--timezone"
    if name is None and (set_to := os.environ.get("TZ", "").lstrip(":")):
        name, source = set_to, "TZ"
    if name is None:
        try:
            with open("/etc/localtime", "rb") as file:  # not today's offset, which changes with summer time
                return ZoneInfo.from_file(file)
        except FileNotFoundError:
            return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UserError(
            f"{source} is {name!r}, which is no time zone: give --timezone a name such as Europe/Berlin"
        ) from None
