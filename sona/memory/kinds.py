"""What the nodes and edges of the memory graph stand for; the numbers are stored."""

import enum


class NodeKind(enum.IntEnum):
    """What a node is."""

    PATTERN = 0  # a cluster of requests: the pattern bank's, it comes and goes with it
    MEMORY = 1  # what a user put in
    EPISODE = 2  # one request and what became of it


class EdgeKind(enum.IntEnum):
    """Why two nodes are joined; the same two may be joined by one edge of each kind."""

    SIMILARITY = 0  # cosine of their vectors
    COACTIVATION = 1  # used together
    CREATIVE = 2  # met in a dream
