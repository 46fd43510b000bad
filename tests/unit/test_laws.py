"""The laws of docs/architecture.md that a machine can watch: import directions, and one writer of status."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = PROJECT / "container_manager"
WRITER = PACKAGE / "lifecycle"

# What a queryset or manager writes with; each with its asynchronous twin.
WRITES = {"update", "create", "get_or_create", "update_or_create", "bulk_create", "bulk_update"}
WRITES |= {f"a{name}" for name in WRITES}
SET_IN_SQL = re.compile(r"\bset\b[^;]*\bstatus\b\W*=|\binsert\b.*\bcontainerjob\b", re.IGNORECASE | re.DOTALL)


def test_imports_point_downward() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    answer = subprocess.run(
        [str(program), "--no-cache"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_only_the_lifecycle_writes_the_status() -> None:
    found = [
        f"{path.relative_to(PROJECT)}:{line}: {what}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if WRITER not in path.parents and "migrations" not in path.parts
        for line, what in writers_of_status(path.read_text())
    ]
    assert not found, "only lifecycle/ may write a job's status:\n" + "\n".join(found)


def test_the_lifecycle_does_write_it() -> None:
    seen = {path.name for path in WRITER.glob("*.py") if list(writers_of_status(path.read_text()))}
    assert "moves.py" in seen, "the scan sees nothing where the writer is: it is blind"


def writers_of_status(source: str) -> Iterator[tuple[int, str]]:
    """Every place of a module that writes an attribute or column `status`, or that could do so unseen."""
    tree = ast.parse(source)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    harmless = _calls_with_literal_names(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="status", ctx=ast.Store() | ast.Del()):
                yield node.lineno, "assigns .status"
            case ast.Subscript(value=owner, slice=key, ctx=ast.Store() | ast.Del()) if _is_namespace(owner):
                if _may_be_status(key):
                    yield node.lineno, "writes into the object's namespace"
            case ast.Call() if id(node) not in harmless:
                yield from _call(node)
            case ast.Name(id="setattr" | "delattr") if id(node) not in called:
                yield node.lineno, f"hands {node.id} on, so that its uses cannot be seen"
            case ast.Attribute(attr="__setattr__") if id(node) not in called:
                yield node.lineno, "hands __setattr__ on, so that its uses cannot be seen"
            case ast.Constant(value=str() as text) if SET_IN_SQL.search(text):
                yield node.lineno, "writes status in SQL"


def _calls_with_literal_names(tree: ast.AST) -> set[int]:
    """`for name in ("a", "b"): setattr(x, name, ...)`: the name is known after all."""
    found: set[int] = set()
    for loop in ast.walk(tree):
        match loop:
            case ast.For(target=ast.Name(id=name), iter=ast.Tuple(elts=items) | ast.List(elts=items)):
                literal = all(isinstance(item, ast.Constant) and item.value != "status" for item in items)
                body = [part for statement in loop.body for part in ast.walk(statement)]
                rebound = any(
                    isinstance(part, ast.Name) and part.id == name and isinstance(part.ctx, ast.Store)
                    for part in body
                )
                if literal and not rebound:
                    found |= {id(part) for part in body if _sets_by(part, name)}
    return found


def _sets_by(part: ast.AST, name: str) -> bool:
    match part:
        case ast.Call(func=ast.Name(id="setattr"), args=[_, ast.Name(id=used), _]):
            return used == name
    return False


def _call(node: ast.Call) -> Iterator[tuple[int, str]]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in {"setattr", "__setattr__", "delattr"}:
        # Either (object, name, value) or, as a bound method, (name, value).
        if any(_may_be_status(argument) for argument in node.args[:2][-1 if name != "__setattr__" else 0 :]):
            yield node.lineno, f"{name} of status, or of a name known only at run time"
    elif name == "update" and isinstance(node.func, ast.Attribute) and _is_namespace(node.func.value):
        yield node.lineno, "writes into the object's namespace"
    elif name in WRITES and isinstance(node.func, ast.Attribute):
        for keyword in node.keywords:
            if keyword.arg == "status":
                yield node.lineno, f".{name}(status=...)"
            elif keyword.arg is None and name.endswith("update") and not _literal_or_handed_on(node, keyword):
                yield node.lineno, f".{name}(**...) of keys known only at run time"
        inner = [*node.args, *(keyword.value for keyword in node.keywords)]
        if any(_names_status(part) for argument in inner for part in ast.walk(argument)):
            yield node.lineno, f".{name}(...) with the column status"
    elif name == "ContainerJob" and any(keyword.arg == "status" for keyword in node.keywords):
        yield node.lineno, "makes a job with a status"


def _names_status(part: ast.AST) -> bool:
    """A literal `{"status": ...}` or `["status"]` among the arguments of a write."""
    if isinstance(part, ast.Dict):
        return any(isinstance(key, ast.Constant) and key.value == "status" for key in part.keys)
    if isinstance(part, ast.List | ast.Tuple | ast.Set):
        return any(isinstance(item, ast.Constant) and item.value == "status" for item in part.elts)
    return isinstance(part, ast.Call) and any(keyword.arg == "status" for keyword in part.keywords)


def _literal_or_handed_on(node: ast.Call, keyword: ast.keyword) -> bool:
    """`update(**{...})` is looked into; a guard `super().update(**kwargs)` refuses status itself."""
    receiver = node.func.value if isinstance(node.func, ast.Attribute) else None
    guard = isinstance(receiver, ast.Call) and getattr(receiver.func, "id", "") == "super"
    return isinstance(keyword.value, ast.Dict) or guard


def _is_namespace(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "__dict__"
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "vars"


def _may_be_status(node: ast.expr) -> bool:
    """A literal tells; anything else may be "status" at run time."""
    return node.value == "status" if isinstance(node, ast.Constant) else not isinstance(node, ast.Starred)


@pytest.mark.parametrize(
    "source",
    [
        "job.status = 'failed'",
        "self.status = status",
        "a, job.status = 1, 2",
        "job.status += 'x'",
        "job.status: str = 'failed'",
        "for job.status in states: pass",
        "with x as job.status: pass",
        "del job.status",
        "(self.jobs[0]).status = 'failed'",
        "setattr(job, 'status', 'failed')",
        "setattr(job, name, value)",
        "for name in ('weight', 'status'): setattr(job, name, 1)",
        "for name in ('weight', 'name'):\n    name = 'sta' + 'tus'\n    setattr(job, name, 1)",
        "for name in ('weight', 'name'): setattr(job, other, 1)",
        "write = setattr",
        "object.__setattr__(job, 'status', 'failed')",
        "job.__setattr__('status', 'failed')",
        "job.__dict__['status'] = 'failed'",
        "vars(job)['status'] = 'failed'",
        "job.__dict__.update(status='failed')",
        "ContainerJob.objects.filter(pk=1).update(status='failed')",
        "jobs.update(**{'status': 'failed'})",
        "jobs.update(**changes)",
        "super().update(status='failed')",
        "await jobs.aupdate(status='failed')",
        "jobs.bulk_update(rows, ['status'])",
        "jobs.bulk_update(rows, fields=('status',))",
        "jobs.update_or_create(pk=1, defaults={'status': 'failed'})",
        "jobs.create(status='completed')",
        "jobs.bulk_create([ContainerJob(status='completed')])",
        "ContainerJob(status='completed')",
        "cursor.execute('UPDATE container_manager_containerjob SET exit_code = 1, status = %s')",
    ],
)
def test_the_scan_sees(source: str) -> None:
    assert list(writers_of_status(source))


@pytest.mark.parametrize(
    "source",
    [
        "class ContainerJob(models.Model):\n    status = models.CharField(max_length=16)",
        "if job.status == 'failed': pass",
        "status = job.status",
        "jobs.filter(status='failed').update(notified_at=now)",
        "outcome = Outcome(status=Status.FAILED)",
        "return_value = JsonResponse({'status': 'ok'}, status=200)",
        "setattr(job, 'name', 'x')",
        "for name in ('weight', 'is_active'): setattr(host, name, getattr(row, name))",
        "labels['status'] = 'x'",
        "jobs.aggregate(n=Count('pk', filter=Q(status='failed')))",
        "events.create(job=job, to_status='failed')",
        "digest.update(data)",
        "super().update(**kwargs)",
        "super().bulk_create(jobs, **options)",
        "'SELECT status FROM container_manager_containerjob'",
    ],
)
def test_the_scan_lets_pass(source: str) -> None:
    assert not list(writers_of_status(source))
