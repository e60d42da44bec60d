"""Opens a page in headless Chromium from disk and asks what became of it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    # The probe, a page that holds the report in a frame, may look into it although both are local files.
    "--allow-file-access-from-files",
)

# A frame has any width, also one below the least a window has.
_PROBE = """<!DOCTYPE html><body style="margin:0"><iframe src="%(page)s"
style="border:0;width:%(width)dpx;height:%(height)dpx"></iframe><script>
addEventListener("load", () => {
  const frame = document.querySelector("iframe");
  const page = frame.contentDocument;
  const view = frame.contentWindow;
  const answer = ((page, view) => { %(script)s })(page, view);
  const out = document.createElement("pre");
  out.id = "answer";
  out.textContent = JSON.stringify(answer);
  document.body.append(out);
});
</script>"""


@dataclass(frozen=True)
class Visit:
    """What a script answered, and what the browser complained of: script errors and refused loads."""

    answer: Any
    complaints: list[str]


def binary() -> str:
    """The path of a Chromium; the test is skipped where there is none."""
    found = next((path for path in map(shutil.which, _NAMES) if path), None)
    if found is None:
        pytest.skip(f"no Chromium on PATH (looked for {', '.join(_NAMES)})")
    return found


def visit(page: Path, script: str, *, width: int = 1280, height: int = 2000, dark: bool = False) -> Visit:
    """Opens `page` at `width` and runs `script`, a function body given `page` and `view`."""
    probe = page.with_name(f"probe-{page.stem}.html")
    values = {"page": page.name, "width": width, "height": height, "script": script}
    probe.write_text(_PROBE % values, encoding="utf-8")
    done = _run(probe, ["--dump-dom"], width, height, dark)
    found = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert found, f"the probe did not answer: {complaints or done.stderr[-2000:]}"
    return Visit(json.loads(html.unescape(found.group(1))), complaints)


def screenshot(
    page: Path, picture: Path, *, width: int = 1280, height: int = 2000, dark: bool = False
) -> None:
    """Writes a PNG of the top of `page`."""
    _run(page, [f"--screenshot={picture}"], width, height, dark)


def _run(
    page: Path, wishes: list[str], width: int, height: int, dark: bool
) -> subprocess.CompletedProcess[str]:
    colours = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    with tempfile.TemporaryDirectory() as profile:
        return subprocess.run(
            [
                binary(),
                *_FLAGS,
                *wishes,
                colours,
                f"--window-size={max(width, 500)},{height}",
                f"--user-data-dir={profile}",
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
