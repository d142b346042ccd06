#!/usr/bin/env bash
# The records of docs/examples: attention forward and backward over N on the local GPU, and comparisons.
#   benchmarks/examples.sh FOLDER
set -u
folder=${1:?the folder to write records to}
peers=standard,flash,sdpa-flash,sdpa-cudnn
perfkit() { # name, command and options
  local name=$1
  shift
  python3 -m perfkit "$@" --json "$folder/$name.json" --force >"$folder/$name.txt" 2>>"$folder/errors.log" ||
    echo "$name failed" >&2
}
one() { # name, options
  local name=$1
  shift
  perfkit "$name" roofline "$@"
}
for pass in fwd bwd; do
  for seq in 2k 4k 8k 16k 32k 64k; do
    one "$pass-d64-$seq" --pass "$pass" --seq "$seq" --impl $peers
  done
  for seq in 4k 16k 64k; do
    one "$pass-d128-$seq" --pass "$pass" --seq "$seq" --head-dim 128 --impl $peers
    one "$pass-d128-$seq-causal" --pass "$pass" --seq "$seq" --head-dim 128 --causal --impl $peers
  done
done
one all-d64-16k --impl all
perfkit compare-d64 compare standard flash --seq 1k,2k,4k,8k,16k
perfkit compare-d128 compare standard flash sdpa-cudnn --seq 4k,16k,64k --head-dim 128
perfkit compare-gpt2-medium compare standard flash --batch 64 --seq 1k --pass fwd-bwd
mkdir -p "$folder/io"
perfkit io/law io --sweep --impl standard,flash1,flash,square --time-limit 0.3
for dim in 64 128; do
  perfkit io/dram-d$dim io --impl flash --heads 16 --head-dim $dim --time-limit 0.3 \
    --seq 2k,4k,8k,16k,32k,64k,96k,128k,192k,256k
done
perfkit io/fa1-fig2 reproduce fa1-fig2
