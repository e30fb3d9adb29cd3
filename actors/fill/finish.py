"""The end of a fill: what was fetched becomes what is committed, and its marker says what it is.

every file verified ──► an archive unpacked ──► the digest is the expected one ──► signed as required ──► marker
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actors.disk.ingest import Ingest
from actors.disk.marker import Marker
from actors.fill.fill import verified_how
from actors.manifest import Manifest
from actors.transferred import Transferred


@dataclass(frozen=True, slots=True)
class Ending:
    """How a fill ends. `owner` is who commits it; `started_at` and `clock` are epoch seconds.

    `room_bytes` tells what an archive may take when it is unpacked. `expected` raises IntegrityError for a manifest
    whose digest is another one, `signed` SignatureInvalid for files that are not signed as they must be. `check` is
    called often, and ends it by raising.
    """

    owner: str
    started_at: float | None
    clock: Callable[[], float]
    room_bytes: Callable[[], int]
    expected: Callable[[Manifest], None]
    signed: Callable[[Ingest, Manifest], None] = lambda ingest, manifest: None
    check: Callable[[], None] = lambda: None

    def marker(self, ingest: Ingest, filled: Manifest, moved: Transferred) -> Marker:
        """The data of the ingest is what is to be committed, and this is its marker.

        `filled` is what `Fill.run` returned. Raises what `expected`, `signed` and `unpack` raise.
        """
        manifest, verified = filled, verified_how(ingest.manifest)
        if manifest.packed:
            manifest, verified = self.unpacked(ingest, manifest)
        self.expected(manifest)
        self.signed(ingest, manifest)
        return Marker(
            owner=self.owner,
            manifest=manifest,
            verified=verified,
            started_at=self.started_at,
            finished_at=self.clock(),
            moved=moved,
        )

    def unpacked(self, ingest: Ingest, manifest: Manifest) -> tuple[Manifest, dict[str, str]]:
        """The ingest holds what its archive held; the manifest of that, and how each file was verified."""
        from actors.fill.unpack import unpack  # here, because few sources need it, and all would wait for it

        how = verified_how(ingest.manifest)
        return unpack(ingest, manifest, how, room_bytes=self.room_bytes(), check=self.check)
