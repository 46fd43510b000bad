"""Lines, pieces, bytes, and disks that are full."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from container_manager.executors.process import statedir
from container_manager.executors.process.recorder import Recorder

Frames = list[tuple[int, bytes]]


def frames(directory: Path) -> Frames:
    with (directory / statedir.LOG).open("rb") as file:
        return [(stream, payload) for stream, _, payload in statedir.records(file)]


@contextmanager
def log_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / statedir.LOG).touch()
        (directory / statedir.BELLS).mkdir()
        yield directory


def record(chunks: Frames, *, max_bytes: int = 1 << 30) -> Frames:
    with log_directory() as directory:
        recorder = Recorder(directory, max_bytes=max_bytes)
        for stream, data in chunks:
            recorder.feed(stream, data)
        recorder.finish()
        return frames(directory)


def test_a_line_is_a_frame_however_it_arrives() -> None:
    assert record([(1, b"on"), (2, b"err\n"), (1, b"e\ntwo\nthr"), (1, b"ee")]) == [
        (2, b"err\n"),
        (1, b"one\n"),
        (1, b"two\n"),
        (1, b"three"),
    ]


def test_a_long_line_is_cut_and_only_its_last_piece_ends_it() -> None:
    line = b"x" * (2 * statedir.FRAME_BYTES + 5) + b"\n"
    pieces = [payload for _, payload in record([(1, line)])]
    assert [len(piece) for piece in pieces] == [statedir.FRAME_BYTES, statedir.FRAME_BYTES, 6]
    assert b"".join(pieces) == line


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 2]),
            st.one_of(
                st.binary(min_size=1, max_size=50),
                st.lists(st.sampled_from([b"\n", b"a", b"\0"]), min_size=1).map(b"".join),
                st.integers(1, 40_000).map(lambda size: b"z" * size),
            ),
        ),
        max_size=20,
    )
)
def test_no_byte_is_touched(chunks: Frames) -> None:
    written = record(chunks)
    for stream in (1, 2):
        expected = b"".join(data for number, data in chunks if number == stream)
        assert b"".join(payload for number, payload in written if number == stream) == expected
    assert all(0 < len(payload) <= statedir.FRAME_BYTES for _, payload in written)
    assert all(b"\n" not in payload[:-1] for _, payload in written)


def test_beyond_the_cap_the_rest_is_left_out_and_that_is_said() -> None:
    written = record([(1, b"12345\n"), (2, b"12345\n"), (1, b"1\n")], max_bytes=10)
    assert written == [(1, b"12345\n"), (2, b"[8 bytes of output are left out here: the log is full]\n")]


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 4 KiB: a full disk, in small.

    Lifted before the test reports: pytest's own output may go to a file that is longer.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_whole_records() -> None:
    with small_files():
        written = record([(1, b"a" * 3000 + b"\n"), (1, b"b" * 3000 + b"\n"), (1, b"c\n")])
    assert written[0] == (1, b"a" * 3000 + b"\n")
    assert written[1:] == [(2, b"[3003 bytes of output are left out here: the log is full]\n")]


def test_half_a_record_is_read_once_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "log"
    record_bytes = statedir.pack(1, 5, b"payload")
    file.write_bytes(record_bytes + record_bytes[:-3])
    with file.open("rb") as reader, file.open("ab") as writer:
        assert list(statedir.records(reader)) == [(1, 5, b"payload")]
        assert list(statedir.records(reader)) == []
        writer.write(record_bytes[-3:])
        writer.flush()
        assert list(statedir.records(reader)) == [(1, 5, b"payload")]
