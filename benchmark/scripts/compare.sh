#!/usr/bin/env bash
# Perplexity, memory and latency of one model with attention sinks, with plain Transformers and with a window, and their
# figure; the scripts beside this one say for which model and how far. A run that was broken off goes on where it ended.
#   MODEL=... NAME=... [SINK_TOKENS=8192] [DENSE_TOKENS=8192] [WINDOWED_TOKENS=8192] [WINDOW=1024] bash compare.sh [...]
# Also read: PYTHON, DATASET (default: a book of PG-19, from the Hub), CHUNK_SIZE (1 measures the latency of generation;
# 1024 gives the same NLL an order faster), OUTPUT. Further arguments go to perplexity.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
output=${OUTPUT:-benchmark/outputs/$NAME}

run() { # experiment tokens [further arguments]
  local experiment=$1 tokens=$2
  "$python" -m benchmark.quality.perplexity --experiment "$experiment" --model_name_or_path "$MODEL" --num_tokens "$tokens" \
    --window_size "${WINDOW:-1024}" --chunk_size "${CHUNK_SIZE:-1}" --output_dir "$output" --resume \
    ${DATASET:+--dataset_name "$DATASET"} "${@:3}"
}

run attention_sinks "${SINK_TOKENS:-8192}" "$@"
run transformers "${DENSE_TOKENS:-8192}" "$@"
run windowed "${WINDOWED_TOKENS:-8192}" "$@"

"$python" -m benchmark.quality.plot_perplexity --output_dir "$output" --features perplexity vram --log_perplexity_limit 4 \
  --title "$NAME" --output "$output/$NAME.png"
