"""Finds the definition that a dotted path leads to, in source files, without importing anything.

Importing `torch` to learn the arguments of an optimizer takes seconds; parsing the one file that defines it
takes milliseconds. Re-exports are followed: `from .x import y`, `import x as y`, star imports, plain assignments.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path


class TargetNotFound(LookupError):
    """The dotted path leads nowhere; `.known` lists the names there are at the point where it ends."""

    def __init__(self, message: str, missing: str, known: list[str], package: str | None = None) -> None:
        super().__init__(message)
        self.missing, self.known, self.package = missing, known, package


@dataclass
class Module:
    """A parsed file: its definitions by name, its star imports, and the names it binds in other ways."""

    name: str
    file: Path | None
    names: dict[str, ast.AST] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    opaque: bool = False


@dataclass(frozen=True)
class Found:
    """Where a path leads: a definition in a module; without a node, the module itself or what cannot be read."""

    module: Module
    node: ast.AST | None


@cache
def _locate(name: str) -> tuple[Path | None, tuple[str, ...] | None] | None:
    """Return (source file, package search path) of a module, or None when there is no such module."""
    parent, _, _ = name.rpartition(".")
    search: list[str] | None = None
    if parent:
        above = _locate(parent)
        if above is None or above[1] is None:
            return None
        search = list(above[1])
    elif name in sys.builtin_module_names:
        return None, None
    spec = PathFinder.find_spec(name, search)
    if spec is None:
        return None
    path = tuple(spec.submodule_search_locations) if spec.submodule_search_locations is not None else None
    origin = Path(spec.origin) if spec.origin and spec.has_location else None
    if origin is not None and origin.name.endswith(tuple(EXTENSION_SUFFIXES)):
        stub = origin.with_name(origin.name.split(".")[0] + ".pyi")
        origin = stub if stub.exists() else None
    return origin, path


@cache
def _load(name: str) -> Module | None:
    located = _locate(name)
    if located is None:
        return None
    file, _ = located
    module = Module(name, file, opaque=file is None and located[1] is None)
    if file is not None:
        package = name if file.name.startswith("__init__.") else name.rpartition(".")[0]
        _bind(ast.parse(file.read_bytes()).body, module, package)
    return module


def _bind(body: list[ast.stmt], module: Module, package: str) -> None:
    for node in body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                module.names[node.name] = node
            case ast.ImportFrom():
                base = _absolute(node, package)
                for alias in node.names:
                    if alias.name == "*":
                        module.stars.append(base)
                    else:
                        module.names[alias.asname or alias.name] = _Reference(f"{base}.{alias.name}")
            case ast.Import():
                for alias in node.names:
                    imported = alias.name if alias.asname else alias.name.split(".")[0]
                    module.names[alias.asname or imported] = _Reference(imported)
            case ast.Assign():
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        module.names[target.id] = node.value
            case ast.AnnAssign(target=ast.Name(id=bound), value=value):
                module.names[bound] = value or node.annotation
            case ast.If():
                _bind(node.orelse, module, package)
                _bind(node.body, module, package)
            case ast.Try():
                for handler in node.handlers:
                    _bind(handler.body, module, package)
                _bind(node.orelse, module, package)
                _bind(node.body, module, package)
            case ast.With():
                _bind(node.body, module, package)


class _Reference(ast.AST):
    """Stands for a name imported from elsewhere."""

    _fields = ()

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _member(module: Module, name: str, seen: frozenset[str] = frozenset()) -> Found | None:
    """Find `name` in a module: a definition, a re-export, a star import or a submodule."""
    mark = f"{module.name}:{name}"
    if mark in seen:
        return None
    seen |= {mark}
    if (node := module.names.get(name)) is not None:
        if isinstance(node, _Reference):
            if node.target == f"{module.name}.{name}":  # `from . import x`
                submodule = _load(node.target)
                return Found(submodule, None) if submodule else None
            return resolve(node.target, seen)
        if isinstance(node, (ast.Name, ast.Attribute)) and (path := dotted(node)):
            head, _, rest = path.partition(".")
            found = _member(module, head, seen) if head != name else None
            return _descend(found, rest, seen) if found and rest else (found or Found(module, None))
        return Found(module, node)
    if (submodule := _load(f"{module.name}.{name}")) is not None:
        return Found(submodule, None)
    for star in module.stars:
        source = _load(star)
        if source is not None and (found := _member(source, name, seen)) is not None:
            return found
    return Found(module, None) if module.opaque or "__getattr__" in module.names else None


def _descend(found: Found, path: str, seen: frozenset[str] = frozenset()) -> Found | None:
    """Follow `a.b.c` below something already found (a module's members, a class's methods)."""
    for part in path.split(".") if path else []:
        if found.node is None:
            below = _member(found.module, part, seen)
        elif isinstance(found.node, ast.ClassDef):
            below = method_of(found, part)
        elif isinstance(found.node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Constant)):
            below = None
        else:  # an object made at import time: its attributes are known to nobody
            below = Found(Module(found.module.name, found.module.file, opaque=True), None)
        if below is None:
            return None
        found = below
    return found


def method_of(found: Found, name: str) -> Found | None:
    """Find an attribute of a class, looking through its bases in order."""
    assert isinstance(found.node, ast.ClassDef)
    for node in found.node.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == name:
            return Found(found.module, node)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return Found(found.module, None)
    for base in bases_of(found):
        if (inherited := method_of(base, name)) is not None:
            return inherited
    return None


def bases_of(found: Found) -> list[Found]:
    """Return the definitions of a class's bases, those that can be found."""
    assert isinstance(found.node, ast.ClassDef)
    bases = []
    for expression in found.node.bases:
        inner = expression.value if isinstance(expression, ast.Subscript) else expression
        path = dotted(inner)
        if path is None:
            continue
        head, _, rest = path.partition(".")
        base = _member(found.module, head)
        base = _descend(base, rest) if base and rest else base
        if base is not None and isinstance(base.node, ast.ClassDef):
            bases.append(base)
    return bases


def dotted(node: ast.AST) -> str | None:
    """Return `a.b.c` for such an expression, or None for any other."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def resolve(target: str, seen: frozenset[str] = frozenset()) -> Found | None:
    """Return what a dotted path leads to, or None."""
    top, *rest = target.split(".")
    module = _load(top)
    return _descend(Found(module, None), ".".join(rest), seen) if module else None


def known_at(target: str) -> tuple[str, str, list[str]]:
    """For a path that leads nowhere: the longest part that exists, the first missing name, what is there."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        found = resolve(".".join(parts[:cut]))
        if found is None:
            continue
        known: set[str] = set()
        if found.node is None:
            known |= {n for n in found.module.names if not n.startswith("_")}
            for star in found.module.stars:
                if (source := _load(star)) is not None:
                    known |= {n for n in source.names if not n.startswith("_")}
            located = _locate(found.module.name)
            for folder in (located[1] or ()) if located else ():
                known |= {p.stem for p in Path(folder).glob("[!_]*.py")}
                known |= {p.name for p in Path(folder).glob("[!_.]*") if (p / "__init__.py").exists()}
        elif isinstance(found.node, ast.ClassDef):
            known |= {n.name for n in found.node.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"}
        return ".".join(parts[:cut]), parts[cut], sorted(known)
    return "", parts[0], []
