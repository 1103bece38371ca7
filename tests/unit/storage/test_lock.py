"""Tests of the run lock, on one machine and across machines: who gets it, when it is taken over, and who must stop."""

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
def warnings():
    return []


def lock_files(ledger):
    return [name for name in os.listdir(ledger.base) if name.startswith("lock-")]


def write_claim(ledger, **changed):
    """Write the lock file of a driver of this machine, with some fields changed."""
    with hold_lock(ledger, print) as own:
        claim = own.content | changed
    ledger.write(f"lock-{claim['token']}.json", json.dumps(claim))
    return claim


def test_a_second_driver_is_refused(ledger, warnings):
    with (
        ledger.lock(warnings.append),
        pytest.raises(InUse, match=f"is in use by process {os.getpid()} on"),
        Ledger(ledger.root).lock(warnings.append),
    ):
        raise AssertionError("the lock was taken twice")
    with ledger.lock(warnings.append):
        pass
    assert warnings == []
    assert lock_files(ledger) == []


def test_a_ctrl_c_just_after_the_claim_is_written_leaves_no_lock_file(ledger, warnings, monkeypatch):
    write = Claim.write

    def write_and_be_interrupted(self, **changed):
        write(self, **changed)
        raise KeyboardInterrupt

    monkeypatch.setattr(Claim, "write", write_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt), ledger.lock(warnings.append):
        pass
    assert lock_files(ledger) == []


def test_a_process_with_the_same_pid_is_not_the_owner(ledger, warnings):
    write_claim(ledger, started=1)  # our pid, but a process that started at boot
    with ledger.lock(warnings.append):
        assert "took over the lock of a driver that is gone" in warnings[0]


def test_a_remote_lock_with_heartbeats_is_respected(ledger, warnings):
    claim = write_claim(ledger, machine="another", host="elsewhere", pid=7)
    done = threading.Event()

    def send_heartbeats():
        while not done.wait(0.2):
            claim["beat"] += 1
            ledger.write(f"lock-{claim['token']}.json", json.dumps(claim))

    thread = threading.Thread(target=send_heartbeats)
    thread.start()
    try:
        with (
            pytest.raises(InUse, match="in use by process 7 on elsewhere"),
            hold_lock(ledger, warnings.append, stale=20),
        ):
            pass
    finally:
        done.set()
        thread.join()
    assert "watching for 20 s" in warnings[0]
    assert len(warnings) == 1
    assert lock_files(ledger) == [f"lock-{claim['token']}.json"]


def test_a_remote_lock_without_heartbeats_is_taken_over(ledger, warnings):
    # The clocks of two machines may differ.
    write_claim(ledger, machine="another", host="elsewhere", pid=7, since="2999-01-01T00:00:00Z")
    began = time.monotonic()
    with hold_lock(ledger, warnings.append, stale=1.0):
        assert time.monotonic() - began >= 1.0
        assert "took over the lock of a driver that is gone (process 7 on elsewhere" in warnings[1]
        assert len(lock_files(ledger)) == 1
    assert lock_files(ledger) == []


def test_a_remote_lock_that_is_released_meanwhile_is_free(ledger, warnings):
    claim = write_claim(ledger, machine="another")
    threading.Timer(0.5, lambda: os.remove(ledger.path(f"lock-{claim['token']}.json"))).start()
    with hold_lock(ledger, warnings.append, stale=20):
        pass
    assert not any("took over" in message for message in warnings)


def test_an_owner_that_lost_its_lock_cannot_write(ledger, warnings):
    with ledger.lock(warnings.append):
        ledger.finish("one", RECORD)
        # Meanwhile a driver on another machine has seen no heartbeat of this one:
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
    assert lock_files(ledger) == ["lock-ff.json"]  # the new owner's lock stays


def test_a_lost_lock_is_not_written_again(ledger, warnings):
    with hold_lock(ledger, warnings.append, beat=0.05) as own_claim:
        while own_claim.content["beat"] < 2:  # wait for two heartbeats
            time.sleep(0.02)
        claim = own_claim.content | {"token": "ff", "machine": "another", "instead": [own_claim.token]}
        ledger.write("lock-ff.json", json.dumps(claim))
        while own_claim.lost is None:
            time.sleep(0.02)
        os.remove(ledger.path(f"lock-{own_claim.token}.json"))
        time.sleep(0.3)
        assert lock_files(ledger) == ["lock-ff.json"]


def test_a_late_heartbeat_of_a_dead_owner_is_ignored(ledger, warnings):
    dead = write_claim(ledger, started=1)
    with ledger.lock(warnings.append):
        # A heartbeat that the dead owner was writing when it died:
        Ledger(ledger.root).write(f"lock-{dead['token']}.json", json.dumps(dead))
        ledger.finish("one", RECORD)
    assert lock_files(ledger) == []


@pytest.mark.parametrize("text", ["", "{", "{}", "null", "[]", "7"])
def test_a_damaged_lock_is_reported_with_its_path(ledger, warnings, text):
    ledger.write("lock-aa.json", text)
    with pytest.raises(UserError, match=r"lock-aa\.json is damaged: if no driver"), ledger.lock(warnings.append):
        pass


def test_a_lock_that_cannot_be_read_is_not_called_damaged(ledger, warnings):
    os.makedirs(ledger.path("lock-aa.json"))  # a folder: opening it fails
    with pytest.raises(UserError, match=r"lock-aa\.json cannot be read: if no driver"), ledger.lock(warnings.append):
        pass


def test_a_removed_lock_file_is_a_lost_lock(ledger, warnings):
    with ledger.lock(warnings.append):
        os.remove(ledger.path(lock_files(ledger)[0]))
        with pytest.raises(UserError, match="taken over by somebody who removed its lock"):
            ledger.finish("one", RECORD)
