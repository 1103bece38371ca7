"""When a schedule fires, by a clock of the test's own: it is set, it sleeps, it comes to an hour twice."""

from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.scheduling.cron import CronSchedule, time_zone
from pipeline.config import UserError

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTLY = CronSchedule("0 2 * * *", UTC)


def at(text, where=UTC):
    return datetime.fromisoformat(text).replace(tzinfo=where).astimezone(UTC)


class Clock:
    """Goes on as it is slept by; at a given time it jumps, once."""

    def __init__(self, now, jump_at=None, jump_to=None):
        self.now, self.jump_at, self.jump_to = now, jump_at, jump_to
        self.said = []

    def __call__(self):
        if self.jump_at and self.now >= self.jump_at:
            self.now, self.jump_at = self.jump_to, None
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += timedelta(seconds=seconds)

    def firings(self, table, count):
        return list(islice(table.firings(self, self.sleep, self.said.append), count))

    def left_out(self):
        return [line for line in self.said if "is due" not in line]


def test_it_fires_at_its_times():
    clock = Clock(at("2026-01-01T12:00:07"))
    assert clock.firings(NIGHTLY, 3) == [at("2026-01-02T02:00"), at("2026-01-03T02:00"), at("2026-01-04T02:00")]
    assert clock.left_out() == []
    assert clock.said[0] == "the next round is due 2026-01-02 02:00:00 UTC"


def test_a_round_that_takes_long_lets_firings_pass():
    clock, fired = Clock(at("2026-01-01T00:30")), []
    for due in islice(CronSchedule("0 * * * *", UTC).firings(clock, clock.sleep, clock.said.append), 2):
        fired.append(due)
        clock.now += timedelta(hours=3, minutes=10)
    assert fired == [at("2026-01-01T01:00"), at("2026-01-01T05:00")]
    assert clock.left_out() == ["3 firings came meanwhile, and nothing was started for them"]


def test_a_machine_that_slept_does_not_catch_up():
    clock = Clock(at("2026-01-01T12:00"), jump_at=at("2026-01-01T20:00"), jump_to=at("2026-01-05T08:00"))
    assert clock.firings(NIGHTLY, 1) == [at("2026-01-06T02:00")]
    assert clock.left_out() == [
        "2026-01-02 02:00:00 UTC was missed: the clock went on to 2026-01-05 08:00:00 UTC",
        "3 firings came meanwhile, and nothing was started for them",
    ]


def test_a_clock_that_was_a_year_ahead_does_not_make_it_wait_a_year():
    clock = Clock(at("2027-01-01T12:00"), jump_at=at("2027-01-01T13:00"), jump_to=at("2026-01-01T13:00"))
    assert clock.firings(NIGHTLY, 1) == [at("2026-01-02T02:00")]


def test_a_clock_that_is_set_back_a_little_does_not_fire_twice():
    clock = Clock(at("2026-01-01T12:00"))
    firings = NIGHTLY.firings(clock, clock.sleep, clock.said.append)
    assert next(firings) == at("2026-01-02T02:00")
    clock.now -= timedelta(seconds=3)
    assert next(firings) == at("2026-01-03T02:00")


def test_a_little_late_is_not_missed():
    clock = Clock(at("2026-01-01T01:00"), jump_at=at("2026-01-01T01:59:50"), jump_to=at("2026-01-01T02:00:45"))
    assert clock.firings(NIGHTLY, 1) == [at("2026-01-01T02:00")]


@pytest.mark.parametrize(
    ("day", "fires"),
    [
        ("2026-03-28T12:00", "2026-03-29T03:00"),  # there is no 02:30 that night: as cron has it, right after the gap
        ("2026-10-24T12:00", "2026-10-25T02:30"),  # it comes twice: the first, and not the second
    ],
)
def test_the_nights_when_the_clocks_change(day, fires):
    table = CronSchedule("30 2 * * *", BERLIN)
    clock = Clock(at(day, BERLIN))
    first, second = clock.firings(table, 2)
    assert first == at(fires, BERLIN)
    assert second.astimezone(BERLIN).hour == 2 and second.date() > first.date()


every = st.sampled_from(["* * * * *", "*/7 * * * *", "0 * * * *", "30 2 * * *", "0 0 1 * *", "15 3 * * MON"])
times = st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC))


@settings(max_examples=50, deadline=None)
@given(every, times, st.sampled_from([UTC, BERLIN, ZoneInfo("Australia/Lord_Howe"), ZoneInfo("America/St_Johns")]))
def test_the_next_is_later_and_nothing_lies_between(cron, now, where):
    table = CronSchedule(cron, where)
    due = table.next_due(now)
    assert due > now
    assert table.passed(now, due) == 1
    assert table.passed(now, due - timedelta(seconds=1)) == 0


often = st.sampled_from(["* * * * *", "*/7 * * * *", "0 * * * *"])


@settings(max_examples=30, deadline=None)
@given(often, times, st.lists(st.tuples(st.booleans(), st.integers(-20_000, 20_000)), max_size=4))
def test_whatever_the_clock_does_no_firing_comes_early_nor_in_a_burst(cron, start, jumps):
    table, clock = CronSchedule(cron, BERLIN), Clock(start)
    firings = table.firings(clock, clock.sleep, clock.said.append)
    for jumps_while_playing, seconds in jumps:
        due = next(firings)
        assert timedelta(0) <= clock.now - due <= timedelta(seconds=60)
        if jumps_while_playing:
            clock.now += timedelta(seconds=seconds)
            following = next(firings)
            assert following > clock.now - timedelta(seconds=60)


@pytest.mark.parametrize(
    "cron",
    [
        "",
        "x",
        "0 2 * *",
        "0 2 * * * * *",
        "61 * * * *",
        "* 24 * * *",
        "0 0 31 2 *",
        "0 0 * * 8",
        "@daily",
        "-1 * * * *",
    ],
)
def test_a_wrong_expression_is_refused(cron):
    with pytest.raises(UserError, match="--cron is .*It should be minute, hour"):
        CronSchedule(cron, UTC)


def test_the_zone_is_named_or_the_machines(monkeypatch):
    assert time_zone("Europe/Berlin") == BERLIN
    monkeypatch.setenv("TZ", ":Europe/Berlin")
    assert time_zone(None) == BERLIN
    assert time_zone("UTC") == ZoneInfo("UTC")
    monkeypatch.setenv("TZ", "CET-1CEST")
    with pytest.raises(UserError, match="TZ is 'CET-1CEST'.*give --timezone"):
        time_zone(None)
    monkeypatch.delenv("TZ")
    now = datetime.now()
    assert now.replace(tzinfo=time_zone(None)).utcoffset() == now.astimezone().utcoffset()


@pytest.mark.parametrize("name", ["Mars", "", "../etc/passwd", "/etc/localtime", "Europe"])
def test_a_wrong_zone_is_refused(name):
    with pytest.raises(UserError, match="is no time zone"):
        time_zone(name)
