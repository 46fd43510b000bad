"""Image references by the distribution grammar, with Docker's defaults."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container_manager.core.errors import InvalidJob
from container_manager.core.images import parse_image

HEX = "0123456789abcdef" * 4
SHA = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("reference", "registry", "repository", "tag", "digest", "familiar"),
    [
        ("alpine", "docker.io", "library/alpine", "latest", "", "alpine:latest"),
        ("alpine:3.18", "docker.io", "library/alpine", "3.18", "", "alpine:3.18"),
        ("library/alpine", "docker.io", "library/alpine", "latest", "", "alpine:latest"),
        ("docker.io/alpine", "docker.io", "library/alpine", "latest", "", "alpine:latest"),
        ("index.docker.io/alpine", "docker.io", "library/alpine", "latest", "", "alpine:latest"),
        ("docker.io/me/app:1", "docker.io", "me/app", "1", "", "me/app:1"),
        ("me/app", "docker.io", "me/app", "latest", "", "me/app:latest"),
        ("a/b/c", "docker.io", "a/b/c", "latest", "", "a/b/c:latest"),
        ("localhost/app", "localhost", "app", "latest", "", "localhost/app:latest"),
        ("localhost:5000/app:x", "localhost:5000", "app", "x", "", "localhost:5000/app:x"),
        ("reg.example.com/app", "reg.example.com", "app", "latest", "", "reg.example.com/app:latest"),
        ("reg:5000/a/b:1", "reg:5000", "a/b", "1", "", "reg:5000/a/b:1"),
        ("127.0.0.1:80/a", "127.0.0.1:80", "a", "latest", "", "127.0.0.1:80/a:latest"),
        ("[::1]:5000/a:1", "[::1]:5000", "a", "1", "", "[::1]:5000/a:1"),
        ("MyHost/app", "MyHost", "app", "latest", "", "MyHost/app:latest"),
        (f"alpine@{SHA}", "docker.io", "library/alpine", "", SHA, f"alpine@{SHA}"),
        (f"alpine:3@{SHA}", "docker.io", "library/alpine", "3", SHA, f"alpine:3@{SHA}"),
        (f"reg:5000/a@{SHA}", "reg:5000", "a", "", SHA, f"reg:5000/a@{SHA}"),
        ("a__b/c-d.e--f", "docker.io", "a__b/c-d.e--f", "latest", "", "a__b/c-d.e--f:latest"),
        ("app:_Tag.x-1", "docker.io", "library/app", "_Tag.x-1", "", "app:_Tag.x-1"),
        ("app:" + "t" * 128, "docker.io", "library/app", "t" * 128, "", "app:" + "t" * 128),
        # No registry without a path behind it: as Docker reads it, a name and its tag.
        ("reg:5000", "docker.io", "library/reg", "5000", "", "reg:5000"),
        ("08b2", "docker.io", "library/08b2", "latest", "", "08b2:latest"),
    ],
)
def test_a_reference_taken_apart(
    reference: str, registry: str, repository: str, tag: str, digest: str, familiar: str
) -> None:
    image = parse_image(reference)
    assert (image.registry, image.repository, image.tag, image.digest) == (registry, repository, tag, digest)
    assert image.familiar == familiar
    tail = (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    assert image.canonical == f"{registry}/{repository}{tail}"
    assert parse_image(image.canonical) == image
    assert parse_image(image.familiar) == image


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("", "no image is given"),
        (None, "python:3.12-slim"),
        (5, "python:3.12-slim"),
        (" alpine", "space or line break"),
        ("alpine ", "space or line break"),
        ("al pine", "space or line break"),
        ("alpine\n", "space or line break"),
        ("https://reg.example.com/app", "is a URL"),
        ("docker://alpine", "is a URL"),
        (HEX, "image id"),
        (SHA, "image id"),
        ("Alpine", "lower case"),
        ("me/App", "lower case"),
        ("localhost/App", "lower case"),
        ("alpine:", "malformed tag ''"),
        ("alpine:-x", "malformed tag"),
        ("alpine:" + "t" * 129, "malformed tag"),
        ("alpine:a:b", "malformed tag"),
        ("alpine@", "malformed digest"),
        ("alpine@sha256:abc", "malformed digest"),
        (f"alpine@{SHA}@{SHA}", "malformed digest"),
        ("alpine@latest", "malformed digest"),
        (f"alpine@{SHA.upper()}", "malformed digest"),
        (f"alpine@md5:{HEX}", "malformed digest"),
        (f"alpine@{SHA}0", "malformed digest"),
        ("/alpine", "malformed name"),
        ("alpine/", "malformed name"),
        ("a//b", "malformed name"),
        ("-a", "malformed name"),
        ("a-", "malformed name"),
        ("a..b", "malformed name"),
        ("a___b", "malformed name"),
        ("@sha256:" + HEX, "malformed name"),
        (":tag", "malformed name"),
        ("reg:port/a", "malformed registry"),
        ("-reg.com/a", "malformed registry"),
        ("reg..com/a", "malformed registry"),
        ("grüße", "malformed name"),
        ("a/" * 126 + "abc", "255"),
        ("al\0pine", "malformed name"),
        ("../etc", "malformed"),
    ],
)
def test_a_bad_reference_names_the_field_and_the_fault(reference: object, says: str) -> None:
    with pytest.raises(InvalidJob, match=says) as caught:
        parse_image(reference)
    assert caught.value.field == "docker_image"


@given(st.text("aB0.:/@-_[] l", max_size=20))
def test_any_text_is_refused_or_has_one_canonical_form(reference: str) -> None:
    try:
        image = parse_image(reference)
    except InvalidJob:
        return
    assert parse_image(image.canonical) == image
    assert parse_image(image.familiar) == image
    assert bool(image.tag) or bool(image.digest)
