"""Times by the database's clock, the only one that all workers share."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import DateTimeField, DurationField, ExpressionWrapper, F
from django.db.models.expressions import CombinedExpression
from django.db.models.functions import Now


def from_now(seconds: float) -> ExpressionWrapper[CombinedExpression]:
    """The moment that lies so far ahead, or behind where `seconds` is below 0."""
    return ExpressionWrapper(Now() + timedelta(seconds=seconds), output_field=DateTimeField())


def time_until(field: str) -> ExpressionWrapper[CombinedExpression]:
    """How far a column's time lies ahead."""
    return ExpressionWrapper(F(field) - Now(), output_field=DurationField())
