"""What a store of sessions promises: who may open one, which value that gets, what is in memory, what goes."""

import hashlib
import os
import random
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import count

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from attention_sinks.cache import strict_json
from attention_sinks.sessions import files as session_files
from attention_sinks.sessions import lease, remote_folder
from attention_sinks.sessions import store as sessions
from attention_sinks.sessions.file import header_size
from attention_sinks.sessions.local_folder import LocalFolder
from attention_sinks.sessions.store import SessionInUseError
from support.faults import interrupted
from support.helpers import refused
from support.sessions import load, names, save, talk, talks

PLACES = ["path", "str", "file://", "memory://", "dir::"]


@pytest.fixture(params=PLACES)
def folder(request, tmp_path):
    """A folder of every kind: two local ones, a local URL, and two that are taken for far away."""
    if request.param == "path":
        return tmp_path / "deep" / "folder"
    if request.param == "memory://":
        return f"memory://{tmp_path}"
    return {"str": "", "file://": "file://", "dir::": "dir::file://"}[request.param] + str(tmp_path)


def file_of(folder, name):
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()}.safetensors"


class Clock:
    """Stands for the module `time` where the store looks at the clock."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (sessions, session_files):
        monkeypatch.setattr(module, "time", clock)
    return clock


# ---- one session


def test_a_session_is_as_it_was_saved_last(folder):
    first, second = talks(folder), talks(folder)
    assert load(first, "a") is None
    for number, store in enumerate([first, first, second, second, first, second]):
        save(store, "a", talk(number))
        assert load(first, "a") == load(second, "a") == load(talks(folder), "a") == talk(number)
        assert load(store, "b") is None


def test_without_a_folder_sessions_live_as_long_as_their_store():
    store = talks(None)
    save(store, "a", talk(1))
    assert load(store, "a") == talk(1) and names(store) == {"a"} and store.nbytes == 12
    assert load(talks(None), "a") is None
    assert store.delete("a") and load(store, "a") is None and not store.delete("a")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8], ids=str)
def test_values_of_any_dtype_and_state(folder, dtype):
    value = talk(1)
    value.numbers = torch.arange(6).reshape(2, 3).t().to(dtype)  # not contiguous
    value.said = {"state": [1, 2.5, None, True, {"é": "\U0001f600\0"}], "name": "other", "transcript": "x" * 10**6}
    save(talks(folder), "a", value)
    woken = load(talks(folder), "a")
    assert woken.said == value.said and woken.numbers.dtype == dtype
    assert torch.equal(woken.numbers.view(torch.uint8), value.numbers.contiguous().view(torch.uint8))
    woken.numbers.zero_()  # the value owns its memory


def test_an_open_session_is_in_use_for_all_others(folder):
    first, second = talks(folder), talks(folder)
    for store in (first, second):
        with store.open("a"):
            for other in (first, second):
                refused(SessionInUseError, lambda other=other: other.open("a"), "'a'")
                refused(SessionInUseError, lambda other=other: other.delete("a"), "'a'")
                save(other, "b", talk(2))
        save(second, "a", talk(1))


def test_a_value_in_memory_is_the_same_object_until_another_store_has_saved(folder):
    first, second = talks(folder), talks(folder)
    value = talk(1)
    save(first, "a", value)
    assert load(first, "a") is value
    save(second, "a", talk(1))  # equal, but saved anew
    assert load(first, "a") == value and load(first, "a") is not value
    second.delete("a")
    assert load(first, "a") is None


def test_a_copy_that_was_restored_is_read(tmp_path):
    store = talks(tmp_path)
    save(store, "a", talk(1))
    backup = file_of(tmp_path, "a").read_bytes()
    save(store, "a", talk(2))
    file_of(tmp_path, "a").write_bytes(backup)
    assert load(store, "a") == talk(1)


@pytest.mark.parametrize("close", ["keep=False", "an exception", "dropped"])
def test_a_value_that_may_be_damaged_is_not_used(tmp_path, close):
    store = talks(tmp_path)
    save(store, "a", talk(1))
    session = store.open("a")
    session.value.numbers.zero_()
    if close == "keep=False":
        session.close(keep=False)
    elif close == "an exception":
        with pytest.raises(ZeroDivisionError), session:
            raise ZeroDivisionError
    del session
    assert store.nbytes == 0 and load(store, "a") == talk(1)


def test_a_closed_session_saves_no_more(folder):
    store = talks(folder)
    session = store.open("a")
    session.save(talk(1))
    session.close()
    session.close(keep=False)  # does nothing
    assert session.value is None and store.nbytes == 12
    refused(RuntimeError, lambda: session.save(talk(2)), "'a'", "open()")
    with store.open("a") as other:
        refused(RuntimeError, lambda: session.save(talk(2)), "'a'", "open()")
        session.close()
        assert other.value == talk(1)
        refused(SessionInUseError, lambda: store.open("a"))


def test_what_cannot_be_loaded_again_is_not_saved(folder):
    store = talks(folder)
    save(store, "a", talk(1))
    for wrong in (float("nan"), "\ud800"):
        value = talk(2)
        value.said = {"x": wrong}
        refused(ValueError, lambda value=value: save(store, "a", value), "loaded again", "path=")
        assert load(store, "a") == load(talks(folder), "a") == talk(1)


def test_a_closed_store_opens_nothing_but_what_is_open_can_be_saved(folder):
    with talks(folder) as store:
        save(store, "b", talk(2))
        session = store.open("a")
    refused(RuntimeError, lambda: store.open("a"), "closed")
    session.save(talk(1))
    session.close()
    assert store.nbytes == 0 and load(talks(folder), "a") == talk(1)


# ---- names


NAMES = ["a", "A", " ", "a/b", "../../a", "..", ".", "-rf", "\0", "\n", "*[a]?", "é" * 512, "\U0001f600", "x" * 512]


def test_any_name(tmp_path):
    store = talks(tmp_path)
    for number, name in enumerate(NAMES):
        save(store, name, talk(number))
    other = talks(tmp_path)
    assert names(other) == set(NAMES)
    assert [load(other, name) for name in NAMES] == [talk(number) for number in range(len(NAMES))]
    assert {len(name.partition(".")[0]) for name in os.listdir(tmp_path)} == {64} and os.listdir(tmp_path.parent)


@pytest.mark.parametrize(
    "name, kind", [("", ValueError), ("x" * 513, ValueError), ("\ud800", ValueError), (3, TypeError)]
)
def test_a_name_that_is_none(tmp_path, name, kind):
    store = talks(tmp_path)
    for act in (store.open, store.delete):
        refused(kind, lambda act=act: act(name), "name=")
    assert os.listdir(tmp_path) == []


# ---- the list


def test_the_list(folder, clock):
    store, other = talks(folder), talks(folder)
    assert list(store.list()) == []
    for number, name in enumerate(["a", "b", "c"]):
        clock.now += 10
        save(store if name == "b" else other, name, talk(number))
    infos = store.list()
    assert [info.name for info in infos] == ["c", "b", "a"] and [info.in_memory for info in infos] == [
        False,
        True,
        False,
    ]
    assert infos[0].used == datetime.fromtimestamp(clock.now, timezone.utc) == infos[2].used + timedelta(seconds=20)
    assert all(100 < info.nbytes < 1000 for info in infos)
    with store.open("a"):
        assert [info.in_memory for info in store.list()] == [False, True, True]


def test_a_list_reads_no_transcript(tmp_path):
    """Only the header is read, in which the state is not."""
    value = talk(1)
    value.said = {"transcript": ["x" * 100] * 10_000}
    save(talks(tmp_path), "a", value)
    assert header_size(file_of(tmp_path, "a").read_bytes()[:8]) < 1000 < value.numbers.nbytes + 10**6


def test_a_header_that_is_longer_than_what_is_read_first(folder, monkeypatch):
    monkeypatch.setattr(session_files, "START", 16)
    store = talks(folder)
    save(store, "a", talk(1))
    assert names(store) == {"a"} and load(store, "a") == talk(1)


# ---- memory


def test_the_least_recently_used_go_from_memory_and_none_that_is_open(tmp_path):
    store = talks(tmp_path, max_bytes=3 * 40)
    with store.open("open") as session:
        session.save(talk(0, size=10))
        for number, name in enumerate("abc"):
            save(store, name, talk(number, size=10))
        assert {info.name for info in store.list() if info.in_memory} == {"open", "b", "c"} and store.nbytes == 120
        load(store, "b")
        save(store, "d", talk(3, size=10))
        assert {info.name for info in store.list() if info.in_memory} == {"open", "b", "d"}
        session.save(talk(4, size=100))
        assert {info.name for info in store.list() if info.in_memory} == {"open"} and store.nbytes == 400
        assert session.value == talk(4, size=100)
    assert store.nbytes == 0
    assert [load(store, name) for name in "abcd"] == [talk(number, size=10) for number in range(4)]


# ---- ends


def test_a_session_that_has_expired_is_as_if_it_did_not_exist(folder, clock):
    store, other = talks(folder, expire_after=100), talks(folder, expire_after=100)
    for name in "abc":
        save(store, name, talk(1))
    clock.now += 60
    save(store, "b", talk(2))
    clock.now += 60
    assert names(store) == names(other) == {"b"}
    assert load(store, "a") is load(other, "a") is None and load(other, "b") == talk(2)
    assert names(talks(folder)) == {"a", "b", "c"}  # for a store that keeps them
    with store.open("c"):
        assert list(other.expire()) == ["a"]
    assert list(store.expire()) == ["c"] and list(store.expire()) == []
    assert names(talks(folder)) == {"b"} and load(store, "b") == talk(2)


def test_a_session_that_is_saved_while_others_expire_stays(folder, clock, monkeypatch):
    store, other = talks(folder, expire_after=100), talks(folder)
    save(other, "a", talk(1))
    clock.now += 100
    listed = store._all()
    save(other, "a", talk(2))
    monkeypatch.setattr(store, "_all", lambda: listed)
    assert list(store.expire()) == [] and load(store, "a") == talk(2)


def test_an_expired_session_can_begin_anew(folder, clock):
    store = talks(folder, expire_after=100)
    save(store, "a", talk(1))
    clock.now += 100
    with store.open("a") as session:
        assert session.value is None
        session.save(talk(2))
    assert list(store.expire()) == [] and load(store, "a") == talk(2)


def test_expiry_without_a_folder(clock):
    store = talks(None, expire_after=100)
    save(store, "a", talk(1))
    save(store, "b", talk(2))
    clock.now += 100
    assert names(store) == set() and load(store, "a") is None and list(store.expire()) == ["b"]
    assert list(talks(None).expire()) == []


def test_a_deleted_session_leaves_nothing(tmp_path):
    store = talks(tmp_path)
    save(store, "a", talk(1))
    assert store.delete("a") and not store.delete("a") and not talks(tmp_path).delete("a")
    assert os.listdir(tmp_path) == [] and load(store, "a") is None


# ---- files that are not in order


def damaged(content, seed):
    """The file cut, or with one bit that is another."""
    choose = random.Random(seed)
    place = choose.randrange(len(content))
    if seed % 4 == 0:
        return content[:place]
    changed = bytearray(content)
    changed[place] ^= 1 << choose.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_refused_and_nothing_else(tmp_path, seed):
    store = talks(tmp_path)
    save(store, "a", talk(1))
    save(store, "b", talk(2))
    path = file_of(tmp_path, "a")
    good = path.read_bytes()
    path.write_bytes(damaged(good, seed))
    for _ in range(2):  # the lock is free again
        refused(ValueError, lambda: talks(tmp_path).open("a"), path, "delete('a')")
    assert names(store) - {"a"} == {"b"} and load(store, "b") == talk(2)
    path.write_bytes(good)
    assert load(talks(tmp_path), "a") == talk(1)
    path.write_bytes(damaged(good, seed))
    assert talks(tmp_path).delete("a") and load(store, "a") is None


def test_a_damaged_file_is_warned_of_and_left_out(folder, messages):
    store = talks(folder)
    save(store, "a", talk(1))
    save(store, "b", talk(2))
    digest = hashlib.sha256(b"a").hexdigest()
    store._files._folder.write(digest, b"damaged")
    assert names(store) == {"b"} and any(digest in text for text in messages.texts)
    refused(ValueError, lambda: store.open("a"), digest, "delete('a')")
    assert store.delete("a") and load(store, "a") is None


def test_the_file_of_another_session_is_refused(tmp_path):
    store = talks(tmp_path)
    save(store, "a", talk(1))
    os.rename(file_of(tmp_path, "a"), file_of(tmp_path, "b"))
    refused(ValueError, lambda: store.open("b"), file_of(tmp_path, "b"), "'a'", "delete('b')")
    assert load(store, "a") is None and names(store) == set()


def test_other_files_in_the_folder_are_no_sessions(tmp_path):
    (tmp_path / "notes.safetensors").write_bytes(b"x")
    (tmp_path / f"{'0' * 64}.safetensors.bak").write_bytes(b"x")
    store = talks(tmp_path)
    save(store, "a", talk(1))
    assert names(store) == {"a"}


def test_a_value_that_cannot_be_made_leaves_the_lock_free(tmp_path):
    save(talks(tmp_path), "a", talk(1))
    store = talks(tmp_path)
    make, store._from_file = store._from_file, lambda tensors, state: int("no number")
    for _ in range(2):
        with pytest.raises(ValueError, match=str(file_of(tmp_path, "a"))):
            store.open("a")
    store._from_file = make
    assert load(store, "a") == talk(1)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_file_that_cannot_be_read_now_is_not_taken_for_none(tmp_path, monkeypatch, in_memory):
    store = talks(tmp_path)
    save(store if in_memory else talks(tmp_path), "a", talk(1))
    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "opened", lambda self, digest: (_ for _ in ()).throw(PermissionError("not now")))
        with pytest.raises(PermissionError):
            store.open("a")
    assert load(store, "a") == talk(1)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    store = talks(tmp_path)
    save(store, "a", talk(1))
    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "write", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
        with store.open("a") as session:
            with pytest.raises(OSError, match="full"):
                session.save(talk(2))
            assert session.value == talk(1)
    assert load(store, "a") == load(talks(tmp_path), "a") == talk(1)


# ---- arguments


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "folder", f"file://{tmp_path}/file"):
        refused(OSError, lambda place=place: talks(place), "folder=", "file")
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda *_: (_ for _ in ()).throw(PermissionError("no")))
    refused(OSError, lambda: talks("memory://chats"), "folder='memory://", "storage_options")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"folder": None, "max_bytes": 100}, ["max_bytes=100", "folder"]),
        ({"max_bytes": 0}, ["max_bytes=0"]),
        ({"expire_after": 0.0}, ["expire_after=0.0"]),
        ({"expire_after": float("nan")}, ["expire_after=nan"]),
        ({"storage_options": {}}, ["storage_options", "URL"]),
        ({"folder": None, "storage_options": {}}, ["storage_options", "folder"]),
    ],
)
def test_bounds_that_cannot_be_kept(tmp_path, arguments, words):
    refused(ValueError, lambda: talks(**{"folder": tmp_path / "new", **arguments}), *words)
    assert not (tmp_path / "new").exists()


# ---- exceptions at any line


def interruptions(prepare, act):
    """Do `act` with Ctrl-C at the first of its lines, then at the second, and so on; before each, `prepare`."""
    for line in count(1):
        prepare()
        if not interrupted(act, line):
            return
        yield


@pytest.mark.parametrize(
    "act, far",
    [("turn", False), ("turn from memory", False), ("turn from memory", True), ("delete", False), ("delete", True)],
)
def test_ctrl_c_at_any_line_leaves_the_session_as_before_or_after_and_free(tmp_path, far, act, monkeypatch):
    """A lease that is dropped ends by itself; here, soon."""
    monkeypatch.setattr(remote_folder, "Lease", partial(lease.Lease, seconds=0.2))
    monkeypatch.setattr(os, "fsync", lambda file: None)  # these two take most of the time, and change nothing
    monkeypatch.setattr(strict_json, "_check", lambda value, levels: None)
    store, other = (talks(f"memory://{tmp_path}" if far else tmp_path) for _ in range(2))

    def prepare():
        patiently(lambda: save(store if act == "turn from memory" else other, "a", talk(1)))

    def turn():
        with store.open("a") as session:
            assert session.value == talk(1)
            session.save(talk(2))

    outcomes = []
    for _ in interruptions(prepare, (lambda: store.delete("a")) if act == "delete" else turn):
        after = patiently(lambda: load(other, "a"))
        assert after in (talk(1), None if act == "delete" else talk(2))
        assert patiently(lambda: load(store, "a")) == after
        outcomes.append(after)
    assert outcomes[0] == talk(1) != outcomes[-1] and len(outcomes) > 30


@pytest.mark.parametrize("act", ["turn", "delete"])
def test_ctrl_c_at_any_line_without_a_folder(act):
    """What is not closed in order is gone: there is no file to go back to."""
    store = talks(None)

    def turn():
        with store.open("a") as session:
            session.save(talk(2))

    outcomes = []
    for _ in interruptions(lambda: save(store, "a", talk(1)), (lambda: store.delete("a")) if act == "delete" else turn):
        outcomes.append(load(store, "a"))
        assert outcomes[-1] in (None, talk(1), talk(2))
    assert outcomes[0] == talk(1) != outcomes[-1]


def patiently(act):
    """Do what a lease that nobody holds any more may still forbid for a moment."""
    for _ in range(100):
        try:
            return act()
        except SessionInUseError as error:
            last = error
            lease.time.sleep(0.01)
    raise last
