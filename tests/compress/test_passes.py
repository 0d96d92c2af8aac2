import json

import pytest
import torch

from framework.compress.passes import size_of_model
from framework.compress.structured_pruning import StructuredPruning
from framework.errors import UserError
from framework.models.cnn import CNN
from framework.models.saved import load_model
from framework.record.run import RunRecord
from framework.runner import run
from tests.conftest import Compose


@pytest.fixture
def trained(small: Compose) -> RunRecord:
    return run(small("stages=[prepare,train]"))


def test_pruning_then_int8_leaves_a_smaller_model_that_can_be_loaded_anywhere(
    small: Compose, trained: RunRecord
) -> None:
    record = run(small("stages=[compress]", f"from_run={trained.folder}", "compress=[structured_pruning,static_int8]"))
    rows = record["tables"]["compress"]
    assert [r["pass"] for r in rows] == ["trained", "structured_pruning", "static_int8"]
    assert rows[1]["parameters"] < 0.5 * rows[0]["parameters"]
    assert rows[1]["macs"] < 0.5 * rows[0]["macs"]
    assert rows[2]["bytes"] < 0.5 * rows[1]["bytes"]
    assert rows[2]["val/accuracy"] == pytest.approx(rows[1]["val/accuracy"], abs=0.05)
    saved = load_model(record.folder / "model" / "compressed")
    assert saved.is_program
    assert [c.name for c in saved.changes] == ["structured_pruning", "static_int8"]
    assert saved.model(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    weights = {t.dtype for n, t in saved.model.state_dict().items() if t.numel() > 100}
    assert weights == {torch.int8}


def test_a_pruned_model_comes_back_with_the_same_outputs(small: Compose, trained: RunRecord) -> None:
    record = run(small("stages=[compress]", f"from_run={trained.folder}", "compress=structured_pruning"))
    described = json.loads((record.folder / "model" / "compressed" / "model.json").read_text())
    assert described["changes"][0]["name"] == "structured_pruning"
    model = load_model(record.folder / "model" / "compressed").model
    assert model.head.in_features == 8  # 16 before
    assert (trained.folder / "model" / "trained" / "weights.safetensors").exists()


def test_what_cannot_be_pruned_is_said(small: Compose, trained: RunRecord) -> None:
    config = small(
        "stages=[compress]", f"from_run={trained.folder}", "compress=structured_pruning",
        "compress.structured_pruning.layers=[nothing.*]",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"no layers that match nothing\.\*"):
        run(config)
    with pytest.raises(UserError, match="between 0 and 1"):
        StructuredPruning(ratio=1.5)


def test_sizes_count_each_tensor_once_and_multiply_adds_of_one_row() -> None:
    model = CNN(1, 10, (4,), dropout=0.0).eval()
    size = size_of_model(model, (torch.zeros(2, 1, 8, 8),))
    convolutions = 64 * 9 * (1 * 4 + 4 * 4)
    assert size.macs == convolutions + 4 * 10
    assert size.parameters == 9 * (4 + 16) + 2 * 2 * 4 + 4 * 10 + 10
    with torch.no_grad():
        model.head.weight.zero_()
    assert size_of_model(model, (torch.zeros(2, 1, 8, 8),)).nonzero <= size.nonzero - 40
