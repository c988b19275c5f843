#!/usr/bin/env bash
# MPT 7B, with the lengths of the original's benchmark.
exec env NAME=mpt MODEL="${MODEL:-mosaicml/mpt-7b}" DENSE_TOKENS=2048 WINDOWED_TOKENS=4000 \
  bash "$(dirname "$0")/compare.sh" "$@"
