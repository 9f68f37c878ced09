"""The explorer in headless Chromium: what is coloured is what `accepted_keys` found, exactly."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from matplotlib.colors import to_hex

from multiscreen_jax import inspect
from multiscreen_jax.inspect.explorer import quantise
from multiscreen_jax.inspect.figures import accepted_colours
from multiscreen_jax.models import Multiscreen
from tests.inspect.models import packed_rows, tiny

selenium = pytest.importorskip("selenium", reason="needs selenium: pip install selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver import ActionChains, Keys  # noqa: E402
from selenium.webdriver.common.actions import interaction  # noqa: E402
from selenium.webdriver.common.actions.action_builder import ActionBuilder  # noqa: E402
from selenium.webdriver.common.actions.pointer_input import PointerInput  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver: apt install both"
    ),
]
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--window-size=1400,900",
]
MOST = 6
# Texts of the 50 tokens of the vocabulary; how those are shown that cannot be shown as they are.
ODD = ["</script>", "<b>bold</b>", "<!--", "&amp;", "\n", "\t", "é漢", "🙂", "\ufffd", "{{data}}"]
UNSEEN = {"": "⟨10⟩", "\x00": "␀", "\udcff": "\\xff", "\u202e": "\\u202e", "\x7f": "␡"}
WORDS = [*ODD, *UNSEEN, *(f"word{i} " for i in range(35))]


@dataclasses.dataclass(frozen=True)
class Case:
    """A page that is open, and what it should show."""

    browser: webdriver.Chrome
    found: inspect.AcceptedKeys
    texts: list[str]

    def script(self, code: str, *arguments):
        return self.browser.execute_script(code, *arguments)

    def css(self, selector: str):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def wait(self, condition):
        WebDriverWait(self.browser, 20, 0.02).until(lambda _: condition())

    def hover(self, token: int) -> None:
        span = self.css(f"#t{token}")
        self.script("arguments[0].scrollIntoView({block: 'center'})", span)
        ActionChains(self.browser, 0).move_to_element(span).perform()

    def show(self, token: int) -> None:
        self.hover(token)
        self.wait(lambda: self.current() == token)

    def current(self) -> int:
        return self.script("return query")

    def painted(self) -> None:
        """After the next paint."""
        self.browser.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        )

    def coloured(self) -> dict[int, int]:
        """Token to level of all that are highlighted."""
        return dict(
            self.script(
                "return [...document.querySelectorAll('#text [data-level]')]"
                ".map((span) => [Number(span.dataset.token), Number(span.dataset.level)])"
            )
        )

    def tokens_of_class(self, name: str) -> list[int]:
        return self.script(
            "return [...document.querySelectorAll(arguments[0])].map((s) => +s.dataset.token)",
            f"#text .{name}",
        )

    def enabled(self) -> list[int]:
        return self.script(
            "return [...document.querySelectorAll('#grid button:enabled')]"
            ".map((button) => Number(button.dataset.tile))"
        )

    def check(self, token: int, tiles: list[int]) -> None:
        """Everything the page says about a token and these tiles."""
        found, heads = self.found, self.found.window.shape[1]
        in_window = found.in_window()
        levels: dict[int, int] = {}
        bands = {"in": 0, "weaker": 0}
        rows, silent = {}, []
        for tile in tiles:
            at = (*divmod(tile, heads), token)
            positions, relevance = found.keys(*at)
            for key, level in zip(positions.tolist(), quantise(relevance).tolist(), strict=True):
                levels[key] = max(levels.get(key, 0), level)
            bands["in"] = max(bands["in"], in_window[at])
            if found.accepted[at] > MOST:
                bands["weaker"] = max(bands["weaker"], in_window[at])
            if found.accepted[at]:
                said = f"{found.accepted[at]:,} of {in_window[at]:,} accepted"
                rows[tile] = (said, positions.tolist())
            else:
                silent.append(tile)
        self.wait(lambda: self.coloured() == levels)
        for name, width in bands.items():
            assert self.tokens_of_class(name) == list(range(token + 1 - width, token + 1))
        assert self.tokens_of_class("query") == [token]
        self.wait(lambda: not self.script("return listDue"))
        listed = self.script(
            "return [...document.querySelectorAll('#list li[data-tile]')].map((row) => "
            "[+row.dataset.tile, row.querySelector('.facts').textContent, "
            "[...row.querySelectorAll('[data-key]')].map((chip) => +chip.dataset.key)])"
        )
        assert {tile: keys for tile, _, keys in listed} == {
            t: keys for t, (_, keys) in rows.items()
        }
        for tile, facts, _ in listed:
            assert rows[tile][0] in facts
        totals = found.total_relevance[:, :, token].ravel()[[tile for tile, _, _ in listed]]
        assert (np.diff(totals) <= 0.01 * totals[:-1]).all()  # strongest first, as far as kept
        spoken = self.script("return document.querySelector('#list .silent')?.textContent ?? ''")
        assert ("Nothing accepted" in spoken) == bool(silent)
        for tile in silent:
            assert "layer {}, head {}".format(*divmod(tile, heads)) in spoken
        counts = self.script(
            "return [...document.querySelectorAll('#grid button')].map((b) => +b.dataset.accepted)"
        )
        assert counts == found.accepted[:, :, token].ravel().tolist()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=[200, 4000])
def opened(request, browser, tmp_path_factory):
    """A packed row of 200 tokens; 4000 tokens of one document."""
    model, params = tiny()
    model = Multiscreen(dataclasses.replace(model.config, implementation="chunked"))
    tokens, segments = (x[2] for x in packed_rows(3, request.param))
    segments = segments if request.param == 200 else None
    found = inspect.accepted_keys(model, params, tokens, MOST, segments)
    texts = [WORDS[token] for token in tokens]
    page = inspect.explore(model, params, tokens, texts, segment_ids=segments, most=MOST)
    path = page.save(tmp_path_factory.mktemp("page") / "explorer.html")
    return browser, found, texts, path.as_uri()


@pytest.fixture
def case(opened):
    """The page, newly opened; at the end there was no console error and no network request."""
    browser, found, texts, address = opened
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(address)
    yield Case(browser, found, texts)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert address in asked
    assert {url for url in asked if not url.startswith("data:")} == {address}


def tokens_with_words(case: Case, count: int) -> list[int]:
    """Tokens spread over the text that have a width on the screen."""
    wide = [i for i, text in enumerate(case.texts) if text.startswith("word")]
    return [wide[i] for i in np.linspace(len(wide) // 10, len(wide) * 0.8, count).astype(int)]


def test_hover_colours_exactly_the_accepted_keys(case):
    everything = list(range(8))
    for token in tokens_with_words(case, 6):
        case.show(token)
        case.check(token, everything)
    assert case.coloured()
    level = next(iter(case.coloured().items()))
    colour = case.script(f"return getComputedStyle(spans[{level[0]}]).backgroundColor")
    red, green, blue = (int(to_hex(accepted_colours()(level[1]))[i : i + 2], 16) for i in (1, 3, 5))
    assert colour == f"rgb({red}, {green}, {blue})"


def test_texts_are_shown_as_they_are(case):
    shown = case.script("return spans.map((span) => span.textContent)")
    assert shown == [UNSEEN.get(text, text) for text in case.texts]
    assert set(ODD) <= set(case.texts)
    assert case.script("return document.querySelectorAll('#text b, #text script').length") == 0


def test_filters_choose_tiles(case):
    (token,) = tokens_with_words(case, 1)
    found = case.found
    case.show(token)
    window, width = found.window.ravel(), found.width.ravel()

    def fill(name, value):
        field = case.css(f"#{name}")
        field.clear()
        field.send_keys(value)

    def check(chosen):
        tiles = np.flatnonzero(chosen).tolist()
        case.wait(lambda: case.enabled() == tiles)
        case.check(token, tiles)
        kept = found.accepted.reshape(8, -1)[tiles].sum()
        pairs = found.in_window().reshape(8, -1)[tiles].sum()
        summary = case.css("#summary").text
        assert summary.startswith(f"{len(tiles)} of 8 tiles")
        if pairs:
            assert f"{100 * (1 - kept / pairs):.1f} %" in summary
        return tiles

    layer = np.arange(8) // 4
    Select(case.css("#layer")).select_by_value("1")
    assert check(layer == 1) == [4, 5, 6, 7]
    fill("window-from", "2.5")
    fill("window-to", "150")
    assert check((layer == 1) & (window > 2.5) & (window < 150)) == [5, 6]
    case.css("#reset").click()
    check(layer >= 0)
    fill("window-from", "200")  # infinite ones are above any bound
    assert check(window > 200) == [3, 7]
    fill("window-from", "1")
    fill("width-from", "0.48")
    fill("width-to", "0.75")
    assert check((width > 0.48) & (width < 0.75)) == [1, 3, 4]
    fill("width-from", "0.99")
    assert check(width > 0.99) == []
    assert case.css("#sentence").text == "No tile passes the filters."


def test_a_tile_alone_and_one_that_accepts_nothing(case):
    found = case.found
    words = set(tokens_with_words(case, 60))
    tile, token = next(
        (tile, token)
        for tile in (1, 5, 6)
        for token in sorted(words)
        if found.accepted[*divmod(tile, 4), token] == 0 and found.reach[token] > 1
    )
    case.show(token)
    case.css(f"#t{token}").click()  # pinned, so that the pointer may leave
    ActionChains(case.browser, 0).move_to_element(case.css('#grid [data-tile="3"]')).perform()
    seen = found.position[0, 3, token]
    case.wait(lambda: sorted(case.coloured()) == sorted(seen[seen >= 0].tolist()))
    button = case.css(f'#grid [data-tile="{tile}"]')
    button.click()
    case.check(token, [tile])
    assert button.get_attribute("aria-pressed") == "true"
    assert "nothing accepted" in button.get_attribute("aria-label")
    pairs = found.in_window()[*divmod(tile, 4), token]
    said = "Nothing accepted by layer {}, head {}".format(*divmod(tile, 4))
    assert case.css("#sentence").text == f"{said}: all {pairs} keys in its window got exactly 0."
    case.css('#grid [data-tile="3"]').click()
    case.hover(token)  # away from the tiles: a tile under the pointer is shown alone
    case.check(token, sorted({tile, 3}))
    case.css("#reset").click()
    case.hover(token)
    case.check(token, list(range(8)))


def test_colour_by_number_of_tiles(case):
    (token,) = tokens_with_words(case, 1)
    case.show(token)
    Select(case.css("#colour")).select_by_value("tiles")
    positions = case.found.position[:, :, token].ravel()
    keys, counts = np.unique(positions[positions >= 0], return_counts=True)
    expected = dict(zip(keys.tolist(), np.ceil(255 * counts / 8).astype(int).tolist(), strict=True))
    case.wait(lambda: case.coloured() == expected)


def test_pins_and_keys(case):
    first, second, third = tokens_with_words(case, 3)
    case.show(first)
    case.css(f"#t{first}").click()
    case.wait(lambda: "pinned" in case.css("#token").text)
    case.hover(second)
    case.painted()
    assert case.current() == first
    case.check(first, list(range(8)))

    focused = case.browser.switch_to.active_element
    assert focused == case.css("#text")  # a click puts the keyboard there too
    focused.send_keys(Keys.ARROW_RIGHT)
    case.wait(lambda: case.current() == first + 1)
    focused.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    case.wait(lambda: case.current() == first - 1)
    case.check(first - 1, list(range(8)))
    assert f"token {first - 1:,}" in case.css("#status").get_attribute("textContent")
    top = case.script("return spans[query].offsetTop")
    focused.send_keys(Keys.ARROW_DOWN)
    case.wait(lambda: case.script("return spans[query].offsetTop") > top)
    focused.send_keys(Keys.ARROW_UP)
    case.wait(lambda: case.script("return spans[query].offsetTop") == top)
    focused.send_keys(Keys.END)
    case.wait(lambda: case.current() == len(case.texts) - 1)
    padding = case.found.reach[-1] == 0  # at the end of the packed row
    assert (case.css("#sentence").text == "Padding: it reads nothing.") == padding
    focused.send_keys(Keys.HOME)
    case.wait(lambda: case.current() == 0)

    focused.send_keys(Keys.ESCAPE)
    case.wait(lambda: "pinned" not in case.css("#token").text)
    case.show(third)
    focused.send_keys(Keys.ENTER)
    case.wait(lambda: "pinned" in case.css("#token").text)
    focused.send_keys(Keys.ESCAPE, Keys.ESCAPE)
    case.wait(lambda: case.current() == -1)
    assert case.coloured() == {}
    assert case.css("#token").text == "The whole text"


def test_a_finger_pins(case):
    (token,) = tokens_with_words(case, 1)
    span = case.css(f"#t{token}")
    case.script("arguments[0].scrollIntoView({block: 'center'})", span)
    touch = ActionBuilder(case.browser, mouse=PointerInput(interaction.POINTER_TOUCH, "finger"))
    touch.pointer_action.move_to(span).pointer_down().pointer_up()
    touch.perform()
    case.wait(lambda: case.current() == token)
    case.check(token, list(range(8)))
    assert "pinned" in case.css("#token").text
