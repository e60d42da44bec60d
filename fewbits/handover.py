"""Hand a finished folder over: made beside its place, and put there by one rename."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewbits.errors import InputError

REPORT = "report.json"


def check_place(out: Path) -> None:
    """Make sure that ``out`` can be written: nothing is there, or what fewbits wrote before.

    Raises:
        InputError: ``out`` is a file, a mount point, or a folder that fewbits did not write, or its parent cannot be
            written.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out}: is there and is not a folder; give another --out")
    if out.is_dir() and any(out.iterdir()) and not _ours(out):
        raise InputError(
            f"{out}: a folder that fewbits did not write (no {REPORT} of its own); give another --out"
        )
    if os.path.ismount(out):
        raise InputError(
            f"{out}: a mount point, which cannot be replaced as a whole; give a folder inside it"
        )
    parent = out.resolve().parent
    if not parent.is_dir():
        raise InputError(f"{out}: the folder {parent} does not exist; make it, or give another --out")
    try:
        with tempfile.TemporaryDirectory(prefix=".fewbits-", dir=parent):
            pass
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another --out") from error


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A temporary sibling of ``out`` to fill; it takes the place of ``out`` at the end, or vanishes on an error."""
    check_place(out)
    out = out.resolve()
    folder = Path(tempfile.mkdtemp(prefix=".fewbits-", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)
        _exchange(folder, out)
    finally:
        if folder.exists():
            shutil.rmtree(folder)


def _exchange(folder: Path, out: Path) -> None:
    """Put ``folder`` in the place of ``out``; what was there comes back where that fails or is interrupted."""
    with tempfile.TemporaryDirectory(prefix=".fewbits-", dir=out.parent) as aside:
        previous = Path(aside) / "previous"
        try:
            if out.exists():
                out.rename(previous)
            folder.rename(out)
        except BaseException:
            if previous.exists() and not out.exists():
                previous.rename(out)
            raise


def _ours(folder: Path) -> bool:
    from fewbits.report.record import Report

    try:
        Report.from_json((folder / REPORT).read_bytes())
    except (OSError, InputError):
        return False
    return True
