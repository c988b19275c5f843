"""Contenders of benchmark/speed/speed.py that run in environments of their own: attention_sinks 0.4.0, and llama.cpp.

A contender starts this very file with the other environment's interpreter. That process makes a step for each line it
reads, and answers when the step is done. So this file imports nothing of the benchmarks, and runs on Python 3.8.
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path


class Elsewhere:
    """One step in the other process; the few microseconds of the pipe are part of it.

    Parameters
    ----------
    python : str
        The other interpreter.
    kind : str
        Which of `KINDS` runs there.
    **settings
        What that is given.
    """

    def __init__(self, python: str, kind: str, **settings):
        self.kind = kind
        # Isolated (-I), or a PYTHONPATH that names this repository would hide the package of the other environment.
        command = [python, "-I", str(Path(__file__).resolve()), kind, json.dumps(settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._await()

    def prepare(self) -> None:
        pass

    def step(self, token) -> None:
        print("step", file=self.process.stdin, flush=True)
        self._await()

    def _await(self) -> None:
        if self.process.stdout.readline() != "done\n":
            raise RuntimeError(f"{self.kind} stopped with exit code {self.process.wait()}.")


def step_original(config: dict, sinks: int, window: int, threads: int) -> None:
    """Make one step of the original package for each line on stdin.

    Parameters
    ----------
    config : dict
        What `LlamaConfig` is given.
    sinks, window : int
        Cached tokens.
    threads : int
        CPU threads of PyTorch.
    """
    import torch
    import transformers

    from attention_sinks import LlamaForCausalLM

    torch.set_num_threads(threads)
    sizes = {"attention_sink_size": sinks, "attention_sink_window_size": window}
    with tempfile.TemporaryDirectory() as folder:
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).save_pretrained(folder)
        model = LlamaForCausalLM.from_pretrained(folder, **sizes).eval()
    past, context = None, torch.randint(100, (1, 2 * (sinks + window)))
    with torch.inference_mode():
        for chunk in context.split(64, dim=1):
            past = model(chunk, past_key_values=past, use_cache=True).past_key_values
        for _ in answered(sys.stdin):
            past = model(context[:, :1], past_key_values=past, use_cache=True).past_key_values


def step_llama_cpp(model: str, cache: str, context: int, threads: int) -> None:
    """Make one step of llama.cpp for each line on stdin, each over a context of the same length.

    Parameters
    ----------
    model : str
        A GGUF file.
    cache : "float32" or "float16"
        The type of keys and values.
    context : int
        Cached tokens.
    threads : int
        CPU threads.
    """
    import llama_cpp

    kind = {"float32": llama_cpp.GGML_TYPE_F32, "float16": llama_cpp.GGML_TYPE_F16}[cache]
    llama = llama_cpp.Llama(
        model,
        n_ctx=context + 1,
        n_threads=threads,
        n_threads_batch=threads,
        type_k=kind,
        type_v=kind,
        verbose=False,
    )
    llama.eval([random.randrange(llama.n_vocab()) for _ in range(context)])
    for _ in answered(sys.stdin):
        llama.n_tokens = context  # the token of the step before is forgotten
        llama.eval([random.randrange(llama.n_vocab())])


KINDS = {"attention_sinks 0.4.0": step_original, "llama.cpp": step_llama_cpp}


def answered(lines):
    """`lines`, with an answer before the first and after each is dealt with."""
    print("done", flush=True)
    for line in lines:
        yield line
        print("done", flush=True)


if __name__ == "__main__":
    KINDS[sys.argv[1]](**json.loads(sys.argv[2]))
