"""Weights & Biases: config, metrics, system metrics, tables, pictures, and the exported models with their lineage."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from framework.errors import UserError
from framework.record.console import say
from framework.record.run import RunRecord
from framework.record.summary import model_columns, model_rows

EXIT_OF_STATUS = {"completed": 0, "preempted": 75}


class WandbTracker:
    """Follows a run in Weights & Biases.

    Args:
        project, entity: where the run appears.
        mode: `offline` writes below `wandb/` in the run directory, to be sent later with `wandb sync`; it needs
            neither account nor network. `online` sends as it goes. `disabled` does nothing.
        group: the run group; by default the experiment's `group`, which a sweep sets.
        system_metrics: whether W&B samples the load of processor, memory and GPUs.
    """

    def __init__(
        self,
        project: str,
        entity: str | None = None,
        mode: Literal["offline", "online", "disabled"] = "offline",
        group: str | None = None,
        system_metrics: bool = True,
    ) -> None:
        self.project, self.entity, self.mode, self.group = project, entity, mode, group
        self.system_metrics = system_metrics
        self._run: Any = None

    def start(self, record: RunRecord, config: Mapping[str, Any]) -> None:
        os.environ["WANDB_SILENT"] = "true"
        if self.mode != "online":  # otherwise it reports its own errors over the network even when offline
            os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=not self.system_metrics,
            x_stats_sampling_interval=2.0,
            init_timeout=60,
        )
        try:
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                mode=self.mode,
                dir=str(record.folder),
                id=record.folder.name.replace(":", "-"),
                name=f"{record['name']} {record['id']}",
                resume="allow",
                group=self.group or config["group"],
                tags=list(config["tags"]) or None,
                notes=config["description"] or None,
                config=dict(config),
                settings=settings,
            )
        except (wandb.errors.UsageError, wandb.errors.CommError) as error:
            raise UserError(
                f"tracker.wandb: {error}\nlog in with `wandb login`, or use tracker.wandb.mode=offline"
            ) from error

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self, record: RunRecord) -> None:
        import wandb

        run = self._run
        data, environment = record.get("data", {}), record.get("environment", {})
        run.config.update(
            {
                "data_version": data.get("version"),
                "environment": environment,
                "effective": record.get("effective"),
            },
            allow_val_change=True,
        )
        run.summary.update(dict(record.metrics))
        rows = model_rows(record)
        if rows:
            columns = model_columns(record, rows)
            cells = [[row.get(key) for key in columns] for row in rows]
            run.log({"models": wandb.Table(columns=[c.title for c in columns.values()], data=cells)})
        for name, table in record["tables"].items():
            run.log({f"tables/{name}": wandb.Table(columns=list(table[0]), data=[list(r.values()) for r in table])})
        for name, artifact in record.artifacts.items():
            if artifact.kind == "picture":
                run.log({name: wandb.Image(str(record.folder / artifact.path))})
            elif artifact.kind == "report":
                run.log({"report": wandb.Html((record.folder / artifact.path).read_text(encoding="utf-8"))})
        self._log_lineage(record)
        run.finish(exit_code=EXIT_OF_STATUS.get(record["status"], 1))
        if self.mode == "offline":
            say(f"W&B: send with `wandb sync {record.folder}/wandb/latest-run`")

    def _log_lineage(self, record: RunRecord) -> None:
        """Log data version -> trained model -> exports as artifacts, each naming what it was made from."""
        import wandb

        data = record.get("data", {})
        above = {"dataset": f"{data.get('name')}/{data.get('version')}", "run": record["id"]}
        kinds = {"model/trained": "checkpoint", "model/compressed": "checkpoint"}
        for name, entry in record.artifacts.items():
            kind = kinds.get(name, "package" if entry.kind == "export" else None)
            if kind is None:
                continue
            artifact = wandb.Artifact(
                f"{record['name']}-{name.replace('/', '-')}",
                type=kind,
                metadata={**above, "sha256": entry.sha256},
            )
            path = record.folder / entry.path
            artifact.add_dir(str(path)) if path.is_dir() else artifact.add_file(str(path))
            self._run.log_artifact(artifact)
            if kind == "checkpoint":
                above = {**above, "checkpoint": f"{name} {entry.sha256}"}
