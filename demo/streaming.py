"""Chat with a model over one endless stream: every turn goes on where the last one ended, in the same cache.

By default prompts are read from a data set, one after the other, far beyond the size of the cache; with --interactive
they are typed in the terminal (Ctrl-C stops an answer, Ctrl-D or `exit` leaves). Answers are greedy unless
--temperature is given. The text is also appended to demo/streaming_logs/<experiment>/<model>.txt.
"""

import argparse
import time
from dataclasses import dataclass, field
from itertools import islice

import torch
from transformers import Cache

from prompts import DEFAULT_PROMPTS, read_prompts, typed_prompts
from utils import (
    StopOnInterrupt,
    add_common_arguments,
    load_model_and_tokenizer,
    open_streamer,
    sampling_settings,
    write_summary,
)


@dataclass
class Chat:
    """What is carried from turn to turn. Nothing here grows but the cache, and that only without a window."""

    cache: Cache | None = None
    unread: list[int] = field(default_factory=list)  # generated, but not yet seen by the model
    turns: int = 0
    tokens_written: int = 0
    seconds: float = 0.0


def turn_text(tokenizer, prompt, first):
    """Render what a turn adds to the stream in the model's own chat template.

    That is the new message and the opening of its answer; before it, if this is not the `first` turn, whatever the
    template puts after an answer. Rendering a stand-in for the past instead of the past itself costs the same in every
    turn; it needs a template that leaves the text before a new turn as it was, which is checked.
    """

    def render(*contents):
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    if tokenizer.chat_template is None:
        raise SystemExit(
            f"{tokenizer.name_or_path} has no chat template. Use a model that was trained to chat, or "
            "demo/endless_generation.py for a base model."
        )
    opened, answered = render("question"), render("question", "answer", prompt)
    new = answered[len(opened) :].lstrip()
    if not (answered.startswith(opened) and new.startswith("answer")):
        raise SystemExit(
            f"The chat template of {tokenizer.name_or_path} changes earlier text when a turn is added, so a stream "
            f"that has been read cannot go on. Before the turn: {opened!r}; after it: {answered!r}. Give another model."
        )
    return render(prompt) if first else new.removeprefix("answer")


def take_turn(model, tokenizer, chat, prompt, streamer, **generate_kwargs):
    """Answer `prompt`, feeding the model only what is new, and carry the cache on in `chat`.

    Returns
    -------
    bool
        Whether Ctrl-C cut the answer short. The chat can go on either way.
    """
    text = turn_text(tokenizer, prompt, first=chat.cache is None)
    new_ids = chat.unread + tokenizer(text, add_special_tokens=False).input_ids
    # A mask over the whole stream is how `generate` tells new tokens from a repetition of the past.
    length = len(new_ids) + (chat.cache.get_seq_length() if chat.cache is not None else 0)
    start = time.perf_counter()
    with StopOnInterrupt() as interrupt:
        output = model.generate(
            torch.tensor([new_ids], device=model.device),
            attention_mask=torch.ones((1, length), dtype=torch.long, device=model.device),
            past_key_values=chat.cache,
            streamer=streamer,
            stopping_criteria=[interrupt],
            return_dict_in_generate=True,
            **generate_kwargs,
        )
    answer = output.sequences[0, len(new_ids) :].tolist()
    chat.seconds += time.perf_counter() - start
    chat.turns += 1
    chat.tokens_written += len(answer)
    chat.cache = output.past_key_values
    # The last token was chosen but never fed. An end-of-turn token is what the template begins the next turn with.
    end_of_turn = model.generation_config.eos_token_id
    end_of_turn = end_of_turn if isinstance(end_of_turn, list) else [end_of_turn]
    chat.unread = [token for token in answer[-1:] if token not in end_of_turn]
    return interrupt.pressed


def stream_chat(model, tokenizer, prompts, streamer, interactive, **generate_kwargs):
    """Answer all `prompts` in one stream; an interrupt ends it, unless the user types the prompts."""
    chat = Chat()
    for prompt in prompts:
        streamer.write(f"\nUser: {prompt}\n", show=not interactive)
        streamer.write("\nAssistant: ")
        stopped = take_turn(model, tokenizer, chat, prompt, streamer, **generate_kwargs)
        if stopped:
            streamer.write("[stopped]\n")
        if stopped and not interactive:
            break
    return chat


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, window_size=1024, temperature=0.0)
    add = parser.add_argument
    dataset_help = (
        "hub id (HuggingFaceH4/mt_bench_prompts …), folder or file (.jsonl, .json, .parquet, .csv, .txt) with a column "
        "`prompt` or `turns`, default: demo/prompts.jsonl"
    )
    add("--dataset_name", default=str(DEFAULT_PROMPTS), help=dataset_help)
    add("--num_turns", type=int, help="stop after so many prompts, default: all of them")
    add("--max_new_tokens", type=int, default=1000, help="per answer, default: %(default)s")
    add("--interactive", action="store_true", help="type the prompts in the terminal")
    return parser.parse_args()


def main():
    args = parse_args()
    model, tokenizer = load_model_and_tokenizer(args)
    streamer = open_streamer(args, tokenizer, folder="streaming_logs")
    prompts = typed_prompts() if args.interactive else read_prompts(args.dataset_name)
    chat = stream_chat(
        model,
        tokenizer,
        islice(prompts, args.num_turns),
        streamer,
        args.interactive,
        max_new_tokens=args.max_new_tokens,
        **sampling_settings(args),
    )
    if chat.cache is not None:
        write_summary(streamer, chat.cache, chat.tokens_written, chat.seconds, turns=chat.turns)


if __name__ == "__main__":
    main()
