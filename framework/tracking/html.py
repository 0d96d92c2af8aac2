"""Pages that stand alone: one file, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def render_page(template: str, folder: Path = HERE, **context: Any) -> str:
    """Return a page.

    Args:
        template: its file; it extends `page.html.j2`, and takes tables from `table.html.j2`.
        folder: where that file lies.
        **context: what it shows; `title` and `description` are shown by every page.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([folder, HERE])
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return jinja.get_template(template).render(**context)
