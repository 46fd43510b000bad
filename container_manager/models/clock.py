"""Times by the database's clock, the only one that all workers share."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField, DurationField, ExpressionWrapper, F, functions
from django.db.models.expressions import CombinedExpression
from django.db.models.sql.compiler import SQLCompiler


class Now(functions.Now):
    """The present, in UTC on every database.

    Django's own is on MySQL and MariaDB the local time of the server. Who reads a lease would see times that
    are hours off, and with each change to or from summer time all leases would run out at once, or last an
    hour longer.
    """

    def as_mysql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> tuple[str, Any]:
        """Not CURRENT_TIMESTAMP, which follows the session's zone."""
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **context)


def from_now(seconds: float) -> ExpressionWrapper[CombinedExpression]:
    """The moment that lies so far ahead, or behind where `seconds` is below 0."""
    return ExpressionWrapper(Now() + timedelta(seconds=seconds), output_field=DateTimeField())


def time_until(field: str) -> ExpressionWrapper[CombinedExpression]:
    """How far a column's time lies ahead."""
    return ExpressionWrapper(F(field) - Now(), output_field=DurationField())
