"""The lock of a run between processes: who wins, and a killed owner."""

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from pipeline.storage.ledger import Ledger
from pipeline.storage.lock import InUse, hold_lock


@pytest.fixture
def ledger(tmp_path):
    return Ledger(str(tmp_path / "run"))


@pytest.fixture
def said():
    return []


def locks(ledger):
    return [name for name in os.listdir(ledger.base) if name.startswith("lock-")]


def _race(root, barrier, rounds, wins):
    for number in range(rounds):
        barrier.wait()
        try:
            with hold_lock(Ledger(root), print):
                wins.put((number, os.getpid()))
                barrier.wait()  # held until everybody has tried
        except InUse:
            barrier.wait()


@pytest.mark.parametrize(("drivers", "rounds"), [(2, 50), (5, 10)])
def test_of_drivers_that_come_at_the_same_moment_exactly_one_wins(ledger, drivers, rounds):
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(drivers), context.SimpleQueue()
    racers = [context.Process(target=_race, args=(ledger.root, barrier, rounds, wins)) for _ in range(drivers)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(120)
        assert racer.exitcode == 0
    won = []
    while not wins.empty():
        won.append(wins.get()[0])
    assert sorted(won) == list(range(rounds))
    assert locks(ledger) == []


def test_the_lock_of_a_killed_owner_is_taken_over_with_a_word(ledger, said):
    code = f"""
import time
from pipeline.storage.ledger import Ledger
with Ledger({ledger.root!r}).lock(print):
    print("held", flush=True)
    time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(InUse, match=f"process {owner.pid} on"), ledger.lock(said.append):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with ledger.lock(said.append):
        assert said == [f"took over the lock of a driver that is gone (process {owner.pid} on {_host_and_since(said)})"]
    assert locks(ledger) == []


def _host_and_since(said):
    return said[0].partition(" on ")[2].rstrip(")")
