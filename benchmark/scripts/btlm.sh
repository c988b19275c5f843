#!/usr/bin/env bash
# BTLM 3B 8k, with the lengths of the original's benchmark.
exec env NAME=btlm MODEL="${MODEL:-cerebras/btlm-3b-8k-base}" SINK_TOKENS=16384 DENSE_TOKENS=16384 \
  WINDOWED_TOKENS=16384 WINDOW=2048 bash "$(dirname "$0")/compare.sh" --trust_remote_code "$@"
