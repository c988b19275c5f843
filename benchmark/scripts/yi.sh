#!/usr/bin/env bash
# Yi 6B, with the lengths of the original's benchmark.
exec env NAME=yi MODEL="${MODEL:-01-ai/Yi-6B}" \
  bash "$(dirname "$0")/compare.sh" "$@"
