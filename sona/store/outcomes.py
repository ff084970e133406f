"""How a transaction can end that neither was done nor simply failed."""

from sona.errors import SonaStoreError


class LeaseLost(SonaStoreError):
    """Another process has taken the learning lease since; nothing was written."""


class UnknownOutcome(SonaStoreError):
    """
    The connection broke during a commit, and the server cannot be asked what became of it: the same call again finds out.

    Attributes
    ----------
    mark : int
        What the transaction left in the database if it was done.
    """

    mark = 0
