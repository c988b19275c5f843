#!/usr/bin/env bash
# Qwen 7B, with the lengths of the original's benchmark.
exec env NAME=qwen MODEL="${MODEL:-Qwen/Qwen-7B}" \
  bash "$(dirname "$0")/compare.sh" --trust_remote_code "$@"
