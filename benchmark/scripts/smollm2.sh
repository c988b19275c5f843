#!/usr/bin/env bash
# Makes the README's figure: SmolLM2-135M over the first 16,384 tokens of Python's own documentation.
# Needs no GPU and no model hub; takes some minutes on 2 cores. Results: benchmark/outputs_smollm2/.
#   PYTHON=python bash benchmark/scripts/smollm2.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
model=${MODEL:-models/SmolLM2-135M-Instruct}
output=${OUTPUT:-benchmark/outputs_smollm2}
tokens=${TOKENS:-16384}

[ -d "$model" ] || "$python" demo/fetch_model.py

for experiment in attention_sinks windowed transformers; do
  "$python" benchmark/perplexity.py --experiment "$experiment" --model_name_or_path "$model" \
    --dataset_name python-docs --num_tokens "$tokens" --window_size 1024 --attention_sink_size 4 \
    --device cpu --dtype float32 --chunk_size 512 --report_every 16 --output_dir "$output" --overwrite
done

"$python" benchmark/plot_perplexity.py --output_dir "$output" --features nll cache --average 1024 \
  --title "SmolLM2-135M reading Python's documentation, cache of 1,024 tokens" \
  --mark "1024=window" "8192=trained length" --output "$output/smollm2.png"
