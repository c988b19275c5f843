"""Tiny models that say what a test wants, also thoughts and calls of tools."""

from support.helpers import tiny_llama
from support.toy_tokenizers import WORDS, byte_tokenizer, tokenizer_of

WITH_TOOLS = (
    "{% for tool in tools or [] %}<start> system {{ tool['function'] | tojson }} <end> {% endfor %}"
    "{% for m in messages %}<start> {{ m['role'] }} {{ m['content'] or '' }} "
    "{% for call in m['tool_calls'] or [] %}<tool_call> {{ call['function'] | tojson }} </tool_call> {% endfor %}"
    "<end> {% endfor %}{% if add_generation_prompt %}<start> assistant {% endif %}{# thoughts end with </think> #}"
)
"""A chat template with tools and thoughts, written like that of Qwen3."""

SURE = 1000.0


def let_say(model, tokenizer, answers, endless=()):
    """Make `model` say each of `answers`, a dict, after the text that is its key, and then end.

    A token of `endless` is said again and again once it was said.
    """

    def ids(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    biases = [[[*ids(token), *ids(token)], 2 * SURE] for token in endless]
    for text, answer in answers.items():
        said = ids(text)[1:]  # older releases ignore a sequence that is longer than the text before its last token
        for token in [*ids(answer), tokenizer.eos_token_id]:
            said = [*said, token]
            biases.append([said, SURE])
    model.generation_config.sequence_bias = biases


def save_scripted_model(folder, answers, by_bytes=False, endless=()):
    """Save a tiny Llama that gives these answers, with a tokenizer of words, or of bytes; returns the folder."""
    if by_bytes:
        tokenizer = byte_tokenizer(WITH_TOOLS)
    else:
        words = dict.fromkeys([*WORDS, "tool", *" ".join([*answers, *answers.values()]).split()])
        tokenizer = tokenizer_of(list(words), "<unk>", eos_token="<end>", pad_token="<end>", bos_token="<start>")
        tokenizer.chat_template = WITH_TOOLS
    model = tiny_llama(vocab_size=len(tokenizer))
    let_say(model, tokenizer, answers, endless)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
