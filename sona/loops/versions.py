"""Versions in a store: what the store keeps as rows, as versions of an engine."""

import json
from dataclasses import replace

from sona.adapters import Version
from sona.adapters.factors import join, split
from sona.store import Store, VersionRow


class StoredVersions:
    """The versions of one name in a store: the newest 20 and the published one."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name

    def add(self, version: Version, *, spare: int | None = None) -> Version:
        """
        Keep it, and number `spare` as well; durable on return, with its number. SonaStoreError when another process leads or the store
        cannot be written.
        """
        about = json.dumps({"metrics": version.metrics, "window": version.window})
        row = VersionRow(version.parent, version.created, version.verdict, version.reason, about, join(version.layers))
        return replace(version, number=self._store.put_version(self._name, row, spare=spare), published=False)

    def all(self) -> list[Version]:
        """Those that are kept, oldest first. SonaCorruptError when one is damaged."""
        published = self._store.published(self._name)
        found = []
        for number, row in self._store.versions(self._name):
            about = json.loads(row.about)
            first, *further = split(row.factors)
            found.append(
                Version(
                    name=self._name,
                    number=number,
                    parent=row.parent,
                    created=row.time,
                    verdict=row.verdict,
                    reason=row.reason,
                    metrics=about["metrics"],
                    window=about["window"],
                    factors=first,
                    further=tuple(further),
                    published=number == published,
                )
            )
        return found
