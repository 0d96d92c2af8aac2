"""Reads the signature of a dotted target from source files, without importing anything.

For a class: of its nearest `__init__`, or a dataclass's fields; arguments that `**kwargs` hands to a base are known.
"""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass
from functools import cache

from .definitions import Found, TargetNotFound, bases_of, dotted, known_at, method_of, resolve


@dataclass(frozen=True)
class Parameter:
    """One parameter: annotation and default as expressions (None when absent), and whether a value must be given."""

    name: str
    annotation: ast.expr | None = None
    required: bool = False
    keyword: bool = True
    default: ast.expr | None = None


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
    found = resolve(target)
    if found is None:
        where, missing, known = known_at(target)
        if not where:
            raise TargetNotFound(f"there is no package `{missing}`", missing, [], package=missing)
        raise TargetNotFound(f"`{where}` has no `{missing}`", missing, known)
    return _signature(target, found)


def default_of(target: str, parameter: str) -> object:
    """Return the default of a parameter where it is written as a constant; None where not, or where none is known."""
    try:
        found = [p.default for p in read_signature(target).parameters if p.name == parameter]
    except (TargetNotFound, SyntaxError, OSError):
        return None
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def _signature(target: str, found: Found) -> Signature:
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
            method = method_of(found, name)
            if method is not None and isinstance(method.node, ast.FunctionDef):
                signature = _arguments(target, method, skip_first=True, place=place)
                return _forwarded(target, signature, found, method)
        unreadable = len(bases_of(found)) < len([b for b in node.bases if dotted(b) not in ("object", "Protocol")])
        return Signature(target, open=unreadable, **place)  # type: ignore[arg-type]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        place["doc"] = ast.get_docstring(node)
        in_class = any(isinstance(n, ast.ClassDef) and node in n.body for n in found.module.names.values())
        static = any(dotted(d) == "staticmethod" for d in node.decorator_list)
        return _arguments(target, found, skip_first=in_class and not static, place=place)
    return Signature(target, open=True, **place)  # type: ignore[arg-type]


def _forwarded(target: str, signature: Signature, owner: Found, method: Found) -> Signature:
    """A constructor `(self, x, **kwargs)` that hands `**kwargs` to its base takes the base's parameters, too."""
    if not signature.open or not isinstance(method.node, ast.FunctionDef):
        return signature
    holder = owner if method.node in getattr(owner.node, "body", []) else None
    kwarg = method.node.args.kwarg
    if holder is None or kwarg is None:
        return signature
    forwards = [
        call
        for call in ast.walk(method.node)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "__init__"
        and any(k.arg is None and isinstance(k.value, ast.Name) and k.value.id == kwarg.arg for k in call.keywords)
    ]
    bases = bases_of(holder)
    if not forwards or len(bases) != 1:
        return signature
    above = _signature(target, bases[0])
    given = {p.name for p in signature.parameters} | {k.arg for k in forwards[0].keywords}
    rest = above.parameters[len(forwards[0].args) :]
    merged = signature.parameters + tuple(p for p in rest if p.name not in given)
    return Signature(target, merged, above.open, signature.file, signature.line, signature.module, signature.doc)


def _arguments(target: str, found: Found, *, skip_first: bool, place: dict[str, object]) -> Signature:
    assert isinstance(found.node, (ast.FunctionDef, ast.AsyncFunctionDef))
    a = found.node.args
    positional = [*a.posonlyargs, *a.args]
    without_default = len(positional) - len(a.defaults)
    parameters = [
        Parameter(p.arg, p.annotation, i < without_default, p not in a.posonlyargs, default)
        for i, (p, default) in enumerate(zip(positional, [*[None] * without_default, *a.defaults], strict=True))
        if not (skip_first and i == 0)
    ]
    parameters += [
        Parameter(p.arg, p.annotation, default is None, default=default)
        for p, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)
    ]
    return Signature(target, tuple(parameters), a.kwarg is not None, **place)  # type: ignore[arg-type]


def _is_dataclass(node: ast.ClassDef) -> bool:
    decorators = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return any((dotted(d) or "").split(".")[-1] == "dataclass" for d in decorators)


def _dataclass_fields(found: Found) -> list[Parameter]:
    assert isinstance(found.node, ast.ClassDef)
    fields: dict[str, Parameter] = {}
    for base in reversed(bases_of(found)):
        if isinstance(base.node, ast.ClassDef) and _is_dataclass(base.node):
            fields |= {p.name: p for p in _dataclass_fields(base)}
    for node in found.node.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if "ClassVar" in ast.dump(node.annotation) or _init_false(node.value):
                continue
            required = node.value is None or (isinstance(node.value, ast.Call) and not _has_default(node.value))
            fields[node.target.id] = Parameter(node.target.id, node.annotation, required, default=node.value)
    return list(fields.values())


def _has_default(call: ast.Call) -> bool:
    is_field = (dotted(call.func) or "").split(".")[-1] == "field"
    return not is_field or any(k.arg in ("default", "default_factory") for k in call.keywords)


def _init_false(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and any(
        k.arg == "init" and isinstance(k.value, ast.Constant) and k.value.value is False for k in value.keywords
    )
