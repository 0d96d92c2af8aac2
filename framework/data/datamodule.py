"""A dataset version as a LightningDataModule, for a Trainer of your own:

trainer.fit(model, datamodule=ShardDataModule("outputs/datasets/digits/<version>", batch_size=64))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from .batch_transforms import BatchTransform, RandomTransform
from .loader import EvalLoader, ShardLoader
from .remote import ShardCache


class ShardDataModule(pl.LightningDataModule):
    """Gives each rank its share of the splits `train`, `val` and `test`; where training is goes into checkpoints.

    Use it with `Trainer(use_distributed_sampler=False)`.

    Args:
        location: the dataset version's folder, or its URL.
        batch_size: rows of a global batch, over all ranks.
        eval_batch_size: rows of a batch on one rank in validation and testing.
        transforms: applied to each batch, in order.
        cache: where shards behind a URL are kept.
        options: further arguments of `ShardLoader`.
    """

    def __init__(
        self,
        location: Path | str,
        batch_size: int,
        *,
        eval_batch_size: int = 256,
        transforms: Sequence[BatchTransform | RandomTransform] = (),
        cache: ShardCache | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.location, self.batch_size, self.eval_batch_size = location, batch_size, eval_batch_size
        self.transforms, self.cache, self.options = transforms, cache, options
        self._train: ShardLoader | None = None
        self._position: dict[str, int] | None = None

    def train_dataloader(self) -> ShardLoader:
        """Return the loader of the train split, at the position of the checkpoint that was loaded."""
        rank, world_size = self._place()
        self._train = ShardLoader(
            self.location,
            "train",
            self.batch_size,
            rank=rank,
            world_size=world_size,
            transforms=self.transforms,
            cache=self.cache,
            **self.options,
        )
        if self._position is not None:
            self._train.load_state_dict(self._position)
        return self._train

    def val_dataloader(self) -> EvalLoader:
        """Return the loader of the validation split."""
        return self._eval("val")

    def test_dataloader(self) -> EvalLoader:
        """Return the loader of the test split."""
        return self._eval("test")

    def predict_dataloader(self) -> EvalLoader:
        """Return the loader of the test split."""
        return self._eval("test")

    def state_dict(self) -> dict[str, Any]:
        """Return the position in training."""
        return {} if self._train is None else dict(self._train.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a position, now or when the loader is made."""
        self._position = state_dict or None
        if self._train is not None and self._position is not None:
            self._train.load_state_dict(self._position)

    def _eval(self, split: str) -> EvalLoader:
        rank, world_size = self._place()
        return EvalLoader(
            self.location,
            split,
            self.eval_batch_size,
            rank=rank,
            world_size=world_size,
            transforms=self.transforms,
            cache=self.cache,
        )

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
