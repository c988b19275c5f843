"""Whatever conversations do beside each other, each says what it says alone: joins, stops, sleeps, kills."""

import shutil
import tempfile

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from attention_sinks import StreamingChat, StreamPool, inject_attention_sinks
from support.helpers import tiny_llama
from support.pools import END, S, W, config
from support.toy_tokenizers import word_tokenizer

MODEL, TOKENIZER = inject_attention_sinks(tiny_llama(), S, W), word_tokenizer()
NAMES = ("a", "b", "c", "d")
WORDS = st.lists(st.integers(0, 50), min_size=1, max_size=30).map(lambda words: " ".join(f"w{word}" for word in words))
LIMIT = 12
UNSTOPPED = {"eos_token_id": END, "suppress_tokens": range(6)}  # answers are cut by nothing but their limit


class Alone:
    """What a conversation would have said alone. A turn is a message and how many tokens its answer had."""

    def __init__(self, turns=()):
        self.turns = list(turns)

    def said(self):
        """The answer to the last turn."""
        chat = StreamingChat(MODEL, TOKENIZER)
        answer = ""
        for message, count in self.turns:
            chat.generation_config = config(**UNSTOPPED, max_new_tokens=count)
            answer = str(chat.ask(message))
        return answer


class Talking(RuleBasedStateMachine):
    """Several conversations of a pool. `turns` has for each what it must have read and said by now."""

    @initialize(rows=st.integers(1, 3), chunk_size=st.sampled_from([1, 5, 32]))
    def begin(self, rows, chunk_size):
        self.folder, self.generation = tempfile.mkdtemp(), 0
        self.options = {"rows": rows, "chunk_size": chunk_size, "max_session_bytes": 30_000}
        self.turns = {name: [] for name in NAMES}
        self.answers = {}
        self.open()

    def open(self):
        self.pool = StreamPool(MODEL, TOKENIZER, sessions=f"{self.folder}/{self.generation}", **self.options)

    # ---- turns

    @rule(name=st.sampled_from(NAMES), message=WORDS, limit=st.integers(1, LIMIT))
    def join(self, name, message, limit):
        """A conversation sends a message, after it has read its last answer."""
        if name in self.answers:
            self.end(name)
        settings = config(**UNSTOPPED, max_new_tokens=limit)
        self.answers[name] = (self.pool.conversation(name).send(message, generation_config=settings), message, limit)

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def leave(self, data):
        """An answer is read to its end."""
        self.end(data.draw(st.sampled_from(sorted(self.answers))))

    @precondition(lambda self: self.answers)
    @rule(data=st.data(), pieces=st.integers(0, 5))
    def cancel(self, data, pieces):
        """An answer is stopped after some pieces, and may have had more of them by then."""
        name = data.draw(st.sampled_from(sorted(self.answers)))
        stream = self.answers[name][0]
        for _ in range(pieces):
            next(stream, None)
        self.pool._host.stop(stream._stop.args[0])
        self.end(name)

    def end(self, name):
        stream, message, limit = self.answers.pop(name)
        for _ in stream:
            pass
        count = stream.usage.tokens_written
        if not stream.answer.begun:  # it was stopped before its message was read
            return
        assert stream.finish_reason == ("length" if count == limit else "interrupted")
        self.turns[name].append((message, count))
        assert str(stream) == Alone(self.turns[name]).said()

    # ---- sleeping

    @rule()
    def sleep(self):
        """All conversations sleep, and the next pool wakes them."""
        for name in list(self.answers):
            self.end(name)
        self.pool.close()
        self.open()

    @rule()
    def kill(self):
        """The process is killed: what goes on is what lies in the folder."""
        self.generation += 1
        shutil.copytree(f"{self.folder}/{self.generation - 1}", f"{self.folder}/{self.generation}")
        killed, self.answers = self.answers, {}
        self.pool.close()
        self.open()
        for name, (_, message, limit) in killed.items():
            whole = [*self.turns[name], (message, limit)]
            if len(self.pool.conversation(name).turns_in_window) and self.stands_at(name) == len(whole):
                self.turns[name] = whole  # it had ended, though nobody had read that

    def stands_at(self, name):
        """How many turns a sleeping conversation has had."""
        return max(self.pool.conversation(name).turns_in_window)

    def teardown(self):
        if hasattr(self, "pool"):
            for name in list(self.answers):
                self.end(name)
            self.pool.close()
            shutil.rmtree(self.folder)


Talking.TestCase.settings = hypothesis.settings(max_examples=25, stateful_step_count=20, deadline=None)
TestTalking = Talking.TestCase
