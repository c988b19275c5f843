#!/usr/bin/env bash
# Llama 2 7B, with the lengths of the original's benchmark.
exec env NAME=llama MODEL="${MODEL:-meta-llama/Llama-2-7b-hf}" DENSE_TOKENS=7000 WINDOWED_TOKENS=2000 \
  bash "$(dirname "$0")/compare.sh" "$@"
