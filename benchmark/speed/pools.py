"""Pools over random weights: a tokenizer of meaningless words, conversations in it, and clocks that see every token."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter, sleep
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerFast, StoppingCriteria

from attention_sinks import AnswerStream, AttentionSinkKVCache, StreamPool
from attention_sinks.versions import CACHE

SPECIAL = ("<other>", "<turn>", "<end>", "system", "user", "assistant")
TEMPLATE = (
    "{% for message in messages %}<turn> {{ message['role'] }} {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<turn> assistant {% endif %}"
)

ENDLESS = 1 << 20
"""So many tokens has an answer that is stopped."""


def word_tokenizer(model: nn.Module) -> PreTrainedTokenizerFast:
    """A tokenizer of which every word is one token: w6, w7 and so on up to the size of the model's vocabulary.

    It knows no token that ends an answer, so that answers have the length that is asked for.
    """
    size = model.config.get_text_config().vocab_size
    words = [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), size))]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=SPECIAL[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=SPECIAL[0], chat_template=TEMPLATE)


def words(count: int, seed: int = 0) -> str:
    """A text of `count` words that every vocabulary has."""
    return " ".join(f"w{len(SPECIAL) + (7 * number + seed) % 100}" for number in range(count))


def drain(answer: AnswerStream) -> None:
    """Read an answer to its end."""
    for _ in answer:
        pass


class TokenClock(StoppingCriteria):
    """Notes when each token of an answer is chosen, in the thread of the pool, and ends no answer."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
        self.times.append(perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Talkers:
    """Conversations of one pool whose windows are full and whose streams differ in length.

    They begin with a system prompt longer than what a cache holds. The pool reads it once and copies it.
    """

    def __init__(self, pool: StreamPool, count: int) -> None:
        self.all = [pool.conversation() for _ in range(count)]
        for number, each in enumerate(self.all):
            each.ask(words(2 + number, number), generation_config=GenerationConfig(max_new_tokens=1))

    def start(self, count: int, tokens: int) -> list[tuple[Any, TokenClock]]:
        """Let the first `count` of them answer in `tokens` tokens; return their answers and clocks."""
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False)
        clocks = [TokenClock() for _ in range(count)]
        return [
            (each.send("w7", generation_config=config, stopping_criteria=[clock]), clock)
            for each, clock in zip(self.all, clocks, strict=False)
        ]

    def step_ms(self, count: int, tokens: int) -> float:
        """Median milliseconds of a step while all of `count` of them answer, over some `tokens` such steps.

        Each says a few tokens more, because the first ones begin while the messages of others are still being read.
        """
        running = self.start(count, tokens + count // 2 + 2)
        clocks = [clock for _, clock in running]
        for answer, _ in running:
            drain(answer)
        begin, end = max(clock.times[0] for clock in clocks), min(clock.times[-1] for clock in clocks)
        steps = steps_within(clocks[0], begin, end)
        if not steps:  # the first has ended before the last began, as on a busy machine
            return self.step_ms(count, 2 * tokens)
        return 1000 * statistics.median(steps)


def steps_within(clock: TokenClock, begin: float, end: float) -> list[float]:
    """Seconds from each token to the next one, of those between the times `begin` and `end`."""
    return [later - earlier for earlier, later in pairwise(clock.times) if begin <= earlier and later <= end]


@contextmanager
def pool_of(model: nn.Module, rows: int, context: int, sinks: int, **options: Any) -> Iterator[StreamPool]:
    """An open pool whose conversations begin with `context` words, more than a cache holds."""
    settings = {"system": words(context), "attention_sink_size": sinks, **options}
    with StreamPool(model, word_tokenizer(model), rows, **settings) as pool:
        yield pool


# ---- caches of a plain loop


def ragged_cache(cache: AttentionSinkKVCache, model: nn.Module, rows: int) -> AttentionSinkKVCache:
    """A cache of `rows` rows that are full and differ in length by a token each, made from a full one of one row."""
    taken = []
    for _ in range(rows):
        taken.append(cache.take(0))
        model(torch.full((1, 1), len(SPECIAL), device=model.device), use_cache=True, **{CACHE: cache})
    return AttentionSinkKVCache.stack(taken)


# ---- answers beside a reader


@dataclass(frozen=True)
class Beside:
    """What one round has shown: the 95th percentile of ms per token alone and beside a reader, and how fast it read."""

    alone_ms: float
    beside_ms: float
    read_per_second: float


class Reader:
    """The last conversation of a pool, which reads a long message while the others answer.

    It is stopped once enough tokens of the others have been seen, and is then as it was before the message.
    """

    def __init__(self, pool: StreamPool, talkers: Talkers, length: int) -> None:
        self.pool, self.talkers, self.message = pool, talkers, words(length)

    def measure(self, steps: int) -> Beside:
        """Time `steps` tokens of each of the others without the reader, then as many beside it."""
        others = len(self.talkers.all) - 1
        running = self.talkers.start(others, ENDLESS)
        clocks = [clock for _, clock in running]
        _wait_until(clocks, 1)
        alone = perf_counter()
        _wait_until(clocks, max(len(clock.times) for clock in clocks) + steps)
        begin, before = perf_counter(), self.pool.numbers.tokens_read
        reader = self.talkers.all[-1].send(self.message, generation_config=GenerationConfig(max_new_tokens=1))
        _wait_until(clocks, max(len(clock.times) for clock in clocks) + steps)
        end, read = perf_counter(), self.pool.numbers.tokens_read - before
        for each in self.talkers.all:
            each.stop()
        for answer in (reader, *(answer for answer, _ in running)):
            drain(answer)
        spans = ((alone, begin), (begin, end))
        first, second = ([s for clock in clocks for s in steps_within(clock, *span)] for span in spans)
        return Beside(_percentile_ms(first), _percentile_ms(second), read / (end - begin))


def _wait_until(clocks: list[TokenClock], count: int) -> None:
    """Wait until every clock has seen `count` tokens."""
    while min(len(clock.times) for clock in clocks) < count:
        sleep(0.002)


def _percentile_ms(seconds: list[float]) -> float:
    return 1000 * statistics.quantiles(seconds, n=20)[-1]


# ---- sessions in a folder


def waking_ms(model: nn.Module, folder: str, rounds: int, context: int, sinks: int) -> tuple[list[float], int]:
    """Milliseconds until a session in `folder` is open, each time in a new pool, and the bytes of its file."""
    with pool_of(model, 1, context, sinks, sessions=folder) as pool:
        for _ in range(2):
            pool.conversation("one").ask("w7", generation_config=GenerationConfig(max_new_tokens=2))
        (info,) = pool.sessions()
    times = []
    for _ in range(rounds):
        with pool_of(model, 1, context, sinks, sessions=folder) as pool:
            conversation = pool.conversation("one")
            start = perf_counter()
            turns = conversation.turns_in_window  # it wakes the conversation
            times.append(1000 * (perf_counter() - start))
            assert 2 in turns  # it is the session that was saved
    return times, info.nbytes
