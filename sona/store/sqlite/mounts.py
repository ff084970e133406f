"""Which paths lie on a network file system, where SQLite's locks cannot be trusted."""

import os
import re

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse"})
_ESCAPE = re.compile(r"\\([0-7]{3})")


def network_filesystem(path: str, table: str = "/proc/self/mounts") -> str | None:
    """Type of the network file system that holds `path` (absolute, resolved); None for a local one or where no mount table exists."""
    try:
        with open(table, encoding="utf-8", errors="surrogateescape") as mounts:
            fields = [line.split(" ") for line in mounts]
    except OSError:
        return None
    kind, longest = "", -1
    for _device, escaped, fstype, *_ in fields:
        point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), escaped)
        # Of equal mount points the later one is on top.
        if len(point) >= longest and os.path.commonpath((point, path)) == point:
            kind, longest = fstype, len(point)
    return kind if kind in NETWORK else None
