"""Other people's code builds on what sona ships: Cython modules on its .pxd files, C and C++ programs on its headers and sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RunPython

import sona

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
HEADERS = sorted((CSRC / "include" / "sona").glob("*.h"))
PUBLIC = [header for header in HEADERS if not header.read_text(encoding="utf-8").startswith("/* Private")]

SETUP = """
import numpy, sona
from Cython.Build import cythonize
from setuptools import Extension, setup

include = [sona.get_include(), numpy.get_include()]
flags = ["-O1", "-std=c11", "-fvisibility=hidden"]
macros = [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")]
modules = [
    Extension("adapted", ["adapted.pyx"], include_dirs=include, define_macros=macros, extra_compile_args=flags),
    Extension("ringed", ["ringed.pyx", "ring.c", "status.c"], include_dirs=include, define_macros=macros, extra_compile_args=flags),
]
setup(name="downstream", py_modules=[], ext_modules=cythonize(modules, language_level=3, quiet=True))
"""

# No object is touched inside: this is what a serving loop in another extension looks like.
ADAPTED = """
from sona.adapters._lora cimport Adapter

import numpy as np


def adapt(Adapter adapter not None, float[:, ::1] x):
    cdef float[:, ::1] y = np.array(x)
    cdef Py_ssize_t i
    assert x.shape[1] == adapter.dim
    with nogil:
        for i in range(x.shape[0]):
            adapter.forward_ptr(&x[i, 0], &y[i, 0])
    return np.asarray(y)
"""

RINGED = """
from sona._c cimport SONA_OK, sona_ring_commit, sona_ring_peek, sona_ring_release, sona_ring_reserve
from sona.trajectory._ring cimport Ring


def produce(Ring ring not None, int count):
    cdef int i, written = 0
    cdef void *record
    with nogil:
        for i in range(count):
            if sona_ring_reserve(ring.ring, sizeof(int), &record) == SONA_OK:
                (<int *> record)[0] = i
                written += sona_ring_commit(ring.ring, sizeof(int)) == SONA_OK
    return written


def consume(Ring ring not None):
    cdef size_t size = 0
    cdef const void *record
    cdef long total = 0
    with nogil:
        while True:
            record = sona_ring_peek(ring.ring, &size)
            if record == NULL:
                break
            total += (<const int *> record)[0]
            sona_ring_release(ring.ring)
    return total
"""

PROGRAM = r"""
#include <math.h>
#include <stdio.h>

#include "sona/adapter.h"

int main(void) {
  enum { DIM = 5 };
  const sona_adapter_options options = {.dim = DIM, .rank = 2, .rank_max = 4, .micro = 2, .max_discard = 0.05, .scale = 2};
  const float up[DIM] = {1, 0, -1, 0, 2}, down[DIM] = {0, 1, 0, 3, 0}, x[DIM] = {9, 1, 9, 2, 9};
  float y[DIM] = {0};
  sona_adapter *adapter = NULL;
  if (sona_adapter_create(&options, &adapter) != SONA_OK) return 1;
  if (sona_adapter_append(adapter, 0.5f, up, down, 1) != SONA_OK) return 2;
  if (sona_adapter_append(adapter, NAN, up, down, 1) != SONA_ENONFINITE) return 3;
  sona_reader *reader = sona_reader_acquire(adapter);
  sona_adapter_forward(reader, SONA_BOTH, x, y); /* 0.5 (1*1 + 3*2 + 1) up */
  for (int i = 0; i < DIM; i++) printf("%g ", y[i]);
  printf("%zu rows\n", sona_adapter_describe(adapter).total);
  sona_reader_release(reader);
  sona_adapter_destroy(adapter);
  return 0;
}
"""

# A name that is missing its extern "C" compiles and does not link.
LINKED = r"""
#include <cstdio>

#include "sona/policy.h"
#include "sona/ring.h"

int main() {
  sona_ring_options options = sona_ring_options();
  options.capacity = 64;
  sona_ring *ring = nullptr;
  if (sona_ring_create(&options, &ring) != SONA_OK) return 1;
  if (sona_ring_push(ring, "sona", 5) != SONA_OK) return 2;
  std::size_t size = 0;
  const void *record = sona_ring_peek(ring, &size);
  std::printf("%s %zu %s\n", static_cast<const char *>(record), size, sona_kernels_get(nullptr) ? "kernels" : "");
  sona_ring_release(ring);
  sona_ring_destroy(ring);
  sona_policy_destroy(nullptr);
  return 0;
}
"""


def compiler(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"no compiler: none of {', '.join(names)} is installed")
    return found


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert "warning" not in done.stderr.lower(), done.stderr
    return done.stdout


# ---- Cython ----


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built project that knows sona only as an importable package."""
    pytest.importorskip("Cython")
    compiler("cc", "gcc", "clang")
    root = tmp_path_factory.mktemp("downstream")
    for name, text in {"setup.py": SETUP, "adapted.pyx": ADAPTED, "ringed.pyx": RINGED}.items():
        (root / name).write_text(text, encoding="utf-8")
    for name in ("ring.c", "status.c"):  # the C core is embedded by copying it
        shutil.copy(CSRC / "src" / name, root / name)
    path = os.pathsep.join([str(Path(sona.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return root


def test_cython_module_adapts_without_the_gil(project: Path, run_python: RunPython) -> None:
    script = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import adapted
        import numpy as np
        import sona
        rng = np.random.default_rng(1)
        x = rng.normal(size=(9, 33)).astype(np.float32)
        adapter = sona.Adapter(33, rank=3)
        np.testing.assert_array_equal(adapted.adapt(adapter, x), x)
        for k in range(40):
            adapter.append(rng.normal(size=33), rng.normal(size=33), coef=0.1, offset=0.5)
        for row, got in zip(x, adapted.adapt(adapter, x)):
            want = row.copy()
            adapter.forward(row, want)
            assert not np.array_equal(want, row)
            np.testing.assert_array_equal(got, want)
        try:
            adapted.adapt(object(), x)
        except TypeError:
            print("same")
    """
    assert run_python(script, project).stdout == "same\n"


def test_cython_module_is_one_end_of_a_ring(project: Path, run_python: RunPython) -> None:
    script = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import ringed
        import sona
        ring = sona.Ring(256)
        assert ringed.produce(ring, 10) == 10
        assert ring.record_count == 10
        assert int.from_bytes(ring.pop(), sys.byteorder) == 0
        assert ringed.consume(ring) == sum(range(1, 10))
        assert ring.pop() is None
        assert ringed.produce(ring, 100) == 16 and ring.dropped_count == 84
        assert ring.push((1).to_bytes(4, sys.byteorder)) is False
        print(ringed.consume(ring))
    """
    assert run_python(script, project).stdout == f"{sum(range(16))}\n"


# ---- C ----


def test_c_program_builds_from_the_sources_alone(tmp_path: Path) -> None:
    (tmp_path / "program.c").write_text(PROGRAM, encoding="utf-8")
    cc = compiler("cc", "gcc", "clang")
    run(cc, "-std=c11", f"-I{CSRC}/include", "program.c", *sorted((CSRC / "src").glob("*.c")), "-lm", "-o", "program", cwd=tmp_path)
    assert run("./program", cwd=tmp_path) == "4 0 -4 0 8 1 rows\n"


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.name)
def test_header_needs_no_other_in_c(header: Path, tmp_path: Path) -> None:
    if header not in PUBLIC:
        pytest.skip("private: included by a public header only")
    (tmp_path / "only.c").write_text(f'#include "sona/{header.name}"\n#include "sona/{header.name}"\nint used;\n', encoding="utf-8")
    flags = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only")
    run(compiler("cc", "gcc", "clang"), *flags, f"-I{CSRC}/include", "only.c", cwd=tmp_path)


# ---- C++ ----


@pytest.mark.parametrize("header", PUBLIC, ids=lambda header: header.name)
def test_header_is_cpp(header: Path, tmp_path: Path) -> None:
    (tmp_path / "only.cpp").write_text(f'#include "sona/{header.name}"\n#include "sona/{header.name}"\n', encoding="utf-8")
    flags = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only")
    run(compiler("c++", "g++", "clang++"), *flags, f"-I{CSRC}/include", "only.cpp", cwd=tmp_path)


def test_cpp_program_links_the_c_core(tmp_path: Path) -> None:
    (tmp_path / "linked.cpp").write_text(LINKED, encoding="utf-8")
    cc, cpp = compiler("cc", "gcc", "clang"), compiler("c++", "g++", "clang++")
    run(cc, "-std=c11", f"-I{CSRC}/include", "-c", *sorted((CSRC / "src").glob("*.c")), cwd=tmp_path)
    objects = sorted(path.name for path in tmp_path.glob("*.o"))
    run(cpp, "-std=c++17", f"-I{CSRC}/include", "linked.cpp", *objects, "-lm", "-o", "linked", cwd=tmp_path)
    assert run("./linked", cwd=tmp_path) == "sona 5 kernels\n"
