"""Tests of `rondo schedule`: rounds as child processes, how it ends, failed rounds, and a lock that another holds."""

import os
import re
import signal
import sys
import time

import psutil
import pytest
from rich.console import Console

from jobs.scheduling.schedule import ScheduledRounds, count_finished_rounds, schedule
from pipeline.config import UserError
from pipeline.execution.progress import Display
from pipeline.storage.ledger import Ledger
from tests.helpers.cli import RUN_TIMEOUT, run_rondo, start_rondo, wait_for
from tests.helpers.paths import ROOT

RECORD = {"build": "b1", "recipe": {}}

# Stands for `rondo run`: says which round it was asked for, and does as its first argument says.
CHILD = """
import os, signal, sys, time
from pipeline.storage.ledger import Ledger
what, root, rounds = sys.argv[1:]
number = int(rounds.removeprefix("rounds="))
if what == "run a round":
    Ledger(root).finish(f"round-{number:02d}/evaluation", {"build": "b", "recipe": {}})
elif what == "in use":
    print("error: it is in use by process 7", file=sys.stderr)
    sys.exit(75)
elif what == "fail":
    print("Traceback (most recent call last):", file=sys.stderr)
    print("OutOfMemoryError: there is none left", file=sys.stderr)
    sys.exit(1)
elif what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def book(tmp_path):
    return Ledger(str(tmp_path / "run"))


def rounds(book, what, max_failures=None):
    console = Console(record=True, width=200)
    command = [sys.executable, "-c", CHILD, what, book.root]
    return ScheduledRounds(command, book, Display(console), max_failures), console


def told(console):
    return [
        re.sub(r"^[-\d]+ [:\d]+  |, after [\d.]+s| after [\d.]+s", "", line)
        for line in console.export_text().split("\n")
        if line
    ]


def test_each_time_it_is_one_round_more(book):
    scheduled, console = rounds(book, "run a round")
    assert count_finished_rounds(book) == 0
    scheduled.run_next()
    scheduled.run_next()
    assert count_finished_rounds(book) == 2
    assert told(console) == ["round 1 begins", "round 1 is made", "round 2 begins", "round 2 is made"]


def test_a_round_that_was_cut_off_is_gone_on_with(book):
    book.finish("round-01/evaluation", RECORD)
    book.finish("round-02/summaries", RECORD)
    scheduled, console = rounds(book, "run a round")
    scheduled.run_next()
    assert "round 2 begins" in told(console)


def test_a_round_that_adds_nothing_is_no_failure(book):
    scheduled, console = rounds(book, "nothing", max_failures=1)
    scheduled.run_next()
    assert told(console)[1] == "round 1 adds nothing: no pairs were found, or a rule says stop (above)"


def test_a_round_without_pairs_is_over(book):
    """With new articles each round the next one is another: it must not be asked for the poor one for ever."""
    book.finish("round-01/evaluation", RECORD)
    book.finish("round-02/pairs", RECORD | {"kept": 0})
    scheduled, console = rounds(book, "run a round")
    scheduled.run_next()
    assert told(console) == ["round 3 begins", "round 3 is made"]
    assert count_finished_rounds(book) == 3


def test_a_run_that_somebody_else_plays_is_left_alone(book):
    scheduled, console = rounds(book, "in use", max_failures=1)
    scheduled.run_next()
    assert told(console)[1] == "round 1 is left out: it is in use by process 7"


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("fail", "round 1 ended with exit status 1: OutOfMemoryError: there is none left"),
        ("die", "round 1 ended by signal 9: (no message)"),
    ],
)
def test_a_round_that_fails_is_told_of_and_tried_again(book, what, how, capfd):
    scheduled, console = rounds(book, what)
    scheduled.run_next()
    assert told(console)[1:] == [how, "The next firing tries again, from what is finished"]
    if what == "fail":
        assert "Traceback" in capfd.readouterr().err  # all that it said is seen


def test_so_many_failures_in_a_row_end_it(book):
    scheduled, _ = rounds(book, "fail", max_failures=3)
    scheduled.run_next()
    scheduled.run_next()
    scheduled.command[3] = "run a round"
    scheduled.run_next()  # it works again: the count begins anew
    scheduled.command[3] = "fail"
    scheduled.run_next()
    scheduled.run_next()
    with pytest.raises(UserError, match="3 rounds in a row have failed. The last: round 2 ended with exit status 1"):
        scheduled.run_next()


def test_a_folder_that_cannot_be_read_is_a_failure_and_no_end(book):
    book.write("round-01/evaluation/record.json", "{")
    scheduled, console = rounds(book, "run a round")
    scheduled.run_next()
    assert "no round began" in console.export_text()


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "articles.jsonl"
    path.write_text((ROOT / "newsroom" / "articles.jsonl").read_text())
    return path


def command(tmp_path, corpus, *options):
    return ["schedule", "configs/demo.yaml", f"run={tmp_path / 'run'}", f"articles.path={corpus}", *options]


def test_a_run_that_another_driver_holds_is_left_out_with_a_word(tmp_path, corpus):
    with Ledger(str(tmp_path / "run")).lock(print):
        done = run_rondo(*command(tmp_path, corpus, "--once"), timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"round 1 is left out: {tmp_path / 'run'} is in use by process {os.getpid()}" in done.stdout


def test_a_failing_round_ends_once_with_its_last_line(tmp_path, corpus):
    (tmp_path / "run" / "articles").mkdir(parents=True)
    (tmp_path / "run" / "articles" / "record.json").write_text("{")
    done = run_rondo(*command(tmp_path, corpus, "--once"), timeout=200)
    assert done.returncode == 2
    assert re.search(
        r"^error: round 1 ended with exit status 2 after .*articles/record.json is damaged", done.stderr, re.M
    )


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_ends_when_it_is_told_to_while_it_waits(tmp_path, corpus, sent, status):
    process = start_rondo(*command(tmp_path, corpus, "--cron", "0 0 1 1 *"))
    assert "is due" in process.stdout.readline()
    process.send_signal(sent)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in output


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_ends_its_round_with_itself(tmp_path, corpus, sent, status):
    """A real round: Ray is up and its first table is written when the end comes."""
    run = tmp_path / "run"
    process = start_rondo(*command(tmp_path, corpus, "--now", "--cron", "0 0 1 1 *"))
    wait_for(lambda: (run / "articles" / "record.json").exists(), process)
    time.sleep(1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) > 3
    process.send_signal(sent)
    output, _ = process.communicate(timeout=RUN_TIMEOUT)
    assert process.returncode == status, output
    assert "Traceback" not in output
    deadline = time.monotonic() + RUN_TIMEOUT
    while left := [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < deadline, f"something of the round is left: {left}"
        time.sleep(0.2)
    assert not list(run.glob("lock-*")), "the round did not end properly"


NIGHTLY = {"cron": "0 2 * * *"}


@pytest.mark.parametrize(
    ("options", "overrides", "says"),
    [
        ({"cron": "0 2 * *"}, [], "--cron is '0 2 * *'"),
        ({}, [], "give --cron"),
        (NIGHTLY | {"once": True}, [], "give --cron"),
        ({"once": True, "now": True}, [], "give --cron"),
        ({"once": True, "max_failures": 2}, [], "give --cron"),
        (NIGHTLY, ["rounds=3"], "rounds=3 is given: a schedule runs one round more each time"),
        (NIGHTLY | {"timezone": "Mars"}, [], "--timezone is 'Mars'"),
        (NIGHTLY, ["training.bta=1"], "training has no 'bta' (did you mean beta?)"),
        (NIGHTLY, ["policy.model=nowhere/model/is"], "policy.model is 'nowhere/model/is'"),
        (NIGHTLY, ["articles.path=no.jsonl"], "no.jsonl"),
    ],
)
def test_what_is_wrong_is_refused_at_once(tmp_path, options, overrides, says):
    given = {"cron": None, "timezone": None, "now": False, "once": False, "max_failures": None} | options
    with pytest.raises(UserError, match=re.escape(says)):
        schedule(str(ROOT / "configs" / "demo.yaml"), [f"run={tmp_path}/run", *overrides], **given)


def test_the_command_takes_its_options_from_the_line(tmp_path):
    done = run_rondo("schedule", "configs/demo.yaml", f"run={tmp_path}/run", "--cron", "0 2 * *", timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --cron is '0 2 * *': ")
