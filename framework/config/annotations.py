"""Whether a config value fits a parameter's annotation, judged on the annotation's source alone.

Only plain annotations are judged (numbers, strings, booleans, None, Literal, unions, lists, tuples, dicts,
paths); anything else is taken to fit.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

ExistingFile = Path
"""Annotation of a parameter that names a file which must exist when the config is checked."""

ExistingDir = Path
"""Annotation of a parameter that names a folder which must exist when the config is checked."""

_SEQUENCES = {"list", "List", "Sequence", "Iterable", "Collection", "set", "frozenset"}
_MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}


def misfit(value: object, annotation: ast.expr | None) -> str | None:
    """Return what the annotation wants when `value` does not fit it, else None.

    Args:
        value: a plain value of a resolved config (scalar, list or dict).
        annotation: the parameter's annotation, as parsed.
    """
    if annotation is None or (isinstance(value, Mapping) and "_target_" in value):
        return None
    return None if _fits(value, annotation) else _wanted(annotation)


def existing_path(annotation: ast.expr | None) -> str | None:
    """Return "file" or "folder" when the annotation asks for one that exists, else None."""
    names = {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)} if annotation is not None else set()
    if "ExistingFile" in names:
        return "file"
    return "folder" if "ExistingDir" in names else None


def _wanted(annotation: ast.expr) -> str:
    if isinstance(annotation, ast.Subscript) and _name(annotation.value) == "Literal":
        return "one of " + ", ".join(repr(o) for o in _options(annotation))
    return f"`{ast.unparse(annotation)}`"


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _items(node: ast.Subscript) -> list[ast.expr]:
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _options(node: ast.Subscript) -> list[object]:
    return [item.value for item in _items(node) if isinstance(item, ast.Constant)]


def _fits(value: object, node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str(text)):
            try:
                return _fits(value, ast.parse(text, mode="eval").body)
            except SyntaxError:
                return True
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Subscript():
            return _fits_generic(value, node)
    return _fits_plain(value, _name(node))


def _fits_plain(value: object, name: str) -> bool:
    if name == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "bool":
        return isinstance(value, bool)
    if name in ("str", "Path", "ExistingFile", "ExistingDir"):
        return isinstance(value, str)
    if name in _SEQUENCES | {"tuple", "Tuple"}:
        return isinstance(value, Sequence) and not isinstance(value, str)
    if name in _MAPPINGS:
        return isinstance(value, Mapping)
    return name != "Tensor"  # no plain value is one


def _fits_generic(value: object, node: ast.Subscript) -> bool:
    name, items = _name(node.value), _items(node)
    if name == "Literal":
        return value in _options(node)
    if name == "Optional":
        return value is None or _fits(value, items[0])
    if name == "Union":
        return any(_fits(value, item) for item in items)
    if name in ("Annotated", "Final", "ClassVar"):
        return _fits(value, items[0])
    if name in _SEQUENCES:
        return _fits_plain(value, name) and all(_fits(v, items[0]) for v in _as_sequence(value))
    if name in ("tuple", "Tuple"):
        if not _fits_plain(value, name):
            return False
        values = _as_sequence(value)
        if len(items) == 2 and isinstance(items[1], ast.Constant) and items[1].value is ...:
            return all(_fits(v, items[0]) for v in values)
        return len(values) == len(items) and all(_fits(v, i) for v, i in zip(values, items, strict=True))
    if name in _MAPPINGS:
        return isinstance(value, Mapping) and all(_fits(v, items[-1]) for v in value.values())
    return True


def _as_sequence(value: object) -> Sequence[object]:
    return value if isinstance(value, Sequence) else ()
