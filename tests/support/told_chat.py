"""Chats whose tiny model says what it is told, compared with what the template writes of the whole conversation."""

from unittest import mock

import torch
from transformers import GenerationConfig

from attention_sinks import AttentionSinkKVCache, StreamingChat, inject_attention_sinks
from attention_sinks.chat import decoding
from support.chat_families import weather
from support.helpers import assert_close, stream, tiny_llama

SYSTEM = "Be kind."


class ToldChat:
    """A chat in which every answer is told, and the stream that it should have had.

    `prompt` is the stream before the last answer and `said` that answer, both as ids, and `after` is what the template
    writes then. `logits` are those from which the model would have chosen its tokens, and `read` is how many tokens it
    had read before the first. `pieces` are the answer's.
    """

    def __init__(self, family, window=16, tools=False, system=SYSTEM, **options):
        self.family, self.tokenizer = family, family.tokenizer()
        self.model = inject_attention_sinks(tiny_llama(vocab_size=len(self.tokenizer)), 4, window)
        ends = self.tokenizer.convert_tokens_to_ids([family.eos, family.end, family.call_end or family.eos])
        self.system = system if family.system else None
        self.tools = [weather] if tools else None
        config = GenerationConfig(eos_token_id=sorted({*ends}))
        options.setdefault("pin_system_prompt", False)  # else a long one takes most of the attention
        self.chat = StreamingChat(
            self.model, self.tokenizer, system=self.system, generation_config=config, tools=self.tools, **options
        )
        self.options = options.get("chat_template_kwargs", {})
        self.history = [{"role": "system", "content": self.system}] if self.system else []
        self.prompt, self.said, self.after, self.answer = [], [], "", None

    # ---- talking

    def ask(self, message, said, cut=None, closes=None, **options):
        """Send a message; the model answers `said`, or its first tokens if that is `cut`. Returns the answer."""
        message = message if isinstance(message, dict) else {"role": "user", "content": message}
        self._expect(message, options.get("chat_template_kwargs", {}))
        after = self.family.results if said.calls else self.family.between
        closes = closes if closes is not None else self.family.closes
        closes = closes if after.startswith(closes) and cut is None else ""
        self.said, self.after = self.ids(said.raw + closes)[:cut], after.removeprefix(closes)
        end = (said.calls and self.family.call_end) or self.family.end
        tokens = [*self.said, *(self.tokenizer.convert_tokens_to_ids([end]) if cut is None else [])]
        self.chat.generation_config.max_new_tokens = len(tokens)
        self.logits = []
        with mock.patch.object(decoding, "_choose", self._choose(tokens)):
            answer = self.chat.send(message, **options)
            self.pieces = list(answer)
        self.answer = answer.answer
        self.history += [message, {**self.answer.message, "content": self.answer.text.strip()}]
        return self.answer

    def _choose(self, tokens):
        remaining = iter(tokens)

        def choose(scores, *options):
            if not self.logits:
                self.read = self.chat.cache.tokens_seen.item()
            self.logits.append(scores[0].clone())
            return torch.tensor([next(remaining)])

        return choose

    # ---- what should have been fed

    def ids(self, text):
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def rendered(self, messages, **options):
        """Return ids of a whole conversation."""
        wanted = [{**each, "content": self._content(each)} for each in messages]
        text = self.tokenizer.apply_chat_template(
            wanted,
            tools=self.tools,
            tokenize=False,
            add_generation_prompt=True,
            **{**self.options, **options},
        )
        return self.ids(text)

    def _content(self, message):
        parts = self.family.name == "parts"
        return [{"type": "text", "text": message["content"]}] if parts else message["content"]

    def _expect(self, message, options):
        """Set `prompt`: the oracle's where the chat forgets thoughts, else what was said and what the template adds."""
        forgets = self.chat.thoughts == "forget" and message["role"] == "user"
        if not self.prompt or forgets:
            self.prompt = self.rendered([*map(without_thoughts, self.history), message], **options)
            return
        added = _with_opening(self.after, self.family, {**self.options, **options})
        self.prompt = [*self.prompt, *self.said, *self.ids(added.format(message["content"]))]

    def assert_streamed(self):
        """The model chose every token of its answer as one does that has read what should have been fed."""
        assert self.read == len(self.prompt)
        settings = self.chat.cache.settings
        cache = AttentionSinkKVCache(self.model, settings.sink_size, settings.window_size)
        logits, _ = stream(self.model, torch.tensor([[*self.prompt, *self.said]]), cache=cache)
        steps = logits[0, len(self.prompt) - 1 :][: len(self.logits)]
        assert_close(torch.stack(self.logits), steps)

    def assert_is_the_oracle(self):
        """What should have been fed is what the template writes of the whole conversation."""
        asked = [*self.history, {"role": "user", "content": "And?"}]
        assert [*self.prompt, *self.said, *self.ids(self.after.format("And?"))] == self.rendered(asked)


def without_thoughts(message):
    return {name: value for name, value in message.items() if name != "reasoning_content"}


def _with_opening(added, family, options):
    """Return what the template adds under keywords, of which one row's tests use only one."""
    if not family.options or not family.options.items() <= options.items():
        return added
    for usual in ("<think>\n", ""):
        if added.endswith(usual):
            return added.removesuffix(usual) + family.opening
    return added
