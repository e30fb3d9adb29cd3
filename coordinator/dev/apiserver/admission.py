"""One request's way through admission: what webhooks are asked about, and what they have answered so far.

The registry is synchronous, a webhook is not. So a write that needs an answer is broken off (`Pending`), the answer is
fetched, and the write is made anew from the beginning with the answer at hand; where something has changed meanwhile,
it is asked again.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from coordinator.dev.apiserver.errors import Object, StatusError
from coordinator.dev.apiserver.kinds import Kind

MAX_ATTEMPTS = 20
_MOVING = ("creationTimestamp", "managedFields")
"""What differs between two attempts at the same write."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What webhooks are asked about. `new` is None of a DELETE, `old` of a CREATE."""

    mutating: bool
    operation: str
    kind: Kind
    subresource: str
    new: Object | None
    old: Object | None
    dry_run: bool

    @property
    def object(self) -> Object:
        return self.new or self.old or {}

    @property
    def key(self) -> str:
        """The same for the same write, whenever it is attempted."""
        version = (self.old or {}).get("metadata", {}).get("resourceVersion")
        return json.dumps([self.mutating, self.operation, version, _still(self.new)], sort_keys=True)


class Pending(Exception):
    """Somebody has to be asked before the write can go on."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__()
        self.attempt = attempt


class Asker(Protocol):
    """A party that knows the webhooks, and can ask them."""

    def asked_of(self, attempt: Attempt) -> Sequence[object]: ...

    async def ask(self, attempt: Attempt, warnings: list[str]) -> Object | None: ...


@dataclass
class Admission:
    """The facts of one request. The same uid and suffix however often it is attempted."""

    webhooks: Asker
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    answers: dict[str, Object | StatusError | None] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def suffix(self) -> str:
        """Of a generated name."""
        return "".join(random.Random(self.uid).choices("bcdfghjklmnpqrstvwxz2456789", k=5))

    def __call__(self, attempt: Attempt) -> Object | None:
        """The object as it may go on. Raises Pending, and StatusError for a refusal."""
        if not self.webhooks.asked_of(attempt):
            return attempt.new
        if attempt.key not in self.answers:
            if len(self.answers) >= MAX_ATTEMPTS:
                raise StatusError(409, "Conflict", "the object kept changing while webhooks were asked")
            raise Pending(attempt)
        answer = self.answers[attempt.key]
        if isinstance(answer, StatusError):
            raise answer
        return answer

    async def ask(self, attempt: Attempt) -> None:
        """From now on its answer is known."""
        try:
            self.answers[attempt.key] = await self.webhooks.ask(attempt, self.warnings)
        except StatusError as error:
            self.answers[attempt.key] = error


def _still(value: Object | None) -> Object | None:
    if value is None:
        return None
    meta = {key: item for key, item in value["metadata"].items() if key not in _MOVING}
    return {**value, "metadata": meta}
