"""libsona: make and CMake install the same library, it shows what its headers declare and nothing else, and programs build on it."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import sona

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
HEADERS = sorted((CSRC / "include" / "sona").glob("*.h"))
SYMBOLS = CSRC / "abi" / "symbols.txt"
README = "readme: first 100: 52 right, last 100: 97 right\n"
ELF = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


def run(*command: object, cwd: Path, fails: bool = False, **environment: str) -> str:
    """What the command prints. Flags of an outer make do not reach it; objects are not optimised, so that building is quick."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PREFIX", "LIBDIR", "INCLUDEDIR", "BUILD")
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, "CFLAGS": "-O0", "MAKEFLAGS": "-j2", "CMAKE_BUILD_PARALLEL_LEVEL": "2", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode != 0) == fails, f"{command}: exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert fails or "warning" not in done.stderr.lower(), done.stderr
    return done.stderr if fails else done.stdout


def commands(tool: str) -> str:
    """The block of docs/c.md whose first word is `tool`."""
    (block,) = re.findall(rf"^```sh\n({tool} .*?)^```$", (ROOT / "docs" / "c.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(block)


@dataclass(frozen=True)
class Installed:
    home: Path  # with a copy of csrc
    prefix: Path

    @property
    def libdir(self) -> Path:
        (found,) = self.prefix.glob("lib*/**/libsona.a")
        return found.parent

    @property
    def shared(self) -> Path:
        (found,) = (p for p in self.libdir.glob("libsona.*") if p.suffix in (".so", ".dylib") and len(p.suffixes) == 1)
        return found

    def pkg_config(self, *arguments: str) -> list[str]:
        need("pkg-config")
        return run("pkg-config", *arguments, "sona", cwd=self.prefix, PKG_CONFIG_PATH=str(self.libdir / "pkgconfig")).split()


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Installed]:
    """Follows docs/c.md with one of the tools, once."""
    done: dict[str, Installed] = {}

    def follow(tool: str) -> Installed:
        need(tool, "make", "cc")
        if tool not in done:
            home = tmp_path_factory.mktemp(tool)
            shutil.copytree(CSRC, home / "csrc", ignore=shutil.ignore_patterns("bin", "build"))
            flags = {"CFLAGS": "", "CMAKE_EXPORT_COMPILE_COMMANDS": "ON"} if tool == "cmake" else {}
            script = commands(tool).replace("cmake -S", "cmake -DCMAKE_C_FLAGS_RELEASE=-O0 -S")
            run("sh", "-euc", script, cwd=home, HOME=str(home), **flags)
            done[tool] = Installed(home, home / "libsona")
        return done[tool]

    return follow


@pytest.fixture(scope="module", params=["make", "cmake"])
def installed(request: pytest.FixtureRequest, install: Callable[[str], Installed]) -> Installed:
    return install(request.param)


@pytest.fixture(scope="module")
def made(install: Callable[[str], Installed]) -> Installed:
    return install("make")


def below(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


# ---- what is installed ----


def test_libraries_headers_and_packages_are_installed(installed: Installed) -> None:
    interface = ".".join(sona.__version__.split(".")[: 2 if sona.__version__.startswith("0.") else 1])
    endings = ("dylib", f"{interface}.dylib", f"{sona.__version__}.dylib") if sys.platform == "darwin" else ()
    endings = endings or ("so", f"so.{interface}", f"so.{sona.__version__}")
    lib = installed.libdir.relative_to(installed.prefix).as_posix()
    below_lib = ("libsona.a", *(f"libsona.{e}" for e in endings), "pkgconfig/sona.pc", "cmake/sona/sonaConfig.cmake")
    want = {f"{lib}/{name}" for name in (*below_lib, "cmake/sona/sonaConfigVersion.cmake")} | {f"include/sona/{h.name}" for h in HEADERS}
    assert below(installed.prefix) == want
    assert installed.shared.resolve().name == f"libsona.{endings[-1]}"
    assert all((installed.prefix / "include" / "sona" / h.name).read_bytes() == h.read_bytes() for h in HEADERS)


def test_make_and_cmake_write_the_same_packages(install: Callable[[str], Installed]) -> None:
    make, cmake = install("make"), install("cmake")
    for name in ("pkgconfig/sona.pc", "cmake/sona/sonaConfig.cmake", "cmake/sona/sonaConfigVersion.cmake"):
        texts = [
            (i.libdir / name).read_text(encoding="utf-8").replace(str(i.libdir), "LIB").replace(str(i.prefix), "PREFIX")
            for i in (make, cmake)
        ]
        assert texts[0] == texts[1], name
        assert "@" not in texts[0].replace("@rpath", ""), name


def test_one_version_everywhere(installed: Installed) -> None:
    """Macros, package, pkg-config, the library and the name that the loader looks for."""
    header = (CSRC / "include" / "sona" / "sona.h").read_text(encoding="utf-8")
    parts = [int(n) for n in re.findall(r"^#define SONA_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)$", header, re.MULTILINE)]
    assert ".".join(map(str, parts)) == sona.__version__
    assert installed.pkg_config("--modversion") == [sona.__version__]
    library = ctypes.CDLL(str(installed.shared))
    library.sona_version.restype = ctypes.c_char_p
    assert library.sona_version().decode() == sona.__version__
    number = parts[0] * 10000 + parts[1] * 100 + parts[2]
    assert library.sona_version_number() == number
    assert [library.sona_version_fits(n) for n in (number, number + 1, number + 100)] == [1, 0, 0]


@ELF
def test_the_loader_is_told_the_interface(installed: Installed) -> None:
    need("objdump")
    major, minor, _ = sona.__version__.split(".")
    (name,) = re.findall(r"SONAME +(\S+)", run("objdump", "-p", installed.shared, cwd=installed.prefix))
    assert name == (f"libsona.so.0.{minor}" if major == "0" else f"libsona.so.{major}")


def test_distributors_choose_directories_and_can_take_all_away(made: Installed, tmp_path: Path) -> None:
    place = (f"DESTDIR={tmp_path}/stage", "PREFIX=/usr", "LIBDIR=/usr/lib/some-linux-gnu", "INCLUDEDIR=/usr/include/deep")
    run("make", "-C", "csrc", "install", *place, cwd=made.home)
    files = below(tmp_path / "stage")
    assert {"usr/lib/some-linux-gnu/libsona.a", "usr/include/deep/sona/sona.h"} <= files
    package = (tmp_path / "stage/usr/lib/some-linux-gnu/pkgconfig/sona.pc").read_text(encoding="utf-8")
    assert "libdir=/usr/lib/some-linux-gnu\nincludedir=/usr/include/deep\n" in package
    config = (tmp_path / "stage/usr/lib/some-linux-gnu/cmake/sona/sonaConfig.cmake").read_text(encoding="utf-8")
    assert '"${sona_LIBDIR}/../../include/deep"' in config
    assert all(str(tmp_path) not in text for text in (package, config))
    run("make", "-C", "csrc", "uninstall", *place, cwd=made.home)
    assert below(tmp_path / "stage") == set()
    wrong = run("make", "-C", "csrc", "install", f"DESTDIR={tmp_path}/stage", "PREFIX=/usr", "LIBDIR=/opt/lib", cwd=made.home, fails=True)
    assert "/opt/lib is not below PREFIX, /usr" in wrong


def test_cmake_takes_directories_below_the_prefix_only(install: Callable[[str], Installed]) -> None:
    home = install("cmake").home
    wrong = run("cmake", "-S", "csrc", "-B", "other", "-DCMAKE_INSTALL_LIBDIR=/opt/lib", cwd=home, fails=True)
    assert "expected a directory below the prefix, got /opt/lib" in " ".join(wrong.split())


def test_all_builds_take_the_same_flags(install: Callable[[str], Installed]) -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    flags = {f for line in re.findall(r"^C_FLAGS \+?= \[(.*)\]", setup, re.MULTILINE) for f in re.findall(r'"(-[^"]+)"', line)}
    assert {"-ffp-contract=off", "-fvisibility=hidden"} <= flags
    (line,) = re.findall(r"^FLAGS := (.*)$", (CSRC / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(line.split()) == flags
    compiled = json.loads((install("cmake").home / "csrc/build/cmake/compile_commands.json").read_text(encoding="utf-8"))
    assert len(compiled) == 2 * len(list((CSRC / "src").glob("*.c")))
    for entry in compiled:  # CMake's release has -O3 of itself
        assert flags - {"-O3"} <= set(entry["command"].split()), entry


# ---- what the libraries show and need ----


@dataclass(frozen=True)
class Symbol:
    file: str  # its stem
    name: str
    kind: str
    section: str


def nm(*files: Path, only: str = "") -> list[Symbol]:
    """Symbols of the files; `only` is dynamic, defined or undefined, or several of them."""
    need("nm")
    options = [{"dynamic": "--dynamic"}.get(word, f"--{word}-only") for word in only.split()]
    found, file = [], files[0].stem
    for line in run("nm", "--format=sysv", *options, *files, cwd=files[0].parent).splitlines():
        if named := re.match(r".*symbols from (.*):$", line, re.IGNORECASE):
            file = Path(named[1]).stem
        name, *rest = (cell.strip() for cell in line.split("|"))
        if len(rest) == 6 and name != "Name":
            found.append(Symbol(file, re.split(r"[.@]", name)[0], rest[2], rest[5]))
    assert found, files
    return found


def objects(installed: Installed) -> list[Path]:
    """What the shared library was linked from by make."""
    found = sorted((installed.home / "csrc" / "build" / "shared").glob("*.o"))
    assert [o.stem for o in found] == sorted(source.stem for source in (CSRC / "src").glob("*.c"))
    return found


def declared() -> set[str]:
    """Functions that the public headers declare and do not define inline."""
    prototype = re.compile(r"^(?!static|typedef|SONA_EXTENSION|#)\w[\w *]*?[ *](sona_\w+)\(", re.MULTILINE)
    return {name for header in HEADERS for name in prototype.findall(header.read_text(encoding="utf-8"))}


@ELF
def test_what_the_shared_library_exports_is_what_headers_declare_and_what_is_listed(installed: Installed) -> None:
    exported = {symbol.name for symbol in nm(installed.shared, only="dynamic defined")}
    listed = SYMBOLS.read_text(encoding="utf-8").split()
    assert exported - declared() == set(), "exported, but in no header: declare them in csrc/include/sona, or take SONA_API away"
    assert declared() - exported == set(), "declared, but not exported: write SONA_API in front of the declaration"
    assert listed == sorted(listed)
    new, gone = sorted(exported - set(listed)), sorted(set(listed) - exported)
    assert not new, f"new in the interface: {new}. If they are meant to stay, run `make -C csrc symbols` and commit {SYMBOLS.name}"
    assert not gone, f"gone from the interface: {gone}. That breaks programs: raise the version in sona.h, then run `make -C csrc symbols`"


@ELF
def test_the_list_of_symbols_can_be_written_anew(made: Installed) -> None:
    written = made.home / "csrc" / "abi" / "symbols.txt"
    written.write_text("sona_gone\n", encoding="utf-8")
    run("make", "-C", "csrc", "symbols", cwd=made.home)
    assert written.read_text(encoding="utf-8").split() == sorted(declared())


# Memory, strings, mathematics, and what a compiler asks for by itself.
HARMLESS = re.compile(
    r"calloc|free|mem(?:cpy|move|set|cmp|chr)|str(?:cmp|len)|__mem\w+_chk|__stack_chk_fail|__tls_get_addr|__popcount\w+|__cpu_\w+"
    r"|_ITM_\w+|__gmon_start__|__cxa_finalize"
    r"|(?:a?(?:cos|sin|tan)h?|sincos|erfc?|exp|exp2|expm1|fabs|fmax|fmin|fma|fmod|floor|ceil|hypot|lgamma|tgamma|ldexp|frexp|log|log1p|log2"
    r"|log10|pow|l?l?round|l?l?rint|sqrt|cbrt|copysign)f?"
)

# What csrc/src/shared_file.c asks of the operating system, for files that processes share.
FILES = re.compile(
    r"open|close|read|pread|pwrite|fstat|ftruncate|posix_fallocate|fcntl|mmap|munmap|madvise|sysconf|getpid|clock_gettime|__errno_location"
    r"|(?:open|pread|pwrite|fstat|ftruncate|posix_fallocate|fcntl|mmap)64|__error"
)


@ELF
def test_the_library_cannot_print_exit_or_allocate_behind_the_allocator(installed: Installed) -> None:
    needed = {symbol.name for symbol in nm(installed.shared, only="dynamic undefined")}
    assert {"calloc", "free", "exp"} <= needed
    assert sorted(name for name in needed if not HARMLESS.fullmatch(name) and not FILES.fullmatch(name)) == []
    for word in ("abort", "exit", "_exit", "printf", "puts", "__assert_fail", "malloc", "getenv", "fopen", "__printf_chk", "stderr"):
        assert not HARMLESS.fullmatch(word), word


@ELF
def test_one_file_asks_the_c_library_for_memory(made: Installed) -> None:
    assert {s.file for s in nm(*objects(made), only="undefined") if s.name in ("calloc", "free")} == {"status"}


@ELF
def test_one_file_asks_the_operating_system_for_files(made: Installed) -> None:
    """The others only hand errno on."""
    asking = {s.file for s in nm(*objects(made), only="undefined") if FILES.fullmatch(s.name) and s.name != "__errno_location"}
    assert asking == {"shared_file"}


@ELF
def test_what_can_change_in_the_library_is_the_allocator_and_a_count(made: Installed) -> None:
    """Tables of functions are relocated once, in .data.rel.ro; a thread's own mark is in .tbss."""
    data = [symbol for symbol in nm(*objects(made)) if symbol.kind in ("OBJECT", "COMMON")]
    assert "*COM*" not in {symbol.section for symbol in data}
    changing = {(s.file, s.name) for s in data if s.section.startswith((".data", ".bss")) and not s.section.startswith(".data.rel.ro")}
    assert changing == {("status", "allocations"), ("status", "allocator")}


@ELF
def test_a_static_library_does_not_show_through(made: Installed, tmp_path: Path) -> None:
    (tmp_path / "plugin.c").write_text('#include "sona/ring.h"\nint plugin(void) { return sona_version_number(); }\n', encoding="utf-8")
    include, archive = f"-I{made.prefix}/include", made.libdir / "libsona.a"
    run("cc", "-std=c11", "-fPIC", "-shared", include, "plugin.c", archive, "-lm", "-o", "plugin.so", cwd=tmp_path)
    assert "plugin" in (shown := {symbol.name for symbol in nm(tmp_path / "plugin.so", only="dynamic defined")})
    assert [name for name in shown if "sona" in name] == []


@ELF
def test_the_python_modules_keep_the_core_to_themselves() -> None:
    modules = sorted(Path(sona.__file__).parent.rglob("*.so"))
    shown = {symbol.name for symbol in nm(*modules, only="dynamic defined")}
    assert "PyInit__lora" in shown
    assert [name for name in shown if name.startswith("sona_")] == []


# ---- programs ----


def test_the_documented_commands_build_a_program(made: Installed) -> None:
    need("pkg-config")
    assert run("sh", "-euc", commands("export"), cwd=made.home, HOME=str(made.home)) == README


@pytest.mark.parametrize("linked", ["shared", "static"])
@pytest.mark.parametrize(("compiler", "standard"), [("cc", "c11"), ("c++", "c++17")])
def test_the_readme_example_runs(installed: Installed, compiler: str, standard: str, linked: str, tmp_path: Path) -> None:
    need(compiler)
    language = "c" if compiler == "cc" else "c++"
    libraries = (
        (f"{installed.libdir}/libsona.a",) if linked == "static" else (*installed.pkg_config("--libs"), f"-Wl,-rpath,{installed.libdir}")
    )
    source = ("-x", language, CSRC / "tests" / "test_readme.c", "-x", "none")
    run(compiler, f"-std={standard}", "-Wall", *installed.pkg_config("--cflags"), *source, *libraries, "-lm", "-o", "app", cwd=tmp_path)
    assert run("./app", cwd=tmp_path) == README


PROJECT = """
cmake_minimum_required(VERSION 3.16)
project(app LANGUAGES C)
find_package(sona {version} CONFIG REQUIRED)
find_package(sona CONFIG REQUIRED) # twice is once
add_executable(app "{source}")
target_link_libraries(app PRIVATE sona::sona m)
add_executable(tool "{source}")
target_link_libraries(tool PRIVATE sona::sona-static)
"""


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., str]:
    def configure(prefix: Path, version: str, *, fails: bool = False) -> str:
        need("cmake")
        text = PROJECT.format(version=version, source=(CSRC / "tests" / "test_readme.c").as_posix())
        (tmp_path / "CMakeLists.txt").write_text(text, encoding="utf-8")
        options = ("-S", ".", "-B", "build", f"-DCMAKE_PREFIX_PATH={prefix}")
        return run("cmake", *options, cwd=tmp_path, fails=fails)

    return configure


def test_cmake_finds_the_package_where_it_was_moved(installed: Installed, project: Callable[..., str], tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(installed.prefix, moved, symlinks=True)
    project(moved, sona.__version__)
    run("cmake", "--build", "build", cwd=tmp_path)
    for program in ("app", "tool"):
        assert run(f"build/{program}", cwd=tmp_path) == README
    if sys.platform == "linux":
        loaded = [str(moved) in run("ldd", f"build/{program}", cwd=tmp_path) for program in ("app", "tool")]
        assert loaded == [True, False]


@pytest.mark.parametrize("part", [0, 1, 2], ids=["major", "minor", "patch"])
def test_cmake_refuses_a_newer_version(made: Installed, project: Callable[..., str], part: int) -> None:
    numbers = [int(number) for number in sona.__version__.split(".")]
    numbers[part] += 1
    said = project(made.prefix, ".".join(map(str, numbers)), fails=True)
    assert f"sonaConfig.cmake, version: {sona.__version__}" in said  # considered, not accepted
