"""`python -m framework`: check a config; list, compare and repeat runs; look after datasets, packages and jobs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from framework.config.compose import compose_experiment
from framework.data.command import add_parser as add_data_parser
from framework.errors import EXIT_DONE, Ended, UserError
from framework.launch.command import add_parser as add_jobs_parser
from framework.record import catalogue
from framework.record.console import aligned, duration_text, report_failure
from framework.record.run import RunRecord
from framework.record.summary import text_table


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments, overrides = _parser().parse_known_args(argv)
    unknown = [o for o in overrides if o.startswith("-")]
    if unknown or (overrides and arguments.command is not check):
        _parser().error(f"unrecognized arguments: {' '.join(unknown or overrides)}")
    arguments.overrides = overrides
    try:
        arguments.command(arguments)
    except BrokenPipeError:
        return EXIT_DONE
    except Ended as ended:
        return ended.code
    except (Exception, KeyboardInterrupt) as error:
        return report_failure(error)
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m framework", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    checking = commands.add_parser("check", help="say what is wrong with a config, without running it")
    checking.add_argument("--config-dir", type=Path, help="a folder with options of your own")
    checking.add_argument("--shapes", action="store_true", help="build the model on no memory: sizes, memory estimate")
    checking.usage = "python -m framework check [--config-dir DIR] [--shapes] [recipe=NAME] [overrides ...]"
    checking.set_defaults(command=check)

    runs = commands.add_parser("runs", help="list runs; or show, compare or rerun some")
    runs.add_argument("--outputs", type=Path, default=Path("outputs"), help="where runs lie (default: outputs)")
    runs.add_argument("--name", help="only runs of this experiment")
    runs.add_argument("--most", type=int, default=30, help="at most so many (default: 30)")
    runs.set_defaults(command=list_runs)
    actions = runs.add_subparsers(metavar="ACTION")
    showing = actions.add_parser("show", help="everything about one run")
    showing.add_argument("run", help="a run directory, its name, or its id")
    showing.set_defaults(command=show_run)
    comparing = actions.add_parser("compare", help="config differences, and metrics side by side")
    comparing.add_argument("a", help="a run")
    comparing.add_argument("b", help="another run")
    comparing.set_defaults(command=compare_runs)
    repeating = actions.add_parser("rerun", help="run it again: same config, same version of the data")
    repeating.add_argument("run", help="a run")
    repeating.set_defaults(command=rerun_run)
    add_data_parser(commands)
    add_jobs_parser(commands)

    packages = commands.add_parser("package", help="look after exported models")
    verbs = packages.add_subparsers(required=True, metavar="ACTION")
    verifying = verbs.add_parser("verify", help="compare checksums, and run the examples in the model's own runtime")
    verifying.add_argument("path", type=Path, help="a folder such as outputs/latest/export/onnx")
    verifying.set_defaults(command=verify)
    return parser


def check(arguments: argparse.Namespace) -> None:
    """`check`: print that the config is sound, or raise with all findings."""
    from framework.config.check import require_sound

    config, origins = compose_experiment(arguments.overrides, arguments.config_dir)
    require_sound(config, origins)
    if arguments.shapes or config.check == "shapes":
        from framework.training.estimate import describe_shapes

        print(describe_shapes(config))
    else:
        print("the config is sound")


def list_runs(arguments: argparse.Namespace) -> None:
    """`runs`: one line a run, newest first."""
    runs = [r for r in catalogue.find_runs(arguments.outputs) if arguments.name in (None, r["name"])]
    if not runs:
        raise UserError(f"there are no runs below `{arguments.outputs}`; `python run.py` makes one")
    cells = [["run", "status", "metric", "age", "took"]]
    cells += [
        [
            f"{r['name']}/{r.folder.name}",
            catalogue.status_of(r),
            _metric(r),
            duration_text(catalogue.age(r)),
            duration_text(catalogue.duration(r)),
        ]
        for r in runs[: arguments.most]
    ]
    print(aligned(cells))
    if len(runs) > arguments.most:
        print(f"... and {len(runs) - arguments.most} older ones (--most)")


def _metric(run: RunRecord) -> str:
    found = catalogue.main_metric(run)
    return f"{found[0]} {found[1]:.4f}" if found else "-"


def show_run(arguments: argparse.Namespace) -> None:
    """`runs show`: status, stages, data, metrics, artifacts."""
    run = catalogue.open_run(arguments.run, arguments.outputs)
    data, effective = run.get("data"), run.get("effective", {})
    print(f"{run['name']} {run['id']}: {catalogue.status_of(run)}, created {run['created']}")
    print(f"folder     {run.folder}")
    if run.get("error"):
        print(f"error      {run['error']}")
    if run.get("from_run"):
        print(f"continues  {run['from_run']}")
    if data:
        print(
            f"data       {data['name']}/{data['version']}: {', '.join(f'{k} {v:,}' for k, v in data['rows'].items())}"
        )
    if effective:
        print(f"trained    {', '.join(f'{k} {v}' for k, v in effective.items())}")
    stages = [[n, s["status"], duration_text(s.get("seconds", 0))] for n, s in run["stages"].items()]
    for cells in (
        [["stage", "status", "took"], *stages],
        [["metric", "value"], *([k, f"{v:.6g}"] for k, v in sorted(run.metrics.items()))],
        [["artifact", "kind", "bytes"], *([n, a.kind, f"{a.bytes:,}"] for n, a in run.artifacts.items())],
    ):
        if len(cells) > 1:
            print(f"\n{aligned(cells)}")
    if table := text_table(run):
        print(f"\n{table}")


def compare_runs(arguments: argparse.Namespace) -> None:
    """`runs compare`: what differs in the configs, and the metrics of both."""
    a, b = (catalogue.open_run(text, arguments.outputs) for text in (arguments.a, arguments.b))
    heading = [f"{r['name']}/{r.folder.name}" for r in (a, b)]
    differences = catalogue.config_differences(catalogue.config_of(a), catalogue.config_of(b))
    versions = [f"{d['name']}/{d['version']}" if (d := r.get("data")) else "-" for r in (a, b)]
    if versions[0] != versions[1]:
        differences = {"data (version)": (versions[0], versions[1]), **differences}
    if differences:
        print(aligned([["config", *heading], *([k, str(x), str(y)] for k, (x, y) in differences.items())]))
    else:
        print("the configs and data are the same")
    rows = []
    for name in sorted({*a.metrics, *b.metrics}):
        x, y = a.metrics.get(name), b.metrics.get(name)
        change = f"{y - x:+.4g}" if x is not None and y is not None else ""
        rows.append([name, *(f"{v:.6g}" if v is not None else "-" for v in (x, y)), change])
    if rows:
        print(f"\n{aligned([['metric', *heading, 'change'], *rows])}")


def verify(arguments: argparse.Namespace) -> None:
    """`package verify`: whether a package is as it was packed."""
    from framework.export.package import verify_package

    for line in verify_package(arguments.path):
        print(line)
    print("the package is as it was packed")


def rerun_run(arguments: argparse.Namespace) -> None:
    """`runs rerun`: run it again."""
    earlier = catalogue.open_run(arguments.run, arguments.outputs)
    from framework.runner import rerun

    rerun(earlier, arguments.outputs)


if __name__ == "__main__":
    sys.exit(main())
