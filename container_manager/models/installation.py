"""Who we are on a daemon that others may use too."""

from __future__ import annotations

import uuid

from django.db import models

from container_manager.conf import get_settings


class Installation(models.Model):
    """One row: the id that every container of this database carries as a label.

    A copy of the database has the same id. Give one of the two another `INSTALLATION_ID` in settings
    before both work with the same daemon.
    """

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    identifier = models.UUIDField(default=uuid.uuid4, editable=False)

    def __str__(self) -> str:
        return str(self.identifier)

    @classmethod
    def current(cls) -> str:
        """The installation's label value: from settings, else the database's own."""
        configured = get_settings().INSTALLATION_ID
        if configured:
            return configured
        row, _ = cls.objects.get_or_create(pk=1)
        return str(row.identifier)
