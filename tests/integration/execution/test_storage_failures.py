"""Disks, files and clocks that fail: a clear line, nothing lost, and the same command goes on when they are mended."""

import shutil
import subprocess
import time

import pytest

from pipeline.config import UserError
from pipeline.storage.ledger import Ledger
from tests.helpers.recovery import Work, break_once, check, play, settings

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    return Work(tmp_path / "work")


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own; gives a function that mounts it again with other options."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("only root can mount a disk to fill")
    yield place, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("together", [False, True])
def test_a_full_disk(disk, work, together):
    place, remount = disk
    config = settings(place / "run", hardware={"together": together})
    with pytest.raises(UserError, match=r"cannot be written: .*No space left on device") as caught:
        play(config, work)
    assert "\n" not in str(caught.value)
    remount("size=64m")
    check(place / "run", play(config, work))


def test_a_disk_that_became_read_only(disk, work):
    place, remount = disk
    remount("size=64m")
    config = settings(place / "run")
    break_once(config, work, "scores", after=9)
    remount("ro")
    with pytest.raises(UserError, match=r"cannot be (written|tidied|removed): .*Read-only file system"):
        play(config, work)
    remount("rw")
    check(place / "run", play(config, work))


def test_a_folder_that_cannot_be_made(tmp_path, work):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run/articles.* cannot be written: "):
        play(settings(tmp_path / "file/run"), work)


@pytest.mark.parametrize("harm", ["{", "\0\0\0"])
def test_a_corrupt_record_is_named_and_its_folder_can_go(tmp_path, work, harm):
    config = settings(tmp_path)
    play(config, work)
    record = tmp_path / "round-01/scores/record.json"
    record.write_text(harm)
    with pytest.raises(UserError, match=r"round-01/scores/record\.json is damaged: remove the folder round-01/scores/"):
        play(config, work)
    shutil.rmtree(record.parent)
    check(tmp_path, play(config, work))


@pytest.mark.parametrize("harm", ["{", '{"build": "b"}'])
def test_a_corrupt_note_of_what_was_begun_costs_that_table_alone(tmp_path, work, harm):
    config = settings(tmp_path)
    break_once(config, work, "scores", after=9)
    (tmp_path / "round-01/scores/begun.json").write_text(harm)
    noted = work.computed("summaries")
    check(tmp_path, play(config, work))
    assert work.computed("summaries") == noted


def test_a_clock_that_jumps(tmp_path, work, monkeypatch):
    """No table, record or lock is decided by the time of day."""
    config = settings(tmp_path)
    break_once(config, work, "scores", after=9)
    now = time.time
    for jump in (-86_400 * 365, 86_400 * 365):
        monkeypatch.setattr(time, "time", lambda jump=jump: now() + jump)
        with (
            Ledger(config.run).lock(print),
            pytest.raises(UserError, match="in use by"),
            Ledger(config.run).lock(print),
        ):
            pass
        made = play(config, work)
    monkeypatch.undo()
    check(tmp_path, made)
    assert [table.build for table in play(config, work)] == [table.build for table in made]
