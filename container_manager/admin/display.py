"""How values are shown: words, units, badges. Unknown is a dash, never 0."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from container_manager.core.inert import inert_line
from container_manager.core.outcome import REASONS, ExitReason
from container_manager.core.states import Status
from container_manager.models import ExecutorHost

UNKNOWN = "\u2013"

#: Which colour a word gets; the word itself is always there.
_TONES = {
    Status.PENDING: "quiet",
    Status.LAUNCHING: "busy",
    Status.RUNNING: "busy",
    Status.COMPLETED: "good",
    Status.FAILED: "bad",
    Status.TIMEOUT: "bad",
    Status.CANCELLED: "warn",
}
_HEALTH_TONES = {
    ExecutorHost.Health.UNKNOWN: "quiet",
    ExecutorHost.Health.HEALTHY: "good",
    ExecutorHost.Health.UNREACHABLE: "bad",
    ExecutorHost.Health.MISMATCHED: "bad",
}
_SIGNALS = {130: "SIGINT", 134: "SIGABRT", 137: "SIGKILL", 139: "SIGSEGV", 141: "SIGPIPE", 143: "SIGTERM"}


def badge(word: str, tone: str) -> SafeString:
    """A word on a coloured ground."""
    return format_html('<span class="cm-badge cm-{}">{}</span>', tone, word)


def status_tone(status: str) -> str:
    """The tone of a status: good, bad, warn, busy or quiet."""
    return _TONES[Status(status)]


def status_badge(status: str) -> SafeString:
    """A job's status as a badge."""
    return badge(status, status_tone(status))


def health_badge(host: ExecutorHost) -> SafeString:
    """A host's health as a badge."""
    health = ExecutorHost.Health(host.health)
    return badge(str(health.label), _HEALTH_TONES[health])


def reason_label(reason: str) -> str:
    """The name of an exit reason for people."""
    return REASONS[ExitReason(reason)].label if reason else UNKNOWN


def exit_code_text(code: int | None) -> str:
    """An exit code, with the signal that it usually stands for."""
    if code is None:
        return UNKNOWN
    return f"{code} ({_SIGNALS[code]})" if code in _SIGNALS else str(code)


def size_text(size: int | None) -> str:
    """Bytes in the unit that reads best; units are powers of 1024, as the limits are."""
    if size is None:
        return UNKNOWN
    if size < 1024:
        return f"{size} bytes"
    amount = float(size)
    for unit in ("KB", "MB", "GB"):
        amount /= 1024
        if amount < 1024 or unit == "GB":
            return f"{amount:.1f} {unit}"
    raise AssertionError  # the loop ends at its last unit


def duration_text(duration: timedelta | None) -> str:
    """A time span with two figures that matter."""
    if duration is None:
        return UNKNOWN
    seconds = duration.total_seconds()
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def percent_text(percent: float | None) -> str:
    """CPU use; 100 % is one core."""
    return UNKNOWN if percent is None else f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %"


def brief(text: str, longest: int = 60) -> str:
    """As `line`, cut for a cell of a list."""
    whole = line(text)
    return whole if len(whole) <= longest else f"{whole[: longest - 1]}\u2026"


def two_lines(main: object, small: object) -> SafeString:
    """A cell with a second, smaller line."""
    return format_html('<span class="cm-main">{}</span><span class="cm-under">{}</span>', main, small)


def moment_text(at: datetime | None) -> str:
    """A moment in the zone of the page, to the second."""
    return UNKNOWN if at is None else f"{timezone.localtime(at):%Y-%m-%d %H:%M:%S}"


def line(text: str) -> str:
    """Text from outside as one harmless line; a dash where there is none."""
    return inert_line(text) or UNKNOWN
