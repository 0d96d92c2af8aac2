import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import Whole, need

pytestmark = pytest.mark.integration


def browse(page: Path, tmp_path: Path) -> tuple[str, list[str], Path]:
    """Open a page in a real browser; return its DOM, what its console said, and a screenshot."""
    picture = tmp_path / "page.png"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        "--window-size=1100,1600",
    ]
    done = subprocess.run(
        [need("chromium"), *flags, f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{page}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    subprocess.run(
        [need("chromium"), *flags, f"--user-data-dir={tmp_path}/profile", f"--screenshot={picture}", f"file://{page}"],
        capture_output=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line], picture


def test_the_report_renders_in_a_browser_without_a_word_on_the_console(whole: Whole, tmp_path: Path) -> None:
    dom, console, picture = browse(whole.record.folder / "report.html", tmp_path)
    assert console == []
    assert dom.count("<svg") == 3
    for text in ("Models", "Compression", "structured_pruning", "python run.py", whole.record["data"]["version"]):
        assert text in dom
    assert picture.stat().st_size > 50_000


def test_a_page_with_an_error_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text("<script>undefinedFunction()</script>")
    assert browse(tmp_path / "bad.html", tmp_path)[1]


def test_the_report_needs_nothing_from_outside(whole: Whole) -> None:
    html = (whole.record.folder / "report.html").read_text()
    for reach in ('src="http', 'href="http', "@import", "url(http", "<script"):
        assert reach not in html
