"""Tests of `dpo plot` and `dpo report` on hand-made runs, and of the page in a real browser."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dpo_cli.commands.report import default_path
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import (
    Alert,
    Event,
    Exported,
    Failed,
    Planned,
    Sample,
    Sampled,
    WorkerStarted,
)
from tests.commands.conftest import Cli
from tests.support import judged_runs, story
from tests.support.cli import HANG_SECONDS

pytestmark = pytest.mark.usefixtures("root")

HOSTILE = "</script><img src=x onerror=alert(1)>&\"'"
VOID = {"meta", "circle", "path", "line", "rect", "br", "img"}


@pytest.fixture
def plain(root: Path) -> RunDirectory:
    return story.write(root, "plain", *story.contender({}))


def hostile(root: Path) -> RunDirectory:
    """Make a run in which each text from outside is an attack on the page."""
    settings = {"model": {"weights": f"/home/alice/{HOSTILE}.pth"}}
    alert = Alert(code="x", message=f"see /srv/x: 'my secret row' {HOSTILE}", remedy="on host-7")
    rows = [{"line": 3, "problem": "malformed", "reason": f"'a private text' {HOSTILE}"}]

    def events() -> list[Event]:
        changed: list[Event] = []
        for event in story.contender(settings):
            if isinstance(event, Planned):
                model = dataclasses.replace(event.plan.model, description=HOSTILE)
                changed.append(Planned(plan=dataclasses.replace(event.plan, model=model)))
            elif isinstance(event, WorkerStarted):
                fields = {"device": "cpu", "device_name": HOSTILE, "dtype": HOSTILE}
                hosts = ("host-7", "host-7")
                versions = {HOSTILE: HOSTILE}
                changed.append(WorkerStarted(pid=7, **fields, versions=versions, hosts=hosts))  # type: ignore[arg-type]
            else:
                changed.append(event)
        sample = Sample(
            place="line 3", prompt=HOSTILE, policy="a private answer", reference=HOSTILE
        )
        early = dict.fromkeys(sample, "an early answer")
        told = [
            Sampled(step=step, optimizer_step=step // 2, samples=(shown,), seconds=0.1)
            for step, shown in ((200, early), (400, sample))
        ]
        failed = Failed(message=HOSTILE, details=("line 3 of /data/my.jsonl: 'a private text'",))
        return [*changed[:-2], *told, alert, failed]  # type: ignore[list-item]

    run = story.write(root, "hostile", *events())
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    run.skipped_rows_path.write_text(lines + "torn", encoding="utf-8")
    return run


class Page(HTMLParser):
    """HTML parser that collects elements and texts, and requires that each element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def curves(text: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="curves">(.*?)</script>', text)
    assert found is not None
    return list(json.loads(found[1]))


# --- plot ---------------------------------------------------------------------------------------


def test_a_plot_is_an_svg_with_every_curve(dpo: Cli, plain: RunDirectory) -> None:
    assert dpo("plot", "plain", "--out", "x.svg") == (0, "wrote x.svg\n", "")
    picture = ElementTree.parse("x.svg").getroot()
    texts = [
        "".join(element.itertext()) for element in picture.iter() if element.tag[-4:] == "text"
    ]
    titles = ("loss", "accuracy", "margin", "rewards", "gradient norm", "KL, nats per token")
    assert {*titles, "learning rate", "margin per token, nats", "ln 2"} <= set(texts)
    assert "throughput, pairs per second" in texts
    assert f"{plain.name} · MiniMind version 2, 512 x 8, dense" in texts


def test_plots_as_json_over_several_runs(dpo: Cli, root: Path, plain: RunDirectory) -> None:
    other = story.write(root, "other", *story.contender({}, lead=0.05))
    told = json.loads(dpo("plot", "plain", "other", "--out", "x.svg", "--json")[1])
    assert told["runs"] == [plain.name, other.name]
    assert told["size_bytes"] == Path("x.svg").stat().st_size


def test_plots_that_cannot_be(
    dpo: Cli, root: Path, plain: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dpo("plot", "plain", "--out", "x.pdf")[0] == 2
    assert "cannot write missing/x.svg" in dpo("plot", "plain", "--out", "missing/x.svg")[2]
    story.write(root, "young", *story.preparation())
    assert "nothing to draw" in dpo("plot", "young", "--out", "x.svg")[2]
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    code, _, err = dpo("plot", "plain", "--out", "x.png")
    assert (code, "'cairosvg>=2.7'" in err) == (1, True)
    assert not list(Path().glob("x.*"))


def test_a_png_where_the_extra_is_installed(dpo: Cli, plain: RunDirectory) -> None:
    pytest.importorskip("cairosvg", reason="needs the extra png")
    assert dpo("plot", "plain", "--out", "x.png")[0] == 0
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")


# --- report -------------------------------------------------------------------------------------


def test_a_report_is_one_file(dpo: Cli, plain: RunDirectory) -> None:
    assert dpo("report", "plain") == (0, f"wrote {plain.name}.html; open it in a web browser\n", "")
    text = Path(f"{plain.name}.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"link", "iframe", "object", "base"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href")]
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    shown = " ".join(page.texts)
    for words in ("Curves", "Data", "Plan", "Profile", "Environment", 'weights = "/models'):
        assert words in shown
    assert (
        "The run worked: the loss of 40 held-out pairs fell from 0.6931 to 0.5231: -0.17" in shown
    )
    assert "Accuracy is 0.82 (95 %: 0.68 to 0.91), better than chance (0.50)." in shown
    charts = curves(text)
    assert page.tags.count("figure") == len(charts) == 10
    accuracy = charts[1]["lines"][1]
    assert accuracy["name"] == "held-out"
    assert accuracy["points"][-1] == [400, 0.825]
    assert accuracy["intervals"][-1] == pytest.approx([0.6805, 0.9125], abs=1e-4)
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert any(
        re.match(r"loss: train from 0.6\d+ at micro-step 2 to 0.5", label) for label in labels
    )


def test_a_report_says_how_to_use_the_result(
    dpo: Cli, root: Path, plain: RunDirectory, tmp_path: Path
) -> None:
    assert dpo("report", "plain", "-o", "before.html")[0] == 0
    before = " ".join(Page(Path("before.html").read_text(encoding="utf-8")).texts)
    assert f"dpo export {plain.name} --format gguf" in before
    assert "an answer ends with" not in before
    exported = Exported(
        path="/models/mine",
        sha256="0",
        dtype="bfloat16",
        optimizer_step=200,
        stops=("<|im_end|>", "<|endoftext|>"),
        commands={"vLLM": "vllm serve /models/mine"},
    )
    story.write(root, "used", *story.contender({}), exported)
    assert dpo("report", "used", "-o", "after.html")[0] == 0
    after = " ".join(Page(Path("after.html").read_text(encoding="utf-8")).texts)
    assert "/models/mine: bfloat16, after step 200 vLLM vllm serve /models/mine" in after
    assert "an answer ends with <|im_end|> or <|endoftext|>" in after
    assert dpo("report", "used", "-o", "hidden.html", "--redact")[0] == 0
    assert "vllm" not in Path("hidden.html").read_text(encoding="utf-8")


def test_a_run_that_got_worse_says_so_at_the_top(dpo: Cli, root: Path, plain: RunDirectory) -> None:
    story.write(root, "worse", *judged_runs.WORSE)
    assert dpo("report", "worse", "-o", "one.html")[0] == 0
    text = Path("one.html").read_text(encoding="utf-8")
    line = '<p class="error">Worse: the loss of 6 held-out pairs rose from 0.6931 to 0.7200</p>'
    assert line in text[: text.index("</header>")]
    assert dpo("report", "plain", "worse", "-o", "two.html")[0] == 0
    shown = " ".join(Page(Path("two.html").read_text(encoding="utf-8")).texts)
    assert "B: worse: the loss of 6 held-out pairs rose" in shown
    assert "A: worse" not in shown


def test_several_runs_are_compared(dpo: Cli, root: Path, plain: RunDirectory) -> None:
    fast = {"train": {**story.SETTINGS["train"], "learning_rate": 1e-5}}
    story.write(root, "fast", *story.contender(fast, lead=0.05))
    told = json.loads(dpo("report", "plain", "fast", "-o", "two.html", "--json")[1])
    text = Path("two.html").read_text(encoding="utf-8")
    assert told["size_bytes"] == len(text.encode())
    shown = " ".join(Page(text).texts)
    assert "A: 1e-6 · B: 1e-5" in shown
    assert "B vs. A, pair by pair: accuracy: 2 pairs to 0, p = 0.50, about 74 more pairs" in shown
    names = {line["name"] for chart in curves(text) for line in chart["lines"]}
    assert {"A train", "B train", "A held-out", "B held-out"} <= names


def test_a_comparison_does_not_replace_the_report_of_one_run(
    dpo: Cli, root: Path, plain: RunDirectory
) -> None:
    other = story.write(root, "other", *story.contender({}))
    dpo("report", "plain")
    alone = Path(f"{plain.name}.html").read_bytes()
    both = f"{plain.name}-vs-{other.name}.html"
    assert dpo("report", "plain", "other") == (0, f"wrote {both}; open it in a web browser\n", "")
    assert Path(f"{plain.name}.html").read_bytes() == alone
    assert len(Page(Path(both).read_text(encoding="utf-8")).texts) > 0


def test_the_name_of_a_report_of_many_runs_has_a_limit() -> None:
    names = [f"run-{number}-{'x' * 40}" for number in range(20)]
    path, other = default_path(names), default_path(names[:-1])
    assert path != other
    assert max(len(str(each)) for each in (path, other)) < 200


def test_text_from_outside_is_escaped(dpo: Cli, root: Path) -> None:
    hostile(root)
    findings = [{"level": HOSTILE, "code": HOSTILE, "subject": HOSTILE, "message": HOSTILE}]
    Path("check.json").write_text(json.dumps({"findings": findings}), encoding="utf-8")
    assert dpo("report", "hostile", "-o", "x.html", "--check", "check.json")[0] == 0
    text = Path("x.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "img" not in page.tags
    assert page.tags.count("script") == 2
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    shown = "".join(page.texts)
    assert shown.count(HOSTILE) >= 8
    assert "a private text" in shown  # the row, the failure
    assert "host-7" in shown
    assert "after step 200a private answer" in shown
    assert "an early answer" not in shown


def test_a_redacted_report_names_no_path_no_host_and_no_text(dpo: Cli, root: Path) -> None:
    hostile(root)
    Path("check.json").write_text(
        json.dumps({"findings": [{"level": "ok", "code": "data", "subject": "data/pairs.jsonl"}]}),
        encoding="utf-8",
    )
    arguments = ("report", "hostile", "-o", "x.html", "--redact", "--check", "check.json")
    assert dpo(*arguments)[0] == 0
    text = Path("x.html").read_text(encoding="utf-8")
    for secret in ("alice", "/srv", "host-7", "private", "secret", "my.jsonl", "pairs.jsonl"):
        assert secret not in text, secret
    assert "/home" not in text
    assert text.count("[redacted]") >= 4
    assert "learning_rate" in text


def test_runs_without_steps_and_findings_that_are_none(dpo: Cli, root: Path) -> None:
    story.write(root, "young", *story.preparation())
    story.write(root, "empty")
    assert dpo("report", "young", "empty", "-o", "x.html")[0] == 0
    assert "not enough steps" in Path("x.html").read_text(encoding="utf-8")
    Path("x.json").write_text("[]", encoding="utf-8")
    for name in ("x.json", "none.json"):
        code, _, err = dpo("report", "young", "--check", name)
        assert (code, name in err) == (2, True)


def test_groups_of_held_out_pairs_are_listed_with_their_intervals(dpo: Cli, root: Path) -> None:
    import dataclasses

    from dpo_cli.run.events import Evaluated

    name = "rewards/accuracies"
    group = {"pairs": 12.0, name: 0.75, f"{name}/low": 0.47, f"{name}/high": 0.91, "loss": 0.61}
    events = [
        dataclasses.replace(event, groups={"language/zh": group})
        if isinstance(event, Evaluated)
        else event
        for event in story.contender({})
    ]
    story.write(root, "grouped", *events)
    dpo("report", "grouped", "-o", "x.html")
    shown = " ".join(Page(Path("x.html").read_text(encoding="utf-8")).texts)
    assert "language/zh 12 0.75 (0.47-0.91)" in shown


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_opens_it_without_an_error(dpo: Cli, root: Path, plain: RunDirectory) -> None:
    """The page opens without errors; a pointer over a chart shows values."""
    hostile(root)
    dpo("report", "plain", "hostile", "-o", "x.html")
    text = Path("x.html").read_text(encoding="utf-8")
    assert opened(Path("x.html"))[1] == []
    hover = (
        "const svg = document.querySelector('figure svg'), box = svg.getBoundingClientRect();"
        "svg.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + box.width / 2}));"
    )
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    text = text.replace("</body>", f"<script>{hover}</script></body>")
    Path("hover.html").write_text(text, encoding="utf-8")
    shown, errors = opened(Path("hover.html"))
    assert errors == []
    tip = re.search(r'<div class="tip" role="status"[^>]*>(.*?)</div>', shown, re.DOTALL)
    assert tip is not None
    assert re.match(r"micro-step 1\d\d\nA train 0\.\d+\nA held-out 0\.\d+", tip[1])


def opened(path: Path) -> tuple[str, list[str]]:
    """Return the page after its scripts ran, and the errors of the browser."""
    done = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"),
            *("--enable-logging=stderr", "--v=0", "--dump-dom", path.absolute().as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
