"""The explorer's page by itself: what it holds, what no text can break, how it is saved."""

import base64
import html
import json
import re

import numpy as np
import pytest

from multiscreen_jax import inspect
from multiscreen_jax.inspect.explorer import _payload, quantise
from tests.inspect.models import packed_rows, tiny

HOSTILE = ["</script>", "<!--<script>", "{{data}}", "&lt;", "\ud800", "\u2028", '"', "\\"]


def page_data(page: str) -> dict:
    """What the script reads, cut out as a browser cuts it: up to the first `</script`."""
    text = page.split('id="data">')[1].split("</script")[0]
    return json.loads(text)


def decoded(text: str, dtype) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


@pytest.fixture(scope="module")
def prompt():
    """A packed row, its documents, and the text of its tokens."""
    tokens, segments = (x[2] for x in packed_rows(3, 200))
    return tokens, segments, [HOSTILE[t % 8] for t in tokens]


def test_page_holds_the_accepted_keys(prompt):
    model, params = tiny()
    tokens, segments, _ = prompt
    found = inspect.accepted_keys(model, params, tokens, 8, segments)
    page = inspect.explore(model, params, tokens, segment_ids=segments, most=8)
    data = page_data(page.html)
    kept = found.relevance > 0
    query = np.broadcast_to(np.arange(200)[:, None], kept.shape)
    np.testing.assert_array_equal(decoded(data["accepted"], "<u2"), found.accepted.ravel())
    distance = decoded(data["distance"], "<u2")
    np.testing.assert_array_equal(query[kept] - distance, found.position[kept])
    level = decoded(data["level"], np.uint8)
    np.testing.assert_allclose((level / 255.0) ** 2, found.relevance[kept], atol=0.004)
    assert level.min() > 0
    total = (decoded(data["total"], "<u2").astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(total, found.total_relevance.ravel(), rtol=2**-7)
    np.testing.assert_array_equal(decoded(data["reach"], "<u4"), found.reach)
    np.testing.assert_allclose(
        np.array(data["window"], float), np.where(np.isinf(found.window), np.nan, found.window)
    )
    assert data["tokens"][0] == f"{tokens[0]} "
    bytes_written = sum(len(data[name]) for name in ("accepted", "total", "distance", "level"))
    assert bytes_written < 16 / 3 * found.accepted.size + 4 * kept.sum() + 16  # as documented


def test_positions_above_65535():
    length = 70_000
    position = np.arange(length, dtype=np.int32).reshape(1, 1, length, 1) // 2
    accepted, tile = np.ones((1, 1, length), np.int32), np.full((1, 1), np.inf)
    relevance = np.full(position.shape, 0.25, np.float32)
    reach = np.arange(1, length + 1)
    found = inspect.AcceptedKeys(
        position, relevance, accepted, relevance[..., 0], reach, tile, np.full((1, 1), 0.5)
    )
    data = _payload(found, [""] * length, np.zeros(length, int))
    assert data["wide"]
    assert data["window"] == [[None]]
    np.testing.assert_array_equal(decoded(data["accepted"], "<u4"), 1)
    distance = decoded(data["distance"], "<u4")
    np.testing.assert_array_equal(np.arange(length) - distance, position.ravel())


def test_levels_never_reach_zero_and_keep_the_order():
    relevance = np.array([1e-30, 1e-6, 1e-3, 0.25, 0.999, 1.0], np.float32)
    levels = quantise(relevance)
    np.testing.assert_array_equal(levels, [1, 1, 8, 128, 255, 255])


def test_no_text_leaves_its_place(prompt):
    model, params = tiny()
    tokens, _, texts = prompt
    title = "</title><script>alert(1)</script> {{script}}"
    page = inspect.explore(model, params, tokens, texts, title=title).html
    assert page_data(page)["tokens"] == texts
    assert len(re.findall("<script", page)) == len(re.findall("</script", page)) == 2
    assert html.escape(title) in page
    assert "<!--<" not in page


def test_page_is_alone():
    model, params = tiny()
    page = inspect.explore(model, params, [1, 2, 3]).html
    assert not re.search(r"https?:|//[a-z]+\.|@import|\bsrc=|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page
    assert len(page) < 60_000


def test_saved_and_shown_in_a_notebook(tmp_path, prompt):
    model, params = tiny()
    tokens, _, texts = prompt
    page = inspect.explore(model, params, tokens[None], texts)
    path = page.save(tmp_path / "new" / "page.html")
    assert path.read_text(encoding="utf-8") == page.html
    frame = page._repr_html_()
    (inside,) = re.findall(r'srcdoc="([^"]*)"', frame)
    assert html.unescape(inside) == page.html
    assert "MB of HTML" in repr(page)


@pytest.mark.parametrize("title", ["\ud800", "a\0b", "\ud83d\ude00", "<script>", "$\\frac{"])
def test_any_title_is_shown(tmp_path, title):
    model, params = tiny()
    page = inspect.explore(model, params, [1, 2, 3], ["\ud800", "a\0b", "$"], title=title)
    assert page.save(tmp_path / "page.html").read_text(encoding="utf-8") == page.html
    maps = inspect.relevance_maps(model, params, [1, 2, 3])
    inspect.plot_relevance(maps, ["\ud800", "\0", "$\\frac{"], title).savefig(tmp_path / "a.png")
    figure = inspect.plot_windows_widths(maps.window, maps.width, title)
    figure.savefig(tmp_path / "b.png")


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "", None])
def test_pages_and_pictures_go_where_a_file_can_be(path):
    model, params = tiny()
    with pytest.raises(ValueError, match=r"^path is .*; allowed: "):
        inspect.explore(model, params, [1, 2, 3]).save(path)
    with pytest.raises(ValueError, match=r"^folder is .*; allowed: "):
        inspect.save_pictures(model, params, [1, 2, 3], path)


def test_bad_arguments():
    model, params = tiny()
    with pytest.raises(ValueError, match="2 entries for 3 tokens"):
        inspect.explore(model, params, [1, 2, 3], ["a", "b"])
    with pytest.raises(ValueError, match="most must be an integer >= 1, got 0"):
        inspect.explore(model, params, [1, 2, 3], most=0)
    with pytest.raises(TypeError, match=r"tokens_text\[1\] is b'x'; allowed: strings"):
        inspect.explore(model, params, [1, 2], ["a", b"x"])
    with pytest.raises(TypeError, match="title is None; allowed: a string"):
        inspect.explore(model, params, [1, 2], title=None)
    with pytest.raises(TypeError, match="needs a Multiscreen"):
        inspect.explore(None, {}, [1, 2, 3])
