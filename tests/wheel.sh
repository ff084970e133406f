#!/bin/sh
# Runs the quick tests of what is compiled and stored against the sona that is installed, not the tree:
#   PYTHON=venv/bin/python tests/wheel.sh          needs pytest and hypothesis beside it
set -eu
unset PYTHONPATH
python=${PYTHON:-python}
cd "$(dirname "$0")"
"$python" -c 'import pathlib, sona; tree = pathlib.Path(sona.__file__).parents[1]; assert not (tree / "setup.py").exists(), tree; print(tree)'
"$python" -m pytest -p no:cacheprovider -m "not slow" -k "not postgres" "$@" \
  test_kernels.py test_adapters.py test_instant.py test_policy.py test_router.py test_engine.py test_ring.py test_trajectory.py \
  test_walk.py test_phi.py test_store_sqlite.py
"$python" -c 'from sona.cli import main; raise SystemExit(main(["doctor"]))'
