"""Chat with a model over one endless stream: every turn goes on where the last one ended, in the same cache.

By default prompts are read from a data set, one after the other, far beyond the size of the cache; with --interactive
they are typed in the terminal (Ctrl-C stops an answer, Ctrl-D or `exit` leaves). Answers are greedy unless
--temperature is given. The text is also appended to demo/streaming_logs/<experiment>/<model>.txt, and with --json_log
the turns to a file of JSON lines, which benchmark/quality/fluency.py reads.
"""

import argparse
import time
from itertools import islice
from pathlib import Path

from transformers import DynamicCache, GenerationConfig

from attention_sinks import StreamingChat
from prompts import DEFAULT_PROMPTS, read_prompts, typed_prompts
from utils import (
    JsonLog,
    add_common_arguments,
    describe_run,
    load_model_and_tokenizer,
    open_streamer,
    sampling_settings,
    write_summary,
)


class PlainChat(StreamingChat):
    """The same chat on plain Transformers, for comparison: nothing is forgotten and the cache grows."""

    def make_cache(self, sink_size):
        return DynamicCache()


def open_chat(args, model, tokenizer):
    """A chat whose cache keeps what `--experiment` and the sizes say: no system prompt is pinned besides."""
    kind = PlainChat if args.experiment == "transformers" else StreamingChat
    settings = GenerationConfig(max_new_tokens=args.max_new_tokens, **sampling_settings(args))
    try:
        return kind(model, tokenizer, generation_config=settings, pin_system_prompt=False)
    except ValueError as error:
        raise SystemExit(f"{error} (demo/endless_generation.py needs no chat template.)") from error


def stream_chat(chat, prompts, streamer, json_log, interactive):
    """Answer all `prompts` in one stream; an interrupt ends it, unless the user types the prompts.

    Returns
    -------
    dict
        What `write_summary` shows: turns, tokens written and the seconds that took.
    """
    turns, asked, seconds = 0, 0, 0.0
    for prompt in prompts:
        streamer.write(f"\nUser: {prompt}\n", show=not interactive)
        streamer.write("\nAssistant: ")
        before, start, stopped, answer = chat.cache.get_seq_length(), time.perf_counter(), False, ""
        try:
            for text in chat.send(prompt):
                answer += text
                streamer.write(text)
        except KeyboardInterrupt:
            stopped = True
        seconds += time.perf_counter() - start
        turns += 1
        json_log.write({"prompt": prompt, "answer": answer} | ({"stopped": True} if stopped else {}))
        if chat.cache.get_seq_length() > before:  # the prompt has been read
            asked += len(chat.template.next_turn(prompt) if before else chat.template.first_turn(prompt))
        streamer.write(" [stopped]\n" if stopped else "\n")
        if stopped and not interactive:
            break
    return {"turns": turns, "tokens_written": chat.cache.get_seq_length() - asked, "seconds": seconds}


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
    add("--json_log", type=Path, help="append every turn to this file as well, as a line of JSON")
    add("--interactive", action="store_true", help="type the prompts in the terminal")
    return parser.parse_args()


def main():
    args = parse_args()
    model, tokenizer = load_model_and_tokenizer(args)
    streamer = open_streamer(args, tokenizer, folder="streaming_logs")
    prompts = typed_prompts() if args.interactive else read_prompts(args.dataset_name)
    chat, json_log = open_chat(args, model, tokenizer), JsonLog(args.json_log)
    json_log.write(describe_run(args))
    summary = stream_chat(chat, islice(prompts, args.num_turns), streamer, json_log, args.interactive)
    if chat.cache.get_seq_length():
        json_log.write(write_summary(streamer, chat.cache, **summary))


if __name__ == "__main__":
    main()
