"""What the framework demands of its own keys, beyond their types."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .definitions import method_of, resolve
from .machine import has_package, this_machine
from .mixture import mixed_in
from .requirements import facts
from .world import data_ranks, world_size

Problem = tuple[str, str]
PLAN = "tensor_parallel_plan"
CHECK_MODES = ("before", "true", "shapes", "false")


def stages_have_what_they_need(cfg: DictConfig) -> Iterator[Problem]:
    """Every stage finds its input: in an earlier stage of this run, or in the run it continues."""
    stages = [s.value for s in cfg.stages]
    if not stages:
        yield "stages", "is empty; name at least one stage"
    for name in {s for s in stages if stages.count(s) > 1}:
        yield "stages", f"names `{name}` twice"
    if cfg.from_run is None and cfg.run_dir is None and "train" not in stages:
        for stage in ("evaluate", "compress", "export"):
            if stage in stages:
                yield "stages", f"`{stage}` needs a trained model: add `train`, or give from_run=PATH"


def runs_exist(cfg: DictConfig) -> Iterator[Problem]:
    """`from_run` names a run directory."""
    if cfg.from_run is not None and not (Path(cfg.from_run) / "run.json").is_file():
        yield (
            "from_run",
            f"`{cfg.from_run}` is not a run: it has no run.json; `python -m framework runs` lists runs",
        )


def weights_exist(cfg: DictConfig) -> Iterator[Problem]:
    """`trainer.start_from` is there."""
    start = cfg.trainer.start_from
    if start is not None and not Path(start).expanduser().exists():
        yield "trainer.start_from", f"there is no `{start}`; give a run, a checkpoint's folder or a safetensors file"


def fractions_make_a_whole(cfg: DictConfig) -> Iterator[Problem]:
    """The split's fractions are positive and add up to 1."""
    fractions = cfg.data.split.fractions
    if any(v <= 0 for v in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        total = sum(fractions.values())
        yield "data.split.fractions", f"must be positive and add up to 1; they add up to {total:g}"
    if "train" not in fractions:
        yield "data.split.fractions", "has no `train` split"


def batches_divide(cfg: DictConfig) -> Iterator[Problem]:
    """The global batch divides into ranks and micro-batches."""
    trainer, world = cfg.trainer, data_ranks(cfg)
    if world_size(cfg) % cfg.strategy.tensor_parallel:
        yield "strategy.tensor_parallel", f"{cfg.strategy.tensor_parallel} does not divide {world_size(cfg)} processes"
        return
    batch = trainer.global_batch_size
    if batch < 1:
        yield "trainer.global_batch_size", f"must be at least 1, and it is {batch}"
    elif batch % world:
        yield "trainer.global_batch_size", f"{batch} rows do not divide among {world} processes"
    elif trainer.micro_batch_size and (batch // world) % trainer.micro_batch_size:
        yield (
            "trainer.micro_batch_size",
            f"{batch // world} rows a process do not divide into micro-batches of {trainer.micro_batch_size}",
        )
    elif cfg.data.loader.lanes % world:
        yield (
            "data.loader.lanes",
            f"must be a multiple of the {world} processes, and it is {cfg.data.loader.lanes}",
        )


def devices_are_there(cfg: DictConfig) -> Iterator[Problem]:
    """There are as many GPUs as processes that want one."""
    gpus, strategy = this_machine().gpus, cfg.strategy
    on_gpu = strategy.accelerator.value == "cuda" or (strategy.accelerator.value == "auto" and gpus)
    if on_gpu and strategy.devices > gpus:
        yield "strategy.devices", f"{strategy.devices} processes want a GPU each, and this machine has {gpus}"
    if strategy.num_nodes > (nodes := this_machine().nodes):
        yield (
            "strategy.num_nodes",
            f"{strategy.num_nodes} nodes are wanted, and there is {nodes}; a launcher gives more, as in "
            f"hydra/launcher=slurm hydra.launcher.nodes={strategy.num_nodes}",
        )


def layers_divide(cfg: DictConfig) -> Iterator[Problem]:
    """Processes that share the work of layers get whole heads, and only one strategy does that."""
    shared = cfg.strategy.tensor_parallel
    if shared > 1 and "tensor_parallel" not in cfg.strategy.plugin:
        yield "strategy.tensor_parallel", f"strategy {cfg.strategy.name} does not cut layers; use strategy=fsdp2_tp"
        return
    found = resolve(str(cfg.model.get("_target_"))) if shared > 1 else None
    if found is not None and isinstance(found.node, ast.ClassDef) and method_of(found, PLAN) is None:
        yield "strategy.tensor_parallel", f"{found.node.name} has no method `{PLAN}`, which says how layers are cut"
    heads = cfg.model.get("heads")
    if shared > 1 and isinstance(heads, int) and heads % shared:
        yield "strategy.tensor_parallel", f"{heads} heads (model.heads) do not divide among {shared} processes"


def precisions_are_possible(cfg: DictConfig) -> Iterator[Problem]:
    """TensorFloat-32 is a format of GPUs."""
    if cfg.precision.tf32 and (facts(cfg)["run.accelerator"] != "cuda" or this_machine().compute_capability < 8.0):
        yield "precision.tf32", "needs a GPU of compute capability 8.0 or more; use precision=fp32 or precision=bf16"


def fine_tuning_is_possible(cfg: DictConfig) -> Iterator[Problem]:
    """Low-rank additions and skipped steps fit the rest of the training."""
    trainer, deepspeed = cfg.trainer, cfg.strategy.name.startswith("deepspeed")
    if trainer.lora.rank is not None:
        if trainer.lora.rank < 1:
            yield "trainer.lora.rank", f"must be at least 1, or null, and it is {trainer.lora.rank}"
        if trainer.start_from is None:
            yield (
                "trainer.lora.rank",
                "additions to random weights teach a model little; give trainer.start_from",
            )
    if trainer.anomalies.max_skipped and deepspeed:
        yield "trainer.anomalies.max_skipped", "DeepSpeed makes steps by itself; use strategy=ddp or fsdp2"
    if trainer.anomalies.spike is not None and trainer.anomalies.spike <= 1:
        yield "trainer.anomalies.spike", f"must be more than 1, and it is {trainer.anomalies.spike:g}"


def parameter_groups_are_whole(cfg: DictConfig) -> Iterator[Problem]:
    """Each rule for parameters names some."""
    for name, rule in cfg.trainer.parameter_groups.items():
        if not isinstance(rule.get("parameters"), ListConfig) or not rule.parameters:
            yield f"trainer.parameter_groups.{name}", "needs `parameters`, a list of names (globs)"
        elif len(rule) == 1:
            yield f"trainer.parameter_groups.{name}", "gives no option of the optimizer, as in `weight_decay: 0`"


def clusters_are_encrypted(cfg: DictConfig) -> Iterator[Problem]:
    """What leaves the machine is encrypted: a cluster elsewhere is reached by TLS."""
    cluster, dask = cfg.data.cluster.value, cfg.data.dask
    loopback = ("tcp://127.0.0.1:", "tcp://localhost:", "tcp://[::1]:")
    if cluster == "slurm" and not has_package("dask_jobqueue"):
        yield "data.cluster", "slurm needs `dask_jobqueue`: pip install 'declarative-experiments[slurm]'"
    if cluster == "kubernetes":
        for package in ("lightkube", "cryptography"):
            if not has_package(package):
                install = "pip install 'declarative-experiments[kubernetes]'"
                yield "data.cluster", f"kubernetes needs `{package}`: {install}"
        if not dask.options.get("image"):
            yield "data.dask.options.image", "kubernetes needs an image that has Python and this project's packages"
    if cluster != "local" and dask.scheduler.value != "threads":
        yield "data.dask.scheduler", f"has no effect with data.cluster={cluster}, where workers are submitted"
    if dask.options and cluster == "local":
        yield "data.dask.options", "has no effect without data.cluster=slurm or kubernetes"
    if dask.address is None:
        return
    if dask.scheduler.value != "distributed":
        yield "data.dask.address", "has no effect without data.dask.scheduler=distributed"
    if not dask.address.startswith(("tls://", *loopback)):
        yield "data.dask.address", f"`{dask.address}` is not encrypted; give a tls:// address, and data.dask.tls"
    elif dask.address.startswith("tls://") and not {"ca_file", "client_cert", "client_key"} <= set(dask.tls):
        yield "data.dask.tls", "a tls:// address needs ca_file, client_cert and client_key"


def mixtures_fit(cfg: DictConfig) -> Iterator[Problem]:
    """Datasets that are mixed are whole `data` nodes, and their rows have the main one's fields."""
    try:
        parts = mixed_in(cfg.data)
    except OmegaConfBaseException as error:
        yield "data.mix", f"each entry is a `data` node of its own, and one is not: {str(error).splitlines()[0]}"
        return
    fields = {n: (f.dtype, list(f.shape)) for n, f in cfg.data.fields.items()}
    for name, part in parts.items():
        missing = [key for key in ("name", "kind") if OmegaConf.is_missing(part, key)]
        if missing or not part.source:
            yield f"data.mix.{name}", "is not a whole `data` node; choose one with `+data@data.mix.NAME=OPTION`"
        elif {n: (f.dtype, list(f.shape)) for n, f in part.fields.items()} != fields:
            yield f"data.mix.{name}.fields", f"must be those of data.fields: {', '.join(map(str, fields))}, alike"
        if part.weight <= 0:
            yield f"data.mix.{name}.weight", f"must be more than 0, and it is {part.weight:g}"


def modes_are_known(cfg: DictConfig) -> Iterator[Problem]:
    """Plain words that the framework reads are words it knows."""
    if cfg.check.lower() not in CHECK_MODES:
        yield "check", f"must be one of {', '.join(CHECK_MODES)}"
    if cfg.resume not in (None, "auto"):
        yield "resume", "must be auto, or left out"
    if cfg.measure.on_mismatch not in ("fail", "warn"):
        yield "measure.on_mismatch", "must be fail or warn"
    if cfg.trainer.max_epochs == -1 and cfg.trainer.max_steps == -1:
        yield "trainer.max_epochs", "-1 (no limit) needs a limit in trainer.max_steps"


RULES: tuple[Callable[[DictConfig], Iterator[Problem]], ...] = (
    stages_have_what_they_need,
    runs_exist,
    weights_exist,
    fractions_make_a_whole,
    batches_divide,
    devices_are_there,
    layers_divide,
    precisions_are_possible,
    fine_tuning_is_possible,
    parameter_groups_are_whole,
    clusters_are_encrypted,
    mixtures_fit,
    modes_are_known,
)
