"""Import the machine's package database, and print what is in it as one line of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.db.models import Count, Sum

from library import control
from library.models import Package

BATCH = 500


class Command(BaseCommand):
    help = "Imports a package database (the format of /var/lib/dpkg/status); the last line of stdout is JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--file", type=Path, default=settings.BASE_DIR / "data" / "packages.txt")
        parser.add_argument(
            "--migrate", action="store_true", help="make the tables first, in an empty database"
        )
        parser.add_argument("--strict", action="store_true", help="fail at the first malformed stanza")

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["file"]
        if not path.is_file():
            raise CommandError(f"--file: {path} does not exist; `python demo/export_data.py` makes it")
        if options["migrate"]:
            call_command("migrate", verbosity=0)
        read, malformed = self._read(path, strict=options["strict"])
        with transaction.atomic():
            Package.objects.all().delete()
            for start in range(0, len(read), BATCH):
                batch = read[start : start + BATCH]
                Package.objects.bulk_create(batch)
                self.stderr.write(f"stored {start + len(batch)} of {len(read)} packages")
        self.stdout.write(json.dumps(self._summary(path, malformed)))

    def _read(self, path: Path, *, strict: bool) -> tuple[list[Package], int]:
        """The packages by name and architecture, the last word on each winning; and what was unreadable."""
        found: dict[tuple[str, str], Package] = {}
        malformed = 0
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line, fields in control.stanzas(lines):
                if not control.is_installed(fields):
                    continue
                try:
                    entry = control.entry(line, fields)
                except control.MalformedStanza as error:
                    if strict:
                        raise CommandError(str(error)) from error
                    malformed += 1
                    self.stderr.write(f"left out: {error}")
                    continue
                found[entry.name, entry.architecture] = Package(
                    name=entry.name,
                    version=entry.version,
                    architecture=entry.architecture,
                    section=entry.section,
                    installed_kib=entry.installed_kib,
                    maintainer_domain=entry.maintainer_domain,
                )
        if not found:
            raise CommandError(f"--file: {path} holds no installed package")
        self.stderr.write(f"read {len(found)} packages from {path.name}")
        return list(found.values()), malformed

    def _summary(self, path: Path, malformed: int) -> dict[str, Any]:
        sections = (
            Package.objects.values("section").annotate(packages=Count("id")).order_by("-packages", "section")
        )
        largest = Package.objects.exclude(installed_kib=None).order_by("-installed_kib", "name")[:5]
        return {
            "source": path.name,
            "packages": Package.objects.count(),
            "malformed": malformed,
            "installed_kib": Package.objects.aggregate(total=Sum("installed_kib"))["total"],
            "sections": {row["section"] or "(none)": row["packages"] for row in sections[:5]},
            "largest": [{"name": package.name, "kib": package.installed_kib} for package in largest],
        }
