"""Image references, by the grammar of the distribution project, with Docker's defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass

from container_manager.core.errors import InvalidJob

FIELD = "docker_image"
DEFAULT_REGISTRY = "docker.io"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
#: The three that engines know; each has one length and is written in lower case.
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_MAX_NAME = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """A reference taken apart. `tag` or `digest` may be empty, not both: no tag means "latest"."""

    registry: str
    repository: str
    tag: str
    digest: str

    @property
    def canonical(self) -> str:
        """The full form that names one place and no other: `docker.io/library/alpine:3.18`."""
        return f"{self.registry}/{self.repository}{self._suffix}"

    @property
    def familiar(self) -> str:
        """The short form that people write: `alpine:3.18`."""
        if self.registry != DEFAULT_REGISTRY:
            return self.canonical
        return self.repository.removeprefix(f"{DEFAULT_NAMESPACE}/") + self._suffix

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_image(reference: object, field: str = FIELD) -> ImageReference:
    """Take a reference apart. Raises InvalidJob with what to write instead.

    An image id is refused: it names nothing outside one host, and would pass by any list of allowed names.
    """
    if not isinstance(reference, str) or not reference.strip():
        raise InvalidJob(field, "no image is given; name one, such as 'python:3.12-slim'.")
    if any(character.isspace() for character in reference):
        raise InvalidJob(field, f"{reference!r} has a space or line break in it; take it out.")
    if "://" in reference:
        raise InvalidJob(field, f"{reference!r} is a URL; leave out what comes before and with '://'.")
    # With its algorithm in front an engine reads an id as well, although it would pass as name:tag.
    if _IMAGE_ID.fullmatch(reference) or _DIGEST.fullmatch(reference):
        raise InvalidJob(
            field,
            f"{reference!r} is malformed as a name: an image id names nothing outside one host; use a name.",
        )
    name, at, digest = reference.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise InvalidJob(
            field, f"{reference!r} has a malformed digest; write name@sha256:<64 digits of 0-9a-f>."
        )
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise InvalidJob(
            field, f"{reference!r} has the malformed tag {tag!r}; use letters, digits, '_', '.', '-'."
        )
    registry, repository = _split_registry(f"{head}{slash}{last}")
    if not _DOMAIN.fullmatch(registry):
        raise InvalidJob(
            field, f"{reference!r} has the malformed registry {registry!r}; write host or host:port."
        )
    if not _PATH.fullmatch(repository):
        remedy = "write it in lower case" if repository != repository.lower() else "write name or path/name"
        raise InvalidJob(field, f"{reference!r} has the malformed name {repository!r}; {remedy}.")
    if len(f"{registry}/{repository}") > _MAX_NAME:
        raise InvalidJob(field, f"the name has more than {_MAX_NAME} characters; use a shorter one.")
    return ImageReference(
        registry=registry, repository=repository, tag=tag or ("" if digest else DEFAULT_TAG), digest=digest
    )


def _split_registry(name: str) -> tuple[str, str]:
    """The registry and the rest: a first part with a dot, a port or the name `localhost` is a registry."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        registry = DEFAULT_REGISTRY if first == "index.docker.io" else first
        if registry == DEFAULT_REGISTRY and "/" not in rest:
            rest = f"{DEFAULT_NAMESPACE}/{rest}"
        return registry, rest
    return DEFAULT_REGISTRY, name if slash else f"{DEFAULT_NAMESPACE}/{name}"
