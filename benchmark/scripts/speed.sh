#!/usr/bin/env bash
# This library, plain Transformers (dynamic cache; static cache compiled), attention_sinks 0.4.0 on Transformers 4.34, and
# llama.cpp with the same weights, in one run with alternating rounds, on a CPU. Nothing else should run meanwhile. Takes
# half an hour on 2 cores, and once as long to compile llama.cpp, which needs a C++ compiler. The result goes to benchmark/outputs/speed/; another --output can be given.
#   PYTHON=python bash benchmark/scripts/speed.sh [arguments of speed.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
original=${ORIGINAL:-.venv-original}
llama_cpp=${LLAMA_CPP:-.venv-llama-cpp}

# The environment of 0.4.0: Python 3.8 to 3.11, for which there are wheels of tokenizers 0.14.
if [ ! -x "$original/bin/python" ]; then
  "${ORIGINAL_PYTHON:-python3.11}" -m venv "$original"
  "$original/bin/python" -m pip install --quiet "$(grep '^torch==' constraints.txt)" "numpy<2" einops attention_sinks==0.4.0
fi

if [ ! -x "$llama_cpp/bin/python" ]; then
  "$python" -m venv "$llama_cpp"
  "$llama_cpp/bin/python" -m pip install --quiet llama-cpp-python
fi

"$python" -m benchmark.speed.speed --shape smollm2-135m --device cpu --compiled --original "$original/bin/python" \
  --llama_cpp "$llama_cpp/bin/python" "$@"
