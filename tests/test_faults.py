"""Bad inputs and faults: docs/faults.md says what is survived and which tests show it; here are those that belong nowhere else."""

import ast
import ctypes
import importlib.util
import logging
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import RunPython

import sona
from sona.cli import main
from sona.log import JsonFormatter
from sona.loops.background import BackgroundLoopConfig
from sona.patterns import PatternConfig

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_faults", ROOT / "docs" / "make_faults.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_faults"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


make_faults = _load()
ROWS = make_faults.rows()
CASES = 72  # a row cannot vanish unnoticed


@cache
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


def is_there(test: str) -> bool:
    """Whether there is a test of that name: tests/file.py::name, csrc/tests/file.c::function or csrc/tests/file.c"""
    path, _, name = test.partition("::")
    file = ROOT / path
    inside = path.startswith("tests/test_") or path.startswith("csrc/tests/test_")
    return inside and file.is_file() and (name in named_in(file) if name else file.suffix == ".c")


def test_the_page_is_generated() -> None:
    assert (ROOT / "docs/faults.md").read_text(encoding="utf-8") == make_faults.render(), "run docs/make_faults.py"


def test_no_case_has_vanished() -> None:
    assert [row.number for row in ROWS] == list(range(1, CASES + 1))
    assert len({row.case for row in ROWS}) == CASES


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.case)
def test_every_case_has_tests_that_are_there_or_a_reason(row: Any) -> None:
    assert row.does
    assert bool(row.tests) != bool(row.why)
    assert len(set(row.tests)) == len(row.tests)
    assert [test for test in row.tests if not is_there(test)] == []


def test_a_wrong_name_would_be_found() -> None:
    for name in (
        "tests/test_faults.py::test_that_nobody_wrote",
        "tests/test_nothing.py::test_x",
        "tests/test_faults.py",
        "csrc/src/ring.c",
    ):
        assert not is_there(name)


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
    for path in sorted((ROOT / "sona").rglob("*.py*")):
        if path.suffix not in (".py", ".pyx"):
            continue
        text = path.read_text(encoding="utf-8")
        for word in (r"^\s*(?:from|import) (?:pickle|marshal|shelve|dill)\b", r"\beval\(", r"\bexec\(", "allow_pickle=True"):
            assert not re.search(word, text, re.MULTILINE), f"{path.name}: {word}"


# ---- processors ----


@pytest.mark.parametrize("isa", sona.isas())
def test_denormal_numbers_are_computed_as_they_are(isa: str) -> None:
    """None is taken for zero, on the way in or out."""
    adapter, out = sona.Adapter(64, rank=2, isa=isa), np.zeros(64, np.float32)
    adapter.append(np.ones(64), np.ones(64))
    tiny = np.float32(2.0**-140)  # 64 of them are denormal too
    adapter.forward(np.full(64, tiny), out)
    np.testing.assert_array_equal(out, 64 * tiny)


def control() -> bytes:
    """How the processor rounds in this thread and what it takes for zero: the floating-point environment without the flags of what was."""
    environment = ctypes.create_string_buffer(64)
    assert ctypes.CDLL("libm.so.6").fegetenv(environment) == 0
    mxcsr = int.from_bytes(environment.raw[28:32], "little")
    return environment.raw[:2] + (mxcsr & ~0x3F).to_bytes(4, "little")


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="reads the environment as glibc lays it out on x86-64"
)
@pytest.mark.parametrize("mode", [0, 0x8040, 0x6000], ids=["as usual", "denormals are zero", "towards zero"])
def test_no_call_changes_how_the_processor_rounds(mode: int) -> None:
    """Whatever the caller has set is so after any call of ours, also with denormal numbers."""
    libm = ctypes.CDLL("libm.so.6")
    before = ctypes.create_string_buffer(64)
    assert libm.fegetenv(before) == 0
    changed = bytearray(before.raw)
    changed[28:32] = (int.from_bytes(changed[28:32], "little") | mode).to_bytes(4, "little")
    tiny, found = np.full(64, 1e-40, np.float32), []
    router = sona.Router(np.eye(3, 64))
    try:
        assert libm.fesetenv(ctypes.create_string_buffer(bytes(changed), 64)) == 0
        wanted = control()
        for isa in sona.isas():
            adapter = sona.Adapter(64, rank=2, isa=isa)
            adapter.append(tiny, tiny)
            out = np.zeros(64, np.float32)
            for _ in range(3):
                adapter.forward(tiny, out)
            adapter.truncate()
            found.append(control())
        for x in (tiny, np.ones(64, np.float32)):
            for _ in range(10):
                router.feedback(router.route(x).id, 1.0)
            found.append(control())
        sona.phi(np.ones((5, 5)))
        found.append(control())
    finally:
        assert libm.fesetenv(before) == 0
    assert set(found) == {wanted}
    assert (wanted == control()) == (mode == 0)  # the mode was another one, and can be seen


# ---- streams in which nothing differs ----


@pytest.mark.parametrize("x", [np.ones(8), np.zeros(8)], ids=["constant", "zero"])
def test_a_constant_stream_ends_in_one_pattern_and_no_nan(x: np.ndarray) -> None:
    """Through everything that groups, compares or divides: patterns, candidates, memory, dreams, retrieval."""
    patterns = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=8, k_clusters=20), min_trajectories=20)
    router = sona.Router(np.eye(3, 8), background=patterns, retrieval=50)
    for _ in range(100):
        d = router.route(x)
        router.feedback(d.id, float(d.index == 2))
    assert router.background_learn().status == router.deep_learn().status == "completed"
    assert router.route(x).index == 2
    same = float(x.any())
    (found,) = router.engine.find_patterns(x)
    assert found.similarity == pytest.approx(same)
    assert found.pattern.cluster_size == 100
    assert [each.similarity for each in router.engine.find_patterns(np.zeros(8))] == [0.0]
    assert {round(each.similarity, 6) for each in router.engine.memory.recall(x)} == {same}
    assert {each.similarity for each in router.engine.memory.recall(np.zeros(8))} == {0.0}
    with pytest.raises(sona.SonaValueError, match="other than zero"):
        router.engine.memory.add(np.zeros(8))
    assert all(np.isfinite(array).all() for array in router.engine.state().values())


# ---- privacy ----


def test_nothing_of_a_request_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither numbers of a request nor rewards, names of sources, arms or what a memory holds, in texts or fields: also where it fails."""
    secret, number = "alice@example.org", 0.123456789
    x = np.full(8, number)
    x[0] = 1
    with caplog.at_level(logging.DEBUG):
        store = sona.SqliteStore(tmp_path / "s.db", busy_timeout_ms=1)
        with store, sona.Router({secret: np.eye(8)[0], "b": np.eye(8)[1]}, store=store) as router:
            for _ in range(120):
                assert router.feedback(router.route(x).id, number, source=secret)
            kept = router.engine.memory.add(x, {"who": secret})
            router.add_arm(f"{secret} too", np.arange(8) + 1.0)
            router.remove_arm(f"{secret} too")
            router.background_learn()
            router.deep_learn()
            router.engine.keep_version()
            router.engine.rollback(router.engine.versions()[0].id)
            router.flush()
            for bad in (lambda: router.route(x[1:]), lambda: router.feedback(1, 7.654321), lambda: router.route(x * np.nan)):
                with pytest.raises(sona.SonaValueError):
                    bad()
            with closing(sqlite3.connect(tmp_path / "s.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")  # of another writer, for longer than anybody waits
                router.feedback(router.route(x).id, number, source=secret)
                writer = router.engine.journal.writer  # type: ignore[union-attr]
                assert writer is not None
                writer.step()
            router.flush()
            router.forget_source(secret)
            router.engine.memory.forget([kept])
        assert writer.failed
    events = {vars(record).get("event") for record in caplog.records}
    assert events >= {"background.cycle", "deep.cycle", "version.published", "store.write_failed", "source.forgotten", "lease.released"}
    said = "".join([*map(JsonFormatter().format, caplog.records), *capfd.readouterr()])
    assert "locked" in said or "held the file" in said
    for word in (secret, "alice", "0.1234", "7.65"):
        assert word not in said


HOSTILE = "a\nb\x1b[31m\u202e\u2028\x9b31mz"  # a line's end, colours, writing from right to left, and C1 codes


def test_names_stay_on_their_line_in_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.db"
    with sona.Router({HOSTILE: np.eye(4)[0], "b": np.eye(4)[1]}, store=path) as router:
        for x in np.random.default_rng(0).normal(size=(120, 4)):
            router.feedback(router.route(x).id, 1.0, source=HOSTILE)
        router.engine.memory.add(np.ones(4), {"text": HOSTILE})
        router.background_learn()
        router.engine.keep_version()
    (tmp_path / HOSTILE).mkdir()
    for arguments in ("inspect", path), ("versions", path), ("verify", path), ("inspect", path, "--json"), ("inspect", tmp_path / HOSTILE):
        main([str(each) for each in arguments])
        said = "".join(capsys.readouterr())
        assert "31mz" in said or arguments[0] != "inspect"
        assert not re.search(r"^b|[^\n\x20-\x7e]", said, re.MULTILINE), arguments


def test_tenants_of_one_file_see_nothing_of_each_other(tmp_path: Path) -> None:
    """Two routers with the same arms and names in two namespaces: learned, remembered, reported and forgotten apart."""
    path = tmp_path / "s.db"
    with sona.SqliteStore(path, namespace="one") as a, sona.SqliteStore(path, namespace="two") as b:
        one, two = (sona.Router(np.eye(3, 8), store=store) for store in (a, b))
        ids = []
        for x in np.random.default_rng(0).normal(size=(40, 8)):
            d = one.route(x)
            ids.append(d.id)
            assert one.feedback(d.id, 1.0, source="alice")
        kept = one.engine.memory.add(np.ones(8), "of one")
        one.flush()
        two.flush()
        assert [two.feedback(id, 1.0) for id in ids] == [False] * 40
        assert two.stats()["learned"] == two.stats()["requests"] == len(two.engine.memory) == 0
        assert (two.sources(), b.sources(), b.count()) == ([], {}, 0)
        assert two.engine.memory.recall(np.ones(8)) == []
        assert two.forget_source("alice").rewards_removed == 0
        assert two.engine.memory.forget([kept]) == 0
        assert (a.count(), a.sources()["alice"][0]) == (40, 40)
        x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
        np.testing.assert_array_equal(two.apply_batch(x), x)
        one.close()
        two.close()
    with sona.SqliteStore(path, namespace="two") as b:
        assert sona.Router(np.eye(3, 8), store=b).apply_batch(x).tolist() == x.tolist()


def test_nothing_opens_a_port(run_python: RunPython) -> None:
    """A router, an engine, their cycles and a coordinator work where sockets cannot be made."""
    run_python(
        """
        import socket, sys
        import numpy as np

        def refuse(*a, **k):
            raise AssertionError("a socket")

        socket.socket.bind = socket.socket.connect = socket.create_connection = socket.create_server = refuse
        opened = []
        sys.addaudithook(lambda event, args: opened.append(event) if event in ("socket.bind", "socket.connect") else None)
        from sona import LoopCoordinator, Router
        router = Router(np.eye(3, 8), store="s.db")
        with LoopCoordinator(router, interval=0.001):
            for x in np.random.default_rng(0).normal(size=(50, 8)):
                router.feedback(router.route(x).id, 1.0)
            router.background_learn()
            router.deep_learn()
        router.close()
        assert not opened, opened
        """
    )
