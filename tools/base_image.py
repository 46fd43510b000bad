"""Make a base image from the interpreter of this machine, for places where no registry can be reached.

The image holds the interpreter below /usr/local, the shared libraries that it and its extension modules
name, a shell with the usual small tools, certificates and time-zone data. It goes to the engine as one
tar stream (`docker import`). Nothing personal is copied: no site-packages, no configuration, no home.

    python tools/base_image.py --engine unix:///var/run/docker.sock --tag container-jobs-base:py3.11

A label carries a key over all that went in, so a second call finds the image and returns at once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import engine_http

RECIPE = 4  # raise when the content of the image changes
LABEL = "io.django-container-jobs.base"
SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
JOB_UID = 10001
TOOLS = (
    "sh", "bash", "cat", "ls", "sleep", "head", "tail", "wc", "sort", "uniq", "grep", "sed", "awk",
    "id", "env", "kill", "dd", "yes", "seq", "tr", "cut", "tee", "true", "false", "echo", "printf",
    "pwd", "mkdir", "rmdir", "rm", "cp", "mv", "ln", "touch", "chmod", "stat", "date", "uname",
    "hostname", "df", "du", "find", "xargs", "expr", "test", "mktemp", "sha256sum", "base64", "od",
    "timeout", "nohup", "nproc", "basename", "dirname", "readlink", "tar", "gzip", "ps",
)  # fmt: skip
UNWANTED_DIRS = {
    "test", "tests", "idlelib", "turtledemo", "ensurepip", "lib2to3", "site-packages", "dist-packages",
    "tkinter", "__phello__",
}  # fmt: skip
LIBRARY = re.compile(r"(?:=>\s+)?(/\S+)\s+\(0x[0-9a-f]+\)")


class BaseImageError(RuntimeError):
    """The image cannot be made here; the text says what is missing."""


def interpreter() -> Path:
    """The real interpreter behind a virtual environment."""
    path = Path(sys._base_executable).resolve()  # type: ignore[attr-defined] # noqa: SLF001
    if not path.exists():
        raise BaseImageError(f"the interpreter {path} does not exist")
    return path


def default_tag() -> str:
    """The name under which the demo and `build_job_image` look for the base image."""
    return f"container-jobs-base:py{sys.version_info.major}.{sys.version_info.minor}"


def found_tools() -> dict[str, Path]:
    """The tools that this machine has, by the name that they will have in the image."""
    found = {name: shutil.which(name, path="/usr/bin:/bin") for name in TOOLS}
    if not found["sh"]:
        raise BaseImageError("this machine has no /bin/sh to put into the image")
    return {name: Path(path) for name, path in found.items() if path}


def content_key(tools: dict[str, Path]) -> str:
    """A hash over what determines the image's content."""
    digest = hashlib.sha256(f"{RECIPE} {sys.version} {platform.machine()} {sys.base_prefix}\n".encode())
    for name, path in sorted({**tools, "python": interpreter()}.items()):
        details = path.stat()
        digest.update(f"{name} {details.st_size} {int(details.st_mtime)}\n".encode())
    return digest.hexdigest()[:24]


def libraries_of(files: Iterable[Path]) -> set[Path]:
    """Every shared library that the given programs and modules load, by `ldd`."""
    names = [str(path) for path in files]
    answer = subprocess.run(["ldd", *names], capture_output=True, text=True, check=False)
    return {Path(match) for match in LIBRARY.findall(answer.stdout)}


class Tree:
    """The image's file system while it is put together in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("bin", "sbin", "lib", "lib64"):
            # Merged /usr as on this machine, so that a library keeps the path under which it is known.
            if Path("/", name).is_symlink():
                (root / name).symlink_to(f"usr/{name}")
                (root / "usr" / name).mkdir(parents=True)

    def add(self, source: Path, target: str) -> None:
        """Copy a file's content, whatever links lead to it, and keep its mode and time."""
        place = self.root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            shutil.copy2(source, place)

    def write(self, target: str, text: str) -> None:
        """Write a file of our own."""
        place = self.root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def link(self, target: str, to: str) -> None:
        """Make a symbolic link, unless something is there already."""
        place = self.root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_symlink() and not place.exists():
            place.symlink_to(to)


def add_python(tree: Tree) -> list[Path]:
    """Put the interpreter and its library below /usr/local; returns what may need shared libraries."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    tree.add(interpreter(), f"/usr/local/bin/python{version}")
    for name in ("python3", "python"):
        tree.link(f"/usr/local/bin/{name}", f"python{version}")
    library = f"usr/local/lib/python{version}"
    for key in ("stdlib", "platstdlib"):
        source = Path(
            sysconfig.get_path(key, vars={"base": sys.base_prefix, "platbase": sys.base_exec_prefix})
        )
        shutil.copytree(
            source, tree.root / library, ignore=_unwanted, symlinks=False, dirs_exist_ok=True,
            ignore_dangling_symlinks=True,
        )  # fmt: skip
    # A read-only root never gets a byte-code cache of its own: what is not compiled here is compiled by
    # every job again. Files that this machine compiled already are only checked.
    subprocess.run(
        [
            str(interpreter()),
            "-m",
            "compileall",
            "-q",
            "-s",
            str(tree.root),
            "-p",
            "/",
            str(tree.root / library),
        ],
        check=False,  # the standard library holds a few files that are not meant to compile
        stdout=subprocess.DEVNULL,
    )
    return [interpreter(), *(tree.root / library).glob("lib-dynload/*.so")]


def _unwanted(folder: str, names: list[str]) -> set[str]:
    cache = Path(folder).name == "__pycache__"
    tag = f".{sys.implementation.cache_tag}."
    return {
        name
        for name in names
        if name in UNWANTED_DIRS
        or name.startswith("config-")
        or name.endswith((".opt-1.pyc", ".opt-2.pyc", ".a"))
        or (cache and tag not in name)
    }


def add_libraries(tree: Tree, programs: list[Path]) -> None:
    """Copy what `ldd` names, and let the dynamic linker know where it lies."""
    wanted = libraries_of(programs)
    for name in ("libgcc_s.so.1", "libnss_dns.so.2", "libnss_files.so.2"):  # loaded by name at run time
        wanted |= {folder / name for folder in {path.parent for path in wanted} if (folder / name).exists()}
    folders: set[str] = set()
    prefix = Path(sys.base_prefix).resolve()
    for library in wanted:
        folder = library.parent.resolve()
        own = prefix != Path("/usr") and folder.is_relative_to(prefix)
        target = Path("/usr/local", folder.relative_to(prefix)) if own else folder
        tree.add(library, str(target / library.name))
        folders.add(str(target))
    tree.write("/etc/ld.so.conf", "".join(f"{folder}\n" for folder in sorted(folders)))
    subprocess.run([shutil.which("ldconfig") or "/sbin/ldconfig", "-r", str(tree.root)], check=True)


def add_system_files(tree: Tree) -> None:
    """Accounts, certificates, time zones, and the places that programs expect."""
    tree.write(
        "/etc/passwd",
        "root:x:0:0:root:/:/bin/sh\n"
        f"job:x:{JOB_UID}:{JOB_UID}:job:/tmp:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    )
    tree.write("/etc/group", f"root:x:0:\njob:x:{JOB_UID}:\nnogroup:x:65534:\n")
    tree.write("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    for name in ("/etc/os-release", "/etc/protocols", "/etc/services", "/etc/mime.types"):
        if Path(name).exists():
            tree.add(Path(name), name)
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    if Path(bundle).exists():
        tree.add(Path(bundle), bundle)
        tree.link(ssl.get_default_verify_paths().openssl_cafile, bundle)
    zones = Path("/usr/share/zoneinfo")
    if zones.is_dir():
        shutil.copytree(
            zones,
            tree.root / "usr/share/zoneinfo",
            symlinks=True,
            ignore=shutil.ignore_patterns("right", "posix"),
        )
    for name, mode in (("tmp", 0o1777), ("var/tmp", 0o1777), ("proc", 0o755), ("sys", 0o755), ("dev", 0o755)):
        (tree.root / name).mkdir(parents=True, exist_ok=True)
        (tree.root / name).chmod(mode)


def fill(root: Path, tools: dict[str, Path]) -> None:
    """Lay out the whole file system below `root`."""
    tree = Tree(root)
    programs = add_python(tree)
    for name, path in tools.items():
        tree.add(
            path,
            f"/usr/bin/{name}" if Path("/bin").is_symlink() or path.parts[1] == "usr" else f"/bin/{name}",
        )
    tree.link("/bin/sh", "/usr/bin/sh")
    add_libraries(tree, [*programs, *tools.values()])
    add_system_files(tree)


def packed(root: Path) -> Iterator[bytes]:
    """The tree as a tar stream in pieces; all of it belongs to root."""
    reader, writer = os.pipe()
    failure: list[BaseException] = []

    def normal(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        if member.isdir() and not member.mode & 0o1000:
            member.mode = 0o755
        elif member.isfile():
            member.mode |= 0o444
        return member

    def pack(out: BinaryIO) -> None:
        try:
            with out, tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT) as archive:
                archive.add(root, arcname=".", filter=normal)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that reads
            failure.append(error)

    thread = threading.Thread(target=pack, args=(os.fdopen(writer, "wb"),), daemon=True)
    thread.start()
    with os.fdopen(reader, "rb") as stream:
        while piece := stream.read(1 << 18):
            yield piece
    thread.join()
    if failure:
        raise failure[0]


def present(engine: str, tag: str, key: str) -> bool:
    """Whether the engine has the image under this tag and with this content."""
    try:
        facts = engine_http.call_json(engine, "GET", f"/images/{tag}/json")
    except engine_http.EngineAnswer as answer:
        if answer.status == 404:
            return False
        raise
    labels = facts["Config"].get("Labels") or {}
    return bool(labels.get(LABEL) == key)


def split_tag(tag: str) -> tuple[str, str]:
    """Name and version of a tag. Raises `BaseImageError` where one of them is missing."""
    repository, _, version = tag.rpartition(":")
    if not repository or "/" in version:
        raise BaseImageError(f"tag {tag!r}: give a name and a version, such as {default_tag()}")
    return repository, version


def ensure(engine: str, tags: Iterable[str], *, say: bool = True) -> bool:
    """See to it that `engine` has the image under every tag; True when it had to be built.

    Raises `BaseImageError`, `engine_http.EngineAnswer`, or OSError when no engine answers.
    """
    tags = list(tags)
    names = [split_tag(tag) for tag in tags]
    tools = found_tools()
    key = content_key(tools)
    have = [tag for tag in tags if present(engine, tag, key)]
    built = not have
    if built:
        started = time.monotonic()
        _say(
            f"base image {tags[0]}: packing Python {platform.python_version()} of this machine (5-20 s)", say
        )
        with tempfile.TemporaryDirectory(prefix="container-jobs-base-") as folder:
            fill(Path(folder), tools)
            _import(engine, Path(folder), names[0], key)
        _say(f"base image {tags[0]}: ready after {time.monotonic() - started:.0f} s", say)
        have = tags[:1]
    for tag, (repository, version) in zip(tags, names, strict=True):
        if tag not in have:
            query = {"repo": repository, "tag": version}
            engine_http.call(engine, "POST", f"/images/{have[0]}/tag", query=query)
    return built


def _import(engine: str, root: Path, name: tuple[str, str], key: str) -> None:
    changes = [f"ENV PATH={SEARCH_PATH}", "ENV LANG=C.UTF-8", f"LABEL {LABEL}={key}", 'CMD ["python3"]']
    query = [("fromSrc", "-"), ("repo", name[0]), ("tag", name[1]), *(("changes", line) for line in changes)]
    text = engine_http.call(engine, "POST", "/images/create", query=query, body=packed(root), timeout=300)
    if '"error"' in text:
        raise BaseImageError(f"the engine refused the image: {text.strip()}")


def _say(line: str, say: bool) -> None:  # noqa: FBT001
    if say:
        print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make a base image from this machine's own Python.")
    parser.add_argument("--engine", required=True, help="unix:///path or tcp://host:port")
    parser.add_argument("--tag", action="append", help=f"may be repeated; {default_tag()} unless given")
    options = parser.parse_args()
    try:
        ensure(options.engine, options.tag or [default_tag()])
    except (BaseImageError, engine_http.EngineAnswer, OSError) as error:
        print(f"base image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
