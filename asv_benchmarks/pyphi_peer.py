"""Phi by PyPhi 1.2, for iit3_table.py: runs in an environment of its own that has PyPhi, and uses nothing of it but its public functions.

    python asv_benchmarks/pyphi_peer.py < network.json

network.json: {"tpm": (2^n, n), "cm": (n, n), "state": (n,)}. One line of JSON goes to standard output: Phi, the cut as [from, to], the
concepts as [mechanism, phi], and the CPU seconds of network, subsystem and Phi in a process that has computed nothing else.
"""

import collections
import collections.abc
import json
import os
import sys
import time

os.environ["PYPHI_WELCOME_OFF"] = "yes"
for name in ("Iterable", "Sequence", "Mapping", "MutableMapping", "Hashable", "Callable", "Set", "Iterator"):
    setattr(collections, name, getattr(collections.abc, name))  # where PyPhi 1.2 imports them from, which Python 3.10 has ended

import numpy as np  # noqa: E402
import pyphi  # noqa: E402

pyphi.config.PRECISION = 12  # at 6, the default, sums of rounded numbers are off by more than 1e-6
pyphi.config.PROGRESS_BARS = False
pyphi.config.PARALLEL_CONCEPT_EVALUATION = False
pyphi.config.PARALLEL_CUT_EVALUATION = False

given = json.load(sys.stdin)
tpm, cm, state = np.array(given["tpm"]), np.array(given["cm"]), tuple(given["state"])
start = time.process_time()
network = pyphi.Network(tpm, cm=cm)
sia = pyphi.compute.sia(pyphi.Subsystem(network, state, range(len(state))))
seconds = time.process_time() - start
cut = [list(sia.cut.from_nodes), list(sia.cut.to_nodes)] if sia.ces else None
concepts = [[list(concept.mechanism), float(concept.phi)] for concept in sia.ces or ()]
print(json.dumps({"phi": float(sia.phi), "cut": cut, "concepts": concepts, "seconds": seconds}))
