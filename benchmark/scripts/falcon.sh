#!/usr/bin/env bash
# Falcon 7B, with the lengths of the original's benchmark.
exec env NAME=falcon MODEL="${MODEL:-tiiuae/falcon-7b}" DENSE_TOKENS=5000 \
  bash "$(dirname "$0")/compare.sh" "$@"
