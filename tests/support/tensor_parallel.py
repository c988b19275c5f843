"""What one of several processes does that share a model: `torchrun --nproc-per-node 2 tensor_parallel.py MODEL OUTPUT`.

The first process writes to OUTPUT what streaming, generating and chatting gave; `test_distribution.py` compares.
"""

import sys
import tempfile

import torch
import torch.distributed
from transformers.distributed import DistributedConfig

from attention_sinks import AttentionSinkKVCache, AutoModelForCausalLM, AutoTokenizer, StreamingChat
from support.helpers import random_ids, stream

S, W = 4, 12
CALLS = [20, 1, 1, 18, 1, 29]
PADDED = torch.ones(2, 25, dtype=torch.long)
PADDED[1, :10] = 0


def everything(model, tokenizer):
    """Results of one model, to be the same however many processes share it."""
    logits, cache = stream(model, random_ids(2, sum(CALLS)), CALLS, AttentionSinkKVCache(model))
    with tempfile.TemporaryDirectory() as folder:  # each process has a file of its own
        cache.save(f"{folder}/cache")
        loaded = AttentionSinkKVCache.load(f"{folder}/cache", model)
    chat = StreamingChat(model, tokenizer, system="w1 w2 w3 w4 w5 w6")
    chat.generation_config.max_new_tokens = 8
    return {
        "logits": logits,
        "logits_of_loaded": stream(model, random_ids(2, 9, seed=1), [1, 8], loaded)[0],
        "tokens_seen": cache.tokens_seen,
        "local_heads": torch.tensor(cache.layers[0].keys.shape[1]),
        "generated": model.generate(
            random_ids(2, 25), attention_mask=PADDED, max_new_tokens=20, do_sample=False, pad_token_id=0
        ),
        "said": ["".join(chat.send(text)) for text in ("w1 w2", "w3", "w4")],
    }


def main(folder, output):
    sizes = {"attention_sink_size": S, "attention_sink_window_size": W}
    model = AutoModelForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_plan="auto"), **sizes)
    results = everything(model, AutoTokenizer.from_pretrained(folder))
    if torch.distributed.get_rank() == 0:
        torch.save(results, output)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
