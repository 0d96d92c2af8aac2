"""Datasets that are mixed into training: `data.mix`, each a `data` node of its own."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from .components import as_plain
from .schema import DataConfig

SHARED = ("store", "loader", "dask")


def mixed_in(data: DictConfig) -> dict[str, DictConfig]:
    """Return the complete `data` node of every dataset in `data.mix`, by its key there.

    Where and how it is stored, loaded and ingested is as for the main dataset, unless it says otherwise.

    Raises:
        OmegaConfBaseException: when a node has a key or a value that a `data` node cannot have.
    """
    shared = {key: as_plain(data[key]) for key in SHARED}
    found = {}
    for name, node in as_plain(data.mix).items():
        part = OmegaConf.merge(OmegaConf.structured(DataConfig), shared, node)
        assert isinstance(part, DictConfig)
        found[str(name)] = part
    return found
