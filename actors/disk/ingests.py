"""The ingests of a root: what is being filled, one folder for each model, named for the writer.

    <root>/.localmodel/ingest/<key>.<incarnation>/      see `actors.disk.ingest`

An ingest that an earlier incarnation has left is continued. Files that an interrupted commit had moved into the model's
folder already are taken back first.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from actors.disk.fence import Fence
from actors.disk.filesystem import disk_errors
from actors.disk.handles import Folder
from actors.disk.ingest import Ingest, held_bytes, open_ingest_in, read_identity
from actors.disk.layout import Layout
from actors.disk.marker import DamagedMarker
from actors.disk.publish import is_half_published, withdraw
from actors.disk.trash import Trash
from actors.manifest import Manifest, StorageKey

FOLDER = "ingest"


class Ingests:
    """Public methods raise StoreError, but for `half_published`, which raises OSError."""

    def __init__(self, layout: Layout, fence: Fence, trash: Trash) -> None:
        self._layout = layout
        self._fence = fence
        self._trash = trash

    def open(
        self, key: StorageKey, manifest: Manifest, owner: str, versions: Mapping[str, str] | None = None
    ) -> Ingest:
        """The fill of `manifest`; continues what an earlier incarnation began, if that was the same.

        `versions` as in `open_ingest`.
        """
        self._fence.check()
        name = f"{key}.{self._fence.incarnation}"
        with disk_errors(f"preparing {self._layout.own_path / FOLDER / name}"), self._layout.own(FOLDER) as ingests:
            for earlier in _of_key(ingests, key):
                self._withdraw(ingests, earlier, key)
                if earlier == name:
                    continue
                if ingests.status(name) is None:
                    ingests.unlock(earlier)
                    ingests.move(earlier, ingests, name)
                else:
                    self._trash.discard(ingests, earlier)
            return open_ingest_in(ingests, name, self._layout.own_path / FOLDER / name, manifest, owner, versions)

    def of(self, owner: str) -> set[StorageKey]:
        """The models of which `owner` has something half-done here."""
        with disk_errors(f"reading {self._layout.own_path / FOLDER}"), self._layout.own(FOLDER) as folder:
            return {
                StorageKey(name.partition(".")[0])
                for name in folder.names()
                if (identity := read_identity(folder, name)) is None or identity.get("owner") == owner
            }

    def held_bytes(self, key: StorageKey) -> int:
        """The disk space that the ingests of `key` hold by now."""
        total = 0
        with disk_errors(f"measuring {self._layout.own_path / FOLDER}"), self._layout.own(FOLDER) as ingests:
            for name in _of_key(ingests, key):
                with suppress(OSError), ingests.enter(name) as folder:
                    total += held_bytes(folder)
        return total

    def abandon(self, key: StorageKey) -> None:
        """No ingest of `key` is left, of whatever incarnation; what they held is in the trash."""
        self._fence.check()
        with disk_errors(f"removing the ingests of {key}"), self._layout.own(FOLDER) as ingests:
            for name in _of_key(ingests, key):
                self._withdraw(ingests, name, key)
                self._trash.discard(ingests, name)

    def half_published(self, key: StorageKey, target: Folder) -> bool:
        with self._layout.own(FOLDER) as ingests:
            for name in _of_key(ingests, key):
                with suppress(OSError), ingests.enter(name) as ingest:
                    if is_half_published(ingest, target):
                        return True
        return False

    def _withdraw(self, ingests: Folder, name: str, key: StorageKey) -> None:
        """Files that an interrupted commit had moved into the model's folder already are back in the ingest."""
        try:
            ingests.unlock(name)
            with ingests.enter(name) as ingest, self._layout.model(key) as target:
                withdraw(ingest, target)
        except (FileNotFoundError, NotADirectoryError):
            pass  # there is nothing to take it back from
        except DamagedMarker as error:
            with self._layout.models() as models:
                self._layout.set_aside(models, key, f"is half a model, and we cannot tell which any more: {error}")


def _of_key(ingests: Folder, key: StorageKey) -> list[str]:
    return [name for name in ingests.names() if name == key or name.startswith(f"{key}.")]
