"""The page and its pictures: whole, safe whatever files are called, and fit to be read anywhere."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from gemcut.errors import OutputError
from gemcut.eval.report import plots, record
from gemcut.eval.report.folder import write_folder
from gemcut.eval.report.marks import spread
from gemcut.eval.report.page import page
from gemcut.eval.report.record import read, to_dict
from gemcut.eval.report.sections import gallery, sections
from tests.browser import PROGRAM, Browser
from tests.reports import report, small

in_browser = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")
pictured = pytest.mark.skipif(not plots.available(), reason="there is no matplotlib")

HOSTILE = ("<script>alert(1)</script> & $x^2$.gguf", '"><img src=x onerror=alert(1)>\x1b$.gguf')
KINDS = ["size-kld", "memory-kld", "speed-kld", "histogram", "tail", "domains", "routers", "cache"]


@pytest.fixture(scope="module")
def whole():
    return report()


@pytest.fixture(scope="module")
def text(whole):
    return page(whole)


@pytest.fixture
def without_matplotlib(monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)


# --- pictures ------------------------------------------------------------------------------------


@pictured
def test_everything_that_was_measured_has_a_picture(whole):
    names = [plot.name for plot in gallery(whole)]

    assert names[:8] == KINDS
    assert names[8:] == ["predicted", *(f"types-{i}" for i in range(8))]


@pictured
def test_equal_reports_make_equal_pictures():
    """No date, no random id: two pages differ only where results do."""
    plot, again = gallery(small())[0], gallery(small())[0]

    assert plots.svg(plot) == plots.svg(again)
    assert plots.png(plot) == plots.png(again)


@pictured
def test_names_are_text_in_pictures():
    """Neither markup nor formulas: what a file is called is what stands there."""
    first = gallery(small(HOSTILE))[0]
    document = plots.svg(first)
    texts = [element.text for element in ElementTree.fromstring(document).iter() if element.text]

    assert any("$x^2$" in each for each in texts)
    assert "<script" not in document and "<img" not in document


@pictured
@pytest.mark.parametrize("name", ["模型.gguf", "a" * 300 + ".gguf", "\u202eb.gguf"])
def test_any_name_can_be_drawn(name):
    """Letters that the font lacks are no warning, and a long name leaves room for the picture."""
    first = gallery(small((name, "b.gguf")))[0]

    assert len(max(re.findall(r">([^<]*)</text>", plots.svg(first)), key=len)) < 60


def test_labels_are_kept_apart_and_in_order():
    found = spread([5.0, 5.1, 5.2, 40.0, 4.9], 10)

    assert [sorted(found)[i + 1] - sorted(found)[i] >= 9.99 for i in range(4)] == [True] * 4
    assert sorted(range(5), key=lambda i: found[i]) == [4, 0, 1, 2, 3]
    assert sum(found[i] for i in (0, 1, 2, 4)) / 4 == pytest.approx(5.05)


# --- page ----------------------------------------------------------------------------------------


@pictured
def test_the_page_holds_all_it_needs(text):
    """Nothing from elsewhere, no script, and a policy that would allow neither."""
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)

    assert policy and "default-src 'none'" in policy[1] and "script-src" not in policy[1]
    assert [] == re.findall(
        r"""<(?:script|link|iframe|object)|(?<!xlink:)(?:src|href)=["'](?!#)""", text
    )
    assert [] == re.findall(r"""url\((?!#)|@import|xlink:href="(?!#)""", text)
    for needed in ("Q8_0 is closest", "Routing", "KV cache", "Tasks", "Protocol", "fingerprint"):
        assert needed in text
    assert "/models" not in text and "matplotlib is not installed" not in text


@pictured
def test_pictures_follow_the_theme(text):
    """All their colours are variables, which both themes define."""
    found = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    used = {name for each in found for name in re.findall(r"var\(--([\w-]+)\)", each)}

    assert found and not re.findall("(?:fill|stroke): #", "".join(found))
    light, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)[:2]
    assert all(f"--{name}:" in light and f"--{name}:" in dark for name in used)


@pictured
def test_no_id_comes_twice(text):
    found = re.findall(r'\bid="([^"]*)"', text)

    assert len(found) == len(set(found))


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_there_are_tables_and_a_way_to_get_more(whole):
    text = page(whole)

    assert "pip install &#39;gemcut[plot]&#39;" in text and "<figure" not in text
    assert text.count("<table") == sum(len(section.grids) for section in sections(whole))


@pytest.mark.usefixtures("without_matplotlib")
def test_names_are_text_in_tables():
    text = page(small(HOSTILE, notes=HOSTILE))

    assert "<script" not in text and "<img" not in text and "\x1b" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x^2$" in text


@pytest.mark.usefixtures("without_matplotlib")
def test_a_report_of_nothing_has_a_page():
    assert "How it was measured" in page(small(comparisons=(), files=(), tasks=()))


@in_browser
@pictured
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window(text, tmp_path, width):
    """It is never wider, on a phone as little as on a desktop; nothing else is loaded."""
    (tmp_path / "page.html").write_text(text)
    with Browser(tmp_path / "profile", width, 800) as browser:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        browser.open(f"file://{tmp_path / 'page.html'}")
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert 17 == browser.run("document.querySelectorAll('figure svg').length")
        asked = [event["request"]["url"] for event in browser.of("Network.requestWillBeSent")]
        assert [f"file://{tmp_path / 'page.html'}"] == asked
        assert [] == browser.of("Log.entryAdded") + browser.of("Runtime.exceptionThrown")
        smallest = (
            "Math.min(...[...document.querySelectorAll('figure svg')].map(s => s.clientWidth))"
        )
        assert browser.run(smallest) > 300


# --- folder --------------------------------------------------------------------------------------


@pictured
def test_a_folder_holds_everything(tmp_path):
    """And is made again in the same place, the record last."""
    found = small(files=())
    folder = tmp_path / "new" / "results"
    written = write_folder(found, folder)

    names = {path.relative_to(folder).as_posix() for path in written}
    assert {"report.html", "README.md", "report.csv", "scores.npz", "report.json"} <= names
    assert {"plots/size-kld.svg", "plots/size-kld.png"} <= names
    assert all(path.is_file() for path in written) and written[-1].name == "report.json"
    assert {p for p in folder.rglob("*") if p.is_file()} == set(written)
    assert "(plots/size-kld.png)" in (folder / "README.md").read_text()
    assert to_dict(read(folder)) == to_dict(found)


@pytest.mark.usefixtures("without_matplotlib")
def test_results_replace_only_results(tmp_path):
    """Somebody's README is not overwritten; older results are."""
    found = small()
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(OutputError, match=r"README.md: is there, and of no comparison"):
        write_folder(found, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"

    write_folder(found, tmp_path / "results")
    write_folder(found, tmp_path / "results")
    assert not list((tmp_path / "results").glob(".*"))


@pytest.mark.usefixtures("without_matplotlib")
def test_results_that_were_not_finished_are_replaced(tmp_path, monkeypatch):
    """The disk was full, or the process killed: the record, which comes last, is not there."""

    def full(*_):
        raise OutputError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(record, "write", full)
        with pytest.raises(OutputError, match="no space left"):
            write_folder(small(), tmp_path)
    assert (tmp_path / "report.html").exists() and not (tmp_path / "report.json").exists()

    write_folder(small(), tmp_path)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("without_matplotlib")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(OutputError, match="file: is a file, wanted a folder"):
        write_folder(small(), tmp_path / "file")
    with pytest.raises(OutputError, match="file: is a file, wanted a folder"):
        write_folder(small(), tmp_path / "file" / "results")
