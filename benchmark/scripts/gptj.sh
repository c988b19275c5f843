#!/usr/bin/env bash
# GPT-J 6B, with the lengths of the original's benchmark.
exec env NAME=gptj MODEL="${MODEL:-EleutherAI/gpt-j-6b}" \
  bash "$(dirname "$0")/compare.sh" "$@"
