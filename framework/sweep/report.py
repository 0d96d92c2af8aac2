"""A sweep's `report.html`: how it went, what matters, what was found, and every trial with a link to its run."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.record.console import duration_text
from framework.record.files import write_atomic
from framework.tracking.html import render_page
from framework.tracking.plots import as_svg, new_figure

from .objectives import Objective
from .search import State
from .space import Space
from .trials import STUDY, Trial
from .watch import values_text

if TYPE_CHECKING:
    import optuna

REPORT = "report.html"
_DRAWN_AT_MOST, _LISTED_AT_MOST = 1000, 1000
_WIDE = ("Parallel", "Slices")
_COLOURS = {State.completed: "#2b6cb0", State.pruned: "#dd6b20", State.failed: "#c53030", State.open: "#a0aec0"}


def write_report(
    folder: Path, trials: Sequence[Trial], objectives: Sequence[Objective], space: Space, best: Sequence[Trial]
) -> None:
    """Write the report into a sweep's folder."""
    described = json.loads((folder / STUDY).read_text(encoding="utf-8"))
    ordered = sorted(trials, key=lambda t: t.number)
    html = render_page(
        "report.html.j2",
        folder=Path(__file__).parent,
        title=f"sweep {folder.name}",
        description=f"{described['status']}{', ' + w if (w := described.get('stopped_because')) else ''}: "
        + ", ".join(f"{n} {state}" for state, n in described["counts"].items() if n),
        pictures=_draw(ordered, objectives, space),
        best_table=_table(folder, best, objectives) if best else [],
        trial_table=_table(folder, ordered[:_LISTED_AT_MOST], objectives),
        left_out=max(0, len(ordered) - _LISTED_AT_MOST),
        text_columns=[0, 1, 4 + len(objectives), 5 + len(objectives)],
        command=described["command"],
    )
    write_atomic(folder / REPORT, html)


def _table(folder: Path, trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[list[Any]]:
    rows: list[list[Any]] = [["trial", "state", *(o.metric for o in objectives), "took", "slot", "values", "remarks"]]
    for trial in trials:
        page = Path(trial.run or "") / REPORT
        link = {"text": str(trial.number), "link": os.path.relpath(page, folder)} if page.is_file() else trial.number
        values = [f"{v:.6g}" for v in trial.objectives] or [""] * len(objectives)
        taken = f"training of trial {trial.taken_from}" if trial.taken_from is not None else ""
        remark = (trial.error or "").strip().partition("\n")[0][:160]
        took = duration_text(trial.seconds) if trial.ended else ""
        rows.append([link, trial.state, *values, took, trial.slot, values_text(trial.values), remark or taken])
    return rows


def _draw(trials: Sequence[Trial], objectives: Sequence[Objective], space: Space) -> dict[str, str]:
    """Return the pictures that can be drawn, as SVG, by title."""
    import matplotlib as mpl

    mpl.use("Agg")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    import optuna.visualization.matplotlib as pictures
    from matplotlib import pyplot as plt

    study = _as_study(trials, objectives, space)
    found: dict[str, str] = {}

    def add(title: str, draw: Callable[[], Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                axes = draw()
                figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
                figure.set_size_inches(max(5.5, 2.0 * len(varied)) if title.startswith(_WIDE) else 5.5, 3.6)
                found[title] = as_svg(figure, cropped=True)
            except (ValueError, RuntimeError, ImportError, ZeroDivisionError):
                pass  # too few trials for this picture
            finally:
                plt.close("all")

    completed = [t for t in trials if t.state is State.completed]
    varied = [d.name for d in space.dimensions]
    for index, objective in enumerate(objectives):
        name = f": {objective.metric}" if len(objectives) > 1 else ""
        aim: dict[str, Any] = {"target_name": objective.metric}
        if len(objectives) > 1:
            aim["target"] = _picker(index)
        if len(completed) > 1:
            add(f"History{name}", partial(pictures.plot_optimization_history, study, **aim))
            add(f"Importance{name}", partial(pictures.plot_param_importances, study, **aim))
            if len(varied) > 1:
                add(f"Parallel coordinates{name}", partial(pictures.plot_parallel_coordinate, study, **aim))
            add(f"Slices{name}", partial(pictures.plot_slice, study, **aim))
    if 2 <= len(objectives) <= 3 and completed:
        names = [o.metric for o in objectives]
        add("Pareto front", partial(pictures.plot_pareto_front, study, target_names=names))
    if any(t.ended for t in trials):
        found["Slots"] = as_svg(_timeline(trials))
    return found


def _picker(index: int) -> Callable[[optuna.trial.FrozenTrial], float]:
    return lambda trial: trial.values[index]


def _as_study(trials: Sequence[Trial], objectives: Sequence[Objective], space: Space) -> optuna.Study:
    """Return what was tried as a study in memory, whoever searched."""
    import optuna

    from .optuna_search import distribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = [
        optuna.study.StudyDirection.MAXIMIZE if o.maximize else optuna.study.StudyDirection.MINIMIZE for o in objectives
    ]
    study = optuna.create_study(directions=directions)
    known = {d.name: distribution(d.domain) for d in space.dimensions}
    for trial in trials[-_DRAWN_AT_MOST:]:
        params = {k: space.domains[k].parse(v) for k, v in trial.values.items() if k in known}
        completed = trial.state is State.completed
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE if completed else optuna.trial.TrialState.FAIL,
                values=list(trial.objectives) if completed else None,
                params=params,
                distributions={k: known[k] for k in params},
            )
        )
    return study


def _timeline(trials: Sequence[Trial]) -> Any:
    """Draw which trial ran when, in which slot."""
    ran = [t for t in trials if t.started and t.ended]
    first = min(t.started for t in ran)
    rows = {key: i for i, key in enumerate(sorted({(t.controller, t.slot) for t in ran}))}
    figure = new_figure(9, 1.2 + 0.3 * len(rows))
    axes = figure.subplots()
    for state, colour in _COLOURS.items():
        some = [t for t in ran if t.state is state]
        if some:
            axes.barh(
                [rows[t.controller, t.slot] for t in some],
                [t.seconds for t in some],
                left=[t.started - first for t in some],
                color=colour,
                edgecolor="white",
                linewidth=0.5,
                label=str(state),
            )
    axes.set(xlabel="seconds since the first trial began", yticks=range(len(rows)))
    axes.set_yticklabels([f"slot {slot}" for _, slot in rows])
    axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    return figure
