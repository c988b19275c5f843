"""Let a model write on from a text for as long as you like, in constant memory and time per token.

The next token is sampled, reproducibly by --seed. (The first version of this demo used contrastive search, which is no
longer part of Transformers itself.) No end is allowed before --min_new_tokens; Ctrl-C stops. The text is also appended
to demo/endless_logs/<experiment>/<model>.txt.
"""

import argparse
import time

from attention_sinks.chat.interrupts import interrupts_held_back
from attention_sinks.versions import CACHE
from utils import (
    StopWhen,
    add_common_arguments,
    load_model_and_tokenizer,
    open_streamer,
    sampling_settings,
    write_summary,
)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, window_size=512, temperature=0.8)
    add = parser.add_argument
    add("--text", default="Vaswani et al. (2017) introduced the Transformers", help="default: %(default)s")
    add("--min_new_tokens", type=int, default=1000, help="default: %(default)s")
    add("--max_new_tokens", type=int, default=10000, help="default: %(default)s")
    return parser.parse_args()


def main():
    args = parse_args()
    model, tokenizer = load_model_and_tokenizer(args)
    streamer = open_streamer(args, tokenizer, folder="endless_logs")
    inputs = tokenizer(args.text, return_tensors="pt").to(model.device)

    streamer.write(f"\n{args.text}")
    start, output = time.perf_counter(), None
    try:
        with interrupts_held_back() as interrupted:
            output = model.generate(
                **inputs,
                min_new_tokens=args.min_new_tokens,
                max_new_tokens=args.max_new_tokens,
                streamer=streamer,
                stopping_criteria=[StopWhen(interrupted)],
                return_dict_in_generate=True,
                **sampling_settings(args),
            )
    except KeyboardInterrupt:
        if output is None:  # pressed twice: `generate` was broken off in the middle of a token
            raise
    seconds = time.perf_counter() - start
    tokens_written = output.sequences.shape[1] - inputs.input_ids.shape[1]
    write_summary(streamer, output[CACHE], tokens_written, seconds)


if __name__ == "__main__":
    main()
