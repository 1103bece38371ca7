"""Tests of the run lock between processes: one of several drivers gets it, and a killed owner loses it."""

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
def warnings():
    return []


def lock_files(ledger):
    return [name for name in os.listdir(ledger.base) if name.startswith("lock-")]


def _race(root, barrier, rounds, wins):
    for number in range(rounds):
        barrier.wait()
        try:
            with hold_lock(Ledger(root), print):
                wins.put((number, os.getpid()))
                barrier.wait()  # hold it until all drivers have tried
        except InUse:
            barrier.wait()


@pytest.mark.parametrize(("drivers", "rounds"), [(2, 50), (5, 10)])
def test_exactly_one_of_simultaneous_drivers_gets_the_lock(ledger, drivers, rounds):
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
    assert lock_files(ledger) == []


def test_the_lock_of_a_killed_owner_is_taken_over_with_a_warning(ledger, warnings):
    code = f"""
import time
from pipeline.storage.ledger import Ledger
with Ledger({ledger.root!r}).lock(print):
    print("held", flush=True)
    time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(InUse, match=f"process {owner.pid} on"), ledger.lock(warnings.append):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with ledger.lock(warnings.append):
        assert warnings == [
            f"took over the lock of a driver that is gone (process {owner.pid} on {_host_and_since(warnings)})"
        ]
    assert lock_files(ledger) == []


def _host_and_since(warnings):
    return warnings[0].partition(" on ")[2].rstrip(")")
