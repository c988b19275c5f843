"""Chat with a model over one endless stream: every turn goes on where the last one ended, in the same cache.

By default prompts are read from a data set, one after the other, far beyond the size of the cache; with --interactive
they are typed in the terminal (Ctrl-C stops an answer, Ctrl-D or `exit` leaves). Answers are greedy unless
--temperature is given. The text is also appended to demo/streaming_logs/<experiment>/<model>.txt, and with --json_log
the turns to a file of JSON lines, which benchmark/quality/fluency.py reads.
"""

import argparse
import json
import time
from itertools import islice
from pathlib import Path

from transformers import DynamicCache, GenerationConfig

from attention_sinks import StreamingChat
from attention_sinks.command.terminal import ReadingBar, show_answer
from attention_sinks.command.typed import json_object
from prompts import DEFAULT_PROMPTS, read_prompts, typed_prompts
from tools import TOOLS, result_of
from utils import (
    JsonLog,
    add_common_arguments,
    cache_settings,
    describe_run,
    load_model_and_tokenizer,
    open_streamer,
    sampling_settings,
    write_summary,
)

MOST_ROUNDS = 8
"""So often in a turn the model may call tools."""


class PlainChat(StreamingChat):
    """The same chat on plain Transformers, for comparison: nothing is forgotten and the cache grows."""

    def make_cache(self, sink_size):
        return DynamicCache()


def open_chat(args, model, tokenizer):
    """Open the chat that the options describe, or go on with the one that --autosave has saved."""
    plain = args.experiment == "transformers"
    if plain and args.autosave:
        raise SystemExit("--autosave: a chat that keeps every token cannot be saved; choose another --experiment.")
    kept = {"autosave": args.autosave, "compile": args.compile}
    settings = GenerationConfig(max_new_tokens=args.max_new_tokens, **sampling_settings(args))
    try:
        if args.autosave and args.autosave.exists():
            chat = StreamingChat.load(args.autosave, model, tokenizer, generation_config=settings, **kept)
            check_resumed(args, chat)
            return chat
        return (PlainChat if plain else StreamingChat)(
            model,
            tokenizer,
            system=args.system,
            generation_config=settings,
            # The cache keeps what --experiment and the sizes say, unless somebody wants a system prompt.
            pin_system_prompt=args.system is not None and args.experiment == "attention_sinks",
            chat_template_kwargs=args.chat_template_kwargs,
            tools=TOOLS if args.tools else None,
            thoughts=args.thoughts or "keep",
            **kept,
        )
    except (OSError, TypeError, ValueError) as error:
        hint = "" if tokenizer.chat_template else " (demo/endless_generation.py needs no chat template.)"
        raise SystemExit(f"{error}{hint}") from error


def check_resumed(args, chat):
    """Refuse options that are not those of the saved chat, which has its own."""
    saved = {
        "system": chat.template.system,
        "chat_template_kwargs": chat.template.options,
        "thoughts": chat.thoughts,
        "tools": chat.template.tools is not None or None,
    }
    for name, value in saved.items():
        if (given := getattr(args, name)) is not None and given != value:
            raise SystemExit(
                f"--{name} {given} is not what the chat in {args.autosave} was begun with, {value}; leave it out, or "
                "name another file."
            )
    window = cache_settings(args)["attention_sink_window_size"]
    if window != chat.cache.settings.window_size:
        size = args.window_size - window + chat.cache.settings.window_size
        raise SystemExit(f"--window_size {args.window_size}: the chat in {args.autosave} has another; pass {size}.")


def run_tools(calls, streamer):
    """Run the calls of an answer and show them; returns the results as messages."""
    results = [result_of(call) for call in calls]
    for call, result in zip(calls, results, strict=True):
        function = call["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        streamer.write(f"(calls {function['name']} {arguments}: {result['content']})\n", dim=True)
    return results


def take_turn(chat, prompt, streamer, answers):
    """Answer `prompt`. While an answer calls tools, their results are sent. Each answer is added to `answers`."""
    message = prompt
    for _ in range(MOST_ROUNDS):
        bar = ReadingBar()
        answers.append(chat.send(message, on_progress=bar))
        show_answer(answers[-1], bar, streamer.write, "\nAssistant: ")
        if not answers[-1].tool_calls:
            return
        message = run_tools(answers[-1].tool_calls, streamer)


def turn_entry(prompt, answers, stopped):
    """Return what the JSON log says of a turn."""
    entry = {"prompt": prompt, "answer": "\n".join(filter(None, (answer.text for answer in answers)))}
    thoughts = "\n".join(filter(None, (answer.thoughts for answer in answers)))
    calls = [call["function"] for answer in answers for call in answer.tool_calls]
    found = {"thoughts": thoughts, "tool_calls": calls, "stopped": stopped}
    return entry | {name: value for name, value in found.items() if value}


def stream_chat(chat, prompts, streamer, json_log, interactive):
    """Answer all `prompts` in one stream; an interrupt ends it, unless the user types the prompts.

    Returns
    -------
    dict
        What `write_summary` shows: turns, tokens written, the seconds that took, and the turns still in the window.
    """
    turns, tokens_written, seconds = 0, 0, 0.0
    for prompt in prompts:
        streamer.write(f"\nUser: {prompt}\n", show=not interactive)
        start, stopped, answers = time.perf_counter(), False, []
        try:
            take_turn(chat, prompt, streamer, answers)
        except KeyboardInterrupt:
            stopped = True
            chat.stop()
        seconds += time.perf_counter() - start
        turns += 1
        tokens_written += sum(answer.usage.tokens_written for answer in answers)
        json_log.write(turn_entry(prompt, answers, stopped))
        streamer.write(" [stopped]\n" if stopped else "\n")
        if stopped and not interactive:
            break
    figures = {"turns": turns, "tokens_written": tokens_written, "seconds": seconds}
    return {**figures, "turns_in_window": chat.turns_in_window}


def keywords(text):
    """Return the dict that JSON text holds, the value of an option."""
    try:
        return json_object("--chat_template_kwargs ", text)
    except ValueError as error:
        raise SystemExit(str(error)) from error


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
    add("--system", help="system prompt, which the chat never forgets; default: what the chat template has")
    add("--chat_template_kwargs", type=keywords, help="JSON, such as '{\"enable_thinking\": false}'")
    add("--thoughts", choices=("keep", "forget"), help="whether thoughts stay in the stream, default: keep")
    add("--tools", action="store_true", default=None, help="let the model call a calculator and a clock")
    add("--autosave", type=Path, help="save the chat to this file after every turn; go on with it if it exists")
    add("--compile", action="store_true", help="compile the steps of single tokens: a minute or two, then faster")
    return parser.parse_args()


def main():
    args = parse_args()
    model, tokenizer = load_model_and_tokenizer(args)
    prompts = typed_prompts() if args.interactive else read_prompts(args.dataset_name)
    chat = open_chat(args, model, tokenizer)
    streamer, json_log = open_streamer(args, tokenizer, folder="streaming_logs"), JsonLog(args.json_log)
    if args.system and args.experiment == "attention_sinks":
        streamer.write(f"# the system prompt is pinned: {chat.cache.settings.sink_size} sinks\n")
    if chat.cache.get_seq_length():
        streamer.write(f"# goes on with {args.autosave}, {chat.cache.get_seq_length():,} tokens long\n")
    json_log.write(describe_run(args))
    summary = stream_chat(chat, islice(prompts, args.num_turns), streamer, json_log, args.interactive)
    if chat.cache.get_seq_length():
        json_log.write(write_summary(streamer, chat.cache, **summary))


if __name__ == "__main__":
    main()
