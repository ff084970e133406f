"""Arms, decisions and their outcomes, over sona/policy.h and sona/pending.h."""

cimport numpy as cnp
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.math cimport INFINITY, NAN, isfinite, isnan, sqrt
from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from sona._arrays cimport sona_is_input
from sona._c cimport *
from sona._status cimport check
from sona.adapters._lora cimport Adapter, rows_of
from sona.loops._instant cimport Instant

import json

import numpy as np

from sona._arrays import coerce
from sona._fields import whole
from sona.errors import SonaTypeError, SonaValueError

cnp.import_array()

RIVAL_LEAST = SONA_RIVAL_LEAST  # see sona/policy.h

_EXPLORE = {"greedy": SONA_GREEDY, "thompson": SONA_THOMPSON, "softmax": SONA_SOFTMAX}
_MODELS = {"current": SONA_CURRENT, "frozen": SONA_FROZEN, "anchor": SONA_ANCHOR}


cdef class Decision:
    """
    One routed request.

    Attributes
    ----------
    id : int
        What feedback is joined by; unique over processes and restarts that share a store.
    arm : object
        Name of the served arm.
    index : int
        Its row number.
    scores : array of shape (candidates,)
        The learner's probability pi of each candidate, in their order.
    candidates : tuple
        Names that were open to choice.
    propensity : float
        Probability with which this arm was served; NaN where that is not known (Thompson sampling with costs).
    """

    @property
    def scores(self):
        if self.positions is None:
            return self.probability
        return self.probability[self.positions]

    def __repr__(self):
        return f"Decision(id={self.id}, arm={self.arm!r}, propensity={self.propensity:.4g})"


cdef double now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_REALTIME, &t)
    return t.tv_sec + 1e-9 * t.tv_nsec


cdef enum:
    TIMED = 15  # a call is timed where its number ends in four zero bits: two looks at the clock are a hundredth of a short one
    TIMES = 31


cdef uint64_t nanoseconds() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t> t.tv_sec * 1000000000 + <uint64_t> t.tv_nsec


cdef void took(sona_times *times, uint64_t began) noexcept nogil:
    cdef uint64_t spent = nanoseconds() - began
    cdef int n = 0
    while n < TIMES - 1 and spent >> n:
        n += 1
    times.count[n] += 1
    times.seconds += 1e-9 * <double> spent


cdef dict histogram(const sona_times *times):
    """What `Policy.latency` says of one of them."""
    cdef list buckets = []
    cdef uint64_t total = 0
    cdef int n
    for n in range(TIMES):
        total += times.count[n]
        if 7 < n < TIMES - 1:  # from 256 ns to 0.54 s
            buckets.append([1e-9 * (1 << n), total])
    return {"count": total, "seconds": times.seconds, "buckets": buckets}


cdef class Policy:
    """
    Softmax policy over arm vectors seen through an adapter, with a guard and a bounded memory of decisions.

    Parameters
    ----------
    adapter : Adapter
    instant : Instant
    tau : float
        Temperature of the softmax over cosine scores.
    explore : {"greedy", "thompson", "softmax"}
    guard : bool
        Serve the frozen model or an older copy where they have been better.
    pending : int
        Decisions that are remembered for their feedback.
    log_bytes : int
        Size of the ring that carries decisions to a store; 0 for none.
    first_id : int
        Id of the next decision.

    Thread-safety
    -------------
    Methods hold the GIL and are atomic with respect to each other.
    """

    def __cinit__(self, Adapter adapter not None, Instant instant not None, *, double tau=0.1, explore="greedy", bint guard=True,
                  double thompson_scale=0.1, double off_policy_step=0.3, Py_ssize_t anchor_every=500, double odds=2,
                  pending=8192, Py_ssize_t log_bytes=0, seed=0, first_id=1):
        cdef sona_policy_options options
        cdef sona_ring_options ring
        if explore not in _EXPLORE:
            raise SonaValueError(f"explore: expected one of {', '.join(_EXPLORE)}, got {explore!r}")
        pending, seed = whole(pending, "pending"), whole(seed, "seed")
        if not 1 <= pending <= 1 << 62 or log_bytes < 0 or anchor_every < 0:
            raise SonaValueError(f"policy: expected pending in [1, 2**62], log_bytes and anchor_every >= 0, got {pending}, {log_bytes}, "
                                 f"{anchor_every}")
        if instant.dim != adapter.dim:
            raise SonaValueError(f"instant: expected dim {adapter.dim}, got {instant.dim}")
        self.adapter, self.instant, self.dim, self.kernels = adapter, instant, adapter.dim, adapter.kernels
        options.dim, options.tau, options.thompson_scale, options.off_policy_step = adapter.dim, tau, thompson_scale, off_policy_step
        options.anchor_every, options.seed = anchor_every, <uint64_t> (seed & 0xFFFFFFFFFFFFFFFF)
        options.explore, options.guard, options.odds, options.kernels = _EXPLORE[explore], guard, odds, adapter.kernels
        check(sona_policy_create(&options, adapter.handle, instant.handle, &self.handle),
              f"policy with tau={tau}, thompson_scale={thompson_scale}, off_policy_step={off_policy_step}, odds={odds}")
        check(sona_pending_create(pending, adapter.dim, 0, &self.pending), f"memory of {pending} decisions")
        if log_bytes:
            ring.capacity = 1 << (log_bytes - 1).bit_length()
            ring.max_records, ring.first, ring.own_producer = 0, 0, 0
            check(sona_ring_create(&ring, &self.log), f"ring of {log_bytes} bytes")
        self.unit = <float *> sona_calloc(adapter.dim, sizeof(float))
        if self.unit == NULL:
            raise MemoryError("policy: out of memory")
        self.names, self.rows, self.arms, self.positions = [], {}, (), None
        self.next_id = self.first_id = first_id
        self.last_surprise = NAN
        self.tau, self.explore, self.guarded, self.capacity = tau, explore, guard, 1 << (pending - 1).bit_length()
        self.off_policy_step = <float> off_policy_step

    def __dealloc__(self):
        sona_policy_destroy(self.handle)
        sona_pending_destroy(self.pending)
        sona_ring_destroy(self.log)
        sona_free(self.unit)

    # ---- arms ----

    def add_arm(self, name, vector, double cost=0.0):
        """Open an arm to choice; vector (dim) is used as it is. Returns its row."""
        cdef int32_t row = 0
        if name is None or name in self.rows:
            raise SonaValueError(f"arm {name!r}: expected a new name, got {'None' if name is None else 'one that is already there'}")
        array = coerce(vector, (self.dim,), f"arm {name!r}")
        check(sona_policy_add_arm(self.handle, <const float *> cnp.PyArray_DATA(array), <float> cost, &row),
              f"arm {name!r} with cost={cost}")
        if row == len(self.names):
            self.names.append(name)
        else:
            self.names[row] = name
        self.rows[name] = row
        self._list_arms()
        for peer in (self.rival, self.partner):
            if peer is not None:
                (<Policy> peer)._name_arms(self)
        return row

    def remove_arm(self, name):
        """Close an arm. Feedback for its earlier decisions is answered with False."""
        row = self.row(name)
        check(sona_policy_remove_arm(self.handle, row), f"arm {name!r}")
        del self.rows[name]
        self.names[row] = None
        self._list_arms()
        for peer in (self.rival, self.partner):
            if peer is not None:
                (<Policy> peer)._name_arms(self)

    def take_arms(self, Policy source not None):
        """The same arms in the same rows, with their history, in the place of all that were there."""
        check(sona_policy_take_arms(self.handle, source.handle), f"arms of a policy of dim {self.dim}")
        self._name_arms(source)

    def _name_arms(self, Policy source):
        self.names, self.rows = list(source.names), dict(source.rows)
        self._list_arms()

    def _list_arms(self):
        live = [row for row, name in enumerate(self.names) if name is not None]
        self.arms = tuple(self.names[row] for row in live)
        self.positions = None if len(live) == len(self.names) else np.array(live, dtype=np.intp)

    def row(self, name):
        """Row number of an arm."""
        try:
            return self.rows[name]
        except (KeyError, TypeError):
            raise SonaValueError(f"arm: expected one of {self._some_arms()}, got {name!r}") from None

    def _some_arms(self):
        shown = ", ".join(repr(a) for a in self.arms[:8])
        return shown + (f", ... ({len(self.arms)} arms)" if len(self.arms) > 8 else "")

    def names_by_row(self):
        """Names by row number, None for removed arms."""
        return tuple(self.names)

    def vectors(self):
        """Arm vectors in the order of `arms`, (arms, dim)."""
        cdef cnp.ndarray result = np.empty((len(self.arms), self.dim), dtype=np.float32)
        for i, name in enumerate(self.arms):
            memcpy(<float *> cnp.PyArray_DATA(result) + <Py_ssize_t> i * self.dim,
                   sona_policy_vector(self.handle, self.rows[name]), self.dim * sizeof(float))
        return result

    def costs(self):
        """Costs in the order of `arms`, (arms,)."""
        return np.array([sona_policy_cost(self.handle, self.rows[name]) for name in self.arms], dtype=np.float32)

    @property
    def version(self):
        """Counts changes of the arms."""
        return sona_policy_version(self.handle)

    # ---- requests ----

    cdef const float *_unit(self, object x) except NULL:
        """x / |x| in the policy's own buffer; the zero vector stays zero."""
        if not (cnp.PyArray_CheckExact(x) and sona_is_input(x, 1) and cnp.PyArray_DIM(x, 0) == self.dim):
            try:
                x = coerce(x, (self.dim,), "x")
            except (SonaValueError, SonaTypeError):
                self.rejected += 1
                raise
        cdef const float *data = <const float *> cnp.PyArray_DATA(x)
        cdef double square = self.kernels.dot(data, data, self.dim)
        cdef float largest = 0
        cdef Py_ssize_t i
        if not (isfinite(square) and square > 1e-30):  # NaN, infinity, zero, or a norm whose square leaves float32
            for i in range(self.dim):
                if not isfinite(data[i]):
                    self.rejected += 1
                    raise SonaValueError(f"x: expected finite numbers, got {data[i]} at position {i}")
                largest = max(largest, abs(data[i]))
            for i in range(self.dim):
                self.unit[i] = data[i] / largest if largest > 0 else 0
            square = self.kernels.dot(self.unit, self.unit, self.dim)
            for i in range(self.dim):
                self.unit[i] *= <float> (1 / sqrt(square)) if square > 0 else 0
            return self.unit
        if 0.999999 < square < 1.000001:
            memcpy(self.unit, data, self.dim * sizeof(float))
        else:
            memset(self.unit, 0, self.dim * sizeof(float))
            self.kernels.axpy(<float> (1 / sqrt(square)), data, self.unit, self.dim)
        return self.unit

    cdef object _candidates(self, object candidates):
        """Row numbers of the named arms, int32."""
        if isinstance(candidates, (str, bytes)):
            raise SonaTypeError(f"candidates: expected a sequence of arms, got {candidates!r}")
        names = tuple(candidates)
        if not names:
            raise SonaValueError("candidates: expected at least one arm, got none")
        if len(set(names)) != len(names):
            raise SonaValueError(f"candidates: expected each arm once, got {names}")
        return names, np.array([self.row(name) for name in names], dtype=np.int32)

    cdef Decision _route(self, const float *x, object names, object rows, const sona_evidence *evidence):
        cdef Decision d = Decision.__new__(Decision)
        cdef sona_decision decision
        cdef const int32_t *indices = NULL
        cdef Py_ssize_t count = 0
        cdef cnp.npy_intp width
        if rows is not None:
            indices = <const int32_t *> cnp.PyArray_DATA(<cnp.ndarray> rows)
            count = cnp.PyArray_DIM(<cnp.ndarray> rows, 0)
        width = count if indices != NULL else sona_policy_rows(self.handle)
        d.probability = cnp.PyArray_EMPTY(1, &width, cnp.NPY_FLOAT32, 0)
        cdef sona_status status = sona_policy_route_beside(self.handle, evidence, x, indices, count,
                                                           <float *> cnp.PyArray_DATA(d.probability), &decision)
        if status:
            check(status, f"route over {len(self.arms)} arms")
        cdef sona_record *record = sona_pending_put(self.pending, self.next_id, count)
        if record == NULL:
            raise SonaValueError(f"candidates: expected fewer than the memory of decisions holds, got {count}")
        record.time = now()
        record.decision = decision
        memcpy(record.x, x, self.dim * sizeof(float))
        if count:
            memcpy(sona_record_candidates(record), indices, count * sizeof(int32_t))
        if self.log != NULL:
            sona_ring_push(self.log, record, record.size)  # full: counted by the ring, the decision stays in memory
        d.id = self.next_id
        self.next_id += 1
        d.index = decision.arm
        d.arm = self.names[decision.arm]
        d.propensity = decision.propensity
        d.candidates = self.arms if rows is None else names
        d.positions = self.positions if rows is None else None
        return d

    def route(self, x, candidates=None):
        """Choose an arm for x (dim); candidates are names, None for all arms. Returns a Decision."""
        cdef uint64_t began = 0 if self.next_id & TIMED else nanoseconds()
        cdef Decision decision
        if candidates is None:
            decision = self._route(self._unit(x), None, None, NULL)
        else:
            names, rows = self._candidates(candidates)
            decision = self._route(self._unit(x), names, rows, NULL)
        if began:
            took(&self.routed, began)
        return decision

    def route_beside(self, x, earned, seen, float prior, candidates=None):
        """
        `route`, asking similar decisions too: earned and seen (rows,) are what they earned and how similar they are, by row.

        Arms that have come since the sums were made leave them aside.
        """
        cdef sona_evidence evidence
        cdef const sona_evidence *told = NULL
        cdef cnp.ndarray sums = coerce(earned, (None,), "earned"), weights = coerce(seen, (len(sums),), "seen")
        evidence.earned, evidence.seen = <const float *> cnp.PyArray_DATA(sums), <const float *> cnp.PyArray_DATA(weights)
        evidence.prior = prior
        if not 0 < prior < INFINITY:
            raise SonaValueError(f"prior: expected a positive finite number, got {prior}")
        names, rows = (None, None) if candidates is None else self._candidates(candidates)
        if len(sums) >= len(self.names):
            told = &evidence
        return self._route(self._unit(x), names, rows, told)

    @property
    def enabled(self):
        """False: requests are answered by the frozen model and nothing is learned."""
        return bool(sona_policy_enabled(self.handle))

    @enabled.setter
    def enabled(self, bint value):
        sona_policy_set_enabled(self.handle, value)

    def route_batch(self, x):
        """One Decision per row of x (n, dim): the same as n calls of `route`."""
        try:
            x = coerce(x, (None, self.dim), "x")
        except (SonaValueError, SonaTypeError):
            self.rejected += 1
            raise
        return [self._route(self._unit(row), None, None, NULL) for row in x]

    def predict(self, x, model="current", candidates=None):
        """Row number of the first choice per row of x (n, dim), int64: no exploration, record or learning."""
        cdef int32_t arm = 0
        cdef const int32_t *indices = NULL
        cdef Py_ssize_t count = 0
        cdef cnp.ndarray rows
        if candidates is not None:
            rows = self._candidates(candidates)[1]
            indices, count = <const int32_t *> cnp.PyArray_DATA(rows), len(rows)
        if model not in _MODELS:
            raise SonaValueError(f"model: expected one of {', '.join(_MODELS)}, got {model!r}")
        x = coerce(x, (None, self.dim), "x")
        cdef sona_model which = _MODELS[model]
        result = np.empty(len(x), dtype=np.int64)
        for i, row in enumerate(x):
            check(sona_policy_best(self.handle, which, self._unit(row), indices, count, &arm), f"predict over {len(self.arms)} arms")
            result[i] = arm
        return result

    def explain(self, x):
        """What each tier adds to the score of each arm: name -> {frozen, base, micro, bias, cost, score}."""
        cdef Py_ssize_t n = sona_policy_rows(self.handle)
        cdef cnp.ndarray parts = np.empty((4, n), dtype=np.float32)
        cdef float *to = <float *> cnp.PyArray_DATA(parts)
        sona_policy_explain(self.handle, self._unit(x), to, to + n, to + 2 * n, to + 3 * n)
        result = {}
        for name in self.arms:
            row = self.rows[name]
            frozen, base, micro, bias = (float(v) for v in parts[:, row])
            result[name] = {"frozen": frozen, "base": base, "micro": micro, "bias": bias,
                            "cost": sona_policy_cost(self.handle, row), "score": frozen + base + micro + bias}
        return result

    def explain_decision(self, id):
        """`explain` for the x of a remembered decision."""
        cdef sona_record *record = sona_pending_get(self.pending, id)
        if record == NULL:
            raise SonaValueError(f"decision: expected one that is still remembered, got id {id}")
        return self.explain(rows_of(record.x, 1, self.dim, self.dim)[0])

    # ---- outcomes ----

    def score(self, uint64_t id, double reward):
        """
        How much more a reward in [0, 1] is than was to be expected of its decision at today's weights, or than the reward that was learned
        before; nothing is learned. None when the id is unknown or expired, its arm is gone, or this very reward is already learned.
        """
        cdef sona_record *record = sona_pending_get(self.pending, id)
        cdef float expected = 0
        if record == NULL or not 0 <= reward <= 1 or (record.learned and <float> reward == record.outcome.reward):
            return None
        cdef sona_status status = sona_policy_expect(self.handle, record.x, sona_record_candidates(record), record.count,
                                                     &record.decision, &expected)
        if status == SONA_EINVAL:
            return None
        check(status, f"score of decision {id}")
        return reward - (record.outcome.reward if record.learned else expected)

    def learn(self, uint64_t id, double reward, double weight=1.0, source=None):
        """
        The reward in [0, 1] of a remembered decision: the first one is learned from, a later one replaces it. source: who reported it.

        weight in (0, 1] scales the step and what the guard makes of it; a later reward keeps the weight of the first one.

        Returns False, and counts, when the id is unknown or expired or its arm is gone.
        """
        cdef sona_record *record = sona_pending_get(self.pending, id)
        cdef sona_step step
        cdef sona_status status
        cdef uint64_t began = 0 if self.learned & TIMED else nanoseconds()
        cdef bint own
        if record == NULL:
            self.unknown += 1
            return False
        if not 0 <= reward <= 1:  # NaN too
            self.rejected += 1
            raise SonaValueError(f"reward: expected a number in [0, 1], got {reward}")
        if not 0 < weight <= 1:
            raise SonaValueError(f"weight: expected a number in (0, 1], got {weight}")
        if not sona_policy_alive(self.handle, record.decision.arm):
            self.unknown += 1
            return False
        cdef bint again = record.learned and <float> reward == record.outcome.reward
        if record.learned:
            if isnan(record.outcome.probability):  # nobody remembers what the first one counted for
                record.outcome.weight = min(record.outcome.weight, <float> weight * (1 if record.decision.own else self.off_policy_step))
            status = sona_policy_revise(self.handle, record.x, sona_record_candidates(record), record.count, &record.decision,
                                        <float> reward, &record.outcome, &step)
        else:
            status = sona_policy_learn(self.handle, record.x, sona_record_candidates(record), record.count, &record.decision,
                                       <float> reward, <float> weight, &record.outcome, &step)
        if status == SONA_EINVAL:
            self.unknown += 1
            return False
        if status:
            check(status, f"feedback {reward} for decision {record.id}")
        if record.learned:
            self.revised += not again
        else:
            self.learned += 1
            self.surprise += 0.02 * (step.surprise - self.surprise)
            self.last_surprise = step.surprise
            if self.rehearser is not None:
                sona_rehearse(&self.rehearsal, self.pending, self.handle, max(self.first_id, self.since), self.next_id - 1)
            record.learned = 1
            own = record.decision.own
            if self.judge is not None and record.decision.trial == self.trial:
                self._judge(&record.decision, reward, source)  # lets other threads in, whose requests may take the record's place
            if own and self.watch is not None and self.watch.add(id, step.surprise) < 0:
                self.on_alarm()
        if began:
            took(&self.taught, began)
        return True

    def doubt(self, double share):
        """
        Multiply the correction and trust by share, in (0, 1]: without costs no first choice changes, but all become less certain.

        Earlier outcomes can no longer be taken back exactly; see `sona.Router.feedback`.
        """
        if not 0 < share <= 1:
            raise SonaValueError(f"share: expected a number in (0, 1], got {share}")
        cdef sona_policy_state s
        adapter = self.adapter
        adapter.assign(adapter.down, adapter.up * np.float32(share), adapter.offset, adapter.info()["base"])
        s = sona_policy_get_state(self.handle)
        s.trust.value *= share
        sona_policy_set_state(self.handle, s)

    def learn_logged(self, x, name, double reward, candidates=None):
        """Learn from a decision of another policy: x (dim), the arm it showed and its reward in [0, 1]."""
        cdef int32_t best = 0
        cdef cnp.ndarray rows = None if candidates is None else self._candidates(candidates)[1]
        cdef const int32_t *indices = NULL
        cdef Py_ssize_t count = 0 if rows is None else len(rows)
        cdef sona_decision decision
        cdef sona_outcome outcome
        cdef sona_step step
        if rows is not None:
            indices = <const int32_t *> cnp.PyArray_DATA(rows)
        decision.arm = self.row(name)
        if rows is not None and decision.arm not in rows:
            raise SonaValueError(f"arm: expected one of the candidates, got {name!r}")
        if not 0 <= reward <= 1:
            self.rejected += 1
            raise SonaValueError(f"reward: expected a number in [0, 1], got {reward}")
        cdef const float *unit = self._unit(x)
        check(sona_policy_best(self.handle, SONA_CURRENT, unit, indices, count, &best), f"logged decision over {len(self.arms)} arms")
        decision.own, decision.agreed, decision.propensity, decision.version = best == decision.arm, 1, 1, self.version
        decision.trial = decision.rival = decision.partner = 0
        if self.partner is not None:
            check(sona_policy_best(self.partner.handle, SONA_CURRENT, unit, indices, count, &best), "logged decision for the partner")
            decision.partner = best == decision.arm
        decision.chance[0], decision.chance[1], decision.chance[2] = 1, 1, 1
        check(sona_policy_learn(self.handle, unit, indices, count, &decision, <float> reward, 1, &outcome, &step),
              f"logged reward {reward} for arm {name!r}")
        self.learned += 1

    def count_unknown(self):
        """Feedback for a decision that nobody remembers."""
        self.unknown += 1

    def count_rejected(self):
        """A request that cannot be answered."""
        self.rejected += 1

    def knows(self, uint64_t id):
        """Whether the decision is still remembered."""
        return sona_pending_get(self.pending, id) != NULL

    def shown(self, uint64_t id):
        """(x (dim,), row) of a decision that is still remembered and whose arm is there, else None."""
        cdef sona_record *record = sona_pending_get(self.pending, id)
        if record == NULL or not sona_policy_knew(self.handle, record.decision.arm, record.decision.version):
            return None
        return rows_of(record.x, 1, self.dim, self.dim)[0], record.decision.arm

    def recall(self, id, x, row, propensity, *, candidates=None, chance=(1.0, 0.0, 0.0), own=True, agreed=False, trial=0, rival=0,
               partner=0, reward=None):
        """
        Remember a decision that was made elsewhere (another process, before a restart, a log), so that `learn` finds it.

        x (dim), row of the served arm, candidates as row numbers or None; propensity, chance, own, agreed, trial, rival and partner as
        `drain` returned them;
        reward in [0, 1] when one is already learned.
        """
        cdef const float *unit = self._unit(x)
        cdef cnp.ndarray rows = None if candidates is None else np.ascontiguousarray(candidates, dtype=np.int32)
        cdef Py_ssize_t count = 0 if candidates is None else len(rows)
        if not sona_policy_alive(self.handle, row):
            raise SonaValueError(f"arm: expected a row that holds an arm, got {row}")
        cdef sona_record *record = sona_pending_put(self.pending, id, count)
        if record == NULL:
            raise SonaValueError(f"candidates: expected fewer than the memory of decisions holds, got {count}")
        record.time = now()
        record.decision.arm, record.decision.propensity = row, propensity
        record.decision.chance[0], record.decision.chance[1], record.decision.chance[2] = chance[0], chance[1], chance[2]
        record.decision.own, record.decision.agreed, record.decision.version = own, agreed, sona_policy_version(self.handle)
        record.decision.trial, record.decision.rival, record.decision.partner = trial, rival, partner
        if reward is not None:  # its row is long folded in: generation 0 is no generation
            record.learned, record.outcome.reward, record.outcome.weight = 1, reward, 1 if own else self.off_policy_step
            record.outcome.probability = NAN
        memcpy(record.x, unit, self.dim * sizeof(float))
        if count:
            memcpy(sona_record_candidates(record), cnp.PyArray_DATA(rows), count * sizeof(int32_t))

    def recorded(self, uint64_t id):
        """
        What `recall` takes of a remembered decision, by name, with the reward that is learned or None; None when the id is unknown or
        expired or its arm is gone.
        """
        cdef sona_record *record = sona_pending_get(self.pending, id)
        cdef const int32_t *rows
        cdef int32_t k
        if record == NULL or not sona_policy_knew(self.handle, record.decision.arm, record.decision.version):
            return None
        # What is allocated from here on may let other threads in, whose requests take the record's place.
        cdef bytes kept = PyBytes_FromStringAndSize(<char *> record, record.size)
        record = <sona_record *> <char *> kept
        rows = sona_record_candidates(record)
        candidates = None
        if rows != NULL or record.decision.version != self.version:
            candidates = []
            for k in range(<int32_t> (record.count if rows != NULL else sona_policy_rows(self.handle))):
                if sona_policy_knew(self.handle, rows[k] if rows != NULL else k, record.decision.version):
                    candidates.append(rows[k] if rows != NULL else k)
        return {
            "x": rows_of(record.x, 1, self.dim, self.dim)[0].copy(), "row": record.decision.arm,
            "propensity": record.decision.propensity, "candidates": candidates,
            "chance": (record.decision.chance[0], record.decision.chance[1], record.decision.chance[2]),
            "own": bool(record.decision.own), "agreed": bool(record.decision.agreed),
            "reward": record.outcome.reward if record.learned else None,
        }

    def settle(self, uint64_t id, reward):
        """A remembered decision counts as learned with that reward, or with None as not learned; the weights stay as they are."""
        cdef sona_record *record = sona_pending_get(self.pending, id)
        if record == NULL:
            return
        record.learned = reward is not None
        if reward is not None:
            record.outcome.reward, record.outcome.generation, record.outcome.probability = reward, 0, NAN
            record.outcome.trust = record.outcome.doubt = 0
            if not record.outcome.weight > 0:  # its first reward counted for nothing, and does now
                record.outcome.weight = 1 if record.decision.own else self.off_policy_step

    def forget_decisions(self):
        """Remember no decision; those in a store can be recalled."""
        cdef sona_pending *fresh = NULL
        check(sona_pending_create(self.capacity, self.dim, 0, &fresh), f"memory of {self.capacity} decisions")
        sona_pending_destroy(self.pending)
        self.pending = fresh

    def drain(self):
        """
        Decisions since the last call, oldest first, for a store: tuples (id, time, x bytes, row, arm version, candidate bytes or None,
        propensity, chance (3,), own, agreed, trial, rival, partner).
        """
        cdef size_t size = 0
        cdef const sona_record *record
        cdef list result = []
        while self.log != NULL:
            record = <const sona_record *> sona_ring_peek(self.log, &size)
            if record == NULL:
                break
            result.append((
                record.id, record.time, PyBytes_FromStringAndSize(<const char *> record.x, self.dim * sizeof(float)),
                record.decision.arm, record.decision.version,
                PyBytes_FromStringAndSize(<const char *> sona_record_candidates(<sona_record *> record), record.count * sizeof(int32_t))
                if record.count else None,
                record.decision.propensity,
                (record.decision.chance[0], record.decision.chance[1], record.decision.chance[2]),
                bool(record.decision.own), bool(record.decision.agreed), record.decision.trial, record.decision.rival,
                record.decision.partner,
            ))
            sona_ring_release(self.log)
        return result

    # ---- a pool ----

    def join(self, Policy partner not None):
        """
        Form a pool with a partner, a policy over an adapter and an instant step of its own: both learn every reward, and the arm with the
        largest mixed forecast is served. See sona/policy.h.
        """
        check(sona_policy_set_partner(self.handle, partner.handle), "pool of a greedy policy and another one with the same arms")
        self.partner = partner

    def rehearse(self, Instant step not None, Py_ssize_t rows, Py_ssize_t window, double strength):
        """With each reward from now on, learn `rows` of the `window` newest decisions again by a step of the identity: sona/rehearse.h."""
        if step.dim != self.dim or step.precondition != "identity":
            raise SonaValueError(f"step: expected one of the identity for dim {self.dim}, got {step.precondition} for {step.dim}")
        if rows < 1 or window < 1 or not 0 < strength <= 1:
            raise SonaValueError(f"rehearse: expected rows and window >= 1 and strength in (0, 1], got {rows}, {window} and {strength}")
        self.rehearser = step
        self.rehearsal.step, self.rehearsal.rows, self.rehearsal.window = step.handle, rows, window
        self.rehearsal.strength = <float> strength

    @property
    def own_share(self):
        """Weight of this policy's own forecast in a pool; 1 without a partner."""
        return sona_policy_own_share(self.handle)

    # ---- another learner on trial ----

    def contest(self, Policy rival not None, double share, int trial, judge):
        """
        Put a rival on trial: a policy over an adapter and an instant step of its own, which learns every reward that this one learns.

        Where the first choices of the two differ, the rival's arm is served with the share in (0, 1) of the learner's probability. For
        each first reward of a decision that counts, `judge.record(played, reward, source, propensity)` is called: played is "both",
        "candidate", "incumbent" or "other" (the guard served a third arm); reward less the cost of the arm.

        trial, 1 to 255, tells decisions of one trial from those of another.
        """
        if not 0 < trial < 256:
            raise SonaValueError(f"trial: expected 1 to 255, got {trial}")
        if self.explore != "greedy":
            raise SonaValueError(f"trial: expected a greedy policy, got explore={self.explore!r}")
        check(sona_policy_set_rival(self.handle, rival.handle, <float> share, trial),
              f"trial with share={share} of a policy with the same arms and without a partner")
        self.rival, self.judge, self.trial = rival, judge, trial

    def end_contest(self):
        """The rival is asked and taught no more."""
        sona_policy_set_rival(self.handle, NULL, 0, 0)
        self.rival, self.judge, self.trial = None, None, 0

    def adopt(self, Policy other not None):
        """Believe what another policy with the same arms believes of their rates and of the frozen model; nothing else changes."""
        cdef sona_policy_state s = sona_policy_get_state(self.handle)
        cdef double rewarded = 0, shown = 0
        cdef uint64_t choices = 0
        s.trust = sona_policy_get_state(other.handle).trust
        sona_policy_set_state(self.handle, s)
        for row in self.rows.values():
            sona_policy_get_calibration(other.handle, row, &rewarded, &shown, &choices)
            sona_policy_set_calibration(self.handle, row, rewarded, shown, choices)

    cdef int _judge(self, const sona_decision *d, double reward, object source) except -1:
        played = "both"
        if d.rival & SONA_RIVAL_DIFFERS:
            played = "candidate" if d.rival & SONA_RIVAL_CHOICE else "incumbent" if d.own else "other"
        self.judge.record(played, reward - sona_policy_cost(self.handle, d.arm), source, d.propensity)
        return 0

    # ---- state ----

    @property
    def unrecorded(self):
        """Decisions that did not fit into the ring to the store."""
        return sona_ring_dropped(self.log) if self.log != NULL else 0

    @property
    def requests(self):
        """Decisions so far."""
        return sona_policy_get_state(self.handle).requests

    @requests.setter
    def requests(self, uint64_t value):
        cdef sona_policy_state s = sona_policy_get_state(self.handle)
        s.requests = value
        sona_policy_set_state(self.handle, s)

    @property
    def latency(self):
        """
        What every 16th `route` and `learn` of this process took: {"route" | "learn": {count, seconds in all, buckets}}, where buckets are
        [upper bound in s, how many took at most that], in powers of 2.
        """
        return {"route": histogram(&self.routed), "learn": histogram(&self.taught)}

    @property
    def guard_weights(self):
        """Probability of (current, frozen, anchor) where they disagree."""
        cdef sona_policy_state s = sona_policy_get_state(self.handle)
        cdef double w[3]
        sona_guard_weights(&s.guard, w)
        return {"current": w[0], "frozen": w[1], "anchor": w[2]}

    @property
    def trust(self):
        """How far the frozen model's scores count, in [0.05, 1]; see sona/trust.h."""
        return sona_policy_get_state(self.handle).trust.value

    @property
    def bytes(self):
        """Bytes of arms, projections and older copies; without the adapter, the instant step and the pending decisions."""
        return sona_policy_bytes(self.handle)

    @property
    def pending_bytes(self):
        return sona_pending_bytes(self.pending)

    def state(self):
        """Arrays that `restore` takes: the guard, trust, the random stream, the older copies. Arms and adapter are kept by their owners."""
        cdef sona_policy_state s = sona_policy_get_state(self.handle)
        cdef sona_lora w
        cdef double rewarded = 0, shown = 0
        cdef uint64_t choices = 0
        arrays = {
            "guard": np.array([s.guard.log_weight[0], s.guard.log_weight[1], s.guard.log_weight[2], s.guard.rewards, s.guard.outcomes,
                               s.guard.updates, s.guard.models], dtype=np.float64),
            "trust": np.array([s.trust.value, s.trust.variance, s.trust.barren, s.trust.patience]),
            "random": np.array([s.random[0], s.random[1], s.random[2], s.random[3]], dtype=np.uint64),
            "requests": np.array([s.requests, s.refreshed], dtype=np.uint64),
            "surprise": np.array([self.surprise], dtype=np.float64),
        }
        if self.partner is not None:
            arrays["loss"] = np.array([s.loss[0], s.loss[1]])
        if self.rehearser is not None:
            arrays["rehearsal"] = np.array([self.rehearsal.random], dtype=np.uint64)
        calibration = np.empty((len(self.arms), 3), dtype=np.float64)
        for i, name in enumerate(self.arms):
            sona_policy_get_calibration(self.handle, self.rows[name], &rewarded, &shown, &choices)
            calibration[i] = rewarded, shown, choices
        arrays["arm_calibration"] = calibration
        arrays["arm_names"] = np.frombuffer(json.dumps([str(name) for name in self.arms]).encode(), dtype=np.uint8)
        for which in range(2):
            w = sona_policy_copy(self.handle, which)
            arrays[f"copy{which}.down"] = rows_of(w.down, w.rank, w.ld, w.dim)
            arrays[f"copy{which}.up"] = rows_of(w.up, w.rank, w.ld, w.dim)
            arrays[f"copy{which}.offset"] = rows_of(w.offset, 1, w.rank, w.rank)[0]
        return arrays

    def restore(self, arrays):
        """Put back what `state` returned."""
        cdef sona_policy_state s = sona_policy_get_state(self.handle)
        guard = np.asarray(arrays["guard"], dtype=np.float64)
        trust = np.asarray(arrays.get("trust", (1, s.trust.variance, -1, s.trust.patience)), dtype=np.float64)  # absent: from before trust
        random = np.asarray(arrays["random"], dtype=np.uint64)
        requests = np.asarray(arrays["requests"], dtype=np.uint64)
        sound = guard.shape == (7,) and np.isfinite(guard).all() and guard[6] in (2, 3)
        sound &= trust.shape == (4,) and 0 < trust[0] <= 1 and 0 < trust[1] < np.inf and trust[2] >= -1 and trust[3] >= 1
        if not sound or random.shape != (4,) or not random.any() or requests.shape != (2,):
            raise SonaValueError("policy state: expected guard (7,), trust (4,), random (4,) and requests (2,), got something else")
        copies = []
        for which in range(2):
            rows = len(arrays[f"copy{which}.down"])
            if rows:
                copies.append((which, rows, coerce(arrays[f"copy{which}.down"], (rows, self.dim), "down"),
                               coerce(arrays[f"copy{which}.up"], (rows, self.dim), "up"),
                               coerce(arrays[f"copy{which}.offset"], (rows,), "offset")))
        rates = np.asarray(arrays["arm_calibration"], dtype=np.float64)
        kept = json.loads(np.asarray(arrays["arm_names"], dtype=np.uint8).tobytes())
        if rates.shape != (len(kept), 3) or not np.isfinite(rates).all() or (rates < 0).any():
            raise SonaValueError(f"policy state: expected finite calibration of shape ({len(kept)}, 3), got shape {rates.shape}")
        today = {str(name): self.rows[name] for name in self.arms}
        for name, (rewarded, shown, choices) in zip(kept, rates):
            if name in today:
                sona_policy_set_calibration(self.handle, today[name], rewarded, shown, int(choices))
        for which in range(2):  # one that is not there now is not to stay
            check(sona_policy_set_copy(self.handle, which, NULL, NULL, self.dim, NULL, 0), "copy of no rows")
        for which, rows, down, up, offset in copies:
            check(sona_policy_set_copy(self.handle, which, <const float *> cnp.PyArray_DATA(down), <const float *> cnp.PyArray_DATA(up),
                                       self.dim, <const float *> cnp.PyArray_DATA(offset), rows), f"copy of {rows} rows")
        s.guard.log_weight[0], s.guard.log_weight[1], s.guard.log_weight[2] = guard[0], guard[1], guard[2]
        s.guard.rewards, s.guard.outcomes, s.guard.updates, s.guard.models = guard[3], guard[4], int(guard[5]), int(guard[6])
        s.trust.value, s.trust.variance, s.trust.barren, s.trust.patience = trust[0], trust[1], int(trust[2]), int(trust[3])
        s.random[0], s.random[1], s.random[2], s.random[3] = random[0], random[1], random[2], random[3]
        s.requests, s.refreshed = requests[0], requests[1]
        if self.partner is not None:
            loss = np.asarray(arrays.get("loss", (0, 0)), dtype=np.float64)
            if loss.shape != (2,) or not np.isfinite(loss).all():
                raise SonaValueError(f"policy state: expected two finite losses, got {loss}")
            s.loss[0], s.loss[1] = loss[0], loss[1]
        if self.rehearser is not None and "rehearsal" in arrays:
            self.rehearsal.random = int(arrays["rehearsal"][0])
        sona_policy_set_state(self.handle, s)
        self.surprise = float(np.asarray(arrays["surprise"])[0])
