"""The content of a model, as far as it is told apart from others that answer the same request."""

from __future__ import annotations

from dataclasses import dataclass

from actors.messages import Earlier, ModelReport


@dataclass(frozen=True, slots=True)
class Content:
    """A digest names it, or where the source knows none its revision. Without either it is any content."""

    revision: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        return self.digest or self.revision or ""

    def is_of(self, copy: ModelReport | Earlier) -> bool:
        return not self.name or self.name in (copy.manifest_digest, copy.revision)


ANY = Content()
