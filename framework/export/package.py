"""What lies beside an exported model, so that a stranger can serve it: signature, examples, card, checksums, a program.

signature.json   names, dtypes and shapes; what is done before and after as data; provenance
tokenizer.json   of data that was tokenised
examples.npz     a dozen rows of the test split, raw and prepared, with the outputs of the model it was made from
predict.py       runs it with its runtime and NumPy alone; without arguments it checks itself on the examples
serve.py         serves it over HTTP, with LitServe
model_card.md    data, metrics, how it was compressed, what it was not tested for
checksums.txt    of all the others, as `sha256sum -c` reads them
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.errors import UserError
from framework.record.files import checksum, write_atomic, write_json
from framework.record.run import RunRecord

CHECKSUMS, EXAMPLES, PREDICT, SIGNATURE, CARD = (
    "checksums.txt", "examples.npz", "predict.py", "signature.json", "model_card.md",
)  # fmt: skip
ROWS = 12
SERVE = "serve.py"
_HERE = Path(__file__).parent


def write_program(folder: Path, loader: str | None, tolerance: float) -> None:
    """Write `predict.py` and `serve.py`, where the target says how it is loaded.

    Args:
        folder: the package.
        loader: source of `load(folder, threads)`, which returns a function from a list of arrays to an array.
        tolerance: how far outputs may be from the model's, over their range.
    """
    if loader is not None:
        text = (_HERE / "predict.py.txt").read_text(encoding="utf-8")
        program = text.replace("@TOLERANCE@", f"{tolerance:g}").replace("@LOAD@", loader.strip())
        write_atomic(folder / PREDICT, program)
        write_atomic(folder / SERVE, (_HERE / "serve.py.txt").read_text(encoding="utf-8"))


def write_card(folder: Path, name: str, record: RunRecord, config: Mapping[str, Any], signature: Any) -> None:
    """Write `model_card.md`, from the record of the run."""
    m, metric, data = record.metrics, record.get("main_metric", ""), record["data"]
    rows = [
        ("trained model", m.get(f"test/{metric}")),
        ("compressed model", m.get(f"compressed/{metric}")),
        ("this file, in its runtime", m.get(f"export/{name}/{metric}")),
    ]
    timing = []
    for key in sorted(k for k in m if k.startswith(f"export/{name}/latency_ms_b")):
        faster = m.get(key.replace("latency_ms", "speedup"), float("nan"))
        timing.append(f"| {key.rpartition('_b')[2]} | {m[key]:.3f} | {faster:.1f}x |")
    inputs = [f"`{given['name']}` {given['dtype']} {given['shape']}" for given in signature["inputs"]]
    lines = [
        f"# {config['name']}: {name}",
        "",
        config["description"] or "No description was given.",
        "",
        "## What it is",
        "",
        f"- model: `{signature['model'].get('_target_')}`",
        f"- compression: {', '.join(signature['compression']) or 'none'}",
        f"- inputs: {', '.join(inputs)}",
        f"- trained on: {data['name']}, version {data['version']} "
        f"({', '.join(f'{split} {count:,}' for split, count in data['rows'].items())} rows)",
        f"- run: {record['id']}, created {record['created']}",
        f"- commit: {(record.get('environment', {}).get('git') or {}).get('commit', 'unknown')}",
        "",
        f"## Quality: {metric} on the test split",
        "",
        "| | |",
        "|---|---|",
        *(f"| {title} | {value:.4f} |" for title, value in rows if value is not None),
        "",
        f"Decisions equal those of the model it was made from on {m.get(f'export/{name}/agreement', 0):.2%} of "
        f"{data['rows'].get('test', 0):,} rows; the largest difference of an output is "
        f"{m.get(f'export/{name}/max_difference', 0):.2g}.",
        "",
        f"## Speed ({config['measure']['threads']} thread, median)",
        "",
        "| batch | ms | against the trained model, eager |",
        "|---|---|---|",
        *timing,
        "",
        "## Limits",
        "",
        "It was tested on the test split of the dataset above and on nothing else: other sources, other labels and",
        "inputs that are prepared otherwise are untested. Licence: none was stated; ask whoever trained it.",
        "",
    ]
    write_atomic(folder / CARD, "\n".join(lines))


def write_checksums(folder: Path) -> None:
    """Write `checksums.txt`, of all other files."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != CHECKSUMS)
    write_atomic(folder / CHECKSUMS, "".join(f"{checksum(f)}  {f.relative_to(folder)}\n" for f in files))


def write_signature(folder: Path, signature: Mapping[str, Any]) -> None:
    """Write `signature.json`."""
    write_json(folder / SIGNATURE, signature)


def verify_package(folder: Path) -> Sequence[str]:
    """Check a package's checksums, and run its examples; returns what `predict.py` said.

    Raises:
        UserError: naming the files that are missing or altered, or saying how far the examples are off.
    """
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise UserError(f"`{folder}` is not a package: it has no {CHECKSUMS}") from None
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    present = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    wrong = [f"{name} is missing" for name in sorted(set(listed) - present)]
    wrong += [f"{name} is not listed" for name in sorted(present - set(listed) - {CHECKSUMS})]
    wrong += [f"{n} was altered" for n, digest in listed.items() if n in present and checksum(folder / n) != digest]
    if wrong:
        raise UserError(f"`{folder}` is not as it was packed: {'; '.join(wrong)}")
    if PREDICT not in listed:
        return [f"its target has no {PREDICT}: only checksums were compared"]
    done = subprocess.run([sys.executable, "-B", PREDICT], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"`{folder / PREDICT}` failed: {last}")
    return done.stdout.strip().splitlines()
