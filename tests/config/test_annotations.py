import ast

import pytest

from framework.config.annotations import misfit


@pytest.mark.parametrize(
    ("value", "annotation", "fits"),
    [
        (1, "int", True),
        (True, "int", False),
        (1, "float", True),
        ("1", "float", False),
        (None, "int | None", True),
        (None, "Optional[int]", True),
        ("x", "int | None", False),
        ([1, 2], "Sequence[int]", True),
        ([1, "a"], "list[int]", False),
        ("ab", "Sequence[str]", False),
        ([1, 2], "tuple[int, int]", True),
        ([1, 2, 3], "tuple[int, int]", False),
        ([1, 2, 3], "tuple[int, ...]", True),
        ({"a": 1}, "dict[str, int]", True),
        ({"a": "b"}, "dict[str, int]", False),
        ("max", 'Literal["max", "min"]', True),
        ("mx", 'Literal["max", "min"]', False),
        (object(), "SomeClassNobodyKnows", True),
        ({"_target_": "x.Y"}, "int", True),
    ],
)
def test_plain_annotations_are_judged_and_others_let_through(value: object, annotation: str, fits: bool) -> None:
    assert (misfit(value, ast.parse(annotation, mode="eval").body) is None) is fits
