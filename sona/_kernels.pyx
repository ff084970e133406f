"""The kernel tables by name. Objects keep the table they were built with; SONA_ISA chooses the default."""

import os

cimport numpy as cnp

from sona._c cimport sona_kernels, sona_kernels_at, sona_kernels_count, sona_kernels_get

from sona.errors import SonaValueError

cnp.import_array()

_default = os.environ.get("SONA_ISA") or None


def isas():
    """Names of the kernel tables that this machine can run, slowest first; the last one is the default."""
    return tuple(sona_kernels_at(i).isa.decode() for i in range(sona_kernels_count()))


cdef const sona_kernels *kernels_named(object isa) except NULL:
    """The table of that name; None is SONA_ISA or the best of this machine."""
    cdef const sona_kernels *table
    name = isa if isa is not None else _default
    table = sona_kernels_get(NULL) if name is None else sona_kernels_get(name.encode())
    if table == NULL:
        raise SonaValueError(f"isa: expected one of {', '.join(isas())}, got {name!r}")
    return table


cdef class Kernels:
    """One kernel table; isa=None is the default of this process."""

    def __cinit__(self, isa=None):
        self.table = kernels_named(isa)

    @property
    def isa(self):
        return self.table.isa.decode()
