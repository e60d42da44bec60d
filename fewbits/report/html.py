"""The Report as one self-contained page: no network, no plotting library, opens from disk.

Everything that came from a model or a user is escaped by the template engine; should a name slip through
all the same, the page's content policy runs only the one script whose hash it carries, and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import quote

from fewbits.report import plots, view, words
from fewbits.report.ranking import outcome, ranked
from fewbits.report.record import Candidate, Report

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def render(report: Report) -> str:
    """The page as text, to be written in UTF-8 beside the files it links to."""
    style, script = _template("style.css"), _template("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    dtype_total = max(sum(report.bytes_by_dtype.values()), sum(report.bytes_by_dtype_original.values()))
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            style=style,
            script=script,
            script_hash=f"sha256-{digest}",
            status=view.status(report),
            asked=view.asked(report),
            heroes=view.heroes(report),
            candidates=[(one, outcome(report, one)) for one in ranked(report)],
            engines=plots.engine_names(report),
            scatters=[p for p in (plots.size_scatter(report), plots.latency_scatter(report)) if p],
            forest=plots.forest(report),
            throughput=view.throughput(report),
            track=plots.layer_track(report.layers),
            heat=plots.heat_map(report),
            mirror=plots.mirror(report.histogram) if report.histogram else None,
            latency_decimals=words.decimals_for(c.latency_ms.p50 for c in report.candidates),
            top_sqnr=max(
                (v for one in report.layers for v in (one.weight_sqnr_db, one.output_sqnr_db) if v),
                default=1.0,
            ),
            dtypes_original=view.segments(report.bytes_by_dtype_original, dtype_total),
            dtypes=view.segments(report.bytes_by_dtype, dtype_total),
            dtype_totals=(sum(report.bytes_by_dtype_original.values()), sum(report.bytes_by_dtype.values())),
            longest=max((s for s in report.timings_s.values() if s), default=1.0),
            details=any(_has_details(one) for one in report.candidates),
        )
    )


def _has_details(one: Candidate) -> bool:
    known = (one.path, one.sha256, one.weight_form, one.speedup_vs_bf16)
    return bool(one.settings) or any(value is not None for value in known)


def link(path: str) -> str:
    """A link to a file beside the report, whatever its name: never another scheme or host."""
    return "./" + quote(path.replace("\\", "/").lstrip("/"))


def breakable(name: str) -> Markup:
    """A layer's name that may break after its separators, escaped."""
    from markupsafe import Markup

    return Markup("<wbr>").join(re.split(r"(?<=[./:_])", name))


def _template(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fewbits.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "breakable": breakable,
        "count": words.count,
        "db": words.decibel,
        "drop": words.drop,
        "level": plots.level,
        "link": link,
        "ms": words.milliseconds,
        "number": words.number,
        "rate": words.rate,
        "score": words.score,
        "seconds": words.seconds,
        "share": words.share,
        "signature": words.signature,
        "short": words.shortened,
        "size": words.size,
        "times": words.times,
    }
    return environment
