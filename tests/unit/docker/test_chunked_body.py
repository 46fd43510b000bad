"""The body reader for answers that come as one small chunk per line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_manager.executors.docker.streams import ChunkedBody


def _encoded(chunks: list[bytes], *, last: bool = True) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return body + (b"0\r\n\r\n" if last else b"")


def _reader_of(pieces: list[bytes]) -> ChunkedBody:
    waiting = iter(pieces)
    return ChunkedBody(lambda size: next(waiting, b""))


def _read_all(body: ChunkedBody) -> bytes:
    return b"".join(body)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=12), st.lists(st.integers(1, 30), max_size=40))
def test_the_payload_comes_whole_however_the_socket_cuts_it(chunks: list[bytes], cuts: list[int]) -> None:
    wire = _encoded(chunks)
    pieces = []
    for cut in cuts:
        pieces.append(wire[:cut])
        wire = wire[cut:]
    pieces.append(wire)

    assert _read_all(_reader_of([piece for piece in pieces if piece])) == b"".join(chunks)


def test_one_read_hands_out_all_chunks_that_came() -> None:
    body = _reader_of([_encoded([b"one\n", b"two\n"], last=False), _encoded([b"three\n"])])

    assert list(body) == [b"one\ntwo\n", b"three\n"]


def test_chunk_extensions_and_trailers_are_passed_over() -> None:
    assert _read_all(_reader_of([b"3;name=value\r\nabc\r\n0\r\nTrailer: x\r\n\r\n"])) == b"abc"


@pytest.mark.parametrize("wire", [b"", b"5\r\nab", _encoded([b"abc"], last=False)])
def test_an_early_end_of_the_connection_is_an_error(wire: bytes) -> None:
    with pytest.raises(ConnectionError, match="in the middle"):
        _read_all(_reader_of([wire] if wire else []))


def test_a_body_that_is_not_chunked_is_an_error() -> None:
    with pytest.raises(ConnectionError, match="not a chunked body"):
        _read_all(_reader_of([b"hello\r\nworld\r\n"]))
