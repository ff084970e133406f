"""The C headers of csrc/include/sona, transcribed; no code. A class's .pxd names these types, so downstream cimports find them here."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

# ---- sona/sona.h ----
cdef extern from "sona/sona.h" nogil:
    ctypedef enum sona_status:
        SONA_OK
        SONA_EINVAL
        SONA_ENOMEM
        SONA_EFULL
        SONA_ENONFINITE
        SONA_ESTOPPED
        SONA_EIO
        SONA_EBUSY
        SONA_ECORRUPT
        SONA_EVERSION
        SONA_EAGAIN

    const char *sona_version()
    const char *sona_status_str(sona_status status)
    void *sona_calloc(size_t count, size_t size)
    void sona_free(void *memory)
    uint64_t sona_allocations()

# ---- sona/kernels.h ----
cdef extern from "sona/kernels.h" nogil:
    ctypedef struct sona_lora:
        const float *down
        const float *up
        const float *offset
        size_t ld
        size_t dim
        size_t rank
        float scale

    ctypedef struct sona_kernels:
        const char *isa
        float (*dot)(const float *a, const float *b, size_t n) noexcept nogil
        void (*axpy)(float alpha, const float *x, float *y, size_t n) noexcept nogil
        void (*gemv)(const float *a, size_t lda, const float *x, float *out, size_t rows, size_t n) noexcept nogil
        void (*gemv_t)(const float *a, size_t lda, const float *coef, float *y, size_t rows, size_t n) noexcept nogil
        void (*ger)(float alpha, const float *x, const float *y, float *m, size_t ldm, size_t rows, size_t n) noexcept nogil
        void (*lora_forward)(const sona_lora *w, const float *x, float *y) noexcept nogil
        void (*lora_forward_batch)(const sona_lora *w, const float *x, size_t ldx, float *y, size_t ldy, size_t rows) noexcept nogil
        void (*lora_gradient)(const sona_lora *w, const float *x, const float *g, float *d_down, float *d_up) noexcept nogil
        void (*fisher_update)(float *f, const float *g, float decay, size_t n) noexcept nogil
        void (*ewc_pull)(float *g, const float *f, const float *w, const float *anchor, float lambda_, size_t n) noexcept nogil
        void (*ewc_scale)(float *g, const float *f, float lambda_, size_t n) noexcept nogil
        size_t (*top_k)(const float *a, size_t lda, const float *x, size_t rows, size_t n, size_t k, size_t *index,
                        float *score) noexcept nogil

    size_t sona_kernels_count()
    const sona_kernels *sona_kernels_at(size_t index)
    const sona_kernels *sona_kernels_get(const char *isa)

# ---- sona/adapter.h ----
cdef extern from "sona/adapter.h" nogil:
    ctypedef struct sona_adapter:
        pass
    ctypedef struct sona_reader:
        pass
    ctypedef struct sona_adapter_options:
        size_t dim
        size_t rank
        size_t rank_max
        size_t micro
        size_t window
        double max_discard
        float scale
        const sona_kernels *kernels
    ctypedef enum sona_tier:
        SONA_BASE
        SONA_MICRO
        SONA_BOTH
    ctypedef struct sona_adapter_info:
        size_t dim, ld, rank, rank_max, capacity
        size_t base, total
        uint64_t generation
        uint64_t truncations
        double discarded
        double discarded_sum
        uint64_t over_budget
        size_t bytes

    sona_status sona_adapter_create(const sona_adapter_options *options, sona_adapter **out)
    void sona_adapter_destroy(sona_adapter *adapter)
    sona_reader *sona_reader_acquire(sona_adapter *adapter)
    void sona_reader_release(sona_reader *reader)
    sona_lora sona_reader_view(sona_reader *reader, sona_tier tier)
    void sona_adapter_forward(sona_reader *reader, sona_tier tier, const float *x, float *y)
    void sona_adapter_forward_batch(sona_reader *reader, sona_tier tier, const float *x, size_t ldx, float *y, size_t ldy, size_t rows)
    sona_status sona_adapter_append(sona_adapter *adapter, float coef, const float *up, const float *down, float offset)
    void sona_adapter_fold(sona_adapter *adapter)
    sona_status sona_adapter_truncate(sona_adapter *adapter)
    sona_status sona_adapter_assign(sona_adapter *adapter, const float *down, const float *up, size_t ld, const float *offset,
                                    size_t base, size_t total)
    sona_lora sona_adapter_view(const sona_adapter *adapter)
    sona_adapter_info sona_adapter_describe(const sona_adapter *adapter)
    const sona_kernels *sona_adapter_kernels(const sona_adapter *adapter)
    size_t sona_adapter_encoded_size(const sona_adapter *adapter)
    sona_status sona_adapter_encode(const sona_adapter *adapter, void *to, size_t room, size_t *size)
    sona_status sona_adapter_decode(sona_adapter *adapter, const void *from_, size_t size)

# ---- sona/instant.h ----
cdef extern from "sona/instant.h" nogil:
    ctypedef struct sona_instant:
        pass
    ctypedef enum sona_precondition:
        SONA_IDENTITY
        SONA_FULL
    ctypedef struct sona_instant_options:
        size_t dim
        float p0
        float constant
        float precision_scale
        sona_precondition precondition
        const sona_kernels *kernels
    ctypedef struct sona_step:
        float expected
        float confidence
        float advantage
        float curvature
        float sigma
        float gain
        double surprise
    ctypedef struct sona_calibration:
        double rewarded, shown
        double mean_reward
        uint64_t steps
        double restore
    enum:
        SONA_STEP_OWN
        SONA_STEP_AGAIN

    sona_status sona_instant_create(const sona_instant_options *options, sona_instant **out)
    void sona_instant_destroy(sona_instant *instant)
    sona_status sona_instant_step(sona_instant *instant, sona_adapter *adapter, const float *x, const float *v, float probability,
                                  float rate, float reward, float weight, unsigned flags, sona_step *report)
    sona_status sona_instant_revise(sona_instant *instant, sona_adapter *adapter, const float *x, const float *v, float probability,
                                    float rate, float change, float weight, sona_step *report)
    void sona_instant_recalibrate(sona_instant *instant, float probability, float change, uint64_t step)
    void sona_calibration_add(double *rewarded, double *shown, float probability, float reward)
    void sona_calibration_correct(double *rewarded, float probability, float change, uint64_t age)
    float sona_instant_confidence(const sona_instant *instant)
    float sona_instant_variance(sona_instant *instant, const float *x)
    void sona_instant_soften(sona_instant *instant, float keep)
    void sona_instant_set_precision_scale(sona_instant *instant, float scale)
    sona_calibration sona_instant_calibration(const sona_instant *instant)
    void sona_instant_set_calibration(sona_instant *instant, sona_calibration calibration)
    float *sona_instant_covariance(sona_instant *instant, size_t *side, size_t *ld)
    const float *sona_instant_inputs(const sona_instant *instant, double *count, double *square)
    sona_status sona_instant_set_inputs(sona_instant *instant, const float *mean, double count, double square)
    size_t sona_instant_bytes(const sona_instant *instant)

# ---- sona/guard.h ----
cdef extern from "sona/guard.h" nogil:
    enum:
        SONA_GUARD_MODELS
    ctypedef struct sona_guard:
        double log_weight[3]
        int models
        double rewards, outcomes
        double floor, rate, share, limit
        uint64_t updates

    void sona_guard_init(sona_guard *guard, double odds)
    void sona_guard_admit(sona_guard *guard)
    void sona_guard_weights(const sona_guard *guard, double *weight)
    void sona_guard_update(sona_guard *guard, const float *chance, double propensity, double reward, double expected, double weight)

# ---- sona/adwin.h ----
cdef extern from "sona/adwin.h" nogil:
    enum:
        SONA_ADWIN_BUCKET
        SONA_ADWIN_MEMORY
        SONA_ADWIN_SIZES
        SONA_ADWIN_LIKE

    ctypedef struct sona_adwin_bucket:
        double sum, squares
        uint64_t id

    ctypedef struct sona_adwin:
        double delta
        uint32_t count[6]
        sona_adwin_bucket bucket[6][6]
        double total, squares
        uint64_t width
        sona_adwin_bucket open
        uint64_t waiting, added, changed
        double level

    void sona_adwin_init(sona_adwin *adwin, double delta)
    int sona_adwin_add(sona_adwin *adwin, uint64_t id, double value)
    double sona_adwin_mean(const sona_adwin *adwin)
    uint64_t sona_adwin_first(const sona_adwin *adwin)

# ---- sona/trust.h ----
cdef extern from "sona/trust.h" nogil:
    ctypedef struct sona_trust:
        double value, variance
        int64_t barren, patience

    void sona_trust_init(sona_trust *trust)
    void sona_trust_update(sona_trust *trust, double margin, double frozen, double confidence, double reward, double weight)
    int sona_trust_barren(sona_trust *trust, double reward)

# ---- sona/policy.h ----
cdef extern from "sona/policy.h" nogil:
    ctypedef struct sona_policy:
        pass
    ctypedef enum sona_explore:
        SONA_GREEDY
        SONA_THOMPSON
        SONA_SOFTMAX
    ctypedef enum sona_model:
        SONA_CURRENT
        SONA_FROZEN
        SONA_ANCHOR
    ctypedef struct sona_policy_options:
        size_t dim
        float tau
        float thompson_scale
        float off_policy_step
        uint64_t anchor_every
        uint64_t seed
        sona_explore explore
        int guard
        float odds
        const sona_kernels *kernels
    ctypedef struct sona_decision:
        int32_t arm
        float propensity
        float chance[3]
        uint8_t own
        uint8_t agreed
        uint8_t trial
        uint8_t rival
        uint8_t partner
        uint32_t version
    enum:
        SONA_RIVAL_CHOICE
        SONA_RIVAL_DIFFERS
    float SONA_RIVAL_LEAST
    ctypedef struct sona_outcome:
        float reward, probability, weight, trust, doubt
        uint32_t row
        uint64_t generation
        uint64_t step, arm_step
    ctypedef struct sona_policy_state:
        sona_guard guard
        sona_trust trust
        uint64_t random[4]
        uint64_t requests, refreshed
        double loss[2]

    sona_status sona_policy_create(const sona_policy_options *options, sona_adapter *adapter, sona_instant *instant, sona_policy **out)
    void sona_policy_destroy(sona_policy *policy)
    sona_status sona_policy_add_arm(sona_policy *policy, const float *vector, float cost, int32_t *row)
    sona_status sona_policy_remove_arm(sona_policy *policy, int32_t row)
    size_t sona_policy_rows(const sona_policy *policy)
    int sona_policy_alive(const sona_policy *policy, int32_t row)
    int sona_policy_knew(const sona_policy *policy, int32_t row, uint32_t version)
    uint32_t sona_policy_version(const sona_policy *policy)
    const float *sona_policy_vector(const sona_policy *policy, int32_t row)
    float sona_policy_cost(const sona_policy *policy, int32_t row)
    sona_status sona_policy_route(sona_policy *policy, const float *x, const int32_t *candidates, size_t count, float *probability,
                                  sona_decision *decision)
    ctypedef struct sona_evidence:
        const float *earned
        const float *seen
        float prior
    sona_status sona_policy_route_beside(sona_policy *policy, const sona_evidence *evidence, const float *x, const int32_t *candidates,
                                         size_t count, float *probability, sona_decision *decision)
    sona_status sona_policy_best(sona_policy *policy, sona_model model, const float *x, const int32_t *candidates, size_t count,
                                 int32_t *arm)
    void sona_policy_explain(sona_policy *policy, const float *x, float *frozen, float *base, float *micro, float *bias)
    sona_status sona_policy_learn(sona_policy *policy, const float *x, const int32_t *candidates, size_t count,
                                  const sona_decision *decision, float reward, float weight, sona_outcome *outcome, sona_step *step)
    sona_status sona_policy_revise(sona_policy *policy, const float *x, const int32_t *candidates, size_t count,
                                   const sona_decision *decision, float reward, sona_outcome *outcome, sona_step *step)
    sona_status sona_policy_expect(sona_policy *policy, const float *x, const int32_t *candidates, size_t count,
                                   const sona_decision *decision, float *expected)
    int sona_policy_enabled(const sona_policy *policy)
    void sona_policy_set_enabled(sona_policy *policy, int enabled)
    sona_status sona_policy_set_rival(sona_policy *policy, sona_policy *rival, float share, uint8_t trial)
    sona_status sona_policy_set_partner(sona_policy *policy, sona_policy *partner)
    double sona_policy_own_share(const sona_policy *policy)
    sona_status sona_policy_take_arms(sona_policy *policy, const sona_policy *source)
    float sona_policy_confidence(const sona_policy *policy)
    void sona_policy_get_calibration(const sona_policy *policy, int32_t row, double *rewarded, double *shown, uint64_t *choices)
    void sona_policy_set_calibration(sona_policy *policy, int32_t row, double rewarded, double shown, uint64_t choices)
    sona_policy_state sona_policy_get_state(const sona_policy *policy)
    void sona_policy_set_state(sona_policy *policy, sona_policy_state state)
    sona_lora sona_policy_copy(const sona_policy *policy, int which)
    sona_status sona_policy_set_copy(sona_policy *policy, int which, const float *down, const float *up, size_t ld, const float *offset,
                                     size_t rows)
    size_t sona_policy_bytes(const sona_policy *policy)

# ---- sona/pending.h ----
cdef extern from "sona/pending.h" nogil:
    ctypedef struct sona_pending:
        pass
    ctypedef struct sona_record:
        uint64_t id
        uint64_t size
        double time
        sona_decision decision
        sona_outcome outcome
        uint32_t dim, count
        uint32_t learned, reserved
        float x[1]

    sona_status sona_pending_create(size_t capacity, size_t dim, size_t bytes, sona_pending **out)
    void sona_pending_destroy(sona_pending *pending)
    sona_record *sona_pending_put(sona_pending *pending, uint64_t id, uint32_t count)
    sona_record *sona_pending_get(sona_pending *pending, uint64_t id)
    int32_t *sona_record_candidates(sona_record *record)
    size_t sona_pending_bytes(const sona_pending *pending)

# ---- sona/rehearse.h ----
cdef extern from "sona/rehearse.h" nogil:
    ctypedef struct sona_rehearsal:
        sona_instant *step
        size_t rows
        uint64_t window
        float strength
        uint64_t random

    size_t sona_rehearse(sona_rehearsal *rehearsal, sona_pending *pending, sona_policy *policy, uint64_t oldest, uint64_t newest)

# ---- sona/ring.h ----
cdef extern from "sona/ring.h" nogil:
    size_t SONA_RING_HEADER
    ctypedef struct sona_ring:
        pass
    ctypedef struct sona_ring_options:
        size_t capacity
        size_t max_records
        size_t first
        int own_producer

    sona_status sona_ring_create(const sona_ring_options *options, sona_ring **out)
    sona_status sona_ring_create_fixed(const sona_ring_options *options, size_t record, sona_ring **out)
    void sona_ring_destroy(sona_ring *ring)
    sona_status sona_ring_reserve(sona_ring *ring, size_t size, void **record)
    sona_status sona_ring_commit(sona_ring *ring, size_t size)
    sona_status sona_ring_push(sona_ring *ring, const void *data, size_t size)
    const void *sona_ring_peek(sona_ring *ring, size_t *size)
    void sona_ring_release(sona_ring *ring)
    int sona_ring_pop(sona_ring *ring, void *data, size_t room, size_t *size)
    size_t sona_ring_capacity(const sona_ring *ring)
    size_t sona_ring_max_record(const sona_ring *ring)
    size_t sona_ring_used(const sona_ring *ring)
    size_t sona_ring_records(const sona_ring *ring)
    uint64_t sona_ring_dropped(const sona_ring *ring)

# ---- sona/shared_ring.h ----
cdef extern from "sona/shared_ring.h" nogil:
    enum:
        SONA_SHARED_RING_HEADER
        SONA_SHARED_RING_IDENTITY
    ctypedef struct sona_shared_ring:
        pass
    ctypedef enum sona_side:
        SONA_PRODUCER
        SONA_CONSUMER

    sona_status sona_shared_ring_open(const char *path, sona_side side, size_t capacity, sona_shared_ring **out)
    void sona_shared_ring_close(sona_shared_ring *ring)
    sona_status sona_shared_ring_reserve(sona_shared_ring *ring, size_t size, void **record)
    sona_status sona_shared_ring_commit(sona_shared_ring *ring, size_t size, uint64_t *sequence)
    sona_status sona_shared_ring_push(sona_shared_ring *ring, const void *data, size_t size, uint64_t *sequence)
    const void *sona_shared_ring_next(sona_shared_ring *ring, size_t *size, uint64_t *sequence)
    void sona_shared_ring_release(sona_shared_ring *ring)
    uint64_t sona_shared_ring_mark(const sona_shared_ring *ring)
    void sona_shared_ring_release_to(sona_shared_ring *ring, uint64_t mark)
    const uint8_t *sona_shared_ring_identity(const sona_shared_ring *ring)
    size_t sona_shared_ring_capacity(const sona_shared_ring *ring)
    size_t sona_shared_ring_max_record(const sona_shared_ring *ring)
    size_t sona_shared_ring_used(const sona_shared_ring *ring)
    uint64_t sona_shared_ring_dropped(const sona_shared_ring *ring)
    uint64_t sona_shared_ring_damaged(const sona_shared_ring *ring)

# ---- sona/weights.h ----
cdef extern from "sona/weights.h" nogil:
    ctypedef struct sona_weights:
        pass
    ctypedef struct sona_weights_options:
        size_t layers
        size_t dim
        size_t max_rank
        uint64_t fingerprint
    ctypedef struct sona_weights_info:
        uint64_t epoch
        uint64_t version
        uint64_t published_ns

    sona_status sona_weights_create(const char *path, const sona_weights_options *options, sona_weights **out)
    sona_status sona_weights_open(const char *path, const sona_weights_options *options, sona_weights **out)
    void sona_weights_close(sona_weights *weights)
    sona_status sona_weights_publish(sona_weights *weights, const void *const *factors, const size_t *sizes, uint64_t version)
    uint64_t sona_weights_epoch(const sona_weights *weights)
    sona_status sona_weights_adopt(sona_weights *weights, sona_adapter *const *adapters, sona_weights_info *info)

# ---- sona/iit3.h ----
cdef extern from "sona/iit3.h" nogil:
    enum:
        SONA_IIT3_NODES
        SONA_IIT3_STATES
    double SONA_IIT3_RESOLUTION
    uint64_t SONA_IIT3_WORK

    ctypedef struct sona_iit3_side:
        double phi
        uint8_t purview, part_mechanism, part_purview
        double repertoire[128]
    ctypedef struct sona_iit3_concept:
        double phi
        uint8_t mechanism
        sona_iit3_side cause, effect
    ctypedef struct sona_iit3_result:
        double phi
        uint32_t concepts, cuts
        uint8_t cut[128]
        sona_iit3_concept concept[128]

    sona_status sona_iit3_check(uint32_t n, const double *tpm, const uint8_t *cm)
    int sona_iit3_reachable(uint32_t n, const double *tpm, uint32_t state)
    uint64_t sona_iit3_work(uint32_t n, const double *tpm)
    sona_status sona_iit3(uint32_t n, const double *tpm, const uint8_t *cm, uint32_t state, uint64_t most,
                          int (*stop)(void *) noexcept nogil, void *context, sona_iit3_result *result)
    sona_status sona_iit3_distance(uint32_t k, const double *p, const double *q, double *distance)

# ---- sona/phi.h ----
cdef extern from "sona/phi.h" nogil:
    enum:
        SONA_PHI_NODES
        SONA_PHI_EXHAUSTED
        SONA_PHI_CROSSOVER
    double SONA_PHI_ALPHA
    double SONA_PHI_ASYMMETRY
    ctypedef enum sona_phi_method:
        SONA_PHI_AUTO
        SONA_PHI_EXHAUSTIVE
        SONA_PHI_QUEYRANNE
    ctypedef struct sona_phi_options:
        double alpha
        int directed
        int normalise
        sona_phi_method method
    ctypedef struct sona_phi:
        double value
        double total
        uint64_t part
        sona_phi_method method
    ctypedef struct sona_phi_graph:
        size_t nodes, entries
        const int64_t *start
        const int64_t *stop
        const int32_t *column
        const float *weight

    sona_status sona_phi_compute(const double *w, size_t n, const sona_phi_options *options, sona_phi *out)
    sona_status sona_phi_cut(const double *w, size_t n, const sona_phi_options *options, uint64_t part, double *bits, double *total)
    sona_status sona_phi_subgraphs(const sona_phi_graph *graph, const int64_t *member, const int64_t *offset, size_t count,
                                   const sona_phi_options *options, sona_phi *out, size_t *failed)

# ---- sona/walk.h ----
cdef extern from "sona/walk.h" nogil:
    enum:
        SONA_WALK_LONGEST

    ctypedef struct sona_walk_graph:
        size_t nodes, entries
        const int64_t *start
        const int64_t *stop
        const int32_t *column
        const float *weight
        const float *cumulative
    ctypedef struct sona_walk_options:
        size_t length
        uint64_t seed
        double temperature, revisit, restart, jump

    sona_status sona_walk(const sona_walk_graph *graph, const sona_walk_options *options, const int32_t *starts, size_t first,
                          size_t count, int32_t *out)
    void sona_walk_cumulate(const int64_t *start, const int64_t *stop, size_t rows, const float *weight, float *cumulative)
