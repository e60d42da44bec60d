"""The page: self-contained, escaped, complete; and rendered in headless Chromium."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from importlib import resources

import pytest

from fewbits.report import html
from fewbits.report.record import Layer, LeftInFloat
from tests.report import browser, factory

EVERY = [
    factory.full,
    factory.batched,
    factory.ended_early,
    factory.unmet,
    factory.float_kept,
    factory.smallest,
    factory.largest,
]
EVIL = "<script>window.pwned=1</script>\"'><img src=x onerror=window.pwned=1></style>{{ 7*7 }}${1}"


class Page(HTMLParser):
    """Collects tags, attributes and the text outside style and script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._silent = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._silent = tag in ("style", "script")

    def handle_endtag(self, tag):
        self._silent = False

    def handle_data(self, data):
        if not self._silent:
            self.text += data


def evil():
    """A report whose every name and message is an attack."""
    one = factory.candidate(
        EVIL,
        EVIL,
        EVIL,
        10**6,
        1.0,
        99.0,
        note=EVIL,
        path=EVIL,
        weight_form=EVIL,
        folded=EVIL,
        settings={EVIL: EVIL},
        sha256=EVIL,
    )
    bad = factory.candidate(
        "javascript:alert(1)", EVIL, "f32", 10**6, None, None, error=EVIL, path="javascript:alert(1)"
    )
    base = factory.full()
    return factory.full(
        candidates=(one, bad),
        chosen=EVIL,
        saved=EVIL,
        reference=EVIL,
        verdict=EVIL,
        source=base.source.model_copy(update={"path": EVIL, "format": EVIL, "sha256": EVIL}),
        machine=base.machine.model_copy(
            update={"cpu": EVIL, "isa": (EVIL,), "engines": {EVIL: EVIL}, "os": EVIL}
        ),
        metric=base.metric.model_copy(update={"name": EVIL, "description": EVIL, "unit": EVIL}),
        limits={"max_drop": EVIL, "max_size": EVIL, "prefer": EVIL},
        layers=(Layer(name=EVIL, op=EVIL, scheme=EVIL, bits=8, why=EVIL),),
        left_in_float=(LeftInFloat(op=EVIL, count=1, why=EVIL),),
        bytes_by_dtype={EVIL: 3},
        histogram=factory.weights(EVIL).model_copy(update={"why": EVIL}),
        timings_s={EVIL: 1.0},
        engine_settings={EVIL: EVIL},
        snippet=EVIL,
        files=({"path": "javascript:alert(1)", "what": EVIL}, {"path": "//host/x", "what": "a file"}),
        notes=(EVIL,),
        latency_at=EVIL,
    )


@pytest.mark.parametrize("make", [*EVERY, evil])
def test_the_page_loads_nothing_and_links_only_beside_itself(make):
    page = Page(html.render(make()))
    for tag, attributes in page.tags:
        assert "src" not in attributes, (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("href", "xlink:href", "action", "data"):
            if name in attributes:
                assert attributes[name].startswith(("./", "data:,")), (tag, attributes)
                assert ":" not in attributes[name].removeprefix("data:,")
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert [tag for tag, _ in page.tags].count("style") == 1
    assert not {"img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}


def test_styles_and_script_fetch_nothing():
    for name in ("style.css", "report.js"):
        text = (resources.files("fewbits.report") / "templates" / name).read_text(encoding="utf-8")
        assert not re.search(
            r"url\(|@import|https?:|fetch\(|XMLHttpRequest|innerHTML|\beval\b|import\(", text
        )


def test_the_page_is_small():
    assert len(html.render(factory.full()).encode()) < 200_000
    assert len(html.render(factory.largest()).encode()) < 1_200_000


def test_attacks_come_out_as_text():
    page = Page(html.render(evil()))
    # Verdict, notes, names in the tables, messages, settings, snippet ...: as text, not as tags.
    assert page.text.count("<script>window.pwned=1</script>") >= 30
    assert page.text.count("{{ 7*7 }}") >= 30


def test_the_policy_carries_the_scripts_own_hash():
    import base64
    import hashlib

    text = html.render(factory.full())
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in Page(text).tags[3][1]["content"]


def test_every_number_an_engineer_decides_on_is_on_the_page():
    text = re.sub(r"\s+", " ", Page(html.render(factory.full())).text)
    for part in (
        "Ship w8a8-mse on OpenVINO",
        "3.88× smaller",
        "3.32× faster",
        "−0.30 points",
        "23.4 MB, was 90.7 MB",
        "drop at most 1%",
        "size 100 % is over 30 %",
        "no kernel for DynamicQuantizeLinear",
        "a folded form saves file, not memory",
        "encoder.layer.0.attention.query",
        "LayerNormalization",
        "no int8 kernel in this engine",
        "AMX_BF16",
        "2026.4.0",
        "INFERENCE_PRECISION_HINT",
        "core.compile_model(",
        "recipe.toml",
        "41.5 s",
    ):
        assert part in text, part
    for one in factory.full().candidates:
        assert one.name in text


@pytest.mark.parametrize(
    ("make", "chip"),
    [
        (factory.full, "Meets every limit"),
        (factory.unmet, "No candidate meets the limits"),
        (factory.float_kept, "Keep the original file"),
        (factory.smallest, "Nothing was chosen"),
    ],
)
def test_the_status_leads(make, chip):
    lead = re.search(r'class="chip lead \w+">(.*?)</span>', html.render(make()))
    assert lead.group(1) == chip


def test_what_was_not_tried_is_listed_with_the_reason():
    text = html.render(factory.ended_early())
    assert "The run was interrupted before these" in text
    listed = re.search(r'<ul class="left">(.*?)</ul>', text, re.DOTALL).group(1)
    assert re.findall(r"<li>(.*?)</li>", listed) == [one.name for one in factory.ended_early().not_tried]
    over = factory.ended_early().model_copy(update={"interrupted": False})
    assert "The time of 10 min 00 s was over before these" in html.render(over)
    assert 'id="not-tried"' not in html.render(factory.full())


def test_sections_without_content_are_left_out():
    text = html.render(factory.smallest())
    for section in ("trade-off", "layers", "weights", "bytes", "float", "use"):
        assert f'id="{section}"' not in text
        assert f'id="{section}"' in html.render(factory.full())


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_contrast(scheme):
    """Text has a contrast of at least 4.5, marks of at least 3 against what they stand on (WCAG 2.2)."""
    css = (resources.files("fewbits.report") / "templates" / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0]))
    if scheme:
        colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[1]))

    def luminance(name):
        parts = [int(colours[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    def contrast(front, back):
        high, low = sorted((luminance(front), luminance(back)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    texts = [(f, b) for f in ("ink", "soft", "accent", "good", "warn", "bad") for b in ("page", "card")]
    texts += [(f, f"{f}-soft") for f in ("good", "warn", "bad", "accent")] + [("ink", "good-soft")]
    texts += [("soft", "sunk"), ("ink", "sunk"), ("ink", "warn-soft"), ("card", "good")]
    assert {pair: round(contrast(*pair), 2) for pair in texts if contrast(*pair) < 4.5} == {}
    marks = [(f"e{i}", "card") for i in range(4)] + [(f"b{i}", "card") for i in (4, 8)]
    assert {pair: round(contrast(*pair), 2) for pair in marks if contrast(*pair) < 3} == {}


def test_rendering_imports_no_plotting_library_and_the_record_no_template_engine():
    code = (
        "import sys, fewbits.report.record, fewbits.report.html, fewbits.report.terminal\n"
        "print(sorted({'jinja2', 'plotly', 'rich', 'torch', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# In the browser

WIDE = """
const beyond = [...page.body.querySelectorAll("*")].filter((one) =>
  !one.closest(".scroll, pre, svg, .tip") && one.getBoundingClientRect().right > view.innerWidth + 0.5);
return {
  width: view.innerWidth,
  scroll: page.documentElement.scrollWidth,
  beyond: beyond.map((one) => one.outerHTML.slice(0, 120)),
  pwned: view.pwned === undefined ? null : view.pwned,
  marks: page.querySelectorAll("svg.scatter .mark .body").length,
  drawn: [...page.querySelectorAll("svg.scatter .mark .body")].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.width > 4 && box.height > 4;
  }).length,
  areas: [...page.querySelectorAll("svg .before, svg .after")]
    .map((one) => one.getBoundingClientRect().height),
  front: [...page.querySelectorAll("figure .front")].map((one) => one.getTotalLength()),
  layers: page.querySelectorAll("svg .layer[data-tip]").length,
  dots: page.querySelectorAll("td.forest .dot").length,
  background: view.getComputedStyle(page.body).backgroundColor,
};
"""


def written(tmp_path, report):
    path = tmp_path / "report.html"
    path.write_text(html.render(report), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [420, 1280])
@pytest.mark.parametrize("make", [*EVERY, evil])
def test_nothing_overflows_and_nothing_fails_in_the_browser(tmp_path, make, width):
    report = make()
    seen = browser.visit(written(tmp_path, report), WIDE, width=width)
    assert seen.complaints == []
    assert seen.answer["width"] == width
    assert seen.answer["scroll"] <= width, seen.answer["beyond"]
    assert seen.answer["beyond"] == []
    assert seen.answer["pwned"] is None
    measured = sum(one.metric is not None for one in report.candidates)
    assert seen.answer["marks"] == 2 * measured
    assert seen.answer["drawn"] == 2 * measured
    assert len(seen.answer["areas"]) == (2 if report.histogram else 0)
    assert all(height > 20 for height in seen.answer["areas"])
    assert len(seen.answer["front"]) == (2 if measured else 0)
    assert all(length > 10 for length in seen.answer["front"])
    assert seen.answer["layers"] == len(report.layers)
    assert seen.answer["dots"] == sum(one.speedup is not None for one in report.candidates)


def test_the_browser_check_sees_an_overflow_an_error_and_a_refused_load(tmp_path):
    text = html.render(factory.smallest())
    broken = text.replace(
        "<footer>", '<div style="width:3000px">x</div><img src="https://127.0.0.1:9/x"><footer>'
    )
    path = tmp_path / "broken.html"
    path.write_text(broken.replace("</body>", "<script>window.pwned = 1</script></body>"), encoding="utf-8")
    seen = browser.visit(path, WIDE)
    assert seen.answer["scroll"] > 1280
    assert len(seen.answer["beyond"]) >= 1
    assert seen.answer["pwned"] is None  # a script of another hash does not run
    assert len(seen.complaints) >= 2

    path.write_text("<script>undefined_function()</script>", encoding="utf-8")
    assert "undefined_function" in "".join(browser.visit(path, "return 1").complaints)


def test_light_and_dark(tmp_path):
    path = written(tmp_path, factory.full())
    light, dark = (browser.visit(path, WIDE, dark=dark).answer["background"] for dark in (False, True))
    assert (light, dark) == ("rgb(244, 245, 247)", "rgb(13, 16, 21)")


def test_tables_sort_and_marks_tell_their_numbers(tmp_path):
    seen = browser.visit(
        written(tmp_path, factory.full()),
        """
        const names = () => [...page.querySelectorAll("#candidates tbody")][0];
        const order = () => [...names().rows].map((row) => row.cells[0].dataset.value);
        const latency = page.querySelectorAll("#candidates th button")[2];
        const before = order();
        latency.click();
        const up = order();
        latency.click();
        const down = order();
        const mark = page.querySelector("svg.scatter .mark.chosen");
        mark.dispatchEvent(new view.PointerEvent("pointerenter", {clientX: 300, clientY: 300}));
        const tip = page.querySelector(".tip");
        const told = {hidden: tip.hidden, text: tip.textContent};
        const lit = [...page.querySelectorAll("tr.lit")].map((row) => row.dataset.name);
        mark.dispatchEvent(new view.PointerEvent("pointerleave"));
        return {before, up, down, told, lit, after: tip.hidden, unlit: page.querySelectorAll(".lit").length};
        """,
    ).answer
    assert seen["before"][0] == "w8a8-mse OV"
    assert seen["up"][:3] == ["w8a8 OV", "w8a8-mse OV", "w8 OV bf16"]
    assert seen["down"][0] == "w4_g32 ORT"
    assert seen["up"][-1] == seen["down"][-1] == "w8a8_dynamic OV"  # without a latency: last either way
    assert not seen["told"]["hidden"]
    assert seen["told"]["text"].startswith("w8a8-mse OV · openvino int8\n23.4 MB · 3.58 ms · 3.32×")
    assert set(seen["lit"]) == {"w8a8-mse OV"}
    assert seen["after"] is True
    assert seen["unlit"] == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_screenshot_shows_a_picture(tmp_path, dark):
    picture = tmp_path / "report.png"
    browser.screenshot(written(tmp_path, factory.full()), picture, dark=dark)
    width, height, pixels = decoded(picture.read_bytes())
    assert (width, height) == (1280, 2000)
    colours = {pixels[i : i + 3] for i in range(0, len(pixels) - 3, 3)}
    # Text, cards, chips and marks: a blank page has one colour.
    assert len(colours) > 100


def decoded(data):
    """Width, height and the bytes (still filtered by row) of a PNG of 8 bits a channel."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, parts, size = 8, b"", (0, 0)
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IHDR":
            size = struct.unpack(">II", data[at + 8 : at + 16])
        elif kind == b"IDAT":
            parts += data[at + 8 : at + 8 + length]
        at += 12 + length
    return *size, zlib.decompress(parts)
