#!/usr/bin/env bash
# Steps and long calls on one CUDA GPU in bfloat16: three shapes with random weights, two windows, batches of 1 and 8,
# eager and compiled, with a cache in each dtype, beside plain Transformers and the rate of the memory. Needs this
# repository, PyTorch, accelerate and Transformers 5.17 or newer, but no network. Results go to
# benchmark/outputs/gpu_<name>/ (OUTPUT), a CSV each. A CSV that is there is not made again.
#   PYTHON=python bash benchmark/scripts/gpu.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-python3}
name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "_").lower())')
output=${OUTPUT:-benchmark/outputs/gpu_$name}

for shape in smollm2-135m llama-3.2-1b llama-2-7b; do
  for window in 1024 4092; do
    for batch in 1 8; do
      csv=$output/${shape}_${window}_batch${batch}.csv
      calls=(); [ "$batch" = 1 ] && calls=(4096 32768)
      [ -e "$csv" ] || "$python" -m benchmark.speed.speed --shape "$shape" --device cuda --dtype bfloat16 --compiled \
        --cache_dtypes int8 int8-int4 --window_size "$window" --batch_size "$batch" --calls "${calls[@]}" --output "$csv"
    done
  done
done
