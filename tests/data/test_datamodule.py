from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from framework.data.datamodule import ShardDataModule
from framework.data.ingest import ingest
from tests.data.test_ingest import RECIPE, Numbers


class Witness(pl.LightningModule):
    """Trains nothing and remembers the rows it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []
        self.validated = 0

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.seen.append(batch["x"].tolist())
        return self.weight.sum()

    def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.validated += len(batch["x"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dataclasses import replace

    recipe = replace(RECIPE, source=Numbers((300, 500, 200)), fractions={"train": 0.7, "val": 0.2, "test": 0.1})
    return ingest(recipe, tmp_path_factory.mktemp("data"))[0]


def fit(folder: Path, root: Path, *, steps: int, resume: Path | None = None) -> tuple[Witness, pl.Trainer]:
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, default_root_dir=root, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    module = Witness()
    trainer.fit(module, datamodule=ShardDataModule(folder, 32, window_bytes=1024), ckpt_path=resume)
    return module, trainer


def test_a_trainer_of_ones_own_goes_on_in_the_middle_of_an_epoch(folder: Path, tmp_path: Path) -> None:
    whole, _ = fit(folder, tmp_path, steps=50)
    rows = [n for batch in whole.seen[:21] for n in batch]
    assert len(set(rows)) == len(rows)
    assert whole.validated > 150
    first, trainer = fit(folder, tmp_path, steps=30)
    trainer.save_checkpoint(tmp_path / "at_30.ckpt")
    second, _ = fit(folder, tmp_path, steps=50, resume=tmp_path / "at_30.ckpt")
    assert first.seen + second.seen == whole.seen
