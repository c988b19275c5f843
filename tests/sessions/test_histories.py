"""Any history of two stores on one folder is that of a dict."""

import shutil
import tempfile
from unittest.mock import patch

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from attention_sinks.sessions import files as session_files
from attention_sinks.sessions import store as sessions
from attention_sinks.sessions.store import SessionInUseError
from support.sessions import names, talk, talks

NAMES = st.sampled_from(["a", "b", "c", "é/.."])
STORES = st.integers(0, 1)
EXPIRE_AFTER = 50.0
MAX_BYTES = 100


class Clock:
    now = 1_700_000_000.0

    def time(self):
        return self.now


class Histories(RuleBasedStateMachine):
    """What was saved last, and when, by name; and which sessions are open."""

    turns = Bundle("turns")

    @initialize(far=st.booleans())
    def begin(self, far):
        self.clock = Clock()
        self.patches = [patch.object(module, "time", self.clock) for module in (session_files, sessions)]
        for each in self.patches:
            each.start()
        self.folder = tempfile.mkdtemp()
        place = f"memory://{self.folder}" if far else self.folder
        self.stores = [
            talks(place, max_bytes=MAX_BYTES, expire_after=EXPIRE_AFTER),
            talks(place, max_bytes=MAX_BYTES, expire_after=EXPIRE_AFTER),
        ]
        self.saved, self.open_names, self.number = {}, set(), 0

    def alive(self, name):
        return name in self.saved and self.clock.now - self.saved[name][1] < EXPIRE_AFTER

    @rule(target=turns, store=STORES, name=NAMES)
    def open(self, store, name):
        if name in self.open_names:
            with pytest.raises(SessionInUseError):
                self.stores[store].open(name)
            return multiple()
        session = self.stores[store].open(name)
        assert session.value == (talk(*self.saved[name][0]) if self.alive(name) else None)
        self.open_names.add(name)
        return session

    @rule(session=turns, size=st.integers(0, 20))
    def save(self, session, size):
        self.number += 1
        value = (self.number, size)
        if not session._memory.is_open(session):
            with pytest.raises(RuntimeError, match="closed"):
                session.save(talk(*value))
            return
        session.save(talk(*value))
        self.saved[session.name] = (value, self.clock.now)
        assert session.value == talk(*value)

    @rule(session=turns, keep=st.booleans())
    def close(self, session, keep):
        if session._memory.is_open(session):
            self.open_names.discard(session.name)
            if not keep and session.value is not None:
                session.value.numbers.fill_(-1)  # whoever does not keep it may have damaged it
        session.close(keep)
        session.close(keep)

    @rule(store=STORES, name=NAMES)
    def delete(self, store, name):
        if name in self.open_names:
            with pytest.raises(SessionInUseError):
                self.stores[store].delete(name)
            return
        assert self.stores[store].delete(name) == (name in self.saved)
        self.saved.pop(name, None)

    @rule(store=STORES)
    def expire(self, store):
        old = {name for name in self.saved if not self.alive(name) and name not in self.open_names}
        assert set(self.stores[store].expire()) == old
        self.saved = {name: saved for name, saved in self.saved.items() if name not in old}

    @rule(seconds=st.sampled_from([1.0, 20.0, 49.0]))
    def wait(self, seconds):
        self.clock.now += seconds

    @invariant()
    def lists_are_right(self):
        if not hasattr(self, "stores"):
            return
        expected = {name for name in self.saved if self.alive(name)}
        assert all(names(store) == expected for store in self.stores)

    @invariant()
    def memory_is_bounded(self):
        for store in getattr(self, "stores", []):
            opened = list(store._memory._open.values())
            lent = sum(session.value.numbers.nbytes for session in opened if session.value is not None)
            assert lent <= store.nbytes <= max(MAX_BYTES, lent)

    def teardown(self):
        for each in getattr(self, "patches", []):
            each.stop()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)
            if MemoryFileSystem().exists(self.folder):
                MemoryFileSystem().rm(self.folder, recursive=True)


TestHistories = Histories.TestCase
TestHistories.settings = settings(stateful_step_count=40)
