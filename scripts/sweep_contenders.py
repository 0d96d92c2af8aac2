"""The same sleeping trials under other people's sweepers; run by `bench_sweep.py` in an environment that has them.

    python scripts/sweep_contenders.py CONTENDER DURATIONS.json SPANS.jsonl

Each trial sleeps as long as the next of the durations says, and writes when it began and ended.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

SLOTS = 8


def sleep_for(number: int, durations: str, spans: str) -> float:
    """Sleep for a trial's duration; returns it."""
    seconds = json.loads(Path(durations).read_text())[number]
    began = time.time()
    time.sleep(seconds)
    with Path(spans).open("a") as file:
        file.write(json.dumps([number, began, time.time()]) + "\n")
    return float(seconds)


def optuna_threads(durations: str, spans: str) -> None:
    """Run under Optuna's own `n_jobs`, in threads."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0, 1)
        return sleep_for(trial.number, durations, spans)

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=len(json.loads(Path(durations).read_text())), n_jobs=SLOTS)


def ray_tune(durations: str, spans: str) -> None:
    """Run under Ray Tune, a process a trial, as many at once as there are slots."""
    import ray
    from ray import tune

    ray.init(num_cpus=SLOTS, include_dashboard=False, logging_level="ERROR")
    count = len(json.loads(Path(durations).read_text()))

    def trainable(config: dict[str, int]) -> None:
        tune.report({"y": sleep_for(config["number"], durations, spans)})

    space = {"number": tune.grid_search(list(range(count)))}
    tune.Tuner(trainable, param_space=space, run_config=tune.RunConfig(verbose=0)).fit()


def hydra_optuna_sweeper(durations: str, spans: str) -> None:
    """Run under Hydra's Optuna sweeper with joblib's launcher: batches of as many as there are slots."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    count = len(json.loads(Path(durations).read_text()))
    folder = str(Path(spans).parent / "multirun")
    sys.argv = [
        "app", "-m", "hydra/sweeper=optuna", "hydra/launcher=joblib", f"hydra.sweeper.n_trials={count}",
        f"hydra.sweeper.n_jobs={SLOTS}", f"hydra.launcher.n_jobs={SLOTS}", "+x=interval(0,1)",
        f"hydra.sweep.dir={folder}",
    ]  # fmt: skip

    def app(_: DictConfig) -> float:
        return sleep_for(int(HydraConfig.get().job.num), durations, spans)

    hydra.main(version_base="1.3", config_path=None)(app)()


if __name__ == "__main__":
    contender, *files = sys.argv[1:]
    {f.__name__: f for f in (optuna_threads, ray_tune, hydra_optuna_sweeper)}[contender](*files)
