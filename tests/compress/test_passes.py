import json

import pytest
import torch

from framework.compress.passes import size_of_model
from framework.compress.structured_pruning import StructuredPruning
from framework.config.check import check
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


def weights_of(record: RunRecord, name: str) -> torch.Tensor:
    return load_model(record.folder / "model" / "compressed").model.get_parameter(name)


def test_magnitude_pruning_leaves_the_share_of_zeros_it_was_asked_for_after_training(
    small: Compose, trained: RunRecord
) -> None:
    options = [
        "compress=magnitude_pruning",
        "compress.magnitude_pruning.sparsity=0.75",
        "compress.magnitude_pruning.steps=2",
    ]
    record = run(small("stages=[compress]", f"from_run={trained.folder}", *options))
    model = load_model(record.folder / "model" / "compressed").model
    weights = torch.cat(
        [m.weight.flatten() for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    )
    assert (weights == 0).float().mean() == pytest.approx(0.75, abs=0.002)
    rows = record["tables"]["compress"]
    assert rows[1]["parameters"] == rows[0]["parameters"]
    assert rows[1]["nonzero"] < 0.4 * rows[0]["nonzero"]
    before = load_model(trained.folder / "model" / "trained").model.head.weight
    assert (model.head.weight - before)[model.head.weight != 0].abs().max() > 0  # what is left was trained


def test_semi_structured_pruning_zeroes_two_of_every_four(small: Compose) -> None:
    record = run(small("stages=[prepare,train,compress]", "model=mlp", "model.hidden=[16]", "trainer.max_epochs=1",
                       "compress=semi_structured_pruning"))  # fmt: skip
    model = load_model(record.folder / "model" / "compressed").model
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    for layer in linear:
        assert ((layer.weight.view(-1, 4) != 0).sum(1) <= 2).all()


def test_low_rank_factors_are_the_nearest_ones_and_come_back(small: Compose, trained: RunRecord) -> None:
    options = ["compress=low_rank_factorisation", "compress.low_rank_factorisation.finetune=0"]
    record = run(small("stages=[compress]", f"from_run={trained.folder}", *options))
    rows = record["tables"]["compress"]
    assert rows[1]["parameters"] < 0.75 * rows[0]["parameters"]
    full = load_model(trained.folder / "model" / "trained").model
    split = load_model(record.folder / "model" / "compressed").model
    ranks = json.loads((record.folder / "model" / "compressed" / "model.json").read_text())["changes"][0]["state"][
        "ranks"
    ]
    assert ranks
    for name, rank in ranks.items():
        wide = full.get_submodule(name).weight.detach().flatten(1)
        first, second = split.get_submodule(name)
        product = second.weight.detach().flatten(1) @ first.weight.detach().flatten(1)
        best = torch.linalg.svdvals(wide)[rank:].square().sum().sqrt()
        assert torch.linalg.norm(wide - product) == pytest.approx(float(best), rel=1e-3)


def test_a_distilled_model_comes_nearer_to_its_teacher(small: Compose, trained: RunRecord) -> None:
    teacher = load_model(trained.folder / "model" / "trained").model
    pruned = ["stages=[compress]", f"from_run={trained.folder}", "compress.structured_pruning.finetune=0"]
    alone = run(small(*pruned, "compress=structured_pruning"))
    taught = run(small(*pruned, "compress=[structured_pruning,distillation]", "compress.distillation.weight=1"))
    x = torch.randn(64, 1, 8, 8)

    def distance(record: RunRecord) -> float:
        model = load_model(record.folder / "model" / "compressed").model
        with torch.no_grad():
            return torch.nn.functional.kl_div(
                model(x).log_softmax(-1), teacher(x).log_softmax(-1), log_target=True
            ).item()

    assert distance(taught) < 0.7 * distance(alone)
    with pytest.raises(UserError, match=r"distillation\.teacher: it does not take this data"):
        run(small("stages=[prepare,train,compress]", "model=mlp", "compress=distillation", "trainer.max_epochs=1",
                  "data.kind=vector", f"compress.distillation.teacher={trained.folder}",
                  "+data.transforms.flat._target_=framework.data.transforms.Reshape", "+data.transforms.flat.field=image",
                  "+data.transforms.flat.shape=[64]", "data.fields.image.shape=[64]"))  # fmt: skip


@pytest.mark.parametrize(("name", "error", "share"), [("weight_int8", 0.01, 0.32), ("weight_int4", 0.2, 0.22)])
def test_weight_only_layers_are_small_near_and_come_back(name: str, error: float, share: float, small: Compose) -> None:
    record = run(small("stages=[prepare,train,compress]", "model=vit", "model.width=32", "model.depth=2", "model.heads=2",
                       "trainer.max_epochs=1", f"compress={name}"))  # fmt: skip
    before = load_model(record.folder / "model" / "trained").model
    after = load_model(record.folder / "model" / "compressed").model
    layers = [n for n, m in before.named_modules() if isinstance(m, torch.nn.Linear)]
    for layer in layers:
        wide, quantised = before.get_submodule(layer).weight, after.get_submodule(layer)
        assert ((quantised.dequantised() - wide).norm() / wide.norm()) < error
        stored = quantised.weight.nbytes + quantised.scale.nbytes
        assert stored < share * wide.nbytes
    assert torch.isfinite(after(torch.randn(3, 1, 8, 8))).all()


@pytest.mark.integration
def test_qat_and_bfloat16_and_dynamic_int8_leave_models_that_load(small: Compose, trained: RunRecord) -> None:
    for name, dtypes in (
        ("qat_int8", {torch.int8}),
        ("dynamic_int8", {torch.int8, torch.float32}),
        ("bfloat16", {torch.bfloat16}),
    ):
        record = run(small("stages=[compress]", f"from_run={trained.folder}", f"compress={name}"))
        model = load_model(record.folder / "model" / "compressed").model
        assert {t.dtype for n, t in model.state_dict().items() if t.numel() > 100} <= dtypes | {torch.float32}
        assert any(t.dtype in dtypes for t in model.state_dict().values())
        assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


def test_a_pass_after_one_that_makes_a_graph_is_refused_before_anything_runs(small: Compose) -> None:
    for chain in ("[static_int8,structured_pruning]", "[qat_int8,distillation]", "[bfloat16,weight_int8]"):
        found = [str(f) for f in check(small(f"compress={chain}"))]
        assert any("needs to be the last of `compress`" in f for f in found), found
    assert any("dynamic_int8" in str(f) for f in check(small("compress=dynamic_int8", "export=onnx")))
    assert any("static_int8" in str(f) for f in check(small("compress=static_int8", "export=executorch")))
    assert not check(small("compress=static_int8", "export=openvino"))
    assert any("model._target_" in str(f) for f in check(small("model=vit", "compress=static_int8", "export=openvino")))
    assert not check(small("model=vit", "compress=weight_int8", "export=openvino"))


@pytest.mark.integration
def test_a_search_keeps_the_fastest_chain_that_loses_little(small: Compose, trained: RunRecord) -> None:
    options = ["stages=[compress,export]", f"from_run={trained.folder}", "compress=auto", "export=onnx"]
    search = ["compress.auto.trials=4", "compress.auto.finetune=0.5", "compress.auto.max_drop=0.02"]
    record = run(small(*options, *search))
    tried = record["tables"]["auto"]
    assert len(tried) == 4
    assert (tried[0]["shrink"], tried[0]["quantise"], tried[0]["kept"]) == ("none", "none", True)
    within = [row for row in tried if row.get("kept")]
    assert all(tried[0]["val/accuracy"] - row["val/accuracy"] <= 0.02 for row in within)
    fastest = min(within, key=lambda row: row["latency_ms"])
    assert record["tables"]["compress"][-1]["val/accuracy"] == pytest.approx(fastest["val/accuracy"], abs=1e-6)
    assert record["verified"]
    with pytest.raises(UserError, match=r"auto\.quantise: int2 is none of none, static_int8"):
        run(small(*options, "compress.auto.quantise=[int2]"))
    assert any("compress.auto: does not work with `export`" in str(f) for f in check(small("compress=auto")))


def test_sensitivity_has_a_row_for_each_layer_that_a_pass_can_work_on(small: Compose, trained: RunRecord) -> None:
    options = ["stages=[compress,report]", f"from_run={trained.folder}", "compress=[structured_pruning,static_int8]"]
    record = run(small(*options, "measure.sensitivity=true", "compress.structured_pruning.finetune=0"))
    rows = record["tables"]["sensitivity"]
    assert {row["pass"] for row in rows} == {"structured_pruning"}
    model = load_model(trained.folder / "model" / "trained").model
    convolutions = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert [row["layer"] for row in rows] == convolutions
    assert all(row["bytes_saved"] > 0 for row in rows)
    assert "one layer compressed alone" in (record.folder / "report.html").read_text()
