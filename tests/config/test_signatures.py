from pathlib import Path

import pytest

from framework.config.definitions import TargetNotFound
from framework.config.signatures import read_signature


def names(target: str) -> list[str]:
    return [p.name for p in read_signature(target).parameters]


@pytest.mark.parametrize(
    ("target", "argument"),
    [
        ("torch.optim.AdamW", "weight_decay"),  # re-exported by a package
        ("torch.nn.Linear", "in_features"),  # a star import
        ("torch.nn.functional.cross_entropy", "label_smoothing"),
        ("pytorch_lightning.Trainer", "max_epochs"),  # behind a decorator
        ("framework.data.transforms.Cast", "scale"),  # a dataclass
        ("json.dumps", "indent"),
    ],
)
def test_arguments_are_read_from_source(target: str, argument: str) -> None:
    assert argument in names(target)


def test_what_has_a_default_is_not_required() -> None:
    required = {p.name: p.required for p in read_signature("framework.models.cnn.CNN").parameters}
    assert required == {"channels": True, "outputs": True, "widths": False, "dropout": False}


def test_kwargs_handed_to_the_base_take_the_bases_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "handed.py").write_text(
        "class Base:\n    def __init__(self, a: int, b: int = 2): ...\n"
        "class Child(Base):\n    def __init__(self, c, **kwargs):\n        super().__init__(**kwargs)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    signature = read_signature("handed.Child")
    assert [p.name for p in signature.parameters] == ["c", "a", "b"]
    assert not signature.open


def test_what_a_constructor_gives_its_base_itself_is_not_asked_for() -> None:
    required = {
        p.name for p in read_signature("torchmetrics.classification.MulticlassF1Score").parameters if p.required
    }
    assert required == {"num_classes"}  # it gives `beta` to MulticlassFBetaScore


def test_a_path_that_leads_nowhere_lists_what_is_there() -> None:
    with pytest.raises(TargetNotFound) as caught:
        read_signature("framework.models.cnn.CNNN")
    assert "CNN" in caught.value.known
