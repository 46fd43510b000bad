"""What a measurement is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """`quick` halves the time at the price of noise; `full` takes the sizes of the goals themselves."""

    engine_url: str
    image: str
    database: str
    quick: bool
    full: bool

    def pick(self, quick: int, normal: int, full: int | None = None) -> int:
        """A size by the kind of run."""
        if self.full:
            return normal if full is None else full
        return quick if self.quick else normal
