#!/usr/bin/env bash
# Mistral 7B, with the lengths of the original's benchmark.
exec env NAME=mistral MODEL="${MODEL:-mistralai/Mistral-7B-v0.1}" SINK_TOKENS=16384 DENSE_TOKENS=14000 \
  bash "$(dirname "$0")/compare.sh" "$@"
