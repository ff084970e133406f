#!/bin/sh
# The Python tests with extension modules that the address and undefined-behaviour sanitizers watch, built in a directory of their own:
#   tests/sanitized.sh [DIRECTORY] [pytest arguments]          build/sanitized, and the whole suite but for the slow ones
# Leaks are not looked for: the interpreter itself keeps memory. 
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
where=${1:-$root/build/sanitized}
[ $# -gt 0 ] && shift
mkdir -p "$where"
cd "$root"
tar cf - --exclude='*.so' --exclude='csrc/*/bin' --exclude='__pycache__' \
  setup.py pyproject.toml README.md CONTRIBUTING.md CHANGELOG.md Makefile docs sona csrc tests asv_benchmarks | tar xf - -C "$where"
cd "$where"
SONA_CFLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all" \
  SONA_LDFLAGS="-fsanitize=address,undefined" python setup.py --quiet build_clib build_ext --inplace
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=0 PYTHONMALLOC=malloc
LD_PRELOAD="$(cc -print-file-name=libasan.so) $(cc -print-file-name=libubsan.so) $(cc -print-file-name=libstdc++.so.6)" \
  python -m pytest -p no:cacheprovider -s -m "not slow" "$@" \
  --ignore=tests/test_c_suite.py --ignore=tests/test_libsona.py --ignore=tests/test_proofs.py --ignore=tests/test_package.py \
  --deselect=tests/test_faults.py::test_a_python_process_without_memory_gets_a_memory_error_and_goes_on # limits addresses, of which ASan takes all
