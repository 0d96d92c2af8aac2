from pathlib import Path

import pytest

from framework.config.check import check
from framework.config.compose import compose_experiment


def findings(*overrides: str) -> list[str]:
    return [str(f) for f in check(*compose_experiment(overrides))]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["recipe=digits_int8"],
        ["recipe=stdlib_gpt"],
        ["recipe=stdlib_gpt", "model=gpt_124m"],
        ["model=vit", "precision=bf16", "tracker=[csv,wandb]", "optimizer=sgd", "scheduler=linear"],
        ["model=mlp", "scheduler=constant", "compress=none", "export=none", "tracker=none"],
    ],
)
def test_what_ships_is_sound(overrides: list[str]) -> None:
    assert findings(*overrides) == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer._target_=torch.optim.AdamWW", "optimizer._target_: `torch.optim.AdamWW` does not exist"),
        ("optimizer._target_=torch.optim.AdamWW", "Did you mean `AdamW`"),
        ("optimizer._target_=nowhere.Thing", "there is no package `nowhere`"),
        ("+optimizer.lrr=1", "has no argument `lrr`. Did you mean `lr`?"),
        ("~model.channels", "needs `channels`; give it as `model.channels`"),
        ("model.widths=abc", "`widths` takes `Sequence[int]`"),
        ("model.dropout='high'", "`dropout` takes `float`"),
        ("data.kind=vector task=regression task.loss_name=hinge", "takes one of 'mse'"),
        ("task.loss_function={_target_:torch.nn.HuberLos}", "Did you mean `HuberLoss`"),
        ("precision=fp8", "older GPUs cannot multiply in float8"),
        ("precision=tf32", "precision.tf32: needs a GPU of compute capability 8.0"),
        ("trainer.lora.rank=4", "give trainer.start_from"),
        ("+trainer.parameter_groups={a:{lr:1}}", "needs `parameters`, a list of names"),
        ("+trainer.parameter_groups={a:{parameters:[head.*]}}", "gives no option of the optimizer"),
        ("strategy=deepspeed_zero2 trainer.anomalies.max_skipped=1", "DeepSpeed makes steps by itself"),
        ("strategy=deepspeed_zero2 optimizer=muon", "optimizer: does not work with `strategy.name`"),
        ("strategy=ddp strategy.tensor_parallel=2", "strategy ddp does not cut layers; use strategy=fsdp2_tp"),
        ("strategy=fsdp2_tp model=vit model.heads=3 model.width=63 strategy.devices=2", "3 heads (model.heads) do not"),
        ("strategy=fsdp2_tp model=cnn strategy.devices=2", "CNN has no method `tensor_parallel_plan`"),
        ("strategy=fsdp2_tp strategy.devices=3 data.loader.lanes=6", "2 does not divide 3 processes"),
        ("model.outputs=${task.clases}", "does not resolve"),
        ("name=???", "name: has no value; give one"),
        ("precision=fp16", "use precision=bf16"),
        ("model=gpt", "needs `data.kind` to be tokens"),
        ("task=language_modelling", "task: needs `data.kind` to be tokens"),
        ("compress=[static_int8,structured_pruning]", "needs to be the last of `compress`"),
        ("strategy.devices=2", "needs `strategy.devices` to be at most 1"),
        ("++foo.bar=1", "foo: nobody reads this key"),
        ("++trainer.max_epoch=1", "Did you mean `max_epochs`"),
        ("+scheduler.x=1 scheduler=constant", "scheduler: has keys (x) but no `_target_`"),
        ("from_run=no/such/run", "is not a run"),
        ("data.split.fractions.val=0.5", "they add up to 1.4"),
        ("stages=[]", "stages: is empty"),
        ("stages=[evaluate]", "needs a trained model"),
        ("trainer.global_batch_size=0", "must be at least 1"),
        ("data.dask.scheduler=distributed data.dask.address=tcp://10.0.0.1:8786", "is not encrypted"),
        ("data.dask.address=tls://10.0.0.1:8786", "has no effect without data.dask.scheduler=distributed"),
        ("data.cluster=kubernetes", "kubernetes needs an image"),
        ("+data.dask.options.image=x", "has no effect without data.cluster=slurm or kubernetes"),
        ("data.cluster=slurm data.dask.scheduler=processes", "has no effect with data.cluster=slurm"),
    ],
)
def test_each_kind_of_mistake_is_found_before_anything_runs(override: str, expected: str) -> None:
    assert any(expected in f for f in findings(*override.split(" "))), findings(*override.split(" "))


def test_a_folder_that_does_not_exist_is_named_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (found,) = findings("recipe=stdlib_gpt", f"data.source.root={tmp_path}/text")
    assert "there is no folder" in found
    assert "Did you mean `texts`?" in found


def test_all_findings_come_at_once_each_with_its_place() -> None:
    found = findings("+optimizer.lrr=1", "model.widths=abc", "data.split.fractions.val=0.5")
    assert len(found) == 3
    assert "[command line: model.widths=abc]" in "".join(found)


def test_a_mistake_in_a_file_is_shown_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    file = tmp_path / "optimizer" / "own.yaml"
    file.write_text("# my own\n_target_: torch.optim.SGD\n_partial_: true\nmomentun: 0.9\n")
    config, origins = compose_experiment(["optimizer=own"], config_dir=tmp_path)
    (finding,) = check(config, origins)
    assert "Did you mean `momentum`?" in finding.message
    assert finding.origin == f"{file}:4"


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.config.requirements.has_package", lambda name: name != "torch_pruning")
    assert any("pip install 'declarative-experiments[prune]'" in f for f in findings())
