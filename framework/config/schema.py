"""The typed part of a config: everything the framework itself reads.

Components (model, task, optimizer, passes, targets, ...) are open nodes with a `_target_`; their keys are the
arguments of that target and are checked against its signature (`framework.config.check`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

Node = dict[str, Any]


class Stage(Enum):
    """The stages of an experiment, in the order in which they are run."""

    prepare = "prepare"
    train = "train"
    evaluate = "evaluate"
    compress = "compress"
    export = "export"
    report = "report"


class Kind(Enum):
    """What one row of a dataset is; models and tasks say which kinds they take."""

    image = "image"
    vector = "vector"
    tokens = "tokens"


class Accelerator(Enum):
    """Where training runs; `auto` takes a GPU where there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Codec(Enum):
    """How chunks are compressed; every chunk carries crc32c with any of them."""

    zstd = "zstd"
    none = "none"


class Cluster(Enum):
    """Whose machines ingest data."""

    local = "local"
    slurm = "slurm"
    kubernetes = "kubernetes"


class DaskScheduler(Enum):
    """How the partitions of an ingest run on this machine, or that a cluster of Dask's is there already."""

    threads = "threads"
    processes = "processes"
    synchronous = "synchronous"
    distributed = "distributed"


class Mode(Enum):
    """Whether a metric is better when larger or smaller."""

    max = "max"
    min = "min"


@dataclass
class FieldSpec:
    """One field of a row: its shape without the row axis (first length null: each row has its own), dtype, meaning."""

    shape: list[int | None] = MISSING
    dtype: str = MISSING
    meaning: str = ""


@dataclass
class SplitConfig:
    """Which rows go to which split: by a seeded hash of the row's key, so that a record never moves, or by a column."""

    fractions: dict[str, float] = field(default_factory=lambda: {"train": 0.8, "val": 0.1, "test": 0.1})
    key: str | None = None
    column: str | None = None
    seed: int = 0


@dataclass
class StoreConfig:
    """How a dataset version lies on disk."""

    root: str = "${outputs}/datasets"
    codec: Codec = Codec.zstd
    level: int = 1
    chunk_bytes: int = 512 * 1024
    shard_bytes: int = 64 * 1024 * 1024
    shuffle: bool = True
    seed: int = 0


@dataclass
class LoaderConfig:
    """How batches are read. Half of its memory, of all ranks together, is `window_bytes`; shards behind a URL
    are kept in `cache`, at most `cache_bytes` of them."""

    window_bytes: int = 32 * 1024 * 1024
    lanes: int = 8
    threads: int | None = None
    cache: str = "~/.cache/declarative-experiments/shards"
    cache_bytes: int = 20_000_000_000
    eval_batch_size: int = 256


@dataclass
class DaskConfig:
    """How ingest runs on the machines of `data.cluster`: here `distributed` starts workers, or uses those at `address`.

    `tls` holds the files `ca_file`, `client_cert` and `client_key` of a `tls://` address. `options` are, for a cluster
    of `slurm`, those of `dask_jobqueue.SLURMCluster`: queue, account, walltime, job_script_prologue and so on; for
    `kubernetes` those of `hydra/launcher=kubernetes` that tell what pods are like, and `host`, under which pods reach
    this machine.
    """

    scheduler: DaskScheduler = DaskScheduler.threads
    workers: int = "${cpus:}"  # type: ignore[assignment]
    memory_limit: str = "2GB"
    address: str | None = None
    tls: dict[str, str] = field(default_factory=dict)
    options: Node = field(default_factory=dict)


@dataclass
class DataConfig:
    """A dataset: where it comes from, what is done to it, how it is stored and read.

    `mix` holds further `data` nodes by name; training draws batches of each by `weight`, and the main one is validated.
    """

    name: str = MISSING
    kind: Kind = MISSING
    version: str | None = None
    fields: dict[str, FieldSpec] = field(default_factory=dict)
    labels: list[str] | None = None
    weight: float = 1.0
    mix: Node = field(default_factory=dict)
    source: Node = field(default_factory=dict)
    transforms: Node = field(default_factory=dict)
    batch_transforms: Node = field(default_factory=dict)
    split: SplitConfig = field(default_factory=SplitConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    cluster: Cluster = Cluster.local
    dask: DaskConfig = field(default_factory=DaskConfig)
    _requires_: Node = field(default_factory=dict)


@dataclass
class CheckpointConfig:
    """Which states of a training are kept: after each validation, and every so many steps beside.

    The newest `keep` stay, and those of every `keep_every_n_steps`. `in_background`: training goes on while one is
    written, at the cost of a copy in memory.
    """

    every_n_steps: int | None = None
    keep: int = 2
    keep_every_n_steps: int | None = None
    in_background: bool = False


@dataclass
class LowRankConfig:
    """LoRA: with a `rank`, weights are frozen, and linear `layers` (globs) get a trained addition, merged at the end.

    It is scaled by `alpha / rank`. Parameters that `whole` (globs) names are trained themselves.
    """

    rank: int | None = None
    alpha: float = 16.0
    dropout: float = 0.0
    layers: list[str] = field(default_factory=lambda: ["*"])
    whole: list[str] = field(default_factory=list)


@dataclass
class AnomalyConfig:
    """A step whose loss or gradients are not finite, or whose loss is over `spike` times the median of those before.

    Training ends there, or, up to `max_skipped` times, leaves the step's update out. Its rows are told and kept.
    """

    spike: float | None = None
    max_skipped: int = 0


@dataclass
class TrainerConfig:
    """How long and how training runs. Batch sizes are counted in rows; validation follows each epoch, or N steps.

    `compile` and `recompute_activations` work block by block: time for the one, memory for time with the other.
    `patience`: training ends after so many validations without a better one. `time_budget_s`: it ends after so many
    seconds. `ema_decay`: a moving average of the weights is judged and kept. `start_from`: the weights to begin
    with, of a run, a checkpoint or a safetensors file. `parameter_groups`: by a name, `parameters` (globs of names)
    and options of the optimizer for them; norms and biases are not decayed by default. `threads` are those of each
    process; `hang_s` is how long a rank may take for a step before it is named.
    """

    max_epochs: int = 10
    max_steps: int = -1
    global_batch_size: int = 64
    micro_batch_size: int | None = None
    gradient_clip: float | None = 1.0
    validate_every_n_steps: int | None = None
    log_every_n_steps: int = 10
    compile: bool = False
    recompute_activations: bool = False
    patience: int | None = None
    time_budget_s: float | None = None
    ema_decay: float | None = None
    start_from: str | None = None
    lora: LowRankConfig = field(default_factory=LowRankConfig)
    parameter_groups: dict[str, Node] = field(default_factory=dict)
    anomalies: AnomalyConfig = field(default_factory=AnomalyConfig)
    deterministic: bool = True
    threads: int | None = None
    hang_s: float = 1800.0
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    _requires_: Node = field(default_factory=dict)


@dataclass
class StrategyConfig:
    """How many processes train, and what keeps them together; `tensor_parallel` of them share each layer's work."""

    name: str = MISSING
    accelerator: Accelerator = Accelerator.auto
    devices: int = 1
    num_nodes: int = 1
    tensor_parallel: int = 1
    plugin: Node = field(default_factory=dict)
    _requires_: Node = field(default_factory=dict)


@dataclass
class PrecisionConfig:
    """Number formats of training: the name here, and Lightning's word for it.

    `tf32`: GPUs multiply 32-bit floats as TensorFloat-32. `layers`: swaps layers for as long as a model is trained.
    """

    name: str = MISSING
    lightning: str = MISSING
    bytes_per_weight: int = 4
    tf32: bool = False
    layers: Node = field(default_factory=dict)
    _requires_: Node = field(default_factory=dict)


@dataclass
class MeasureConfig:
    """How exported models are timed and compared."""

    batch_sizes: list[int] = field(default_factory=lambda: [1, 32])
    threads: int = 1
    seconds: float = 0.6
    compiled: bool = False
    sensitivity: bool = False
    on_mismatch: str = "fail"


@dataclass
class Config:
    """A whole experiment."""

    name: str = MISSING
    description: str = ""
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    seed: int = 0
    stages: list[Stage] = field(default_factory=lambda: list(Stage))
    from_run: str | None = None
    run_dir: str | None = None
    resume: str | None = None
    outputs: str = "outputs"
    check: str = "before"
    dry_run: bool = False

    data: DataConfig = field(default_factory=DataConfig)
    model: Node = field(default_factory=dict)
    task: Node = field(default_factory=dict)
    optimizer: Node = field(default_factory=dict)
    scheduler: Node = field(default_factory=dict)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    compress: Node = field(default_factory=dict)
    export: Node = field(default_factory=dict)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    tracker: Node = field(default_factory=dict)
