"""Files on disk: private, replaced as a whole, with nothing left behind, and ordinary."""

import os
import signal
import stat
import threading

import pytest

from attention_sinks import AttentionSinkKVCache
from attention_sinks.cache.files import reading, replace_file
from support.helpers import random_ids, refused, stream

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes, FIFOs and signals of POSIX")


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def content_of(path):
    with reading(path) as (file, _):
        return file.read()


def killed_in(name, act):
    """Run `act` in a process that is killed when it calls `os.<name>`."""
    child = os.fork()
    if child == 0:
        setattr(os, name, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        try:
            act()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


# ---- modes


@pytest.mark.parametrize("umask", [0o022, 0o000, 0o077], ids=oct)
def test_a_new_file_is_private(tmp_path, model, umask):
    before = os.umask(umask)
    try:
        AttentionSinkKVCache(model).save(tmp_path / "cache")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "cache") == 0o600


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o600, 0o400], ids=oct)
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    replace_file(path, b"new")
    assert mode_of(path) == mode and content_of(path) == b"new"


def modes_of_what_is_synced(folder, monkeypatch):
    """The modes of what a save writes to disk, in order, while it is written."""
    modes, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (modes.append(os.fstat(file).st_mode), fsync(file)))
    replace_file(folder / "file", b"new")
    return modes


def test_a_file_is_private_while_it_is_written(tmp_path, monkeypatch):
    assert modes_of_what_is_synced(tmp_path, monkeypatch)[0] == stat.S_IFREG | 0o600


def test_the_folder_is_synced_after_the_file(tmp_path, monkeypatch):
    assert [stat.S_IFMT(mode) for mode in modes_of_what_is_synced(tmp_path, monkeypatch)] == [
        stat.S_IFREG,
        stat.S_IFDIR,
    ]


# ---- names


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "x" * 218, " ", "-rf", "*[a]?"])
def test_every_name_that_the_system_allows(tmp_path, model, name):
    path = tmp_path / name
    for _ in range(2):
        AttentionSinkKVCache(model).save(path)
    AttentionSinkKVCache.load(path, model)
    assert os.listdir(tmp_path) == [name]


def test_names_that_it_does_not_allow(tmp_path, model):
    for path in (tmp_path / ("x" * 256), tmp_path / "no" / "folder"):
        with pytest.raises(OSError):
            AttentionSinkKVCache(model).save(path)
    assert not os.listdir(tmp_path)


# ---- what is no ordinary file


def special(tmp_path, kind):
    path = tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "terminal":
        path.symlink_to("/dev/ptmx")
    else:
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["fifo", "device", "terminal", "folder"])
def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path, model, kind):
    path = special(tmp_path, kind)
    before = path.lstat()
    cache = AttentionSinkKVCache(model)
    for act in (lambda: cache.save(path), lambda: AttentionSinkKVCache.load(path, model)):
        with pytest.raises(OSError, match=kind if kind == "folder" else "ordinary file"):
            act()
    after = path.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode) and os.listdir(tmp_path) == [path.name]


def test_the_error_says_what_to_give(tmp_path, model):
    path = special(tmp_path, "fifo")
    refused(OSError, lambda: AttentionSinkKVCache.load(path, model), "path=", path, "give the path of an ordinary file")


# ---- killed saves


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_what_killed_saves_leave_is_removed_by_the_next(tmp_path, moment):
    path, neighbour = tmp_path / "file", tmp_path / "neighbour"
    replace_file(path, b"old")
    for _ in range(3):
        killed_in(moment, lambda: replace_file(path, b"never"))
    assert content_of(path) == b"old" and len(os.listdir(tmp_path)) == 2  # each has removed what was left before it
    killed_in(moment, lambda: replace_file(neighbour, b"never"))
    replace_file(path, b"new")
    left = [name for name in os.listdir(tmp_path) if name != "file"]
    assert content_of(path) == b"new" and len(left) == 1
    replace_file(neighbour, b"new")
    assert sorted(os.listdir(tmp_path)) == ["file", "neighbour"]


def test_a_save_that_is_under_way_is_left_alone(tmp_path, monkeypatch):
    """Another thread saves to the same path in the middle of a save, as another process might."""
    path, fsync = tmp_path / "file", os.fsync

    def save_meanwhile(file):
        monkeypatch.setattr(os, "fsync", fsync)
        other = threading.Thread(target=replace_file, args=(path, b"second"))
        other.start()
        other.join()
        assert content_of(path) == b"second" and len(os.listdir(tmp_path)) == 2
        fsync(file)

    monkeypatch.setattr(os, "fsync", save_meanwhile)
    replace_file(path, b"first")
    assert content_of(path) == b"first" and os.listdir(tmp_path) == ["file"]


def test_many_threads_save_to_one_path(tmp_path, model):
    path, errors = tmp_path / "file", []
    caches = [stream(model, random_ids(1, 5 + number))[1] for number in range(4)]

    def save_often(cache):
        try:
            for _ in range(15):
                cache.save(path)
                AttentionSinkKVCache.load(path, model)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save_often, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and os.listdir(tmp_path) == ["file"]
