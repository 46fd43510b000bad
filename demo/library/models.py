from __future__ import annotations

from django.db import models


class Package(models.Model):
    """One installed package, as the package manager's own database has it."""

    name = models.CharField(max_length=200)
    version = models.CharField(max_length=200)
    architecture = models.CharField(max_length=50, blank=True)
    section = models.CharField(max_length=100, blank=True)
    installed_kib = models.PositiveIntegerField(null=True)  # null: the database does not say
    maintainer_domain = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["name", "architecture"]
        constraints = [models.UniqueConstraint(fields=["name", "architecture"], name="one_row_per_package")]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"
