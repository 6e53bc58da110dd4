import errno
import os
import stat
from pathlib import Path

import pytest

from featherweight.config import files
from featherweight.config.files import cache_folder, flush, new_file, new_folder, remove_leftovers, write_atomically
from featherweight.errors import ConfigError


def fail(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(*_):
    raise KeyboardInterrupt


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def make(folder, **texts):
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def test_writing_makes_missing_folders_and_leaves_nothing_else(tmp_path):
    write_atomically(tmp_path / "new" / "deep" / "a.txt", "né")
    assert (tmp_path / "new" / "deep" / "a.txt").read_bytes() == b"n\xc3\xa9"
    assert names(tmp_path / "new" / "deep") == ["a.txt"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_says_why(tmp_path, monkeypatch, broken):
    write_atomically(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\)"):
        write_atomically(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.txt", "text")
    assert names(tmp_path) == []


def test_a_link_stays_and_what_it_names_is_written(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "data" / "a.txt")
    write_atomically(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "data" / "a.txt").read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no permissions of this kind")
def test_a_replaced_file_hands_on_its_permissions(tmp_path):
    write_atomically(tmp_path / "secret", "old")
    (tmp_path / "secret").chmod(0o600)
    write_atomically(tmp_path / "secret", "new")
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path):
    with new_file(tmp_path / "a") as one, new_file(tmp_path / "a") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"  # the one that is finished last
    assert names(tmp_path) == ["a"]


def test_a_folder_appears_whole_and_takes_the_place_of_an_old_one(tmp_path):
    make(tmp_path / "model", old="1")
    with new_folder(tmp_path / "model", replace=True) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "new").write_text("2")
        assert names(tmp_path / "model") == ["old"]
    assert names(tmp_path / "model") == ["deep"]
    assert names(tmp_path) == ["model"]


def test_a_folder_takes_the_place_of_an_empty_one_only_unless_told_otherwise(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        (folder / "a").write_text("")
    assert names(tmp_path / "empty") == ["a"]
    with pytest.raises(OSError), new_folder(tmp_path / "empty") as folder:
        (folder / "b").write_text("")
    assert names(tmp_path / "empty") == ["a"]
    assert names(tmp_path) == ["empty"]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, OSError])
def test_a_folder_that_is_not_finished_leaves_the_old_one(tmp_path, exception):
    make(tmp_path / "model", old="1")
    with pytest.raises(exception), new_folder(tmp_path / "model", replace=True) as folder:
        (folder / "half").write_text("")
        raise exception
    assert names(tmp_path / "model") == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_folder_that_cannot_take_its_place_gives_the_old_one_back(tmp_path, monkeypatch):
    make(tmp_path / "model", old="1")
    rename = Path.rename

    def rename_but_not_the_new_one(self, target):
        if self.name.startswith(".model."):
            fail()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_but_not_the_new_one)
    with pytest.raises(OSError, match="No space"), new_folder(tmp_path / "model", replace=True) as folder:
        (folder / "new").write_text("")
    assert names(tmp_path / "model") == ["old"]
    assert names(tmp_path) == ["model"]


def test_every_file_and_folder_is_flushed_before_the_rename_and_its_parent_after(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(files, "flush", lambda path: flushed.append((Path(path).name, (tmp_path / "m").exists())))
    with new_folder(tmp_path / "m") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text("")
    assert flushed == [("a", False), ("deep", False), (folder.name, False), (tmp_path.name, True)]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EINVAL, errno.ENOTSUP])
def test_a_system_that_cannot_flush_a_folder_is_no_failure(tmp_path, monkeypatch, number):
    # Windows opens no folder (EACCES); some network file systems flush none (EINVAL).
    fsync = os.fsync

    def fsync_of_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_of_files)
    write_atomically(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


def test_a_disk_that_fails_while_a_folder_is_flushed_is_told(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        flush(tmp_path)


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path):
    make(tmp_path / ".a.0123.tmp", half="")
    (tmp_path / ".b.0123.tmp").write_text("half")
    make(tmp_path / "c.tmp", whole="")
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "absent")
    assert names(tmp_path) == ["c.tmp"]


def test_cache_folder_follows_its_environment_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATHERWEIGHT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("FEATHERWEIGHT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "featherweight"
