#!/usr/bin/env bash
# Pythia 6.9B, with the lengths of the original's benchmark.
exec env NAME=pythia MODEL="${MODEL:-EleutherAI/pythia-6.9b}" \
  bash "$(dirname "$0")/compare.sh" "$@"
