"""The one place where a C status becomes a Python exception."""

from sona._c cimport SONA_EINVAL, SONA_ENOMEM, SONA_ENONFINITE, SONA_OK, sona_status, sona_status_str

from sona.errors import SonaError, SonaValueError


cdef int check(sona_status status, str what) except -1:
    """0 for SONA_OK, else raises; what names the call and its arguments."""
    if status == SONA_OK:
        return 0
    reason = sona_status_str(status).decode()
    if status == SONA_ENOMEM:
        raise MemoryError(f"{what}: {reason}")
    if status in (SONA_EINVAL, SONA_ENONFINITE):
        raise SonaValueError(f"{what}: {reason}")
    raise SonaError(f"{what}: {reason}")
