"""From the `data` node of a config to a dataset version, and the stage that prepares it. No torch."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from framework.config.components import as_plain, build, build_set
from framework.errors import DataError
from framework.record.console import bytes_text, say
from framework.record.experiment import Experiment

from .ingest import Recipe, ingest, version_of
from .manifest import MANIFEST, Field, Manifest
from .pools import open_pool


def recipe_from(data: DictConfig) -> Recipe:
    """Return the ingest recipe that a `data` node describes.

    The description hashed into the version holds what the source and transforms are, not where files lie: those
    are covered by the source's fingerprint.
    """
    plain = as_plain(data)
    return Recipe(
        name=plain["name"],
        source=build(data.source, "data.source"),
        transforms=list(build_set(data.transforms, "data.transforms").values()),
        description={"source_target": plain["source"]["_target_"], "transforms": plain["transforms"]},
        fields={n: Field(f["dtype"], tuple(f["shape"]), f["meaning"]) for n, f in plain["fields"].items()},
        fractions=plain["split"]["fractions"],
        split_key=plain["split"]["key"],
        split_column=plain["split"]["column"],
        split_seed=plain["split"]["seed"],
        **{k: plain["store"][k] for k in ("codec", "level", "chunk_bytes", "shard_bytes", "shuffle", "seed")},
    )


def find_dataset(data: DictConfig) -> Path:
    """Return the folder of the dataset version that a `data` node names by `data.version`.

    Raises:
        DataError: when it is not there.
    """
    folder = Path(data.store.root) / data.name / data.version
    if not (folder / MANIFEST).exists():
        raise DataError(f"dataset {data.name}/{data.version} is not below `{data.store.root}`; run the stage `prepare`")
    return folder


def prepare_dataset(data: DictConfig) -> tuple[Path, bool]:
    """Return the folder of the dataset version, making it first where it is missing.

    A version given in the config is what must come out: when it is not on disk, it is made again from the source,
    and a source that has changed since is an error.

    Returns:
        the folder, and whether work was done.
    """
    if data.version is not None and (Path(data.store.root) / data.name / data.version / MANIFEST).exists():
        return find_dataset(data), False
    recipe, root = recipe_from(data), Path(data.store.root)
    folder = root / recipe.name / version_of(recipe.identity())
    made = not (folder / MANIFEST).exists()
    if made:
        with open_pool(data.dask) as pool:
            folder, made = ingest(recipe, root, pool)
    if data.version is not None and folder.name != data.version:
        raise DataError(
            f"data.version: {data.name}/{data.version} is wanted, and the source now gives {folder.name}; "
            "bring the old version back, or set data.version=null to take the new one"
        )
    return folder, made


def dataset_of(experiment: Experiment) -> Path:
    """Return the dataset version that an experiment works on, preparing it if no stage has done so."""
    known = experiment.record.get("data") or (experiment.earlier and experiment.earlier.get("data"))
    if known and known["name"] == experiment.config.data.name and Path(known["path"], MANIFEST).exists():
        if not experiment.record.get("data"):
            experiment.record.update(data=known)
        return Path(known["path"])
    run(experiment)
    return Path(experiment.record["data"]["path"])


def run(experiment: Experiment) -> None:
    """The stage `prepare`: the dataset version is on disk, and the record names it."""
    folder, made = prepare_dataset(experiment.config.data)
    manifest = Manifest.read(folder)
    splits = {name: split.rows for name, split in manifest.splits.items()}
    experiment.record.update(
        data={
            "name": manifest.name,
            "version": manifest.version,
            "path": str(folder.resolve()),
            "rows": splits,
        }
    )
    rows = ", ".join(f"{name} {count:,}" for name, count in splits.items())
    state = "made" if made else "found"
    say(f"  dataset {manifest.name}/{manifest.version} {state}: {rows} rows, {bytes_text(manifest.bytes)}")
