#!/usr/bin/env bash
# A gate for CI: make a record, hold it against a baseline, and write what people and machines read.
#
# Exits with the code of `perfkit gate`: 0 fine, 1 regression or wrong result, 2 usage, 3 environment, 4 a
# measurement that cannot be true. What can be set, with its default:
#
#   PERFKIT   how perfkit is started                        perfkit
#   BASELINE  the record to hold against                    baseline.json beside this script
#   MEASURE   the perfkit command that makes a record       compare standard flash --seq 1k,4k,16k
#   DEVICE    device profile to model; empty: the local GPU a100-80gb-sxm
#   GATE      options of `perfkit gate`, such as --strict   none
#   OUT       folder for the files                          perfkit-gate
#
# Files in OUT: current.json, report.html, gate.md, gate.xml (JUnit). In a GitHub workflow gate.md also goes
# to the summary of the step.
set -uo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# Commands and options are several words each.
read -ra perfkit <<<"${PERFKIT:-perfkit}"
read -ra measure <<<"${MEASURE:-compare standard flash --seq 1k,4k,16k}"
read -ra gate <<<"${GATE:-}"
baseline=${BASELINE:-$here/baseline.json}
device=${DEVICE-a100-80gb-sxm}
out=${OUT:-perfkit-gate}

mkdir -p -- "$out" || exit 2
rm -f -- "$out"/{current.json,report.html,gate.md,gate.xml}

# 1 and 4 say that a run is wrong or cannot be true: the record says which, and the gate judges it.
"${perfkit[@]}" "${measure[@]}" ${device:+--device "$device"} --json "$out/current.json"
measured=$?
if [[ ! -f $out/current.json || ! $measured =~ ^[014]$ ]]; then
  exit $((measured ? measured : 1))
fi

echo
"${perfkit[@]}" gate "$baseline" "$out/current.json" ${gate[@]+"${gate[@]}"} \
  --md "$out/gate.md" --junit "$out/gate.xml"
gated=$?
if [[ -n ${GITHUB_STEP_SUMMARY:-} && -f $out/gate.md ]]; then
  cat -- "$out/gate.md" >>"$GITHUB_STEP_SUMMARY"
fi

# Last, so that a report that cannot be made (nothing in common) hides no verdict.
"${perfkit[@]}" report "$out/current.json" --baseline "$baseline" --html "$out/report.html"
reported=$?
exit $((gated ? gated : reported))
