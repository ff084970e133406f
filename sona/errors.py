"""The errors that sona raises. Each also derives from the built-in error that a caller would expect to catch."""


class SonaError(Exception):
    """Base of every error that sona raises on purpose."""


class SonaValueError(SonaError, ValueError):
    """An argument has the right type and an unusable value; the message names what was expected and what was got."""


class SonaTypeError(SonaError, TypeError):
    """An argument has the wrong type."""


class SonaClosedError(SonaError, RuntimeError):
    """The engine, router or store was used after ``close()``."""


class SonaCorruptError(SonaError):
    """A file on disk is not what its manifest or format says."""


class SonaVersionError(SonaError):
    """A file was written by a newer format, or for another model; the message names both."""


class SonaStoreError(SonaError, OSError):
    """The store could not read or write; nothing that was acknowledged is lost."""


class MissingExtraError(SonaError, ImportError):
    """An optional dependency is not installed; the message names the pip command."""


class SonaWarning(UserWarning):
    """Base of sona's warnings."""
