"""What an engine's log looks like to the worker: frames in the order of arrival, made by Hypothesis."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from container_manager.core.observation import STDERR, STDOUT, LogCursor, LogFrame
from container_manager.worker.logs import LOOK_BACK_NS

START_NS = 1_700_000_000 * 10**9
#: The steps between two lines: none, a little, so much that an anchor moves.
STEPS = (0, 0, 1, 1000, LOOK_BACK_NS // 3, LOOK_BACK_NS - 1, LOOK_BACK_NS, LOOK_BACK_NS + 1, 3 * LOOK_BACK_NS)
#: By how much a line may be older than one of the other stream that arrived before it.
CROSSINGS = (0, 0, 1, 999, LOOK_BACK_NS // 2)


@st.composite
def arrivals(draw: st.DrawFn, max_lines: int = 14) -> list[LogFrame]:
    """Lines of two streams. Within a stream time never runs backwards; between them it may, by a little.

    A long line comes in pieces with the time of its first piece, and the other stream may write a lot
    before the last of them.
    """
    now = START_NS
    last = {STDOUT: 0, STDERR: 0}
    open_line: dict[int, LogFrame] = {}
    frames: list[LogFrame] = []
    for number in range(draw(st.integers(0, max_lines))):
        now += draw(st.sampled_from(STEPS))
        stream = draw(st.sampled_from([STDOUT, STDERR]))
        begun = open_line.pop(stream, None)
        if begun is not None:
            stamp = begun.timestamp_ns
        else:
            stamp = max(last[stream], now - draw(st.sampled_from(CROSSINGS)))
        ends = draw(st.booleans()) or (begun is not None and draw(st.booleans()))
        frame = LogFrame(stream, stamp, b"%d" % number + (b"\n" if ends else b""))
        if not ends:
            open_line[stream] = frame
        last[stream] = stamp
        frames.append(frame)
    return frames


def resumed(frames: Sequence[LogFrame], cursor: LogCursor | None) -> list[LogFrame]:
    """What an engine that holds `frames` answers to somebody who reads on from `cursor`."""
    if cursor is None:
        return list(frames)
    return [frame for frame in frames if frame.timestamp_ns >= cursor.timestamp_ns][cursor.frames :]
