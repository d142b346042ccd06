#!/usr/bin/env bash
# The records of docs/examples/<device>/family: variants, decoding, pages, windows and masks on the local GPU.
#   benchmarks/family.sh FOLDER
set -u
folder=${1:?the folder to write records to}
mkdir -p "$folder"
perfkit() { # name, command and options
  local name=$1
  shift
  python3 -m perfkit "$@" --json "$folder/$name.json" --force >"$folder/$name.txt" 2>>"$folder/errors.log" ||
    echo "$name failed" >&2
}
short=(--no-energy --time-limit 0.4)
decode() { # name, batch, heads, K/V heads, keys
  local sizes=(--batch "$2" --heads "$3" --kv-heads "$4" --seq "$5" --head-dim 128)
  perfkit "decode-$1" compare flash-decode sdpa-flash sdpa-cudnn --op decode-attention "${sizes[@]}" "${short[@]}"
  perfkit "paged-$1" compare flash-decode paged-decode --op paged-decode-attention "${sizes[@]}" "${short[@]}"
}
decode 1-32 1 32 32 16k
decode 16-8 16 32 8 16k
decode 64-8 64 32 8 8k
decode 64-1 64 32 1 8k
perfkit decode-fp8 compare flash-decode gathered --op decode-attention --cache-dtype fp8 --batch 16 --like llama-3-8b \
  --seq 16k "${short[@]}"
perfkit map roofline --op decode-attention --impl flash-decode --like llama-3-8b --batch 1,4,16,64 \
  --seq 1k,4k,16k,64k "${short[@]}"
perfkit heads-prefill compare mha gqa mqa sdpa-cudnn --phase prefill --heads 32 --head-dim 128 --seq 8k "${short[@]}"
perfkit heads-decode compare mha gqa mqa --phase decode --heads 32 --head-dim 128 --batch 16 --seq 16k "${short[@]}"
perfkit heads-backward compare mha gqa mqa --phase prefill --heads 32 --head-dim 128 --seq 4k --pass bwd "${short[@]}"
for dim in 64 128; do
  perfkit "window-d$dim" compare full block-sparse flex --op sliding-window-attention --seq 64k --head-dim "$dim" \
    "${short[@]}"
done
perfkit patterns roofline --impl block-sparse,flex --seq 16k --head-dim 128 "${short[@]}" \
  --pattern window:4096,sinks:4+4092,longformer:2048+64,bigbird:3+2+3,packed:2048,prefix:4096,random:25%
perfkit patterns-backward roofline --impl block-sparse,flex --seq 16k --head-dim 128 --pass bwd "${short[@]}" \
  --pattern window:4096,longformer:2048+64,bigbird:3+2+3,packed:2048
perfkit dilated roofline --impl block-sparse --seq 16k --head-dim 128 --window 1024 --dilation 4 "${short[@]}"
