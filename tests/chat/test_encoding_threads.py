"""One tokenizer serves threads at once, though how it treats special tokens is a setting of the tokenizer itself."""

import sys
import threading

from attention_sinks.chat.encoding import TemplateEncoder
from support.toy_tokenizers import CHATML, byte_tokenizer


def test_texts_with_special_tokens_do_not_change_what_other_threads_encode():
    encoder = TemplateEncoder(byte_tokenizer(CHATML), CHATML)
    message, marks = encoder.marked("say <end>")
    texts = [("<start> user hello <end>", ""), (f"<start> user {message} <end>", marks)]
    right = [encoder.encode(*text) for text in texts]
    wrong, interval, begin = [], sys.getswitchinterval(), threading.Barrier(2)

    def encode(text, ids):
        begin.wait()
        try:
            for _ in range(3000):
                if encoder.encode(*text) != ids:
                    wrong.append(text)
        except ValueError as error:
            wrong.append(error)

    threads = [threading.Thread(target=encode, args=pair) for pair in zip(texts, right, strict=True)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
