"""Reports in a real browser: they draw, sort, fit a phone, follow the scheme and load nothing."""

import json
import shutil
from contextlib import contextmanager

import pytest
import sweep_folders

from lmech import report, reproducing
from lmech.report import atlas

pytestmark = [pytest.mark.browser, pytest.mark.slow]

DRAWN = "return document.querySelectorAll('.chart .scatterlayer .trace').length"


@pytest.fixture(scope="module")
def browser():
    """Headless chromium, or skip."""
    path = shutil.which("chromedriver")
    if path is None:
        pytest.skip("no chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for word in ("--no-sandbox", "--headless=new", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(path))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with ``one.html``, ``two.html`` (two sweeps) and an atlas of them, ``site``."""
    folder = tmp_path_factory.mktemp("report")
    sweeps = [sweep_folders.write(folder / "outputs" / "run" / name) for name in ("abc", "def")]
    claim = {**sweep_folders.CLAIM, "source": "a long source of an interval " * 6}
    sections = [reproducing.redrawn(sweep)._replace(claims=[claim]) for sweep in sweeps]
    report.write(folder / "one.html", sections[:1])
    report.write(folder / "two.html", sections)
    report.write(folder / "plain.html", sections[:1], interactive=False)
    atlas.write(folder / "site", sweeps, reproducing.redrawn)
    return folder


@contextmanager
def shown(browser, page, width=1000, scheme="light", media="screen"):
    """The page in a window of that width; afterwards nothing is wrong and nothing came by wire."""
    command = browser.execute_cdp_cmd
    phone = width < 600
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": phone}
    command("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    command("Emulation.setEmulatedMedia", {"media": media, "features": features})
    browser.get(page.as_uri())
    yield browser
    errors = [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"]
    assert errors == []
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    loaded = browser.execute_script(script)
    assert {name for name in loaded if not name.startswith(("file:", "data:", "blob:"))} == set()


def drawn(browser):
    """Scroll to the curves and wait until they are drawn; how many traces there are."""
    browser.execute_script("document.querySelector('.curves').scrollIntoView()")
    return until(browser, lambda: browser.execute_script(DRAWN))


def until(browser, found):
    """Wait for something to be true."""
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda _: found())


def column(browser, name):
    """The cells' texts of a column of the jobs' table, and its head's aria-sort."""
    script = """
        const table = document.querySelector("table.sortable");
        const heads = [...table.tHead.rows[0].cells];
        const at = heads.findIndex(head => head.textContent.trim() === arguments[0]);
        const cells = [...table.tBodies[0].rows].map(row => row.cells[at].textContent.trim());
        return [cells, heads[at].getAttribute("aria-sort")];
    """
    return browser.execute_script(script, name)


def pressed(browser, name, key):
    """Press a key on a heading's button, as without a mouse."""
    from selenium.webdriver.common.by import By

    buttons = browser.find_elements(By.CSS_SELECTOR, "table.sortable th button")
    next(button for button in buttons if button.text.strip(" ↕↑↓") == name).send_keys(key)


def test_the_table_sorts_by_a_heading_with_the_keyboard_and_says_how(browser, site):
    with shown(browser, site / "one.html"):
        rate = "optimizer.learning_rate"
        assert column(browser, rate) == [["0.1", "0.4", "0.1", "0.4"], "none"]
        pressed(browser, rate, "\n")
        assert column(browser, rate) == [["0.1", "0.1", "0.4", "0.4"], "ascending"]
        pressed(browser, rate, " ")
        assert column(browser, rate) == [["0.4", "0.4", "0.1", "0.1"], "descending"]
        pressed(browser, "job", "\n")
        assert column(browser, rate)[1] == "none"
        assert column(browser, "job")[0] == ["job001", "job004", "job101", "job104"]


def test_curves_are_drawn_and_the_choices_change_them(browser, site):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    with shown(browser, site / "one.html"):
        assert drawn(browser) == 4
        chart = "const chart = document.querySelector('.chart');"
        state = chart + (
            "return [chart.layout.yaxis.title.text,"
            "chart.layout.yaxis.type, chart.layout.xaxis.type,"
            "chart.data.filter(trace => trace.showlegend).map(trace => trace.name)]"
        )
        first = browser.execute_script(state)
        assert first == ["train_loss", "log", "linear", ["0.1", "0.4"]]
        loss = browser.execute_script(chart + "return chart.data[0].y")
        assert max(loss) == 3.5  # the spike of one step
        Select(browser.find_element(By.NAME, "column")).select_by_value("sharpness")
        Select(browser.find_element(By.NAME, "colour")).select_by_value("seed")
        browser.find_element(By.NAME, "xlog").click()
        second = browser.execute_script(state)
        assert second == ["sharpness", "linear", "log", ["0", "1"]]
        assert browser.execute_script(chart + "return chart.data[0].x.length") == 13
        told = browser.find_element(By.CLASS_NAME, "hidden-values").text
        assert told.startswith("4 points are at zero")  # step 0, of each
        browser.find_element(By.NAME, "ylog").click()
        assert browser.execute_script(state)[1] == "log"


def test_a_curve_tells_its_value_where_one_points(browser, site):
    with shown(browser, site / "one.html"):
        drawn(browser)
        point = """
            const chart = document.querySelector(".chart");
            Plotly.Fx.hover(chart, [{curveNumber: 1, pointNumber: 137}]);
            const words = document.querySelectorAll(".hoverlayer text");
            return [...words].map(word => word.textContent).join();
        """
        text = browser.execute_script(point)
        for told in ("step 137", "train_loss 3.5", "learning_rate 0.4", "seed 0", "job004"):
            assert told in text


@pytest.mark.parametrize("page", ["one.html", "two.html", "plain.html", "site/index.html"])
@pytest.mark.parametrize("width", [360, 1000])
def test_no_page_scrolls_sideways(browser, site, page, width):
    with shown(browser, site / page, width):
        if page == "one.html":
            drawn(browser)
        wide, room = browser.execute_script(
            "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
        )
        assert wide == room
        assert width - 20 <= room <= width  # a scroll bar has the rest


def test_a_dark_scheme_darkens_page_and_chart_and_leaves_the_figure_on_white(browser, site):
    def luminance(color):
        values = [float(part) for part in color[color.index("(") + 1 : -1].split(",")]
        return sum(values[:3]) / 3

    style = """
        const of = (query, name) => getComputedStyle(document.querySelector(query))[name];
        return [of("body", "backgroundColor"), of("body", "color"), of("figure", "backgroundColor"),
                of(".chart .xtick text", "fill")];
    """
    found = {}
    for scheme in ("light", "dark"):
        with shown(browser, site / "one.html", scheme=scheme):
            drawn(browser)
            found[scheme] = [luminance(color) for color in browser.execute_script(style)]
    page, text, figure, ticks = zip(found["light"], found["dark"], strict=True)
    bright, dim = 200, 60
    assert page[0] > bright
    assert page[1] < dim
    assert figure == (255, 255)
    for ink in (text, ticks):
        assert ink[0] < dim
        assert ink[1] > bright


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_print_there_are_figure_and_claims_and_no_controls(browser, site, scheme):
    visible = "return [...document.querySelectorAll(arguments[0])].map(e => e.checkVisibility())"
    with shown(browser, site / "one.html", scheme=scheme, media="print"):
        ink = "return getComputedStyle(document.body).color"
        assert browser.execute_script(ink) == "rgb(0, 0, 0)"
        for query in ("figure svg", "table.claims", ".setting"):
            found = browser.execute_script(visible, query)
            assert set(found) == {True}, query
        for query in (".controls", "table.sortable", "button", "select", "details"):
            found = browser.execute_script(visible, query)
            assert set(found) == {False}, query


def test_an_atlas_opens_from_the_disk_and_leads_to_its_pages_and_back(browser, site):
    from selenium.webdriver.common.by import By

    with shown(browser, site / "site" / "index.html"):
        loaded = "return [...document.images].map(image => image.naturalWidth)"
        until(browser, lambda: browser.execute_script(loaded) == [640])
        browser.find_element(By.LINK_TEXT, "run").click()
        assert browser.current_url.endswith("/site/experiments/run.html")
        assert drawn(browser) == 4
        assert len(browser.find_elements(By.TAG_NAME, "section")) == 2
        browser.find_element(By.LINK_TEXT, "All experiments").click()
        assert browser.current_url.endswith("/site/index.html")


def test_hostile_words_run_nowhere(browser, site):
    words = "<img src=x onerror=\"document.title='broken'\">%{x}"
    folder = sweep_folders.write(site / "hostile" / "run" / "abc")
    entries = sweep_folders.entries(folder)
    for number, entry in enumerate(entries):
        entry["overrides"] = {words: f"{words}{number}"}
    sweep_folders.rewrite(folder, entries)
    section = reproducing.redrawn(sweep_folders.write(site / "other" / "run" / "abc"))
    page = report.write(site / "hostile.html", [section._replace(folder=folder, headline=words)])
    with shown(browser, page):
        drawn(browser)
        hover = (
            "Plotly.Fx.hover(document.querySelector('.chart'), [{curveNumber: 0, pointNumber: 3}])"
        )
        browser.execute_script(hover)
        assert browser.title == "run"
        assert browser.execute_script("return document.images.length") == 0
        legend = "return document.querySelector('.legendtext').textContent"
        assert json.dumps(browser.execute_script(legend)) == json.dumps(f"{words}0")
