#!/bin/sh
# One target for so many seconds, from its seeds; what it adds to them stays in BIN.
#   fuzz_target.sh TARGET SECONDS BIN
set -eu
target=$1 seconds=$2 bin=$3
mkdir -p "$bin/corpus/$target" "seeds/$target"
if "$bin/fuzz_$target" -max_total_time="$seconds" -timeout=20 -max_len=1024 -print_final_stats=1 -artifact_prefix="$bin/$target-" \
  "$bin/corpus/$target" "seeds/$target" > "$bin/$target.log" 2>&1; then
  echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$bin/$target.log") runs in $seconds s," \
    "$(sed -n 's/.*cov: \([0-9]*\) .*/\1/p' "$bin/$target.log" | tail -1) branches, nothing found"
else
  tail -40 "$bin/$target.log"
  echo "$target: FOUND, see $bin/$target.log"
  exit 1
fi
