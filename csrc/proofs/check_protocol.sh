#!/bin/sh
# Every interleaving of a Promela model, then of each of its broken twins: " *   -DNAME" in its first comment, which has to fail.
#   check_protocol.sh MODEL.pml [-DNAME=VALUE ...]
set -eu
model=$(realpath "$1")
name=$(basename "$model" .pml)
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
status=0
for twin in AS_IT_IS $(sed -n 's/^ \*   -D\([A-Z_0-9]*\) .*/\1/p' "$model"); do
  spin "-D$twin" "$@" -a "$model" > log 2>&1 && gcc -O1 -w -DSAFETY -DCOLLAPSE -o pan pan.c > log 2>&1 && ./pan -m1000000 > log 2>&1 || {
    cat log
    exit 2
  }
  errors=$(sed -n 's/.*errors: \([0-9]*\)$/\1/p' log)
  states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored$/\1/p' log)
  why=$(sed -n 's/^pan:[0-9]*: \(.*\) (at depth.*/\1/p' log)
  if grep -q 'max search depth too small\|out of memory' log; then
    echo "$name $twin: NOT SEARCHED to the end"
    status=1
  elif [ "$twin" = AS_IT_IS ]; then
    if [ "$errors" = 0 ]; then
      echo "$name: $states states, nothing found"
    else
      echo "$name: $why"
      spin -p -g -k "$name.pml.trail" "$model" 2> /dev/null | tail -40
      status=1
    fi
  elif [ "$errors" = 0 ]; then
    echo "$name $twin: NOTHING FOUND in $states states"
    status=1
  else
    echo "$name $twin: $why"
  fi
done
exit $status
