#!/usr/bin/env bash
# The pool of conversations on a CPU: its steps beside a plain loop, answers beside a reader, sessions that wake, and ten
# thousand joins and leaves. Nothing else should run meanwhile. Takes about 40 minutes on 2 cores. The results go to
# benchmark/outputs/speed/ or the folder OUTPUT.
#   PYTHON=python bash benchmark/scripts/pool.sh [arguments of pool_speed.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
output=${OUTPUT:-benchmark/outputs/speed}

"$python" -m benchmark.speed.pool_speed --compiled --output "$output/pool_smollm2-135m_cpu_float32.csv" "$@"
"$python" -m benchmark.speed.pool_joins --joins 10000 --output "$output/pool_joins.csv"
