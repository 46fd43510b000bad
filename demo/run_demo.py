"""The demo: real management commands of a real project in real containers, and what came back.

make demo         or  python demo/run_demo.py
make demo-web     or  python demo/run_demo.py --web [--port 8000]
make demo-clean   or  python demo/run_demo.py --clean
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time

import export_data
from place import IMAGE, Place, clean, find, say


def run() -> int:
    """From nothing to the table; returns the exit code."""
    started = time.monotonic()
    place = find()
    os.environ["DEMO_EXECUTOR"] = "docker" if place.is_docker else "process"
    export_data.export()
    _set_up()
    from django.core.management import call_command

    say("making the project's own tables")
    call_command("migrate", verbosity=0)
    if place.is_docker:
        call_command("register_local_host", name="demo", url=place.url)
        say(f"building {IMAGE}, the project's own image")
        call_command("build_job_image", tag=IMAGE, base=place.base, host="demo")
    else:
        call_command("register_local_host", name="demo", process=True)
    _work(place)
    say(f"done after {time.monotonic() - started:.0f} s. `make demo-web` shows the jobs with their logs.")
    kept = "the private engine, which keeps running, and " if place.is_private else ""
    say(f"`make demo-clean` removes {kept}all that the demo made.")
    return 0


def _work(place: Place) -> None:
    import jobs

    from container_manager.management.commands.process_container_jobs import Command
    from container_manager.models import ExecutorHost

    enqueued = jobs.enqueue(place, ExecutorHost.objects.get(name="demo"))
    say(f"{len(enqueued)} jobs are enqueued; the worker runs until none is left")
    jobs.tell_and_cancel()
    Command().handle(once=True)
    jobs.show(enqueued)


def web(port: int) -> int:
    """Serve the admin with a fresh password, printed once."""
    os.environ["DEMO_DEBUG"] = "1"  # runserver hands out static files only then
    _set_up()
    from django.contrib.auth import get_user_model
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    password = secrets.token_urlsafe(9)
    user, _ = get_user_model().objects.get_or_create(
        username="demo", defaults={"is_staff": True, "is_superuser": True}
    )
    user.set_password(password)
    user.save()
    say(f"http://127.0.0.1:{port}/admin/  user: demo  password: {password}")
    call_command("runserver", f"127.0.0.1:{port}", use_reloader=False)
    return 0


def _set_up() -> None:
    import django

    os.environ["DJANGO_SETTINGS_MODULE"] = "demo_project.settings"
    django.setup()


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="The demo of django-container-jobs.")
    parser.add_argument("--web", action="store_true", help="serve the admin instead")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--clean", action="store_true", help="remove whatever the demo made")
    options = parser.parse_args()
    if options.clean:
        from demo_project.settings import CONTAINER_MANAGER_SETTINGS

        clean(CONTAINER_MANAGER_SETTINGS["INSTALLATION_ID"])
        return 0
    return web(options.port) if options.web else run()


if __name__ == "__main__":
    sys.exit(main())
