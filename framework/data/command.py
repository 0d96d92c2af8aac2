"""`python -m framework data ...`: listing, showing, verifying, comparing, publishing, removing dataset versions."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from framework.errors import DataError, UserError
from framework.record.console import aligned, bytes_text, start_logging

from .manifest import Manifest


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `data`."""
    data = commands.add_parser("data", help="list dataset versions; or show, verify, diff, push or rm some")
    data.add_argument("--root", type=Path, default=Path("outputs/datasets"), help="default: outputs/datasets")
    data.set_defaults(command=list_versions)
    actions = data.add_subparsers(metavar="ACTION")
    named: dict[str, tuple[Callable[[argparse.Namespace], None], str, tuple[str, ...]]] = {
        "ls": (list_versions, "all versions: rows, bytes, age", ()),
        "show": (show_version, "fields, splits, where it came from", ("version",)),
        "verify": (verify_version, "read every byte and name what is damaged", ("version",)),
        "diff": (diff_versions, "what changed between two versions", ("a", "b")),
        "push": (push_version, "copy a version behind a URL, such as s3://bucket/datasets", ("version", "url")),
        "rm": (remove_version, "remove a version", ("version",)),
    }
    for name, (command, purpose, arguments) in named.items():
        action = actions.add_parser(name, help=purpose)
        for argument in arguments:
            what = "a data root" if argument == "url" else "name/version, a version, a name (its newest), or a folder"
            action.add_argument(argument, help=what)
        action.set_defaults(command=command)


def list_versions(arguments: argparse.Namespace) -> None:
    """`data ls`: one line a version."""
    from .versions import find_versions

    versions, unreadable = find_versions(arguments.root)
    for reason in unreadable:
        print(f"not readable: {reason}", file=sys.stderr)
    if not versions:
        raise UserError(f"there are no datasets below `{arguments.root}`; a run with the stage `prepare` makes one")
    rows = [
        [
            f"{m.name}/{m.version}",
            ", ".join(f"{n} {s.rows:,}" for n, s in m.splits.items()),
            bytes_text(m.bytes),
            str(m.provenance.get("created", "")).replace("T", " ")[:16],
        ]
        for m in versions
    ]
    print(aligned([["dataset", "rows", "size", "created (UTC)"], *rows]))


def show_version(arguments: argparse.Namespace) -> None:
    """`data show`: everything about one version."""
    from framework.record.catalogue import flatten

    from .versions import open_version

    folder = open_version(arguments.version, arguments.root)
    m = Manifest.read(folder)
    print(f"{m.name}/{m.version}: {bytes_text(m.bytes)} in {folder}\n")
    fields = [[n, f.dtype, json.dumps(f.shape), f.meaning] for n, f in m.fields.items()]
    print(aligned([["field", "dtype", "shape", "meaning"], *fields]) + "\n")
    splits = [
        [n, f"{s.rows:,}", f"{s.chunk_rows:,}", f"{s.shard_rows:,}", str(len(s.shards))] for n, s in m.splits.items()
    ]
    print(aligned([["split", "rows", "rows a chunk", "rows a shard", "shards"], *splits]) + "\n")
    print(aligned([["made from", ""], *([k, str(v)] for k, v in flatten(m.provenance))]))


def verify_version(arguments: argparse.Namespace) -> None:
    """`data verify`: say that all is whole, or raise with all damages."""
    from .versions import open_version, verify

    start_logging(None)
    folder = open_version(arguments.version, arguments.root)
    damages = verify(folder)
    if damages:
        lines = "\n".join(f"  {damage}" for damage in damages)
        raise DataError(f"`{folder}` is damaged in {len(damages)} places; remove it and prepare it again:\n{lines}")
    m = Manifest.read(folder)
    print(
        f"{m.name}/{m.version} is whole: {sum(len(s.shards) for s in m.splits.values())} shards, {bytes_text(m.bytes)}"
    )


def diff_versions(arguments: argparse.Namespace) -> None:
    """`data diff`: what changed."""
    from .versions import difference, open_version

    a, b = (open_version(text, arguments.root) for text in (arguments.a, arguments.b))
    found = difference(a, b)
    if not found:
        print("they are the same")
        return
    heading = ["", *(f"{f.parent.name}/{f.name}" for f in (a, b))]
    print(aligned([heading, *([k, str(x), str(y)] for k, (x, y) in found.items())]))


def push_version(arguments: argparse.Namespace) -> None:
    """`data push`: copy it to an object store."""
    from .remote import publish
    from .versions import open_version

    start_logging(None)
    print(publish(open_version(arguments.version, arguments.root), arguments.url))


def remove_version(arguments: argparse.Namespace) -> None:
    """`data rm`: remove it."""
    from .versions import open_version, remove

    folder = open_version(arguments.version, arguments.root)
    remove(folder)
    print(f"removed {folder}")
