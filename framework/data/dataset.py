"""From the `data` node of a config to a dataset version, and the stage that prepares it. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from framework.config.components import as_plain, build, build_set
from framework.config.mixture import mixed_in
from framework.errors import DataError
from framework.record.console import bytes_text, say
from framework.record.experiment import Experiment

from .files import file_system
from .ingest import Recipe, ingest, version_of
from .manifest import MANIFEST, Field, Manifest
from .pools import open_pool
from .remote import RemoteVersion, ShardCache, is_url, publish


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


def location_of(data: DictConfig, version: str) -> Path | str:
    """Return where a version of the dataset lies, or would lie: a folder, or a URL."""
    root = str(data.store.root)
    return f"{root.rstrip('/')}/{data.name}/{version}" if is_url(root) else Path(root) / data.name / version


def is_published(location: Path | str) -> bool:
    """Return whether there is a version at a location."""
    if not is_url(location):
        return (Path(location) / MANIFEST).exists()
    system, base = file_system(str(location))
    return bool(system.exists(f"{base}/{MANIFEST}"))


def prepare_dataset(data: DictConfig, work: Path = Path("outputs/datasets")) -> tuple[Path | str, bool]:
    """Return where the dataset version lies, making it first where it is missing.

    A version given in the config is what must come out: when it is not there, it is made again from the source, and
    a source that has changed since is an error.

    Args:
        data: the config's `data` node.
        work: the data root here in which a version for a root behind a URL is made, before it is published there.

    Returns:
        the folder or URL, and whether work was done.
    """
    if data.version is not None and is_published(location_of(data, data.version)):
        return location_of(data, data.version), False
    recipe = recipe_from(data)
    version = version_of(recipe.identity())
    if data.version is not None and version != data.version:
        raise DataError(
            f"data.version: {data.name}/{data.version} is wanted, and the source now gives {version}; "
            "bring the old version back, or set data.version=null to take the new one"
        )
    location = location_of(data, version)
    if is_published(location):
        return location, False
    root = work if is_url(location) else Path(data.store.root)
    with open_pool(data, root) as pool:
        folder, _ = ingest(recipe, root, pool)
    if is_url(location):
        publish(folder, str(data.store.root))
    return location, True


def dataset_of(experiment: Experiment) -> Path | str:
    """Return the dataset version that an experiment works on, preparing it if no stage has done so."""
    known = experiment.record.get("data") or (experiment.earlier and experiment.earlier.get("data"))
    data = experiment.config.data
    if known and _names(known) == {data.name, *data.mix} and all(is_published(p) for p in _paths(known)):
        if not experiment.record.get("data"):
            experiment.record.update(data=known)
        return known["path"]
    run(experiment)
    return experiment.record["data"]["path"]


def _names(known: dict[str, Any]) -> set[str]:
    return {known["name"], *known.get("mix", {})}


def _paths(known: dict[str, Any]) -> list[str]:
    return [known["path"], *(part["path"] for part in known.get("mix", {}).values())]


def cache_of(data: DictConfig) -> ShardCache:
    """Return the cache of shards that a `data` node describes."""
    return ShardCache(Path(data.loader.cache), data.loader.cache_bytes)


def manifest_of(location: Path | str, cache: ShardCache) -> Manifest:
    """Return the manifest of a version, wherever it lies."""
    return Manifest.read(RemoteVersion(str(location), cache).folder if is_url(location) else Path(location))


def run(experiment: Experiment) -> None:
    """The stage `prepare`: the dataset version is there, and the record names it."""
    data = experiment.config.data
    work = Path(experiment.config.outputs) / "datasets"
    main = _prepare(data, work)
    mix = {name: _prepare(part, work) for name, part in mixed_in(data).items()}
    experiment.record.update(data={**main, "mix": mix})


def _prepare(data: DictConfig, work: Path) -> dict[str, Any]:
    """Make or find a dataset version, say so, and return what the record says of it."""
    location, made = prepare_dataset(data, work)
    manifest = manifest_of(location, cache_of(data))
    splits = {name: split.rows for name, split in manifest.splits.items()}
    path = str(location) if is_url(location) else str(Path(location).resolve())
    rows = ", ".join(f"{name} {count:,}" for name, count in splits.items())
    state = "made" if made else "found"
    say(f"  dataset {manifest.name}/{manifest.version} {state}: {rows} rows, {bytes_text(manifest.bytes)}")
    return {"name": manifest.name, "version": manifest.version, "path": path, "rows": splits}
