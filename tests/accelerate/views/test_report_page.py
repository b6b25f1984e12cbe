"""The page is self-contained, complete, escaped and accessible."""

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.accelerate.records.report import GOALS, Goal, Report
from stillhouse.accelerate.views.formatting import printable
from stillhouse.accelerate.views.report_page import group_reasons, render_report, write_report_page
from stillhouse.accelerate.views.rows import report_rows
from stillhouse.accelerate.views.summary import headline
from stillhouse.errors import InvalidRequest, RuntimeMissing
from stillhouse.html.environment import STYLES
from tests.accelerate.views.sweeps import HOSTILE, PROMPTS, network_report, pipeline_report

VOID = {"meta", "br", "img"}
SVG_LEAVES = {"line", "circle", "rect", "path", "polyline"}


class Page(HTMLParser):
    """Elements in document order; fails on mismatched tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_LEAVES, tag
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        shown = " ".join(words for tag, words in self.words if tag != "style")
        return " ".join(shown.replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def text(directory: Path) -> str:
    return render_report(pipeline_report(directory), directory)


def test_it_stands_alone(text: str) -> None:
    parsed = Page(text)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {name for name, _ in parsed.elements}
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in parsed.all("img"))
    assert all(attributes["href"].startswith("#") for attributes in parsed.all("a"))
    assert not re.search(
        r"https?://|@import|url\(|\bon\w+=", text.replace(HOSTILE, "").replace("http://example.invalid/", "")
    )
    policy = next(attributes["content"] for attributes in parsed.all("meta") if "http-equiv" in attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_it_begins_with_what_was_chosen_in_words(text: str) -> None:
    content = Page(text).text
    assert content.index(headline(pipeline_report())) < content.index("Whole pictures, end to end", 200)
    assert "14 of 23 candidates were accepted" in content


def test_every_candidate_its_figures_and_its_reason_are_there(text: str) -> None:
    content = Page(text).text
    for trial in pipeline_report().trials:
        assert printable(trial.candidate.name) in content
        assert printable(trial.reason) in content
        for file in (trial.log, trial.reproduce) if trial.reason else ():
            assert file is None or file in content
    for figure in ("7.03x 6.54 to 7.45", "114.5", "41 int8, 189 f32", "0.937", "92.1 %", "1.86 GiB", "85.0 MiB"):
        assert figure in content


def test_the_first_words_say_what_won_by_how_much_and_at_what_price(text: str) -> None:
    content = Page(text).text
    words = ("7.03x as fast", "95 % interval 6.54 to 7.45", "512 ms instead of 3.60 s", "92.1 %", "590 MiB")
    places = [content.index(word) for word in words]
    assert places == sorted(places) and places[-1] < content.index("Use it") < content.index("Accepted candidates")
    assert "It takes 590 MiB of memory, 130 MiB less than the baseline." in content
    stays = Page(render_report(replace(pipeline_report(), chosen=pipeline_report().baselines), Path())).text
    assert "The baseline stays: stillhouse sampling, networks baseline." in stays and "Before" not in stays
    assert "x as fast" not in stays and "instead of" not in stays


def test_warnings_come_before_the_result(tmp_path: Path) -> None:
    content = Page(render_report(replace(pipeline_report(), warnings=("made-up <inputs>",)), tmp_path)).text
    assert content.index("Warning: made-up <inputs>") < content.index("7.03x")


def test_what_was_not_accepted_is_folded_and_grouped_by_reason() -> None:
    first, *rest = network_report().trials
    reasons = ("SQNR of 9.7 dB is below the bound of 20.0 dB", "SQNR of -3 dB is below the bound of 20.0 dB", "NaN")
    rejected = [
        replace(first, candidate=replace(first.candidate, options={"n": str(n)}), status="rejected", reason=reason)
        for n, reason in enumerate(reasons)
    ]
    rows = report_rows(replace(network_report(), trials=(*rejected, *rest)), "network")
    groups = group_reasons(rows)
    assert list(groups) == ["rejected", "failed", "skipped", "excluded"]
    assert sorted(row.reason for row in groups["rejected"][0].rows) == sorted(reasons[:2])
    parsed = Page(render_report(replace(network_report(), trials=(*rejected, *rest)), Path()))
    assert not any("open" in attributes for attributes in parsed.all("details"))
    assert "rejected : 6 candidates, 5 reasons" in parsed.text and "and 1 alike" in parsed.text


def test_machine_versions_load_and_probes_are_there(text: str) -> None:
    content = Page(text).text
    for fact in (
        "AMD EPYC, 2 cores, 24.0 GiB",
        "avx2 fma f16c",
        "openvino 2026.4.1",
        "0.42 at the start, 1.70 at the end",
    ):
        assert fact in content
    for fact in (
        *pipeline_report().probes.values(),
        pipeline_report().fingerprint,
        "5 min 41 s of a budget of 6 min 0 s",
    ):
        assert fact in content


def test_words_of_strangers_are_only_words(text: str) -> None:
    assert "<script" not in text and "<b>bold" not in text
    content = Page(text).text
    assert "<script>alert(1)</script>" in content and PROMPTS[2] in content


@given(st.text(max_size=60))
@settings(max_examples=15, deadline=None)
def test_any_text_is_told_as_it_is(words: str) -> None:
    plainly = network_report()
    first, *rest = plainly.trials
    odd = replace(first, status="rejected", reason=f"because {words}", log=words, executed=words)
    sweep = replace(plainly, trials=(odd, *rest), source=f"<{words}>", versions={words: words}, currency=words)
    parsed = Page(render_report(sweep, Path()))
    assert printable(f"because {words}") in " ".join("".join(part for _, part in parsed.words).split())
    assert {name for name, _ in parsed.elements} == {name for name, _ in Page(render_report(plainly, Path())).elements}


def test_pictures_have_words_and_the_strips_their_prompts(text: str) -> None:
    images = Page(text).all("img")
    # one picture before and after, then the baseline's, then three candidates with differences
    assert len(images) == 2 + 3 + 3 * 2 * 3
    assert all(image["alt"] for image in images)
    assert [image["alt"] for image in images[:2]] == [f"before: {PROMPTS[0]}", f"after: {PROMPTS[0]}"]
    assert [image["src"] for image in images[:2]] == [images[2]["src"], images[5]["src"]]
    assert images[2]["alt"] == f"stillhouse sampling, networks baseline: {PROMPTS[0]}"
    assert images[8]["alt"] == "difference from the baseline, 4 times amplified"


def test_pictures_of_many_candidates_are_folded_but_for_the_choice(tmp_path: Path) -> None:
    sweep = pipeline_report(tmp_path)
    (cached,) = (trial for trial in sweep.trials if "cache_interval" in trial.candidate.options)
    many = [replace(cached, candidate=replace(cached.candidate, options={"steps": str(n)})) for n in range(20, 25)]
    page = render_report(replace(sweep, trials=(*sweep.trials, *many)), tmp_path)
    shown, folded, rest = page.partition("<summary>Pictures of 7 other candidates</summary>")
    pictures = 'alt="stillhouse sampling, steps 22: '
    assert folded and pictures not in shown and rest.count(pictures) == len(PROMPTS)
    assert shown.count('alt="difference from the baseline') == len(PROMPTS), "those of the choice"
    assert "<summary>Pictures of" not in render_report(sweep, tmp_path), "four candidates are not folded"


def test_a_missing_picture_is_told(tmp_path: Path) -> None:
    sweep = pipeline_report(tmp_path)
    (tmp_path / "pictures/cache_interval/1.png").unlink()
    assert Page(render_report(sweep, tmp_path)).text.count("picture missing") == 1


def test_each_component_has_its_plot_with_a_title_for_every_mark(text: str) -> None:
    parsed = Page(text)
    plots = [attributes for attributes in parsed.all("svg") if attributes.get("class") == "plot"]
    assert len(plots) == 3 and all(attributes["role"] == "img" and attributes["aria-label"] for attributes in plots)
    titles = [words for tag, words in parsed.words if tag == "title"]
    assert len(titles) == 1 + 11 + 2 + 4  # the page's own, then the marks
    assert len([attributes for attributes in parsed.all("polyline") if attributes["class"] == "front"]) == 3
    assert len([attributes for attributes in parsed.all("circle") if attributes["class"] == "halo"]) == 3


def test_rejected_marks_are_hollow(text: str) -> None:
    kinds = [re.findall(r'class="(mark[^"]*?) family', group) for group in re.findall(r"<g>.*?</g>", text, re.DOTALL)]
    titles = re.findall(r"<g><title>(.*?)</title>", text)
    for kind, words in zip(kinds, titles, strict=True):
        assert kind == (["mark"] if ", rejected" in words else ["mark solid"])


def test_tables_have_headers_with_a_scope_and_links_lead_somewhere(text: str) -> None:
    parsed = Page(text)
    assert all(attributes.get("scope") in ("row", "col") for attributes in parsed.all("th"))
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for attributes in parsed.all("a")} <= set(ids)
    assert [name for name, _ in parsed.elements if name in ("h1", "h2", "h3")][:2] == ["h1", "h2"]
    assert parsed.all("html")[0]["lang"] == "en"


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("sweep", [pipeline_report(), network_report()], ids=["pipeline", "network"])
def test_every_goal_and_every_end_of_a_sweep_has_a_page(sweep: Report, goal: Goal) -> None:
    ends = (
        replace(sweep, goal=goal, price=0.36),
        replace(sweep, goal=goal, finished=False, chosen={}),
        replace(sweep, goal=goal, baselines={}, chosen={}, budget=None, load=(0.0, 0.0), versions={}),
        replace(sweep, goal=goal, trials=sweep.trials[:1]),
        replace(sweep, goal=goal, trials=(), baselines={}, chosen={}, probes={}),
        replace(sweep, goal=goal, machine=replace(sweep.machine, memory=None, instructions=())),
    )
    for end in ends:
        parsed = Page(render_report(end, Path("nowhere")))
        assert "None" not in parsed.text


def test_prices_are_shown_where_a_price_was_told() -> None:
    content = Page(render_report(replace(pipeline_report(), goal="cost", price=0.36, currency="EUR"), Path())).text
    assert "EUR per 1,000" in content and "0.36 EUR for an hour of this machine" in content
    assert "per 1,000" not in Page(render_report(pipeline_report(), Path())).text


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_words_and_marks_have_the_contrast_that_wcag_asks_for(theme: int) -> None:
    themes = [
        colours(block) for block in re.findall(r":root \{(.*?)\}", (STYLES / "page.css.j2").read_text(), re.DOTALL)
    ]
    assert len(themes) == 3 and all(theme_colours.keys() == themes[0].keys() for theme_colours in themes)

    def contrast(first: str, second: str) -> float:
        dark, light = sorted(luminance(themes[theme][name]) for name in (first, second))
        return (light + 0.05) / (dark + 0.05)

    for ground in ("ground", "sheet", "tint"):
        for ink in ("ink", "soft", "accent", "good", "doubt", "bad"):
            assert contrast(ink, ground) >= 4.5, (ink, ground)
        for family in (name for name in themes[theme] if name.startswith("family")):
            assert contrast(family, ground) >= 3, (family, ground)


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_report_page(pipeline_report(tmp_path), tmp_path / "report.html")
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(InvalidRequest, match="cannot be written"):
        write_report_page(pipeline_report(tmp_path), tmp_path / "taken.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "report.html", "taken.html"]


def test_pictures_are_looked_for_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    write_report_page(pipeline_report(tmp_path), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_report(pipeline_report(tmp_path), tmp_path)


def test_without_jinja2_the_line_that_installs_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'stillhouse\[accelerate\]'"):
        write_report_page(pipeline_report(), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
