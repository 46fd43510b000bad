"""What the pages share: typed bases, who acts, and a delete page that does not read whole logs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from container_manager.core.inert import inert_line

if TYPE_CHECKING:
    _Base = admin.ModelAdmin[Any]
else:
    _Base = admin.ModelAdmin


class PageAdmin(_Base):
    """A `ModelAdmin` with our style sheet, and lists that count only what they show."""

    show_full_result_count = False
    list_per_page = 50

    class Media:
        css = {"all": ["container_manager/admin.css"]}


class RecordAdmin(PageAdmin):
    """Rows that the system writes: to look at, for nobody to change."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody; records go with their job."""
        return False


def actor_of(request: HttpRequest) -> str:
    """How the events name the person behind a request."""
    return f"user:{request.user.pk}"


def names_of(objects: QuerySet[Any] | Iterable[Model]) -> list[str]:
    """What a delete page lists: one harmless line for each object."""
    return [inert_line(str(item)) for item in objects]
