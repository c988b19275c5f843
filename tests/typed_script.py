"""A user's script, for type checkers: `make style` and tests/test_types.py read it, and nothing runs it.

`assert_type` fails when a type is another one. A `type: ignore` fails when its line has no mistake of that kind.
"""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import assert_type

from attention_sinks import (
    Answer,
    AnswerStream,
    AnswerStreams,
    AttentionSinkKVCache,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    Piece,
    StreamingChat,
    Verification,
    attention_sinks_injected,
    inject_attention_sinks,
    remove_attention_sinks,
    supported_model_types,
    verify_attention_sinks,
)

# ---- loading

model = AutoModelForCausalLM.from_pretrained(
    "name",
    attention_sink_size=4,
    attention_sink_window_size=1020,
    attention_sink_prefill="streaming",
    device_map="auto",
)
assert_type(model.device, torch.device)
model.generate(torch.zeros(1, 1, dtype=torch.long), max_new_tokens=1)
assert_type(AutoModel.from_pretrained("name"), PreTrainedModel)
assert_type(AutoModel.from_pretrained("name", output_loading_info=True), tuple[PreTrainedModel, dict[str, Any]])
assert_type(AutoModel.from_config(LlamaConfig(), attention_sink_size=0), PreTrainedModel)
AutoModelForCausalLM.from_pretrained("name", attention_sink_size="4")  # type: ignore[call-overload]
AutoModelForCausalLM.from_pretrained("name", attention_sink_prefill="sparse")  # type: ignore[call-overload]
AutoModelForCausalLM.from_config(LlamaConfig(), attention_sink_window_size=1.5)  # type: ignore[arg-type]
assert_type(supported_model_types(), list[str])

# ---- injecting: the type of a model stays

llama = LlamaForCausalLM(LlamaConfig())
assert_type(inject_attention_sinks(llama, 4, 1020, "dense"), LlamaForCausalLM)
assert_type(remove_attention_sinks(llama), LlamaForCausalLM)
with attention_sinks_injected(llama, 4, 1020) as injected:
    assert_type(injected, LlamaForCausalLM)
inject_attention_sinks(llama, attention_sink_prefill="sparse")  # type: ignore[arg-type]
report = verify_attention_sinks(llama)
assert_type(report, Verification)
assert_type(report.agrees, bool)

# ---- chats

tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained("name")
chat = StreamingChat(model, tokenizer, system="You are a helpful assistant.")
assert_type(chat.send("Hello!"), AnswerStream)
assert_type(chat.send([{"role": "tool", "content": "5"}]), AnswerStream)
assert_type(chat.send(["Hello!", "Bonjour!"]), AnswerStreams)
for piece in chat.send("Hello!"):
    assert_type(piece, Piece)
    text: str = piece
assert_type(chat.ask("Hello!"), Answer)
assert_type(chat.ask(["Hello!", "Bonjour!"]), list[Answer])
assert_type(chat.cache, AttentionSinkKVCache)
assert_type(chat.cache.nbytes, int)
chat.save("chat.safetensors")
assert_type(StreamingChat.load("chat.safetensors", model, tokenizer), StreamingChat)
chat.send(1)  # type: ignore[call-overload]
StreamingChat(tokenizer, model)  # type: ignore[arg-type]

# ---- caches

cache = AttentionSinkKVCache(llama, attention_sink_size=8)
assert_type(cache.tokens_seen, torch.Tensor)
assert_type(AttentionSinkKVCache.load("cache.safetensors", llama), AttentionSinkKVCache)
