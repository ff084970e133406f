# cython: boundscheck=False, wraparound=False
"""Rewarded decisions as columns: out of a policy's memory, through its instant step again, and scored by it; nothing is made per row."""

cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy

from sona._c cimport (
    SONA_OK,
    sona_decision, sona_instant_inputs, sona_instant_set_inputs, sona_outcome, sona_pending_get, sona_policy_get_state, sona_policy_knew,
    sona_policy_learn, sona_policy_route, sona_policy_rows, sona_policy_set_state, sona_policy_state, sona_policy_version, sona_record,
    sona_record_candidates, sona_status, sona_step,
)
from sona._status cimport check
from sona.loops._policy cimport Policy

import numpy as np

cnp.import_array()


def remembered(Policy policy not None, Py_ssize_t limit, uint64_t since=0):
    """
    The newest `limit` rewarded decisions of this process with an id of at least `since` that its policy still remembers, oldest first.

    Returns
    -------
    tuple
        ids (n,) uint64, x (n, dim) float32, arm (n,) int32 row numbers, reward (n,) float32, own (n,) bool, propensity (n,) float32,
        start (n + 1,) int64 and candidates int32: those of row i are candidates[start[i] : start[i + 1]], none where all of today's arms
        were. Decisions are left out whose arm is gone; so are candidates that are.
    """
    cdef sona_record *record
    cdef const int32_t *rows
    cdef uint64_t id = policy.next_id
    cdef uint64_t oldest = max(since, policy.first_id, policy.next_id - min(<uint64_t> policy.capacity, policy.next_id))
    cdef uint64_t version
    cdef list found = []
    while id > oldest and len(found) < limit:
        id -= 1
        record = sona_pending_get(policy.pending, id)
        if record != NULL and record.learned and sona_policy_knew(policy.handle, record.decision.arm, record.decision.version):
            found.append(id)
    found.reverse()
    cdef Py_ssize_t n = len(found), i = 0
    cdef int32_t k
    cdef cnp.ndarray ids = np.empty(n, dtype=np.uint64), x = np.empty((n, policy.dim), dtype=np.float32)
    cdef uint64_t[::1] id_of = ids
    cdef float *to = <float *> cnp.PyArray_DATA(x)
    cdef int32_t[::1] arm = np.empty(n, dtype=np.int32)
    cdef float[::1] reward = np.empty(n, dtype=np.float32), propensity = np.empty(n, dtype=np.float32)
    cdef unsigned char[::1] own = np.empty(n, dtype=np.uint8)
    cdef int64_t[::1] start = np.zeros(n + 1, dtype=np.int64)
    cdef list candidates = []
    version = sona_policy_version(policy.handle)
    for id in found:  # nothing from here on lets another thread in; what was allocated may have, and some are forgotten since
        record = sona_pending_get(policy.pending, id)
        if record == NULL or not record.learned or not sona_policy_knew(policy.handle, record.decision.arm, record.decision.version):
            continue
        id_of[i] = id
        memcpy(to + i * policy.dim, record.x, policy.dim * sizeof(float))
        arm[i], own[i] = record.decision.arm, record.decision.own
        reward[i], propensity[i] = record.outcome.reward, record.decision.propensity
        rows = sona_record_candidates(record)
        if rows != NULL or record.decision.version != version:
            for k in range(<int32_t> (record.count if rows != NULL else sona_policy_rows(policy.handle))):
                if sona_policy_knew(policy.handle, rows[k] if rows != NULL else k, record.decision.version):
                    candidates.append(rows[k] if rows != NULL else k)
        i += 1
        start[i] = len(candidates)
    return (ids[:i], x[:i], np.asarray(arm)[:i], np.asarray(reward)[:i], np.asarray(own).view(np.bool_)[:i], np.asarray(propensity)[:i],
            np.asarray(start)[:i + 1], np.array(candidates, dtype=np.int32))


def learn_rows(Policy policy not None, const float[:, ::1] x, const int32_t[::1] arm, const float[::1] reward, const float[::1] weight,
               const int64_t[::1] start, const int32_t[::1] candidates, const int64_t[::1] order):
    """
    One instant step for each row of `order`, of the size `weight` times the policy's `off_policy_step`, with everything but the adapter
    held still: calibration, mean input, trust and the guard stay as they are. Columns as `remembered` returns them, unchecked; releases
    the GIL, so nobody else may know the policy.
    """
    cdef sona_policy_state state = sona_policy_get_state(policy.handle)
    cdef sona_decision decision
    cdef sona_outcome outcome
    cdef sona_step step
    cdef sona_status status = SONA_OK
    cdef Py_ssize_t i
    cdef int64_t row = 0, count
    decision.own, decision.agreed, decision.trial, decision.rival, decision.partner, decision.propensity = 0, 1, 0, 0, 0, 1
    decision.chance[0], decision.chance[1], decision.chance[2] = 1, 1, 1
    decision.version = sona_policy_version(policy.handle)
    cdef double inputs = 0, square = 0
    cdef const float *now = sona_instant_inputs(policy.instant.handle, &inputs, &square)
    cdef float[::1] mean = np.empty(policy.dim, dtype=np.float32)
    memcpy(&mean[0], now, policy.dim * sizeof(float))
    with nogil:
        for i in range(order.shape[0]):
            row = order[i]
            decision.arm, count = arm[row], start[row + 1] - start[row]
            status = sona_policy_learn(policy.handle, &x[row, 0], &candidates[start[row]] if count else NULL, count, &decision,
                                       reward[row], weight[row], &outcome, &step)
            sona_policy_set_state(policy.handle, state)
            sona_instant_set_inputs(policy.instant.handle, &mean[0], inputs, square)
            if status:
                break
    check(status, f"replay of row {row}")


def score_rows(Policy policy not None, const float[:, ::1] x, const int32_t[::1] arm, const int64_t[::1] start,
               const int32_t[::1] candidates):
    """
    What the policy makes of each row: (probability (n,) float32 of the shown arm, choice (n,) int32, its own arm). As `learn_rows`.
    """
    cdef Py_ssize_t n = x.shape[0], i = 0
    cdef int64_t count, k
    cdef float[::1] found = np.zeros(n, dtype=np.float32), pi = np.empty(sona_policy_rows(policy.handle) + 1, dtype=np.float32)
    cdef int32_t[::1] choice = np.empty(n, dtype=np.int32)
    cdef sona_decision decision
    cdef sona_status status = SONA_OK
    with nogil:
        for i in range(n):
            count = start[i + 1] - start[i]
            status = sona_policy_route(policy.handle, &x[i, 0], &candidates[start[i]] if count else NULL, count, &pi[0], &decision)
            if status:
                break
            choice[i] = decision.arm
            if not count:
                found[i] = pi[arm[i]]
            for k in range(count):
                if candidates[start[i] + k] == arm[i]:
                    found[i] = pi[k]
    check(status, f"scores of row {i}")
    return np.asarray(found), np.asarray(choice)
