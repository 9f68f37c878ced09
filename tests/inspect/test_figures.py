"""Figures: that they draw, what their titles say, and which colour means what."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from multiscreen_jax import inspect
from multiscreen_jax.inspect.relevance import RelevanceMaps
from tests.inspect.models import packed_rows, tiny

WHITE, GREY = (1.0, 1.0, 1.0), tuple(int(x, 16) / 255 for x in ("dc", "de", "e3"))


def png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=60)
    return stream.getvalue()


def hand_made(length: int = 6) -> RelevanceMaps:
    """One tile with window 3 that reads only the token before."""
    relevance = np.zeros((1, 1, length, length), np.float32)
    relevance[0, 0, np.arange(1, length), np.arange(length - 1)] = 0.25
    return RelevanceMaps(relevance, np.array([[3.0]]), np.array([[0.5]]), (4,))


def test_figure_of_a_model():
    model, params = tiny()
    tokens, _ = packed_rows(1, 40)
    maps = inspect.relevance_maps(model, params, tokens)
    figure = inspect.plot_relevance(maps, [f"<{t}>" for t in tokens[0]], title="A model")
    assert isinstance(figure, Figure)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    share = maps.share_accepted()[1, 1]
    assert len(titles) == 8
    assert titles[0].startswith("layer 0, head 0\nw 1.00   r 0.90")
    assert titles[5] == f"layer 1, head 1\nw 40.5   r 0.80   {100 * share:.1f} %"
    assert titles[7].startswith("layer 1, head 3\nw inf")
    assert "A model" in [text.get_text() for text in figure.texts]
    data = png(figure)
    assert data.startswith(b"\x89PNG")
    assert len(data) > 20_000


def test_colours_mean_what_the_legend_says():
    figure = inspect.plot_relevance(hand_made())
    image = np.asarray(figure.axes[0].images[0].get_array())[..., :3]
    assert figure.axes[0].get_title() == "layer 4, head 0\nw 3.00   r 0.50   33.3 %"
    np.testing.assert_allclose(image[5, 5], WHITE)  # inside the window, rejected
    np.testing.assert_allclose(image[5, 2], GREY)  # too far back
    np.testing.assert_allclose(image[2, 5], GREY)  # the future
    assert image[5, 4].sum() < 2  # accepted: clearly neither


def test_long_prompts_keep_single_accepted_keys():
    maps = hand_made(600)
    maps.relevance[:] = 0
    maps.relevance[0, 0, 501, 500] = 1
    image = np.asarray(inspect.plot_relevance(maps).axes[0].images[0].get_array())
    assert image.shape[0] <= 256
    assert (image[..., :3].sum(-1) < 1).sum() == 1


def test_prompt_is_printed_below_or_beside():
    long = inspect.plot_relevance(hand_made(60), ["ab$ "] * 60)
    assert any("ab" in text.get_text() for text in long.texts)
    short = inspect.plot_relevance(hand_made(4), ["a", " b", "\n", "$x$"])
    labels = [label.get_text() for label in short.axes[0].get_yticklabels()]
    assert labels == ["a", "␣b", "⏎", r"\$x\$"]
    assert png(short)
    with pytest.raises(ValueError, match="3 entries for maps of 4"):
        inspect.plot_relevance(hand_made(4), ["a"] * 3)


def test_windows_and_widths():
    window = np.array([[2.0, 17.5, 300.0], [1.5, 90.0, np.inf]])
    figure = inspect.plot_windows_widths(window, np.full((2, 3), 0.4), title="Tiles")
    points = figure.axes[0].collections[0].get_offsets()
    assert points.shape == (6, 2)
    assert np.isfinite(np.asarray(points)).all()
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[-1] == "∞"
    assert len(png(figure)) > 5000
    with pytest.raises(ValueError, match="one shape"):
        inspect.plot_windows_widths(window, window[0])


def test_pictures_of_a_model(tmp_path):
    model, params = tiny()
    paths = inspect.save_pictures(model, params, packed_rows(1, 40)[0], tmp_path / "new")
    assert [path.name for path in paths] == ["relevance.png", "windows.png"]
    assert all(path.stat().st_size > 10_000 for path in paths)


def test_table_has_a_line_per_tile():
    model, params = tiny()
    counts = inspect.acceptance(model, params, packed_rows(1, 40)[0])
    lines = inspect.tile_table(counts).splitlines()
    assert lines[0].split() == ["layer", "head", "window", "width", "accepted", "silent"]
    assert len(lines) == 9
    assert lines[8].split()[:4] == ["1", "3", "inf", "0.900"]
    assert len({len(line) for line in lines}) == 1
