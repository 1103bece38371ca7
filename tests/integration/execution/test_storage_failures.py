"""Tests of failing disks, files and clocks: one clear message, nothing lost, and the repaired run resumes."""

import shutil
import subprocess
import time

import pytest

from pipeline.config import UserError
from pipeline.storage.ledger import Ledger
from tests.helpers.recovery import Work, break_once, check, run_stages, settings

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    return Work(tmp_path / "work")


@pytest.fixture
def disk(tmp_path):
    """A small disk, and a function that mounts it again with other options."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a disk to fill")
    yield place, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("together", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_resumes_after_a_full_disk(disk, work, together):
    place, remount = disk
    config = settings(place / "run", hardware={"together": together})
    with pytest.raises(UserError, match=r"cannot be written: .*No space left on device") as caught:
        run_stages(config, work)
    assert "\n" not in str(caught.value)
    remount("size=64m")
    check(place / "run", run_stages(config, work))


def test_a_run_resumes_after_a_read_only_disk(disk, work):
    place, remount = disk
    remount("size=64m")
    config = settings(place / "run")
    break_once(config, work, "scores", after=9)
    remount("ro")
    with pytest.raises(UserError, match=r"cannot be (written|tidied|removed): .*Read-only file system"):
        run_stages(config, work)
    remount("rw")
    check(place / "run", run_stages(config, work))


def test_a_run_folder_that_cannot_be_created_is_reported(tmp_path, work):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run/articles.* cannot be written: "):
        run_stages(settings(tmp_path / "file/run"), work)


@pytest.mark.parametrize("damage", ["{", pytest.param("\0\0\0", marks=pytest.mark.slow)])
def test_a_damaged_record_is_reported_and_its_folder_can_be_removed(tmp_path, work, damage):
    config = settings(tmp_path)
    run_stages(config, work)
    record = tmp_path / "round-01/scores/record.json"
    record.write_text(damage)
    with pytest.raises(UserError, match=r"round-01/scores/record\.json is damaged: remove the folder round-01/scores/"):
        run_stages(config, work)
    shutil.rmtree(record.parent)
    check(tmp_path, run_stages(config, work))


@pytest.mark.parametrize("damage", ["{", pytest.param('{"build": "b"}', marks=pytest.mark.slow)])
def test_a_damaged_begun_file_restarts_only_its_own_table(tmp_path, work, damage):
    config = settings(tmp_path)
    break_once(config, work, "scores", after=9)
    (tmp_path / "round-01/scores/begun.json").write_text(damage)
    computed = work.computed("summaries")
    check(tmp_path, run_stages(config, work))
    assert work.computed("summaries") == computed


def test_a_clock_that_jumps_changes_nothing(tmp_path, work, monkeypatch):
    """Tables, records and locks do not depend on the time of day."""
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
        made = run_stages(config, work)
    monkeypatch.undo()
    check(tmp_path, made)
    assert [table.build for table in run_stages(config, work)] == [table.build for table in made]
