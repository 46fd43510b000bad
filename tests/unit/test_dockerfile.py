"""The generated Dockerfile, what of a project is sent, and how its dependencies are found."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from container_manager.core.errors import ConfigurationError
from container_manager.executors.docker.context import Context, Ignore, walk
from container_manager.executors.docker.dockerfile import Copied, Dependencies, Pip, Plan, Present, render
from container_manager.executors.docker.packages import collect
from container_manager.management.project import (
    SENT_DOCKERFILE,
    Wishes,
    fill,
    find_root,
    make_recipe,
)

# ---------------------------------------------------------------------------------- the Dockerfile


def instructions(dependencies: Dependencies, settings_module: str = "site.settings") -> list[str]:
    text = render(
        Plan(base_image="python:3.11-slim", dependencies=dependencies, settings_module=settings_module)
    )
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_dependencies_stand_before_the_code_and_the_user_is_last() -> None:
    lines = instructions(Pip(files=("requirements/jobs.txt", "requirements/base.txt")))
    assert lines[0] == "FROM python:3.11-slim"
    order = [line.split(maxsplit=1)[0] for line in lines]
    assert order == ["FROM", "ENV", "WORKDIR", "COPY", "COPY", "RUN", "COPY", "RUN", "ENV", "USER", "CMD"]
    assert 'COPY ["requirements/jobs.txt", "/opt/requirements/requirements/"]' in lines
    assert lines[5].endswith('"-r", "/opt/requirements/requirements/jobs.txt"]')
    assert lines[6] == 'COPY [".", "./"]'
    assert lines[-2] == "USER 10001:10001"
    assert 'ENV DJANGO_SETTINGS_MODULE="site.settings"' in lines


def test_requirements_as_such_are_words_of_the_command() -> None:
    line = instructions(Pip(requirements=("Django>=5.2", 'tzdata; sys_platform == "win32"')))[3]
    words = json.loads(line.removeprefix("RUN "))
    assert words[-2:] == ["Django>=5.2", 'tzdata; sys_platform == "win32"']
    assert words[:4] == ["python", "-m", "pip", "install"]


def test_copied_packages_have_a_layer_and_a_check_of_their_own() -> None:
    lines = instructions(Copied(python=(3, 11)))
    assert 'COPY ["packages", "/opt/packages/"]' in lines
    assert 'COPY ["code", "./"]' in lines
    assert 'PYTHONPATH="/opt/packages"' in lines[1]
    assert not any("pip" in line for line in lines)
    check = json.loads(lines[3].removeprefix("RUN "))[2]
    assert "(3, 11)" in check


def test_nothing_is_installed_where_the_base_has_it() -> None:
    lines = instructions(Present(), settings_module="")
    assert '"import django, container_manager, ' in lines[4]
    assert [line.split()[0] for line in lines] == ["FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "CMD"]


@pytest.mark.parametrize("dependencies", [Present(), Copied(python=(3, 13)), Pip(requirements=("Django",))])
def test_every_command_is_in_exec_form_and_its_python_compiles(dependencies: Dependencies) -> None:
    for line in instructions(dependencies):
        word, _, rest = line.partition(" ")
        if word in {"RUN", "CMD", "COPY"}:
            words = json.loads(rest)
            if "-c" in words:
                compile(words[words.index("-c") + 1], "<RUN>", "exec")


# ------------------------------------------------------------------------------ what is left out


@pytest.mark.parametrize(
    ("rules", "out", "kept"),
    [
        ("*.log", ["a.log"], ["sub/a.log", "a.logs"]),
        ("**/*.log", ["a.log", "sub/deep/a.log"], ["a.txt"]),
        ("build", ["build", "build/x/y"], ["sub/build"]),
        ("/build/", ["build", "build/x"], ["sub/build"]),
        ("sub/*/temp?", ["sub/a/temp1", "sub/a/temp1/x"], ["sub/temp1", "sub/a/b/temp1", "sub/a/temp"]),
        ("docs/**", ["docs/a", "docs/a/b"], ["docs2"]),
        ("a**z", ["abcz", "a/b/z"], ["abc"]),
        ("x[0-9]", ["x1"], ["xa", "x12"]),
        (r"a\*b", ["a*b"], ["axb"]),
        ("# a comment\n\n  spaced.txt  ", ["spaced.txt"], ["# a comment"]),
        ("./a/../b", ["b"], ["a"]),
        ("*\n!src", ["README.md"], ["src", "src/a.py"]),
        ("*.md\n!README.md", ["a.md"], ["README.md"]),
        ("!README.md\n*.md", ["README.md"], []),
        ("sub\n!sub/keep", ["sub/a"], ["sub/keep", "sub/keep/x"]),
    ],
)
def test_dockerignore_is_read_as_the_engine_reads_it(rules: str, out: list[str], kept: list[str]) -> None:
    ignore = Ignore.parse(rules)
    assert [path for path in [*out, *kept] if ignore.leaves_out(path)] == out


@pytest.mark.parametrize(
    "path",
    [
        ".env", "config/.env.production", "prod.env", "tls/server.key", "ca.pem", ".git/config",
        ".venv/bin/python", "db.sqlite3", "db.sqlite3-wal", "app/__pycache__/x.pyc", ".ssh/id_rsa",
        "home/.aws/credentials", ".docker/config.json", "web/node_modules/a/b.js", ".netrc",
    ],
)  # fmt: skip
def test_secrets_data_and_litter_are_left_out_without_any_rule(path: str) -> None:
    assert Ignore().leaves_out(path)
    assert Ignore.parse("!**\n!*\n!**/*\n!config\n!app\n!home\n!tls\n!web").leaves_out(path)


@pytest.mark.parametrize(
    ("rules", "path"),
    [
        ("!.env.example", ".env.example"),
        ("!certs/ca.pem", "certs/ca.pem"),
        ("!.git/HEAD", ".git/HEAD"),
        ("!.git", ".git/config"),
        ("*\n!web/node_modules/a", "web/node_modules/a/b.js"),
    ],
)
def test_a_rule_that_names_it_brings_it_back(rules: str, path: str) -> None:
    assert not Ignore.parse(rules).leaves_out(path)


def plant(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def test_a_walk_enters_only_where_something_can_be_wanted(tmp_path: Path) -> None:
    plant(
        tmp_path,
        "a.py",
        ".git/HEAD",
        ".git/objects/x",
        "out/a",
        "out/keep/b",
        "src/pkg/c.py",
        "src/pkg/d.txt",
    )
    assert list(walk(tmp_path, Ignore.parse("out\n!out/keep\n!.git/HEAD\n**/*.txt"))) == [
        ".git/HEAD",
        "a.py",
        "out/keep",
        "out/keep/b",
        "src",
        "src/pkg",
        "src/pkg/c.py",
    ]
    assert list(walk(tmp_path, Ignore.parse("*\n!src/**/*.py"))) == ["src/pkg/c.py"]


# -------------------------------------------------------------------------------------- the tar file


def packed(root: Path, rules: str = "") -> bytes:
    with Context() as context:
        context.add_tree(root, walk(root, Ignore.parse(rules)))
        return context.finish().read()


def test_a_context_is_the_same_every_time_and_belongs_to_root(tmp_path: Path) -> None:
    plant(tmp_path, "b.py", "a/run.sh", "a/private.txt")
    (tmp_path / "a/run.sh").chmod(0o700)
    (tmp_path / "a/private.txt").chmod(0o600)
    (tmp_path / "link").symlink_to("b.py")
    os.mkfifo(tmp_path / "pipe")
    first = packed(tmp_path)
    assert hashlib.sha256(packed(tmp_path)).digest() == hashlib.sha256(first).digest()
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        found = {entry.name: entry for entry in archive}
        assert list(found) == ["a", "a/private.txt", "a/run.sh", "b.py", "link"]
        assert {(entry.uid, entry.gid) for entry in found.values()} == {(0, 0)}
        assert [oct(found[name].mode) for name in ("a", "a/private.txt", "a/run.sh")] == [
            "0o755",
            "0o644",
            "0o755",
        ]
        assert found["link"].linkname == "b.py"
        content = archive.extractfile("b.py")
        assert content is not None
        assert content.read() == b"b.py"


# ------------------------------------------------------------------------------------- the recipe


@pytest.fixture
def root(tmp_path: Path) -> Path:
    plant(tmp_path, "manage.py", "site/settings.py")
    return tmp_path


def recipe(root: Path, **wishes: str | bool) -> Plan:
    made = make_recipe(Wishes(context=str(root), **wishes))  # type: ignore[arg-type]
    assert made.plan is not None
    return made.plan


def test_the_default_base_is_the_running_python(root: Path) -> None:
    assert recipe(root).base_image == f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"


def test_a_requirements_file_is_installed_with_what_it_includes(root: Path) -> None:
    (root / "requirements.txt").write_text("-r requirements/base.txt\nrequests==2.0\n")
    plant(root, "requirements/base.txt")
    (root / "requirements/base.txt").write_text(
        "Django>=5.2\n-c ../constraints.txt\n--index-url https://x.example\n"
    )
    plant(root, "constraints.txt")
    assert recipe(root).dependencies == Pip(
        files=("requirements.txt", "requirements/base.txt", "constraints.txt")
    )
    assert recipe(root, requirements="requirements/base.txt").dependencies == Pip(
        files=("requirements/base.txt", "constraints.txt")
    )


def test_pyproject_is_read_where_there_is_no_requirements_file(root: Path) -> None:
    (root / "pyproject.toml").write_text('[project]\nname = "x"\ndependencies = ["Django>=5.2", "rich"]\n')
    assert recipe(root).dependencies == Pip(requirements=("Django>=5.2", "rich"))
    (root / "uv.lock").touch()
    assert "lock files are not read" in make_recipe(Wishes(context=str(root))).notes[0]


def test_without_any_the_packages_of_this_environment_are_copied(root: Path) -> None:
    (root / "pyproject.toml").write_text("[tool.ruff]\n")
    assert recipe(root).dependencies == Copied(python=sys.version_info[:2])
    assert "--requirements" in make_recipe(Wishes(context=str(root))).notes[0]
    assert recipe(root, dependencies="none").dependencies == Present()


def test_a_requirements_file_also_says_what_to_copy(root: Path) -> None:
    (root / "requirements.txt").write_text(
        "--no-index\npytest>=8  # for a reason\nrich[jupyter]==1; x\n-e .\n"
    )
    made = make_recipe(Wishes(context=str(root), dependencies="copy"))
    assert made.requirements == ("pytest>=8", "rich[jupyter]==1; x")


@pytest.mark.parametrize(
    ("files", "wishes", "says"),
    [
        ({}, {"context": "/nonexistent"}, "--context: '/nonexistent'"),
        ({}, {"dockerfile": "nope"}, "--dockerfile: there is no file 'nope'"),
        ({}, {"base_image": "Bad Image"}, "--base-image: 'Bad Image' has a space"),
        ({}, {"requirements": "nope.txt"}, "--requirements: there is no file 'nope.txt'"),
        ({}, {"dependencies": "pip"}, "--dependencies: nothing says what pip is to install"),
        ({"requirements.txt": "-r ../x.txt"}, {}, "requirements.txt includes ../x.txt, which is not there"),
        ({"pyproject.toml": '[project]\ndynamic = ["dependencies"]'}, {}, "--requirements: "),
        ({"pyproject.toml": "[project"}, {}, "pyproject.toml cannot be read"),
        ({"Dockerfile": "FROM x"}, {"base_image": "x:1"}, "--base-image: "),
        ({"Dockerfile": "FROM x"}, {"dependencies": "copy"}, "--dependencies: "),
        ({"D": "FROM x"}, {"dockerfile": "D", "generate": True}, "--generate: "),
    ],
)
def test_what_cannot_be_made_names_the_option(
    root: Path,
    files: dict[str, str],
    wishes: dict[str, str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(root)
    for name, text in files.items():
        (root / name).write_text(text)
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        make_recipe(Wishes(**{"context": str(root), **wishes}))  # type: ignore[arg-type]


def test_the_projects_own_dockerfile_goes_first(root: Path) -> None:
    (root / "Dockerfile").write_text("FROM mine\n")
    own = make_recipe(Wishes(context=str(root)))
    assert (own.dockerfile, own.plan) == ("FROM mine\n", None)
    assert recipe(root, generate=True, base_image="x:1").base_image == "x:1"


def test_the_root_is_where_manage_py_is(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(root)
    assert find_root("") == root
    monkeypatch.chdir(elsewhere)
    with pytest.raises(ConfigurationError, match=r"--context: no manage\.py"):
        find_root("")
    monkeypatch.setattr(sys, "argv", [str(root / "manage.py")])
    assert find_root("") == root


def test_what_is_sent_holds_the_code_and_the_dockerfile_and_no_data(root: Path, settings: Any) -> None:
    plant(root, "media/upload.bin", "site/.env", ".dockerignore", "notes.md", "requirements.txt")
    (root / ".dockerignore").write_text("*.md\nrequirements.txt\n")
    settings.MEDIA_ROOT = root / "media"
    with Context() as context:
        fill(context, make_recipe(Wishes(context=str(root))))
        with tarfile.open(fileobj=context.finish()) as archive:
            names = archive.getnames()
            text = archive.extractfile(SENT_DOCKERFILE)
            ignored = archive.extractfile(".dockerignore")
            assert text is not None
            assert ignored is not None
            assert text.read().startswith(b"# Written by build_job_image")
            assert ignored.read().decode().split() == [SENT_DOCKERFILE, ".dockerignore"]
    assert sorted(names) == sorted(
        [SENT_DOCKERFILE, ".dockerignore", "manage.py", "requirements.txt", "site", "site/settings.py"]
    )


# ------------------------------------------------------------------------------- installed packages


def test_packages_come_with_what_they_require_and_without_traces_of_this_machine(tmp_path: Path) -> None:
    files = {file.target: file.source for file in collect({"django", "json"}, ["rich"], project=tmp_path)}
    tops = {target.split("/")[0] for target in files}
    assert {"django", "asgiref", "sqlparse", "rich", "pygments", "markdown_it"} <= tops
    assert "pytest" not in tops
    assert "json" not in tops
    assert any(top.startswith("django-") and top.endswith(".dist-info") for top in tops)
    assert not [t for t in files if t.endswith((".pyc", ".pth", ".po", "direct_url.json")) or ".." in t]
    assert all(source.is_file() for source in files.values())


def test_a_package_outside_the_distributions_is_taken_from_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, "library/loose_one/__init__.py", "library/loose_one/.env", "library/single.py")
    plant(tmp_path, "project/own_app/__init__.py")
    monkeypatch.syspath_prepend(str(tmp_path / "library"))
    monkeypatch.syspath_prepend(str(tmp_path / "project"))
    found = collect({"loose_one", "single", "own_app"}, [], project=tmp_path / "project")
    assert [file.target for file in found] == ["loose_one/__init__.py", "single.py"]


def test_an_optional_requirement_is_taken_along_when_it_is_asked_for(tmp_path: Path) -> None:
    def tops(requirement: str) -> set[str]:
        return {file.target.split("/")[0] for file in collect((), [requirement], project=tmp_path)}

    assert "psycopg_binary" not in tops("psycopg")
    assert "psycopg_binary" in tops("psycopg[binary]>=3")


def test_what_is_not_installed_cannot_be_copied(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'no-such-thing' is not installed here"):
        collect((), ["No_Such.Thing>=1"], project=tmp_path)
    with pytest.raises(ConfigurationError, match="does not begin with a package's name"):
        collect((), ["==1"], project=tmp_path)
