#!/usr/bin/env bash
# StableLM 3B 4e1t, with the lengths of the original's benchmark.
exec env NAME=stablelm_epoch MODEL="${MODEL:-stabilityai/stablelm-3b-4e1t}" \
  bash "$(dirname "$0")/compare.sh" "$@"
