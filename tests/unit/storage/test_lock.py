"""One driver at a time, on one machine and on several: who wins, who is taken over, and who stops."""

import json
import os
import threading
import time

import pytest

from pipeline.config import UserError
from pipeline.storage.ledger import Ledger
from pipeline.storage.lock import Claim, InUse, hold_lock

RECORD = {"build": "b1", "recipe": {"stage": "pairs"}}


@pytest.fixture
def ledger(tmp_path):
    return Ledger(str(tmp_path / "run"))


@pytest.fixture
def said():
    return []


def locks(ledger):
    return [name for name in os.listdir(ledger.base) if name.startswith("lock-")]


def claim_of(ledger, **changed):
    """A claim as a driver of our own writes it, with what is changed of it."""
    with hold_lock(ledger, print) as mine:
        claim = mine.content | changed
    ledger.write(f"lock-{claim['token']}.json", json.dumps(claim))
    return claim


def test_one_driver_at_a_time(ledger, said):
    with (
        ledger.lock(said.append),
        pytest.raises(InUse, match=f"is in use by process {os.getpid()} on"),
        Ledger(ledger.root).lock(said.append),
    ):
        raise AssertionError("the lock was taken twice")
    with ledger.lock(said.append):
        pass
    assert said == []
    assert locks(ledger) == []


def test_a_ctrl_c_just_after_the_claim_is_written_leaves_none(ledger, said, monkeypatch):
    write = Claim.write

    def write_and_be_interrupted(self, **changed):
        write(self, **changed)
        raise KeyboardInterrupt

    monkeypatch.setattr(Claim, "write", write_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt), ledger.lock(said.append):
        pass
    assert locks(ledger) == []


def test_a_process_with_the_same_number_is_not_the_owner(ledger, said):
    claim_of(ledger, started=1)  # our pid, but of a process that began with the machine
    with ledger.lock(said.append):
        assert "took over the lock of a driver that is gone" in said[0]


def test_a_lock_from_elsewhere_that_is_renewed_is_respected(ledger, said):
    claim = claim_of(ledger, machine="another", host="elsewhere", pid=7)
    done = threading.Event()

    def live():
        while not done.wait(0.2):
            claim["beat"] += 1
            ledger.write(f"lock-{claim['token']}.json", json.dumps(claim))

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(InUse, match="in use by process 7 on elsewhere"), hold_lock(ledger, said.append, stale=20):
            pass
    finally:
        done.set()
        thread.join()
    assert "watching for 20 s" in said[0]
    assert len(said) == 1
    assert locks(ledger) == [f"lock-{claim['token']}.json"]


def test_a_lock_from_elsewhere_that_is_silent_is_taken_over(ledger, said):
    claim_of(ledger, machine="another", host="elsewhere", pid=7, since="2999-01-01T00:00:00Z")  # its clock is its own
    began = time.monotonic()
    with hold_lock(ledger, said.append, stale=1.0):
        assert time.monotonic() - began >= 1.0
        assert "took over the lock of a driver that is gone (process 7 on elsewhere" in said[1]
        assert len(locks(ledger)) == 1
    assert locks(ledger) == []


def test_a_lock_from_elsewhere_that_is_given_back_meanwhile_is_free(ledger, said):
    claim = claim_of(ledger, machine="another")
    threading.Timer(0.5, lambda: os.remove(ledger.path(f"lock-{claim['token']}.json"))).start()
    with hold_lock(ledger, said.append, stale=20):
        pass
    assert not any("took over" in word for word in said)


def test_an_owner_that_lost_its_lock_is_stopped(ledger, said):
    with ledger.lock(said.append):
        ledger.finish("one", RECORD)
        # Meanwhile, on another machine, this driver was seen to be silent:
        taker = {"machine": "another", "host": "elsewhere", "pid": 7, "instead": [ledger.claim.token]}
        claim = ledger.claim.content | taker | {"token": "ff", "since": "2026-01-01T00:00:00Z"}
        Ledger(ledger.root).write("lock-ff.json", json.dumps(claim))
        with pytest.raises(UserError, match="was taken over by process 7 on elsewhere, since 2026"):
            ledger.finish("two", RECORD)
        with pytest.raises(UserError, match="was taken over"):
            ledger.write("three", "")
        with pytest.raises(UserError, match="was taken over"):
            ledger.clear("one")
    assert Ledger(ledger.root).find("one")
    assert Ledger(ledger.root).find("two") is None
    assert not os.path.exists(ledger.path("three"))
    assert locks(ledger) == ["lock-ff.json"]  # the taker's is left alone


def test_a_lost_lock_is_not_written_again(ledger, said):
    with hold_lock(ledger, said.append, beat=0.05) as mine:
        while mine.content["beat"] < 2:  # it beats
            time.sleep(0.02)
        claim = mine.content | {"token": "ff", "machine": "another", "instead": [mine.token]}
        ledger.write("lock-ff.json", json.dumps(claim))
        while mine.lost is None:
            time.sleep(0.02)
        os.remove(ledger.path(f"lock-{mine.token}.json"))
        time.sleep(0.3)
        assert locks(ledger) == ["lock-ff.json"]


def test_what_the_dead_left_is_no_lock_once_it_was_taken_over(ledger, said):
    dead = claim_of(ledger, started=1)
    with ledger.lock(said.append):
        # A beat of the dead owner that was under way when it stopped:
        Ledger(ledger.root).write(f"lock-{dead['token']}.json", json.dumps(dead))
        ledger.finish("one", RECORD)
    assert locks(ledger) == []


@pytest.mark.parametrize("text", ["", "{", "{}", "null", "[]", "7"])
def test_a_damaged_lock_is_named(ledger, said, text):
    ledger.write("lock-aa.json", text)
    with pytest.raises(UserError, match=r"lock-aa\.json is damaged: if no driver"), ledger.lock(said.append):
        pass


def test_a_lock_that_somebody_removed_is_lost(ledger, said):
    with ledger.lock(said.append):
        os.remove(ledger.path(locks(ledger)[0]))
        with pytest.raises(UserError, match="taken over by somebody who removed its lock"):
            ledger.finish("one", RECORD)
