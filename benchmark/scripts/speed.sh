#!/usr/bin/env bash
# This library, plain Transformers (dynamic cache; static cache compiled) and attention_sinks 0.4.0 on Transformers 4.34,
# in one run with alternating rounds, on a CPU. Nothing else should run meanwhile. Takes half an hour on 2 cores. The
# result goes to benchmark/outputs/speed/; another --output can be given.
#   PYTHON=python bash benchmark/scripts/speed.sh [arguments of speed.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
original=${ORIGINAL:-.venv-original}

# The environment of 0.4.0: Python 3.8 to 3.11, for which there are wheels of tokenizers 0.14.
if [ ! -x "$original/bin/python" ]; then
  "${ORIGINAL_PYTHON:-python3.11}" -m venv "$original"
  "$original/bin/python" -m pip install --quiet "$(grep '^torch==' constraints.txt)" "numpy<2" einops attention_sinks==0.4.0
fi

"$python" -m benchmark.speed.speed --shape smollm2-135m --device cpu --compiled --original "$original/bin/python" "$@"
