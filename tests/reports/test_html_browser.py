"""The HTML report in a real browser: charts, no request, no script, hostile text, widths, print.

Chromium runs without a head and prints the page's elements; a probe in a copy of the file puts what it found
into one of them.
"""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perfkit.analysis.report import Report, Titled
from perfkit.analysis.study import study
from perfkit.record import Record, load
from perfkit.reports.files import as_csv
from perfkit.reports.html.embed import script_json
from perfkit.reports.html.looks import DARK, LIGHT
from perfkit.reports.html.page import as_html

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is installed"
)

RECORDS = Path(__file__).parents[2] / "docs" / "examples" / "h200"
HOSTILE = "</script><img src=x onerror=alert(1)><a href='https://example.com'>x</a><b>b</b>&amp;%{x}"

#: Waits for the last chart, runs the body, and leaves its result as text. Errors and refusals of the page's
#: own policy are kept from the start.
PROBE = """<script>
window.seen = {errors: [], refused: [], alerts: []};
window.alert = (text) => window.seen.alerts.push(String(text));
addEventListener("error", (event) => window.seen.errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => window.seen.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => window.seen.refused.push(event.violatedDirective));
(function wait() {
  if (!document.documentElement.classList.contains("drawn")) { setTimeout(wait, 20); return; }
  (async () => { %s })().then((value) => {
    const text = JSON.stringify({value, seen: window.seen});
    if (parent !== window) { parent.postMessage(text, "*"); return; }
    const place = document.createElement("pre");
    place.id = "probe";
    place.textContent = text;
    document.body.append(place);
  });
})();
</script>"""

FRAME = """<!doctype html><iframe src="%s" style="width:%dpx;height:800px;border:0"></iframe><script>
addEventListener("message", (event) => {
  const place = document.createElement("pre");
  place.id = "probe";
  place.textContent = event.data;
  document.body.append(place);
});
</script>"""

#: A frame without leave to run scripts, and what a reader sees in it.
STILL = """<!doctype html><meta charset="utf-8"><body></body><script>
const frame = document.createElement("iframe");
frame.sandbox = "allow-same-origin";
frame.style = "width:360px;height:800px;border:0";
frame.srcdoc = %s;
frame.onload = () => {
  const inner = frame.contentDocument;
  const seen = [...inner.querySelectorAll("figure, .keys")].filter((one) => one.offsetHeight > 0);
  const place = document.createElement("pre");
  place.id = "probe";
  place.textContent = JSON.stringify({
    noscript: inner.querySelector("noscript p").textContent, text: inner.body.innerText,
    plots: inner.querySelectorAll(".js-plotly-plot").length, shown: seen.map((one) => one.className),
    link: inner.querySelector("a.file").download, page: inner.documentElement.scrollWidth,
  });
  document.body.append(place);
};
document.body.append(frame);
</script>"""


def browse(page: Path, *options: str, folder: Path) -> str:
    """The elements of `page` after it has loaded, as text."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", *options,
    ]  # fmt: skip
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def probed(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'(?s)<pre id="probe">(.*?)</pre>', text)
    answer: dict[str, Any] = json.loads(html.unescape(found))
    return answer


def ask(content: bytes, body: str, folder: Path, *options: str, width: int | None = None) -> Any:
    """What `body` returns in the page; no error, no refusal and no alert may have come up."""
    page = folder / "report.html"
    text = content.decode()
    assert text.count("<head>") == 1
    page.write_text(text.replace("<head>", f"<head>{PROBE % body}"))
    if width is not None:
        frame = folder / "frame.html"
        frame.write_text(FRAME % (page.as_uri(), width))
        page = frame
    answer = probed(browse(page, *options, folder=folder))
    assert answer["seen"] == {"errors": [], "refused": [], "alerts": []}
    return answer["value"]


def part(name: str) -> Titled:
    return Titled(name=name, study=study(load(RECORDS / f"{name}.json")))


@pytest.fixture(scope="module")
def one() -> bytes:
    return as_html(Report(parts=(part("all-d64-16k"),)))


@pytest.fixture(scope="module")
def several() -> bytes:
    names = ("fwd-d64-2k", "fwd-d64-4k", "fwd-d64-8k")
    return as_html(Report(parts=tuple(map(part, names)), baseline=part("fwd-d64-8k")))


def test_charts_hold_the_numbers_of_the_record(one: bytes, tmp_path: Path) -> None:
    body = """
      const plot = document.getElementById("roofline-0");
      return {data: plot.data.map((t) => [t.name, t.x, t.y]), load: performance.now(),
              resources: performance.getEntriesByType("resource").map((e) => e.name)};"""
    answer = ask(one, body, tmp_path)
    print(f"the page stood after {answer['load']:.0f} ms")
    drawn = {name: (xs, ys) for name, xs, ys in answer["data"]}
    runs = load(RECORDS / "all-d64-16k.json").runs
    for run in runs:
        flops, time_s = run.value("flops_convention"), run.value("time")
        assert flops
        assert time_s
        moved = [
            (run.value(f"{level}_read") or 0) + (run.value(f"{level}_write") or 0) for level in ("dram", "l2")
        ]
        assert drawn[run.impl] == ([*(flops / size for size in moved), None], [flops / time_s] * 2 + [None])
    assert len(runs) == 7
    assert [name for name in answer["resources"] if not name.startswith(("data:", "blob:"))] == []


def requests(folder: Path, page: Path) -> list[str]:
    """Addresses that the page itself asked for; what the browser asks for by itself has no initiator."""
    log = folder / f"{page.stem}-net.json"
    browse(page, f"--log-net-log={log}", folder=folder)
    text = log.read_text().rstrip().rstrip(",")
    events = json.loads(text if text.endswith("}") else f"{text}]}}")["events"]
    given = [event["params"] for event in events if isinstance(event.get("params"), dict)]
    own = (p for p in given if p.get("initiator", "not an origin") != "not an origin")
    return sorted({p["url"] for p in own if "url" in p})


def test_nothing_is_asked_of_the_network(several: bytes, tmp_path: Path) -> None:
    page, leak = tmp_path / "report.html", tmp_path / "leak.html"
    page.write_bytes(several)
    leak.write_text('<!doctype html><img src="http://127.0.0.1:9/leak.png">')
    assert requests(tmp_path, leak) == ["http://127.0.0.1:9/leak.png"]  # the log would show it
    assert requests(tmp_path, page) == []


def test_without_scripts_the_tables_are_there(several: bytes, tmp_path: Path) -> None:
    """The report in a frame that may run no script, read by the page around it."""
    page = tmp_path / "frame.html"
    page.write_text(STILL % script_json(several.decode()))
    answer = probed(browse(page, folder=tmp_path))
    assert answer["noscript"].startswith("The charts need JavaScript.")
    assert answer["plots"] == 0
    assert answer["shown"] == []  # neither empty charts nor legends that switch nothing
    for number in ("573 us ±0.02%", "480 TFLOP/s", "4.33 GB"):
        assert number in answer["text"]
    assert answer["link"] == "perfkit.csv.gz"
    assert answer["page"] <= 360


def hostile() -> Record:
    record = load(RECORDS / "fwd-d64-4k.json")
    runs = tuple(
        msgspec.structs.replace(run, impl=f"{HOSTILE}{at}", notes=(HOSTILE,), clock_reasons=(HOSTILE,))
        for at, run in enumerate(record.runs)
    )
    device = msgspec.structs.replace(record.device, model=HOSTILE)
    return msgspec.structs.replace(record, runs=runs, device=device, notes=(HOSTILE,))


def test_hostile_strings_are_inert_also_in_charts(tmp_path: Path) -> None:
    """Names, notes and paths that are markup stay text: in the page, and in plotly's hover."""
    title = Titled(name=HOSTILE, study=study(hostile()))
    other = Titled(name="other", study=study(load(RECORDS / "fwd-d64-8k.json")))
    body = """
      const plot = document.getElementById("roofline-0");
      const at = plot.data.findIndex((t) => t.meta.look !== undefined);
      Plotly.Fx.hover(plot, [{curveNumber: at, pointNumber: 0}]);
      await new Promise((done) => setTimeout(done, 300));
      const label = plot.querySelector(".hoverlayer");
      return {images: document.images.length, scripts: document.scripts.length, hover: label.textContent,
              links: label.querySelectorAll("a").length,
              bold: label.querySelectorAll("tspan[style*=bold]").length,
              outside: [...document.links].filter((a) => !/^(file:|data:)/.test(a.href)).length};"""
    answer = ask(as_html(Report(parts=(title, other), baseline=title)), body, tmp_path)
    assert answer["images"] == answer["links"] == answer["outside"] == 0
    # probe, figures, the page's own, plotly; the packed one is gone
    assert answer["scripts"] == 4
    assert answer["bold"] == 1  # the name of the implementation, and not the <b> inside it
    assert answer["hover"].count(HOSTILE) >= 2  # as the name and as the source, letter by letter


def test_no_rule_of_the_page_reaches_into_charts(several: bytes, tmp_path: Path) -> None:
    """plotly names classes `line`, `plot` and the like; a rule for one of them would restyle its texts."""
    body = """
      const plot = document.getElementById("roofline-0");
      Plotly.Fx.hover(plot, [{curveNumber: plot.data.length - 1, pointNumber: 0}]);
      await new Promise((done) => setTimeout(done, 300));
      const names = new Set();
      document.querySelectorAll(".js-plotly-plot *").forEach((e) => e.classList.forEach((n) => names.add(n)));
      const rules = (list) => [...list].flatMap((r) => r.cssRules ? [r, ...rules(r.cssRules)] : [r]);
      const own = rules(document.querySelector("style").sheet.cssRules).map((r) => r.selectorText || "");
      const used = new Set(own.join(" ").match(/\\.[a-z][a-z0-9-]*/g).map((n) => n.slice(1)));
      return {names: [...names], both: [...names].filter((n) => used.has(n))};"""
    answer = ask(several, body, tmp_path)
    assert {"line", "hovertext"} <= set(answer["names"])
    assert set(answer["both"]) <= {"modebar"}  # which is not printed, on purpose


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("which", ["one", "several"])
def test_the_page_is_no_wider_than_the_window(
    width: int, which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    body = """
      document.querySelectorAll("details").forEach((one) => { one.open = true; });
      const plots = [...document.querySelectorAll(".js-plotly-plot")];
      return {inner: innerWidth, page: document.documentElement.scrollWidth, plots: plots.length,
              wide: plots.filter((p) => p._fullLayout.width > p.parentElement.clientWidth + 1).length};"""
    answer = ask(request.getfixturevalue(which), body, tmp_path, width=width)
    assert answer["inner"] == width
    assert answer["page"] <= width
    assert answer["plots"] == (1 if which == "one" else 4)
    assert answer["wide"] == 0


@pytest.mark.parametrize(("scheme", "hues"), [(0, DARK), (1, LIGHT)])
def test_charts_follow_the_scheme_and_print_light(
    scheme: int, hues: tuple[str, ...], one: bytes, tmp_path: Path
) -> None:
    body = """
      const plot = document.getElementById("roofline-0");
      const colours = () => plot.data.filter((t) => t.marker).map((t) => t.marker.color);
      const shut = () => document.querySelectorAll("details:not([open])").length;
      const found = {screen: colours(), shut: [shut()]};
      dispatchEvent(new Event("beforeprint"));
      found.print = colours();
      found.shut.push(shut());
      found.width = plot._fullLayout.width;
      dispatchEvent(new Event("afterprint"));
      found.after = colours();
      found.shut.push(shut());
      return found;"""
    answer = ask(one, body, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")
    assert answer["screen"] == answer["after"] == list(hues[:7])
    assert answer["print"] == list(LIGHT[:7])
    assert answer["shut"] == [1, 0, 1]
    assert answer["width"] <= 690


def test_a_name_in_the_legend_switches_its_marks(several: bytes, tmp_path: Path) -> None:
    body = """
      const shown = () => ["roofline-0", "length-0-time"].map((id) =>
        document.getElementById(id).data.filter((t) => t.meta.look === 1).map((t) => t.visible));
      const buttons = [...document.querySelectorAll('[data-look="1"]')];
      const found = [shown()];
      buttons[0].click();
      found.push(shown(), buttons.map((b) => b.getAttribute("aria-pressed")));
      buttons[1].click();
      found.push(shown());
      return found;"""
    before, off, pressed, after = ask(several, body, tmp_path)
    # flash and its baseline in the roofline; its model, its marks and its baseline against N
    assert before == after == [[True] * 2, [True] * 3]
    assert off == [[False] * 2, [False] * 3]
    assert pressed == ["false", "false"]


def test_downloads_become_plain_files(one: bytes, tmp_path: Path) -> None:
    body = """
      const link = document.querySelector('a.file[data-name="perfkit.csv"]');
      const made = [];
      const keep = URL.createObjectURL;
      URL.createObjectURL = (blob) => { made.push(blob); return keep.call(URL, blob); };
      const label = link.textContent;
      link.click();
      for (let i = 0; i < 100 && !made.length; i++) await new Promise((done) => setTimeout(done, 20));
      await new Promise((done) => setTimeout(done, 50));
      return {label, name: link.download, text: await made[0].text(), href: link.href.slice(0, 5)};"""
    answer = ask(one, body, tmp_path)
    assert answer["label"] == answer["name"] == "perfkit.csv"
    assert answer["href"] == "blob:"
    assert answer["text"].encode() == as_csv(Report(parts=(part("all-d64-16k"),)))


def test_a_link_to_a_folded_record_opens_it(tmp_path: Path) -> None:
    names = ("fwd-d64-2k", "fwd-d64-4k", "fwd-d64-8k")
    content = as_html(Report(parts=tuple(map(part, names))))
    body = """
      const record = document.getElementById("record-3");
      const before = record.open;
      location.hash = "#record-3-io";
      await new Promise((done) => setTimeout(done, 100));
      return [before, record.open];"""
    assert ask(content, body, tmp_path) == [False, True]


@pytest.fixture(scope="module")
def swept_page(swept: Callable[..., Record]) -> bytes:
    """Three records of sweeps: the third is closed."""
    subject = study(swept("standard", "flash", counted=True))
    return as_html(Report(parts=tuple(Titled(name=f"io-{at}", study=subject) for at in range(3))))


@pytest.mark.parametrize("width", [360, 1280])
def test_charts_of_the_law_fit_also_in_a_record_that_was_closed(
    width: int, swept_page: bytes, tmp_path: Path
) -> None:
    body = """
      const plots = () => [...document.querySelectorAll(".js-plotly-plot")].map((p) => p.id);
      const before = plots();
      document.getElementById("record-3").open = true;
      await new Promise((done) => setTimeout(done, 300));
      const drawn = [...document.querySelectorAll("[id*='-law-']")];
      return {before, after: plots(), page: document.documentElement.scrollWidth,
              off: drawn.filter((p) => Math.abs(p._fullLayout.width - p.clientWidth) > 1).length,
              types: drawn.map((p) => [p._fullLayout.xaxis.type, p._fullLayout.yaxis.type].join())};"""
    answer = ask(swept_page, body, tmp_path, width=width)
    names = [f"record-{at}-law-{variable}" for at in (1, 2, 3) for variable in "NdM"]
    assert [name for name in answer["before"] if "-law-" in name] == names[:6]
    assert [name for name in answer["after"] if "-law-" in name] == names
    assert answer["page"] <= width
    assert answer["off"] == 0
    assert answer["types"] == ["log,log"] * 9


@pytest.mark.parametrize(("scheme", "hues"), [(0, DARK), (1, LIGHT)])
def test_charts_of_the_law_follow_the_scheme_the_legend_and_the_printer(
    scheme: int, hues: tuple[str, ...], swept_page: bytes, tmp_path: Path
) -> None:
    body = """
      const plot = document.getElementById("record-1-law-N");
      const colours = (kind) =>
        plot.data.filter((t) => t.mode === kind).map((t) => (t.marker || t.line).color);
      const found = {marks: colours("markers"), lines: colours("lines")};
      const section = document.getElementById("record-1-law");
      section.querySelector('[data-look="1"]').click();
      found.off = plot.data.filter((t) => t.visible).map((t) => t.name);
      section.querySelector('[data-look="1"]').click();
      found.on = plot.data.every((t) => t.visible);
      dispatchEvent(new Event("beforeprint"));
      found.print = colours("markers");
      found.plots = document.querySelectorAll("#record-3 .js-plotly-plot").length;
      dispatchEvent(new Event("afterprint"));
      return found;"""
    answer = ask(swept_page, body, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")
    looks = [0, 0, 1, 1]  # counted and measured of standard, then of flash
    assert answer["marks"] == answer["lines"] == [hues[at] for at in looks]
    assert answer["print"] == [LIGHT[at] for at in looks]
    assert answer["plots"] == 3  # a closed record is opened for the printer, with its charts
    assert all(name.startswith("standard") for name in answer["off"])
    assert len(answer["off"]) == 4
    assert answer["on"] is True
