"""Reads the signature of a dotted target from source files, without importing anything.

Importing `torch` to learn the arguments of an optimizer takes seconds; parsing the one file that defines it
takes milliseconds. The reader follows re-exports (`from .x import y`, `import x as y`, star imports, plain
assignments, a module's `__getattr__`-free names) and, for a class, its bases to the nearest `__init__` or,
for dataclasses, their fields.
"""

from __future__ import annotations

import ast
import builtins
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path


@dataclass(frozen=True)
class Parameter:
    """One parameter: its annotation as an expression (None when absent), and whether a value must be given."""

    name: str
    annotation: ast.expr | None = None
    required: bool = False
    keyword: bool = True


@dataclass(frozen=True)
class Signature:
    """What a target accepts. `open` means any keyword is taken (`**kwargs`), or that nothing is known."""

    target: str
    parameters: tuple[Parameter, ...] = ()
    open: bool = False
    file: str | None = None
    line: int | None = None
    module: str = ""
    doc: str | None = None


class TargetNotFound(LookupError):
    """The dotted path leads nowhere; `.known` lists the names there are at the point where it ends."""

    def __init__(self, message: str, missing: str, known: list[str], package: str | None = None) -> None:
        super().__init__(message)
        self.missing, self.known, self.package = missing, known, package


@dataclass
class _Module:
    """A parsed file: its definitions by name, its star imports, and the names it binds in other ways."""

    name: str
    file: Path | None
    names: dict[str, ast.AST] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    opaque: bool = False


@dataclass(frozen=True)
class _Found:
    module: _Module
    node: ast.AST | None  # None: a module itself, or a name that cannot be read statically


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
def _load(name: str) -> _Module | None:
    located = _locate(name)
    if located is None:
        return None
    file, _ = located
    module = _Module(name, file, opaque=file is None and located[1] is None)
    if file is not None:
        package = name if file.name.startswith("__init__.") else name.rpartition(".")[0]
        _bind(ast.parse(file.read_bytes()).body, module, package)
    return module


def _bind(body: list[ast.stmt], module: _Module, package: str) -> None:
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


def _member(module: _Module, name: str, seen: frozenset[str] = frozenset()) -> _Found | None:
    """Find `name` in a module: a definition, a re-export, a star import or a submodule."""
    mark = f"{module.name}:{name}"
    if mark in seen:
        return None
    seen |= {mark}
    if (node := module.names.get(name)) is not None:
        if isinstance(node, _Reference):
            if node.target == f"{module.name}.{name}":  # `from . import x`
                submodule = _load(node.target)
                return _Found(submodule, None) if submodule else None
            return _resolve(node.target, seen)
        if isinstance(node, (ast.Name, ast.Attribute)) and (path := _dotted(node)):
            head, _, rest = path.partition(".")
            found = _member(module, head, seen) if head != name else None
            return _descend(found, rest, seen) if found and rest else (found or _Found(module, None))
        return _Found(module, node)
    if (submodule := _load(f"{module.name}.{name}")) is not None:
        return _Found(submodule, None)
    for star in module.stars:
        source = _load(star)
        if source is not None and (found := _member(source, name, seen)) is not None:
            return found
    return _Found(module, None) if module.opaque or "__getattr__" in module.names else None


def _descend(found: _Found, path: str, seen: frozenset[str] = frozenset()) -> _Found | None:
    """Follow `a.b.c` below something already found (a module's members, a class's methods)."""
    for part in path.split(".") if path else []:
        if found.node is None:
            below = _member(found.module, part, seen)
        elif isinstance(found.node, ast.ClassDef):
            below = _method(found, part)
        elif isinstance(found.node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Constant)):
            below = None
        else:  # an object made at import time: its attributes are known to nobody
            below = _Found(_Module(found.module.name, found.module.file, opaque=True), None)
        if below is None:
            return None
        found = below
    return found


def _method(found: _Found, name: str) -> _Found | None:
    """Find an attribute of a class, looking through its bases in order."""
    assert isinstance(found.node, ast.ClassDef)
    for node in found.node.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == name:
            return _Found(found.module, node)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return _Found(found.module, None)
    for base in _bases(found):
        if (inherited := _method(base, name)) is not None:
            return inherited
    return None


def _bases(found: _Found) -> list[_Found]:
    assert isinstance(found.node, ast.ClassDef)
    bases = []
    for expression in found.node.bases:
        inner = expression.value if isinstance(expression, ast.Subscript) else expression
        path = _dotted(inner)
        if path is None:
            continue
        head, _, rest = path.partition(".")
        base = _member(found.module, head)
        base = _descend(base, rest) if base and rest else base
        if base is not None and isinstance(base.node, ast.ClassDef):
            bases.append(base)
    return bases


def _dotted(node: ast.AST) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _resolve(target: str, seen: frozenset[str] = frozenset()) -> _Found | None:
    top, *rest = target.split(".")
    module = _load(top)
    return _descend(_Found(module, None), ".".join(rest), seen) if module else None


def _known(target: str) -> tuple[str, str, list[str]]:
    """For a path that leads nowhere: the longest part that exists, the first missing name, what is there."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        found = _resolve(".".join(parts[:cut]))
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


@cache
def read_signature(target: str) -> Signature:
    """Return the signature of the class, function or method that `target` names.

    Args:
        target: a dotted path such as `torch.optim.AdamW`.

    Raises:
        TargetNotFound: when a part of the path does not exist.
    """
    head, _, rest = target.partition(".")
    if head == "builtins" and hasattr(builtins, rest):
        return Signature(target, open=True)
    found = _resolve(target)
    if found is None:
        where, missing, known = _known(target)
        if not where:
            raise TargetNotFound(f"there is no package `{missing}`", missing, [], package=missing)
        raise TargetNotFound(f"`{where}` has no `{missing}`", missing, known)
    return _signature(target, found)


def _signature(target: str, found: _Found) -> Signature:
    node = found.node
    place = {
        "file": str(found.module.file),
        "line": getattr(node, "lineno", None),
        "module": found.module.name,
    }
    if isinstance(node, ast.ClassDef):
        place["doc"] = ast.get_docstring(node)
        if _is_dataclass(node):
            return Signature(target, tuple(_dataclass_fields(found)), **place)  # type: ignore[arg-type]
        for name in ("__init__", "__new__"):
            method = _method(found, name)
            if method is not None and isinstance(method.node, ast.FunctionDef):
                signature = _arguments(target, method, skip_first=True, place=place)
                return _forwarded(target, signature, found, method)
        unreadable = len(_bases(found)) < len([b for b in node.bases if _dotted(b) not in ("object", "Protocol")])
        return Signature(target, open=unreadable, **place)  # type: ignore[arg-type]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        place["doc"] = ast.get_docstring(node)
        in_class = any(isinstance(n, ast.ClassDef) and node in n.body for n in found.module.names.values())
        static = any(_dotted(d) == "staticmethod" for d in node.decorator_list)
        return _arguments(target, found, skip_first=in_class and not static, place=place)
    return Signature(target, open=True, **place)  # type: ignore[arg-type]


def _forwarded(target: str, signature: Signature, owner: _Found, method: _Found) -> Signature:
    """A constructor `(self, x, **kwargs)` that hands `**kwargs` to its base takes the base's parameters, too."""
    if not signature.open or not isinstance(method.node, ast.FunctionDef):
        return signature
    holder = owner if method.node in getattr(owner.node, "body", []) else None
    kwarg = method.node.args.kwarg
    if holder is None or kwarg is None:
        return signature
    forwards = any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "__init__"
        and any(k.arg is None and isinstance(k.value, ast.Name) and k.value.id == kwarg.arg for k in call.keywords)
        for call in ast.walk(method.node)
    )
    bases = _bases(holder)
    if not forwards or len(bases) != 1:
        return signature
    above = _signature(target, bases[0])
    own = {p.name for p in signature.parameters}
    merged = signature.parameters + tuple(p for p in above.parameters if p.name not in own)
    return Signature(target, merged, above.open, signature.file, signature.line, signature.module, signature.doc)


def _arguments(target: str, found: _Found, *, skip_first: bool, place: dict[str, object]) -> Signature:
    assert isinstance(found.node, (ast.FunctionDef, ast.AsyncFunctionDef))
    a = found.node.args
    positional = [*a.posonlyargs, *a.args]
    without_default = len(positional) - len(a.defaults)
    parameters = [
        Parameter(p.arg, p.annotation, i < without_default, p not in a.posonlyargs)
        for i, p in enumerate(positional)
        if not (skip_first and i == 0)
    ]
    parameters += [
        Parameter(p.arg, p.annotation, default is None) for p, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)
    ]
    return Signature(target, tuple(parameters), a.kwarg is not None, **place)  # type: ignore[arg-type]


def _is_dataclass(node: ast.ClassDef) -> bool:
    decorators = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return any((_dotted(d) or "").split(".")[-1] == "dataclass" for d in decorators)


def _dataclass_fields(found: _Found) -> list[Parameter]:
    assert isinstance(found.node, ast.ClassDef)
    fields: dict[str, Parameter] = {}
    for base in reversed(_bases(found)):
        if isinstance(base.node, ast.ClassDef) and _is_dataclass(base.node):
            fields |= {p.name: p for p in _dataclass_fields(base)}
    for node in found.node.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if "ClassVar" in ast.dump(node.annotation) or _init_false(node.value):
                continue
            required = node.value is None or (isinstance(node.value, ast.Call) and not _has_default(node.value))
            fields[node.target.id] = Parameter(node.target.id, node.annotation, required)
    return list(fields.values())


def _has_default(call: ast.Call) -> bool:
    is_field = (_dotted(call.func) or "").split(".")[-1] == "field"
    return not is_field or any(k.arg in ("default", "default_factory") for k in call.keywords)


def _init_false(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and any(
        k.arg == "init" and isinstance(k.value, ast.Constant) and k.value.value is False for k in value.keywords
    )
