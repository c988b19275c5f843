"""attention_sinks 0.4.0 on Transformers 4.34 as a contender of benchmark/speed/speed.py, in an environment of its own.

The contender starts this very file with the other environment's interpreter. That process makes a step for each line it
reads, and answers when the step is done. So this file imports nothing of the benchmarks, and runs on Python 3.8.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


class Original:
    """One step of the original package, in the other process; the few microseconds of the pipe are part of it."""

    def __init__(self, python: str, config: dict, sinks: int, window: int, threads: int):
        settings = json.dumps({"config": config, "sinks": sinks, "window": window, "threads": threads})
        # Isolated (-I), or a PYTHONPATH that names this repository would hide the package of the other environment.
        command = [python, "-I", str(Path(__file__).resolve()), settings]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._await()

    def prepare(self) -> None:
        pass

    def step(self, token) -> None:
        print("step", file=self.process.stdin, flush=True)
        self._await()

    def _await(self) -> None:
        if self.process.stdout.readline() != "done\n":
            raise RuntimeError(f"attention_sinks 0.4.0 stopped with exit code {self.process.wait()}.")


def serve(config: dict, sinks: int, window: int, threads: int) -> None:
    """Make one step of the original package for each line on stdin; runs in the other environment.

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


def answered(lines):
    """`lines`, with an answer before the first and after each is dealt with."""
    print("done", flush=True)
    for line in lines:
        yield line
        print("done", flush=True)


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
