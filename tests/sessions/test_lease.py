"""Leases: one holder at a time, as long as it lives and no longer."""

import time

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from attention_sinks.sessions import remote_folder
from attention_sinks.sessions.lease import Lease
from attention_sinks.sessions.store import SessionInUseError
from support.helpers import in_parallel, refused
from support.sessions import load, save, talk, talks

SECONDS = 0.3


@pytest.fixture
def files():
    return MemoryFileSystem(global_store=False, skip_instance_cache=True)


def is_free(files):
    other = Lease(files, "/leases")
    free = other.acquire()
    other.release()
    return free


def test_a_lease_is_held_once_and_leaves_nothing(files):
    held = Lease(files, "/leases")
    assert held.acquire() and held.is_locked and not is_free(files)
    held.release()
    held.release()
    assert not held.is_locked and is_free(files) and files.find("/") == []


def test_a_lease_is_renewed_while_it_is_held(files):
    held = Lease(files, "/leases", SECONDS)
    assert held.acquire()
    for _ in range(12):
        time.sleep(SECONDS / 6)
        assert held.is_locked and not is_free(files)
    held.release()
    assert is_free(files)


def test_a_lease_of_nobody_ends(files):
    """Its holder was killed, or has dropped it without giving it back."""
    held = Lease(files, "/leases", SECONDS)
    assert held.acquire()
    del held
    assert not is_free(files)
    time.sleep(1.1 * SECONDS)
    assert is_free(files) and files.find("/") == []


def test_a_lease_that_could_not_be_renewed_is_lost_and_stays_so(files, monkeypatch):
    held = Lease(files, "/leases", SECONDS)
    assert held.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", lambda *_: (_ for _ in ()).throw(OSError("no network")))
        time.sleep(1.1 * SECONDS)
    assert not held.is_locked
    other = Lease(files, "/leases", SECONDS)
    assert other.acquire()
    held.renew()
    assert other.is_locked and not held.is_locked
    held.release()
    assert other.is_locked and not is_free(files)
    other.release()


def test_a_lease_outlives_a_moment_without_network(files, monkeypatch):
    held = Lease(files, "/leases", 2 * SECONDS)
    assert held.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", lambda *_: (_ for _ in ()).throw(OSError("no network")))
        time.sleep(SECONDS)
    time.sleep(1.5 * SECONDS)
    assert held.is_locked
    held.release()


def test_of_many_at_once_at_most_one_gets_it_and_one_does_in_the_end(files):
    winners = []
    for _ in range(30):
        leases = in_parallel(lambda _: [lease for lease in [Lease(files, "/leases")] if lease.acquire()])
        held = [lease for found in leases for lease in found]
        assert len(held) <= 1
        for lease in held:
            lease.release()
        winners += held
    assert len(winners) >= 25 and files.find("/") == []


def test_a_session_whose_lease_was_lost_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_folder, "Lease", lambda *place: Lease(*place, seconds=SECONDS))
    monkeypatch.setattr(Lease, "renew", lambda self: None)
    folder = f"memory://{tmp_path}"
    late, other = talks(folder), talks(folder)
    save(late, "a", talk(1))
    session = late.open("a")
    time.sleep(1.1 * SECONDS)
    save(other, "a", talk(2))
    refused(SessionInUseError, lambda: session.save(talk(3)), "'a'", "keep=False")
    session.close()
    assert load(other, "a") == load(late, "a") == talk(2)


def test_a_lease_that_cannot_be_removed_is_warned_of(files, monkeypatch, messages):
    held = Lease(files, "/leases", SECONDS)
    assert held.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "rm_file", lambda *_: (_ for _ in ()).throw(OSError("no network")))
        held.release()
    assert any("no network" in text for text in messages.texts) and not is_free(files)
    time.sleep(1.1 * SECONDS)
    assert is_free(files)
