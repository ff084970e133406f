"""Builds the C core once as a static library and links each Cython module against it; the metadata is in pyproject.toml."""

import os
import sys
from glob import glob
from pathlib import Path
from shutil import copy

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

C_FLAGS = ["-O3", "-std=c11", "-Wall", "-Wextra", "-ffp-contract=off", "-fvisibility=hidden", "-fPIC"]
C_FLAGS += ["-falign-functions=64"]  # times do not depend on what stands before a function
# Debug information is five sixths of a wheel, and Python asks for it; SONA_CFLAGS come after, for sanitizers, coverage and debuggers.
LAST_FLAGS = ["-g0", *os.environ.get("SONA_CFLAGS", "").split()]
LINK_FLAGS = os.environ.get("SONA_LDFLAGS", "").split() + ([] if sys.platform == "darwin" else ["-lm"])
SOURCES = sorted(glob("csrc/src/*.c"))
HEADERS = sorted(glob("csrc/include/sona/*.h") + glob("csrc/src/*.h"))


class BuildPython(build_py):
    """Copies the public C headers to sona/include/sona, where sona.get_include() finds them in an installed wheel."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "sona" / "include" / "sona"
            target.mkdir(parents=True, exist_ok=True)
            for header in glob("csrc/include/sona/*.h"):
                copy(header, target)


class BuildLibrary(build_clib):
    """Makes the archive anew: one from before would keep the objects of sources that are gone."""

    def run(self):
        for name in ("libsona.a", "sona.lib"):
            Path(self.build_clib, name).unlink(missing_ok=True)
        super().run()


class BuildExtensions(build_ext):
    """Compiles as many modules at a time as there are processors, unless --parallel says otherwise."""

    def finalize_options(self):
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count()


def extension(path):
    """sona/adapters/_lora.pyx -> the extension module sona.adapters._lora"""
    return Extension(
        name=path.removesuffix(".pyx").replace("/", "."),
        sources=[path],
        include_dirs=["csrc/include", numpy.get_include()],
        depends=HEADERS + SOURCES + glob("sona/**/*.pxd", recursive=True),
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=["-O2", "-std=c11", "-fvisibility=hidden", *LAST_FLAGS],
        extra_link_args=LINK_FLAGS,
    )


setup(
    cmdclass={"build_clib": BuildLibrary, "build_ext": BuildExtensions, "build_py": BuildPython},
    libraries=[
        (
            "sona",
            {
                "sources": SOURCES,
                "include_dirs": ["csrc/include"],
                "cflags": C_FLAGS + LAST_FLAGS,
                "obj_deps": {"": HEADERS},
            },
        )
    ],
    ext_modules=cythonize(
        [extension(path) for path in sorted(glob("sona/**/*.pyx", recursive=True))],
        build_dir="build/cython",
        quiet=True,
        compiler_directives={"language_level": 3, "embedsignature": True, "binding": False},
    ),
)
