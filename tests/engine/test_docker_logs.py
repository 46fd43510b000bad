"""What a program writes, byte for byte through a real engine's log and the driver.

Known and decided. The engine's `local` log driver is used, as json-file replaces bytes that are no UTF-8. It
cuts lines into pieces of 16 KiB and forgets the newline of the last piece of a long line. The driver gives
that newline back; where a stream ends with such a piece, nobody can tell whether it ended with a newline,
and the driver assumes that it did.

A follow may end before the last line, where that has no newline: Engine 20.10 writes such a line when the
program has gone, and takes the container's end for the log's. Whoever follows reads once more at the end.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence

import pytest

from container_manager.core.observation import STDERR, STDOUT, LogCursor, LogFrame
from container_manager.executors.docker.streams import PIECE_BYTES
from tests.engine.driving import Driving, Following, joined, python

pytestmark = pytest.mark.engine

# The program is handed to the container in argv, so long outputs are told as (pattern, times).
_WRITER = """
import base64, os, sys
for stream, text, times in {parts!r}:
    data = base64.b64decode(text) * times
    while data:
        data = data[os.write(stream, data):]
"""


@pytest.fixture(scope="module")
def driving(docker_url: str) -> Iterator[Driving]:
    one = Driving(docker_url, auto_pull_images=False)
    yield one
    one.close()


def written(driving: Driving, *parts: tuple[int, bytes, int]) -> list[LogFrame]:
    """The log of a program that writes each (stream, bytes, times) in turn."""
    told = [(stream, base64.b64encode(data).decode(), times) for stream, data, times in parts]
    container_id = driving.started(driving.spec(*python(_WRITER.format(parts=told)), cpus=1.0))
    followed = list(driving.executor.logs(container_id, follow=True))
    frames = driving.output(container_id)
    assert driving.ended(container_id).exit_code == 0, frames
    missing = frames[len(followed) :]
    assert followed == frames[: len(followed)]
    assert missing == [] or (len(missing) <= 2 and not parts[-1][1].endswith(b"\n")), (
        "an unfinished last line"
    )
    return frames


def stdout_of(driving: Driving, *parts: tuple[bytes, int]) -> bytes:
    return joined(written(driving, *[(STDOUT, data, times) for data, times in parts]), STDOUT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\n\n\n",
        b"plain\n",
        b"no newline at the end",
        b"two\nlines, the last without newline",
        b"NUL \0 in the middle\n\0\n",
        b"\xff\xfe bad UTF-8 \xc3\x28 \xed\xa0\x80\n",
        b"cut character \xe2\x82\n\xac\n",
        b"carriage\rreturn\r\n",
        b"\x1b[31mred\x1b[0m\n",
        b" leading and trailing blanks \n  \n",
        bytes(range(256)) + b"\n",
        b"2026-01-01T00:00:00.000000000Z looks like a timestamp\n",
        bytes([1, 0, 0, 0, 0, 0, 0, 5]) + b"looks like a frame\n",
    ],
    ids=repr,
)
def test_odd_bytes(driving: Driving, data: bytes) -> None:
    assert stdout_of(driving, (data, 1)) == data


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, 100_000])
def test_a_long_line_keeps_its_newline_and_the_next_line_its_beginning(driving: Driving, size: int) -> None:
    frames = written(driving, (STDOUT, b"a\n", 1), (STDOUT, b"x", size), (STDOUT, b"\nb\n", 1))
    assert joined(frames) == b"a\n" + b"x" * size + b"\nb\n"


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES])
def test_a_last_line_of_whole_pieces_or_less_than_one_ends_as_it_was_written(
    driving: Driving, size: int
) -> None:
    assert stdout_of(driving, (b"x", size)) == b"x" * size
    assert stdout_of(driving, (b"x", size - 1), (b"\n", 1)) == b"x" * (size - 1) + b"\n"


def test_a_newline_is_assumed_at_the_end_of_a_last_line_longer_than_a_piece(driving: Driving) -> None:
    size = PIECE_BYTES + 1
    assert stdout_of(driving, (b"x", size), (b"\n", 1)) == b"x" * size + b"\n"
    assert stdout_of(driving, (b"x", size)) == b"x" * size + b"\n", "the one byte that is not as it was"


def test_long_lines_that_end_exactly_with_a_piece(driving: Driving) -> None:
    line = b"x" * (PIECE_BYTES - 1) + b"\n"
    assert stdout_of(driving, (line, 3), (b"end\n", 1)) == line * 3 + b"end\n"


def test_a_megabyte_in_one_line(driving: Driving) -> None:
    data = stdout_of(driving, (b"0123456789abcdef", 65536), (b"\nnext\n", 1))
    assert data == b"0123456789abcdef" * 65536 + b"\nnext\n"


def test_two_mebibytes_without_any_newline(driving: Driving) -> None:
    assert stdout_of(driving, (b"0123456789abcdef", 131072)) == b"0123456789abcdef" * 131072


def test_long_lines_of_both_streams_do_not_mix(driving: Driving) -> None:
    parts = [
        (STDOUT, b"o" * 20_000, 1),
        (STDERR, b"e" * 40_000 + b"\n", 1),
        (STDOUT, b"O" * 20_000 + b"\n", 1),
        (STDERR, b"end of stderr\n", 1),
        (STDOUT, b"end of stdout\n", 1),
    ]
    frames = written(driving, *parts)
    assert joined(frames, STDOUT) == b"o" * 20_000 + b"O" * 20_000 + b"\n" + b"end of stdout\n"
    assert joined(frames, STDERR) == b"e" * 40_000 + b"\n" + b"end of stderr\n"


def test_twenty_thousand_lines_of_two_streams(driving: Driving) -> None:
    frames = written(driving, (STDOUT, b"out\n", 10_000), (STDERR, b"err\n", 10_000))
    assert joined(frames, STDOUT) == b"out\n" * 10_000
    assert joined(frames, STDERR) == b"err\n" * 10_000
    assert all(frame.payload.endswith(b"\n") for frame in frames)


def cursors(frames: Sequence[LogFrame]) -> Iterator[tuple[int, LogCursor]]:
    """A cursor behind each frame, as far on as it may be.

    Not simply that frame's own time: a long line keeps the time of its first piece, and the two streams are
    stamped before they queue for the log, so that a later frame may be older.
    """
    for stored in range(1, len(frames) + 1):
        time_ns = min(frame.timestamp_ns for frame in frames[stored - 1 :])
        yield stored, LogCursor(time_ns, sum(frame.timestamp_ns >= time_ns for frame in frames[:stored]))


def test_reading_on_from_every_frame_gives_exactly_the_rest(driving: Driving) -> None:
    program = (
        "import os\n"
        "for n in range(6):\n"
        "    os.write(1, b'out %d\\n' % n); os.write(2, b'err %d\\n' % n)\n"
        "    os.write(1, b'x' * 40000 + b'\\n'); os.write(2, b'\\xff\\0 no end')\n"
        "    os.write(2, b' but one\\n')\n"
        "os.write(1, b'last')"
    )
    container_id = driving.started(driving.spec(*python(program)))
    frames = driving.output(container_id)
    for stored, cursor in cursors(frames):
        for follow in (False, True):  # following what has ended is reading it
            rest = list(driving.executor.logs(container_id, since=cursor, follow=follow))
            assert rest == frames[stored:]
    whole = list(driving.executor.logs(container_id, since=LogCursor(0, 7)))
    assert whole == frames[7:], "time 0 is the beginning of everything"


def test_a_line_that_is_still_open_is_not_lost_while_the_other_stream_goes_on(driving: Driving) -> None:
    program = (
        "import os, time\n"
        "os.write(1, b'a' * 20000); os.write(2, b'one\\n'); time.sleep(0.3)\n"
        "os.write(2, b'two\\n'); os.write(1, b'b' * 20000 + b'\\n'); os.write(1, b'end\\n')"
    )
    container_id = driving.started(driving.spec(*python(program)))
    frames = driving.output(container_id)
    assert joined(frames, STDOUT) == b"a" * 20000 + b"b" * 20000 + b"\nend\n"
    assert joined(frames, STDERR) == b"one\ntwo\n"
    first = frames[0].timestamp_ns
    for stored in range(len(frames) + 1):
        rest = driving.executor.logs(container_id, since=LogCursor(first, stored))
        assert list(rest) == frames[stored:]


def test_following_delivers_while_the_program_writes(driving: Driving) -> None:
    program = "import time; print('first', flush=True); time.sleep(120)"
    container_id = driving.started(driving.spec(*python(program)))
    following = Following(driving.executor, container_id)
    assert following.arrived.wait(10)
    assert [frame.payload for frame in following.frames] == [b"first\n"]
    driving.executor.stop(container_id, force=True)
    following.join(10)
    assert not following.is_alive()


@pytest.mark.parametrize("silent", [False, True])
def test_closing_the_executor_ends_a_follow_in_another_thread_within_a_second(
    driving: Driving, silent: bool
) -> None:
    argv = ("sleep", "120") if silent else ("sh", "-c", "while :; do echo x; done")
    container_id = driving.started(driving.spec(*argv))
    other = driving.another()
    following = Following(other, container_id)
    if silent:
        # It has to be in the middle of its wait: the engine has answered, and says nothing more.
        deadline = time.monotonic() + 10
        while not other._connection._streams and time.monotonic() < deadline:
            time.sleep(0.01)
    else:
        assert following.arrived.wait(10)
    began = time.monotonic()
    other.close()
    following.join(5)
    assert not following.is_alive()
    assert time.monotonic() - began < 1.0
    driving.executor.remove(container_id)
