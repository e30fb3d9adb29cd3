"""What an operator lets the authors of caches read: by which schemes, from which addresses. One value, for everybody.

    localmodel run, and the agents it tells    Trust.of_operator     an allow-list
    localmodel fill, and calls from a program  Trust()               what whoever calls may read anyway

It is made once, from the flags of the coordinator, which sends it to the agents with all else that they are to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actors.addresses import ANYWHERE, Origins, own_endpoints
from actors.schemes import ANY_FILE, Schemes


@dataclass(frozen=True, slots=True)
class Trust:
    """`schemes` are looked at where a URI is read, `origins` where a connection is made (`actors.transport.guard`)."""

    schemes: Schemes = ANY_FILE
    origins: Origins = ANYWHERE

    @classmethod
    def of_operator(cls, schemes: Schemes, origins: Origins, env: Mapping[str, str]) -> Trust:
        """Strict, but for what is named; endpoints that the process's own settings name are among that."""
        return cls(schemes, origins.beside(own_endpoints(env)))


UNRESTRICTED = Trust()
"""What whoever calls could read anyway."""

STRICT = Trust(Schemes(), Origins())
"""Nothing is named."""
