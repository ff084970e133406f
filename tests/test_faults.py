"""Bad inputs and faults: the cases that must be survived, where each is tested, and those that belong nowhere else."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import RunPython

import sona

TESTS = Path(__file__).parent
CSRC = TESTS.parent / "csrc"

# case: what it is, and the tests that show how it is survived
FAULTS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "NaN or infinite reward",
        (
            "test_router.py::test_a_bad_reward_is_refused_counted_and_changes_nothing",
            "test_router.py::test_a_bad_reward_in_a_batch_leaves_the_whole_batch_unlearned",
            "test_instant.py::test_bad_input_changes_no_bit",
            "test_policy.py::test_rewards_outside_the_unit_interval_are_refused",
            "test_engine.py::test_a_bad_step_is_refused_and_the_trajectory_goes_on",
        ),
    ),
    2: (
        "NaN or infinite embedding or activation",
        (
            "test_router.py::test_a_bad_request_is_refused_counted_and_leaves_no_trace",
            "test_instant.py::test_bad_input_changes_no_bit",
            "test_adapters.py::test_nan_in_x_stays_in_that_output",
            "test_adapters.py::test_what_is_not_finite_is_never_appended",
            "test_engine.py::test_bad_requests_are_refused",
            "test_engine.py::test_one_number_that_is_not_finite_is_refused_and_nothing_is_written",
            "test_trajectory.py::test_one_number_that_is_not_finite_is_found_wherever_it_stands",
        ),
    ),
    3: (
        "wrong dimension",
        (
            "test_adapters.py::test_anything_else_is_refused_before_a_byte_changes",
            "test_router.py::test_arms_are_checked",
            "test_engine.py::test_a_wrong_request_says_what_was_expected_and_writes_nothing",
            "test_engine.py::test_a_trajectory_of_another_length_teaches_nothing",
        ),
    ),
    4: (
        "0-d, 3-d or empty array",
        (
            "test_adapters.py::test_anything_else_is_refused_before_a_byte_changes",
            "test_adapters.py::test_batches_have_rows",
            "test_router.py::test_a_bad_request_is_refused_counted_and_leaves_no_trace",
        ),
    ),
    5: (
        "other number types; float64 beyond float32",
        (
            "test_adapters.py::test_any_array_of_numbers_is_accepted",
            "test_adapters.py::test_anything_else_is_refused_before_a_byte_changes",
            "test_router.py::test_requests_in_any_layout_get_the_same_answer",
        ),
    ),
    6: (
        "big-endian",
        ("test_adapters.py::test_any_array_of_numbers_is_accepted", "test_router.py::test_requests_in_any_layout_get_the_same_answer"),
    ),
    7: (
        "not contiguous, negative stride, Fortran order",
        (
            "test_adapters.py::test_any_array_of_numbers_is_accepted",
            "test_journal.py::test_a_state_survives_its_encoding",
            "test_snapshot.py::test_the_layout_in_memory_does_not_matter",
        ),
    ),
    8: (
        "read-only input, read-only output",
        (
            "test_adapters.py::test_any_array_of_numbers_is_accepted",
            "test_adapters.py::test_outputs_must_be_float32_contiguous_and_writeable",
            "test_engine.py::test_bad_requests_are_refused",
        ),
    ),
    9: (
        "output overlapping input",
        (
            "test_adapters.py::test_overlapping_input_and_output",
            "test_adapters.py::test_overlapping_batches",
            "test_engine.py::test_input_and_output_may_overlap",
        ),
    ),
    10: (
        "object dtype or strings",
        (
            "test_adapters.py::test_anything_else_is_refused_before_a_byte_changes",
            "test_router.py::test_a_bad_request_is_refused_counted_and_leaves_no_trace",
            "test_router.py::test_a_bad_reward_is_refused_counted_and_changes_nothing",
        ),
    ),
    11: ("misaligned buffer", ("test_adapters.py::test_any_array_of_numbers_is_accepted",)),
    12: (
        "zero vector",
        ("test_router.py::test_the_zero_vector_is_routed_and_learned_from_without_harm", "test_router.py::test_arms_are_checked"),
    ),
    13: (
        "constant or duplicate embeddings",
        (
            "test_adapters.py::test_repeated_inputs_truncate_to_their_sum",
            "test_adapters.py::test_a_sum_that_cancels_truncates_to_nothing",
            "test_router.py::test_arms_are_checked",
        ),
    ),
    14: (
        "trajectory without steps",
        (
            "test_engine.py::test_a_trajectory_without_steps_is_recorded_and_teaches_nothing",
            "test_trajectory.py::test_no_step_and_no_reward_give_a_zero_gradient",
        ),
    ),
    15: (
        "one step, or equal rewards",
        (
            "test_engine.py::test_one_step_teaches",
            "test_engine.py::test_equal_rewards_stop_teaching_only_when_they_are_expected",
            "test_trajectory.py::test_one_step_needs_a_baseline_from_elsewhere",
        ),
    ),
    16: (
        "reward outside the declared range",
        (
            "test_router.py::test_a_bad_reward_is_refused_counted_and_changes_nothing",
            "test_router.py::test_clip_moves_rewards_to_the_ends",
            "test_engine.py::test_clipped_rewards_are_counted",
        ),
    ),
    17: (
        "huge numbers",
        (
            "test_router.py::test_a_bad_reward_is_refused_counted_and_changes_nothing",
            "test_instant.py::test_no_number_makes_a_weight_that_is_not_finite",
            "test_engine.py::test_a_step_too_large_to_learn_from_is_counted_and_the_others_are_learned_once",
            "test_engine.py::test_every_way_to_ask_gives_the_same_bits",
        ),
    ),
    18: (
        "reward for an unknown or expired id",
        (
            "test_router.py::test_unknown_and_expired_decisions_are_a_soft_no",
            "test_policy.py::test_only_remembered_decisions_can_be_rewarded",
        ),
    ),
    19: (
        "duplicate or revised feedback",
        (
            "test_policy.py::test_a_repeated_reward_changes_nothing",
            "test_policy.py::test_a_revised_reward_leaves_what_the_right_one_would_have_left",
            "test_router.py::test_the_last_of_several_rewards_counts",
            "test_journal.py::test_a_revision_after_a_restart_applies_the_difference_once",
            "test_journal.py::test_the_last_reward_counts_whoever_reports_it",
        ),
    ),
    20: (
        "feedback before the end or after close",
        ("test_engine.py::test_a_trajectory_ends_once_and_is_rewarded_after_it", "test_router.py::test_use_after_close_says_so"),
    ),
    21: (
        "out of order, delayed by days",
        (
            "test_router.py::test_delayed_feedback",
            "test_router.py::test_feedback_out_of_order_and_repeated",
            "test_policy.py::test_arms_come_and_go_while_it_learns",
            "test_journal.py::test_feedback_after_a_restart_is_feedback_before_it",
        ),
    ),
    22: ("only good or only bad feedback", ("test_router.py::test_only_good_or_only_bad_feedback_leads_to_no_collapse",)),
    27: (
        "ring full",
        (
            "test_ring.py::RingMachine",
            "test_trajectory.py::test_a_full_buffer_refuses_the_newest_and_counts",
            "test_engine.py::test_a_full_buffer_drops_the_record_and_not_the_lesson",
            "test_policy.py::test_a_full_log_is_counted_and_serves_on",
        ),
    ),
    28: (
        "two producers on one ring",
        ("test_ring.py::test_python_threads_may_share_both_ends", "../csrc/tests/test_ring_threads.c::a_second_producer"),
    ),
    29: (
        "indices that wrap",
        (
            "../csrc/tests/test_ring.c::order_and_bytes_survive_the_wrap",
            "../csrc/tests/test_ring.c::full_is_full_across_the_wrap",
        ),
    ),
    30: (
        "capacity that cannot be, sizes that overflow",
        (
            "test_ring.py::test_a_capacity_that_is_no_power_of_two_from_16_up_is_refused",
            "test_ring.py::test_a_capacity_that_no_machine_has_is_a_memory_error",
            "test_adapters.py::test_memory_that_does_not_exist_is_a_memory_error",
            "test_instant.py::test_memory_that_does_not_exist_is_a_memory_error",
            "../csrc/tests/test_status.c::test_calloc_refuses_overflow",
        ),
    ),
    31: (
        "an allocation that fails",
        (
            "test_faults.py::test_every_allocation_may_fail",
            "../csrc/tests/test_allocator.c::test_what_fails_for_want_of_memory_keeps_none",
        ),
    ),
    34: (
        "another CPU",
        (
            "test_router.py::test_seeds_are_reproducible_across_instruction_sets",
            "test_policy.py::test_the_tables_choose_alike",
            "test_adapters.py::test_the_tables_agree",
            "test_kernels.py::test_environment_chooses_the_default",
        ),
    ),
    36: (
        "concurrent close, double close, use after close",
        (
            "test_threads.py::test_two_threads_close_at_once",
            "test_threads.py::test_requests_during_close_are_served_or_refused",
            "test_router.py::test_use_after_close_says_so",
            "test_engine.py::test_close_is_the_end",
            "test_writer.py::test_close_from_two_threads_and_from_the_callback_ends_once",
        ),
    ),
    37: (
        "end of the interpreter",
        (
            "test_threads.py::test_an_interpreter_that_ends_without_close_loses_nothing",
            "test_writer.py::test_the_end_of_the_interpreter_writes_the_last_group",
        ),
    ),
    42: (
        "kill -9 while writing",
        (
            "test_store_kill.py::test_nothing_acknowledged_is_lost_by_kills",
            "test_store_kill.py::test_a_snapshot_is_the_old_or_the_new_after_kills",
            "test_journal.py::test_a_killed_process_loses_nothing_acknowledged",
        ),
    ),
    44: (
        "disk full, read-only or forbidden",
        (
            "test_store_sqlite.py::test_a_full_disk_writes_nothing_and_the_store_goes_on",
            "test_store_sqlite.py::test_a_file_size_limit_writes_nothing_and_the_store_goes_on",
            "test_store_sqlite.py::test_a_place_that_cannot_be_written_is_a_store_error",
            "test_snapshot.py::test_a_file_size_limit_leaves_the_old_snapshot",
            "test_journal.py::test_a_full_disk_does_not_stop_serving_or_learning",
            "test_journal.py::test_a_disk_that_is_full_at_the_end_says_so",
        ),
    ),
    45: (
        "damaged checkpoint",
        (
            "test_snapshot.py::test_damage_falls_back_to_the_snapshot_before_it",
            "test_snapshot.py::test_every_flipped_bit_of_a_small_snapshot_is_found",
            "test_store_states.py::test_a_damaged_state_falls_back_to_the_one_before_it",
            "test_journal.py::test_what_is_no_state_is_refused",
            "test_adapters.py::test_base_load_refuses_damage",
            "test_engine.py::test_a_damaged_snapshot_is_refused",
        ),
    ),
    46: (
        "newer or older format",
        (
            "test_snapshot.py::test_a_newer_format_is_refused_with_both_versions_named",
            "test_snapshot.py::test_a_snapshot_of_format_version_1_is_read",
            "test_store_sqlite.py::test_a_newer_schema_is_refused_with_both_versions_named",
            "test_store_sqlite.py::test_an_older_schema_is_migrated_and_its_rows_stay",
            "test_journal.py::test_a_state_of_a_newer_format_is_refused_with_both_named",
            "test_trajectory.py::test_a_newer_version_is_named",
        ),
    ),
    47: (
        "another frozen model of the same dimension",
        (
            "test_journal.py::test_a_state_of_another_model_is_refused_and_nothing_stays_locked",
            "test_engine.py::test_a_snapshot_of_another_model_is_refused",
            "test_snapshot.py::test_the_snapshot_of_another_model_is_refused_with_both_named",
        ),
    ),
    48: (
        "a state of another shape",
        (
            "test_engine.py::test_a_state_of_other_layers_or_another_kind_is_refused",
            "test_engine.py::test_restore_takes_all_or_nothing",
            "test_journal.py::test_another_precondition_or_dim_is_refused",
            "test_policy.py::test_restore_refuses_another_state",
            "test_instant.py::test_restore_refuses_another_state",
            "test_adapters.py::test_base_load_refuses_other_files",
        ),
    ),
    54: (
        "two processes on one file",
        (
            "test_store_kill.py::test_processes_append_to_one_store_and_lose_nothing",
            "test_journal.py::test_the_second_router_follows_and_the_first_learns_for_it",
            "test_journal.py::test_feedback_from_another_process",
            "test_store_sqlite.py::test_a_network_file_system_is_warned_of",
        ),
    ),
    58: (
        "names that are paths",
        (
            "test_store_life.py::test_names_come_from_an_allow_list",
            "test_store_sqlite.py::test_only_a_file_is_a_path",
            "test_snapshot.py::test_array_names_come_from_an_allow_list",
            "test_faults.py::test_names_and_arms_from_anywhere_stay_names",
        ),
    ),
    59: (
        "SQL in names",
        ("test_store_life.py::test_names_come_from_an_allow_list", "test_faults.py::test_names_and_arms_from_anywhere_stay_names"),
    ),
    60: (
        "adapter file from a stranger",
        (
            "test_adapters.py::test_base_load_refuses_damage",
            "test_adapters.py::test_base_load_refuses_other_files",
            "test_journal.py::test_what_is_no_state_is_refused",
            "test_snapshot.py::test_sizes_are_bounded_both_ways",
            "test_faults.py::test_no_file_is_unpickled_or_evaluated",
        ),
    ),
    66: (
        "rates and ranks out of range",
        (
            "test_adapters.py::test_adapter_refuses_sizes_and_factors_out_of_range",
            "test_adapters.py::test_loras_refuse_ranks_and_sizes_out_of_range",
            "test_adapters.py::test_apply_accumulated_refuses_a_rate_that_is_not_finite",
            "test_instant.py::test_construction_refuses_what_cannot_work",
            "test_policy.py::test_options_are_checked",
            "test_engine.py::test_the_configuration_is_checked",
            "test_router.py::test_options_are_checked",
            "test_ewc.py::test_settings_that_cannot_be_are_refused",
        ),
    ),
    67: (
        "a lambda so large that a step on the penalty would diverge",
        (
            "test_ewc.py::test_any_lambda_pulls_towards_the_anchor_and_never_past_it",
            "test_ewc.py::test_the_largest_lambda_and_rate_do_not_overflow",
            "test_ewc_lowrank.py::test_any_lambda_pulls_towards_the_anchor_and_never_past_it",
        ),
    ),
    68: (
        "Fisher information that is all zero, or has one huge value",
        (
            "test_ewc.py::test_nothing_learned_protects_nothing_and_equal_values_protect_alike",
            "test_ewc.py::test_one_huge_value_does_not_free_all_others",
            "test_ewc_lowrank.py::test_nothing_learned_protects_nothing",
        ),
    ),
    70: (
        "nothing learned, or switched off: the output is the input",
        (
            "test_engine.py::test_a_fresh_engine_returns_its_input_bit_for_bit",
            "test_adapters.py::test_an_empty_adapter_changes_nothing",
            "test_engine.py::test_switching_off_leaves_everything_as_it_is",
        ),
    ),
    71: ("copying while learning", ("test_router.py::test_a_live_router_is_not_copied_behind_its_back",)),
    72: (
        "kill switch",
        (
            "test_router.py::test_the_kill_switch",
            "test_router.py::test_the_kill_switch_can_be_thrown_while_serving",
            "test_journal.py::test_a_disabled_process_records_and_lets_another_lead",
        ),
    ),
}

CASES = (*range(1, 23), *range(27, 32), 34, 36, 37, 42, *range(44, 49), 54, *range(58, 61), *range(66, 69), *range(70, 73))


def named_in(path: Path) -> set[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".c":
        return set(re.findall(r"^static void (\w+)\(", text, re.MULTILINE))
    tree = ast.parse(text)
    machines = {  # a rule-based machine is collected through its TestCase
        node.targets[0].id: node.value.value.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "TestCase"
        and isinstance(node.value.value, ast.Name)
    }
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")} | set(machines.values())


def test_every_case_is_in_the_table() -> None:
    assert tuple(FAULTS) == CASES


@pytest.mark.parametrize("case", FAULTS)
def test_every_case_has_its_tests(case: int) -> None:
    what, names = FAULTS[case]
    assert names, what
    missing = [name for name in names if name.split("::")[1] not in named_in(TESTS / name.split("::")[0])]
    assert not missing, what


# ---- cases that have no other place ----

EVERY_ALLOCATION_FAILS = r"""
/* Runs a router's life once per allocation, which fails: the call that needed it says so and changes nothing, the second try succeeds,
 * and the end is the same. Refreshing the older copy is put off instead of failing: then the guard may end up elsewhere, nothing else. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sona/iit3.h"
#include "sona/pending.h"
#include "sona/phi.h"
#include "sona/ring.h"
#include "sona/walk.h"

enum { DIM = 12, ARMS = 20, ROUNDS = 90, REST = 13 };

static long calls, failing, live;
static unsigned state;
static int failures;

static void *take(size_t count, size_t size) {
  if (calls++ == failing) return NULL;
  void *memory = calloc(count, size);
  live += memory != NULL;
  return memory;
}

static void give_back(void *memory) {
  live--;
  free(memory);
}

static const sona_allocator sweep = {take, give_back};

static void unit(float *x) {
  float square = 0;
  for (int i = 0; i < DIM; i++) {
    state = state * 1664525u + 1013904223u;
    x[i] = (float)(state >> 8) / (1 << 23) - 1;
    square += x[i] * x[i];
  }
  for (int i = 0; i < DIM; i++) x[i] /= sqrtf(square);
}

#define TRY(call)                                                                   \
  do {                                                                              \
    sona_status status = (call);                                                    \
    if (status == SONA_ENOMEM) {                                                    \
      failures++;                                                                   \
      status = (call);                                                              \
    }                                                                               \
    if (status != SONA_OK) {                                                        \
      printf("allocation %ld: %s: %s\n", failing, #call, sona_status_str(status)); \
      return 1;                                                                     \
    }                                                                               \
  } while (0)

static int add(sona_policy *policy, int expected) {
  int32_t row = -1;
  float e[DIM];
  unit(e);
  TRY(sona_policy_add_arm(policy, e, 0, &row));
  if (row != expected) printf("allocation %ld: arm %d came into row %d\n", failing, expected, row);
  return row != expected;
}

/* Memory that fails leaves what the call writes as it was: below 0. */
#define UNTOUCHED(call, value) \
  if ((call) == SONA_ENOMEM) { \
    failures++;                \
    if ((value) >= 0) return 1; \
  }

/* A ring of six nodes with a node that is left for the walk to sum, and its Phi by both theories. */
static int measure(float to[7]) {
  enum { N = 6, ENTRIES = 2 * N, LENGTH = 40 };
  static sona_iit3_result result;
  int64_t start[N], stop[N], member[N], offset[2] = {0, N};
  int32_t column[ENTRIES], starts[9] = {0}, path[9 * LENGTH];
  float weight[ENTRIES], cumulative[ENTRIES];
  double w[N * N] = {0}, tpm[12] = {0.1, 0.1, 0.1, 0.2, 0.9, 0.1, 0.9, 0.2, 0.1, 0.9, 0.1, 0.9}, bits = -1, total, distance;
  const uint8_t cm[4] = {1, 1, 1, 1};
  for (int i = 0; i < N; i++) {
    start[i] = 2 * i;
    stop[i] = 2 * i + 2;
    member[i] = i;
    for (int k = 0; k < 2; k++) {
      column[2 * i + k] = (i + (k ? 1 : N - 1)) % N;
      weight[2 * i + k] = w[i * N + column[2 * i + k]] = k ? 1 + i : 1 + (i + N - 1) % N;
    }
  }
  sona_walk_cumulate(start, stop, N, weight, cumulative);
  const sona_walk_graph walked = {N, ENTRIES, start, stop, column, weight, cumulative};
  const sona_walk_options o = {.length = LENGTH, .seed = 3, .temperature = 0.01, .revisit = 0.01, .jump = 0.1};
  const sona_phi_graph graph = {N, ENTRIES, start, stop, column, weight};
  const sona_phi_options p = {.alpha = 0.85};
  sona_phi whole = {.value = -1}, part = {.value = -1};
  size_t failed;
  TRY(sona_walk(&walked, &o, starts, 0, 9, path));
  result.phi = -1;
  UNTOUCHED(sona_phi_compute(w, N, &p, &whole), whole.value)
  TRY(sona_phi_compute(w, N, &p, &whole));
  UNTOUCHED(sona_phi_cut(w, N, &p, 3, &bits, &total), bits)
  TRY(sona_phi_cut(w, N, &p, 3, &bits, &total));
  TRY(sona_phi_subgraphs(&graph, member, offset, 1, &p, &part, &failed));
  UNTOUCHED(sona_iit3(2, tpm, cm, 0, SONA_IIT3_WORK, NULL, NULL, &result), result.phi)
  TRY(sona_iit3(2, tpm, cm, 0, SONA_IIT3_WORK, NULL, NULL, &result));
  TRY(sona_iit3_distance(2, tpm, tpm + 4, &distance));
  for (int i = 0; i < 9 * LENGTH; i++) to[0] += (float)((i % 31) * path[i]);
  const double rest[6] = {whole.value, bits, total, part.value, result.phi, distance};
  for (int i = 0; i < 6; i++) to[i + 1] = (float)rest[i];
  return 0;
}

static int live_once(sona_precondition precondition, float result[ARMS + REST]) {
  sona_adapter *adapter = NULL;
  sona_instant *instant = NULL;
  sona_policy *policy = NULL;
  sona_pending *pending = NULL;
  sona_ring *ring = NULL;
  const sona_adapter_options a = {.dim = DIM, .rank = 2, .rank_max = 16, .micro = 2, .window = 4, .max_discard = 0.05, .scale = 1};
  const sona_instant_options i = {.dim = DIM, .p0 = 0.2f, .constant = 0.3f, .precision_scale = 0.1f, .precondition = precondition};
  const sona_policy_options p = {.dim = DIM, .tau = 0.1f, .off_policy_step = 0.3f, .anchor_every = 20, .seed = 11, .guard = 1};
  const sona_ring_options r = {.capacity = 1024};
  float x[DIM], probability[ARMS];
  sona_decision d;
  sona_outcome o;
  state = 7;
  TRY(sona_adapter_create(&a, &adapter));
  TRY(sona_instant_create(&i, &instant));
  TRY(sona_policy_create(&p, adapter, instant, &policy));
  TRY(sona_pending_create(16, DIM, 0, &pending));
  TRY(sona_ring_create(&r, &ring));
  for (int k = 0; k < ARMS / 2; k++)
    if (add(policy, k)) return 1;
  for (int t = 0; t < ROUNDS; t++) {
    for (int k = ARMS / 2; t == 40 && k < ARMS; k++)
      if (add(policy, k)) return 1;
    unit(x);
    TRY(sona_policy_route(policy, x, NULL, 0, probability, &d));
    d.arm = t % (t < 40 ? ARMS / 2 : ARMS); /* whatever the guard drew */
    d.own = 1;
    TRY(sona_policy_learn(policy, x, NULL, 0, &d, d.arm % 3 == 0, 1, &o, NULL));
    if (t % 3 == 0) TRY(sona_policy_revise(policy, x, NULL, 0, &d, 0.5f, &o, NULL));
    if (t == 60) TRY(sona_adapter_truncate(adapter));
  }
  unit(x);
  TRY(sona_policy_route(policy, x, NULL, 0, result, &d));
  const sona_adapter_info info = sona_adapter_describe(adapter);
  const sona_calibration c = sona_instant_calibration(instant);
  float rest[REST] = {(float)info.total,  (float)info.truncations, (float)c.rewarded, (float)c.shown, (float)c.steps,
                            (float)sona_policy_get_state(policy).requests};
  if (measure(rest + REST - 7)) return 1;
  memcpy(result + ARMS, rest, sizeof rest);
  sona_policy_destroy(policy);
  sona_instant_destroy(instant);
  sona_adapter_destroy(adapter);
  sona_pending_destroy(pending);
  sona_ring_destroy(ring);
  return 0;
}

int main(void) {
  int wrong = 0, put_off = 0;
  if (sona_set_allocator(&sweep)) return 1;
  for (int precondition = 0; precondition < 2; precondition++) {
    float want[ARMS + REST], got[ARMS + REST];
    failing = -1;
    calls = 0;
    if (live_once((sona_precondition)precondition, want)) return 1;
    const long total = calls;
    for (long n = 0; n < total; n++) {
      failing = n;
      calls = failures = 0;
      if (live_once((sona_precondition)precondition, got)) return 1;
      if (memcmp(got, want, sizeof got)) wrong++, printf("allocation %ld: the end differs\n", n);
      if (live) wrong++, printf("allocation %ld: %ld blocks are still there\n", n, live);
      live = 0;
      put_off += !failures;
    }
    if (total < 30) wrong++, printf("only %ld allocations\n", total);
  }
  if (put_off > 12) wrong++, printf("%d failures went unnoticed\n", put_off);
  return wrong;
}
"""


def test_every_allocation_may_fail(tmp_path: Path) -> None:
    """SONA_ENOMEM, nothing changed, nothing leaked, whichever allocation of adapter, step, policy, memory, ring, walks or Phi it is."""
    cc = shutil.which("gcc") or shutil.which("cc")
    if cc is None:
        pytest.skip("no C compiler is installed")
    (tmp_path / "memory.c").write_text(EVERY_ALLOCATION_FAILS, encoding="utf-8")
    build = (
        cc,
        "-std=c11",
        "-O1",
        f"-I{CSRC / 'include'}",
        "memory.c",
        *map(str, sorted((CSRC / "src").glob("*.c"))),
        "-lm",
        "-o",
        "memory",
    )
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["./memory"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_a_python_process_without_memory_gets_a_memory_error_and_goes_on(run_python: RunPython) -> None:
    script = """
        import resource
        import numpy as np
        import sona
        router = sona.Router(np.eye(4, 64, dtype=np.float32))
        x = np.ones(64, np.float32)
        d = router.route(x)
        sona.Instant(64)
        limit = 1 << 30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for make in (
            lambda: sona.Adapter(1 << 20, rank=4096, rank_max=4096),
            lambda: sona.Instant(1 << 16, precondition="full"),
            lambda: sona.Router(np.eye(2, 1 << 16, dtype=np.float32), precondition="full"),
            lambda: sona.Router(np.eye(2, 64, dtype=np.float32), pending=1 << 24),
        ):
            try:
                make()
            except MemoryError:
                continue
            raise AssertionError("that much memory is not there")
        assert router.feedback(d.id, 1.0)
        router.route(x)
    """
    if sys.platform != "linux":
        pytest.skip("RLIMIT_AS is not enforced")
    run_python(script)


NAMES = [
    "../../etc/passwd",
    "a\0b",
    "CON",
    "x" * 5000,
    "'; DROP TABLE decisions; --",
    "\u202egnp.exe",
    "\U0001f600",
    "\ud800",
    "%s%n",
    "-rf",
    "",
    " ",
    "\n",
]


def test_names_and_arms_from_anywhere_stay_names(tmp_path: Path) -> None:
    """Names of arms are data: any text comes back as it was, and no file appears that the caller did not name."""
    (tmp_path / "only").mkdir()
    path = tmp_path / "only" / "s.db"
    with sona.Router(NAMES, dim=32, store=path) as router:
        ids = [router.route(np.ones(32), [name]).id for name in NAMES]
        assert all(router.feedback(id, 1.0) for id in ids)
        for source in ("'; DROP TABLE feedback; --", "../../etc/passwd", "\u202e"):
            assert router.feedback(ids[0], 1.0, source=source)
    with sona.Router(NAMES, dim=32, store=path) as router:
        assert router.arms == tuple(NAMES)
        assert router.feedback(ids[4], 0.0)
        assert router.stats()["revised"] == 1
    assert {p.name for p in tmp_path.rglob("*")} <= {"only", "s.db", "s.db-wal", "s.db-shm", "s.db.lease-default"}
    for name in ("../x", "a/b", "", "x" * 65, "a\0b"):
        with pytest.raises(sona.SonaValueError):
            sona.Router(["a"], dim=2, store=path, name=name)


def test_no_file_is_unpickled_or_evaluated() -> None:
    """Nothing in the package reads code: no pickle, marshal, shelve, eval or exec, and no numpy file that may hold objects."""
    for path in sorted((TESTS.parent / "sona").rglob("*.py*")):
        if path.suffix not in (".py", ".pyx"):
            continue
        text = path.read_text(encoding="utf-8")
        for word in ("import pickle", "import marshal", "import shelve", "import dill", r"\beval\(", r"\bexec\(", "allow_pickle=True"):
            assert not re.search(word, text), f"{path.name}: {word}"
    assert os.environ.get("SONA_ALLOW_PICKLE") is None
