#!/usr/bin/env bash
# benchmarks/first_gpu.sh OUT PEER_PYTHON [--small]
#
# The first ten minutes on a GPU: all figures that wait for one. Run it in a clone with the extra `cuda` installed.
#
#   OUT          folder for the results
#   PEER_PYTHON  interpreter with torch, transformers and trl for the same GPU
#   --small      the same with the smallest shapes and one turn, to try the script on a CPU
#
# Each part has a limit of time, 600 s in all, and what it printed before the limit stays.
#
#   kernels.txt     cuDNN's attention beside the reference, also of packed texts (needs the extra `dev`)
#   decode.jsonl    64 and 256 rows of Gemma 3 270M, 1B and 8B: tokens/s, the share of the measured bandwidth, transformers
#   dpo.jsonl       DPO steps of Gemma 3 270M and 1B: the share of the measured FLOP/s (MFU), TRL
#   round.jsonl     a whole round of Gemma 3 270M beside transformers and TRL
#   texts.txt       the responses of the toy run here and on the CPU, and where they first differ
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $# -ge 2 && $# -le 3 && ${3:---small} == --small ]] || { sed -n '2,8s/^# //p' "$0" >&2; exit 2; }
out=$1 peer=$2 small=${3:-}
mkdir -p "$out"
python=$([[ -x .venv/bin/python ]] && echo .venv/bin/python || command -v python3)
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}

# part SECONDS FILE COMMAND...: a part that fails or takes too long does not end the others.
part() {
  local limit=$1 file=$out/$2 code=0
  shift 2
  echo "$(date +%T) $*"
  timeout "$limit" "$@" >"$file" 2>"$file.log" || code=$?
  ((code == 0)) || echo "  ended with $code; its output is in $file and $file.log"
}

common=(--peer_python="$peer" --dtypes=bfloat16 --turns=3)
decode=(--shapes=gemma3_270m,1b,8b --batches=64,256) training=(--shapes=gemma3_270m,1b) round=(--shapes=gemma3_270m)
preset=iter2
if [[ $small ]]; then
  common=(--peer_python="$peer" --turns=1)
  decode=(--shapes=tiny --batches=2) training=(--shapes=tiny --steps=1 --pairs=2) round=(--shapes=tiny)
  preset=iter2:micro
fi
# The tests' own settings are for a CPU.
part 30 kernels.txt env XLA_FLAGS= JAX_PLATFORMS="${JAX_PLATFORMS:-}" "$python" -m pytest -v -n 0 -k test_cudnn tests/test_self_attention.py
part 90 texts.txt "$python" -m benchmarks.same_texts "$out/here" "$out/cpu" --config="$preset"
part 230 decode.jsonl "$python" -m benchmarks.sampling "${common[@]}" "${decode[@]}"
part 110 dpo.jsonl "$python" -m benchmarks.dpo_step "${common[@]}" "${training[@]}"
part 140 round.jsonl "$python" -m benchmarks.round "${common[@]}" "${round[@]}"
echo "$(date +%T) done: $out"
