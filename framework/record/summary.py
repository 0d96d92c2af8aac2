"""The table that sums up a run: each model it made, with its quality, size and speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .console import aligned, bytes_text
from .run import RunRecord


@dataclass(frozen=True)
class Column:
    """One column: its heading, and how a value is written."""

    title: str
    text: Callable[[Any], str]


def model_rows(record: RunRecord) -> list[dict[str, Any]]:
    """Return one row for the trained model, the compressed one and each export; what is not known is left out."""
    m, metric = record.metrics, record.get("main_metric", "")
    sizes = [1, *sorted({int(k.rpartition("_b")[2]) for k in m if "/latency_ms_b" in k} - {1})]

    def timing(prefix: str) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for rows in sizes:
            columns[f"latency_b{rows}"] = m.get(f"{prefix}/latency_ms_b{rows}")
            columns[f"speedup_b{rows}"] = m.get(f"{prefix}/speedup_b{rows}")
        return columns

    passes = [row["pass"] for row in record["tables"].get("compress", [])][1:]
    rows: list[dict[str, Any]] = []
    if "model/parameters" in m:
        rows.append(
            {
                "model": "trained, eager",
                "parameters": m["model/parameters"],
                "bytes": m.get("eager/bytes"),
                "metric": m.get(f"test/{metric}"),
                **timing("eager"),
                "memory": m.get("eager/peak_memory_bytes"),
            }
        )
    if "compiled/latency_ms_b1" in m:
        rows.append({"model": "trained, compiled", **timing("compiled")})
    if passes:
        last = f"compress/{passes[-1]}"
        rows.append(
            {
                "model": " + ".join(passes),
                "parameters": m.get(f"{last}/parameters"),
                "bytes": m.get(f"{last}/bytes"),
                "metric": m.get(f"compressed/{metric}"),
            }
        )
    for name in [n.removeprefix("export/") for n in record.artifacts if n.startswith("export/")]:
        prefix = f"export/{name}"
        rows.append(
            {
                "model": name,
                "bytes": m.get(f"{prefix}/bytes"),
                "metric": m.get(f"{prefix}/{metric}"),
                **timing(prefix),
                "memory": m.get(f"{prefix}/peak_memory_bytes"),
                "agreement": m.get(f"{prefix}/agreement"),
                "difference": m.get(f"{prefix}/max_difference"),
            }
        )
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def model_columns(record: RunRecord, rows: list[dict[str, Any]]) -> dict[str, Column]:
    """Return the columns that `model_rows` filled, in order."""
    sizes = sorted({int(k.rpartition("_b")[2]) for row in rows for k in row if k.startswith("latency_b")})
    columns = {
        "model": Column("model", str),
        "parameters": Column("params", lambda v: f"{v:,.0f}"),
        "bytes": Column("size", bytes_text),
        "metric": Column(f"test {record.get('main_metric', '')}", lambda v: f"{v:.4f}"),
    }
    for n in sizes:
        columns[f"latency_b{n}"] = Column(f"ms b{n}", lambda v: f"{v:.3f}")
        columns[f"speedup_b{n}"] = Column("faster", lambda v: f"{v:.1f}x")
    columns["memory"] = Column("memory", bytes_text)
    columns["agreement"] = Column("agree", lambda v: f"{v:.2%}")
    columns["difference"] = Column("max diff", lambda v: f"{v:.1e}")
    return {key: c for key, c in columns.items() if any(key in row for row in rows)}


def text_table(record: RunRecord) -> str:
    """Return the table as aligned plain text, or an empty string when there is nothing to show."""
    rows = model_rows(record)
    columns = model_columns(record, rows)
    if not rows:
        return ""
    cells = [[c.title for c in columns.values()]]
    cells += [[c.text(row[k]) if k in row else "" for k, c in columns.items()] for row in rows]
    return aligned(cells)
