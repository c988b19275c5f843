"""The tokens of one answer as text, in pieces of whole words."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TextStreamer


class Voice(TextStreamer):
    """Takes tokens one by one; Transformers' own streamer decides when a word is whole."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text

    def say(self, token: int | None, ended: bool) -> str:
        """The text that is ready after `token`, and all of it when the answer has `ended`."""
        if token is not None:
            self.put(torch.tensor([token]))
        if ended:
            self.end()
        ready, self.text = self.text, ""
        return ready
