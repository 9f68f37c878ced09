"""What studies conclude from rows that agree with the papers, and from rows that do not."""

import pytest

from experiments.paper import abcdigits, embedding_rows, learning_rates, loss_curves, scaling


def scaling_rows(**losses):
    """Three sizes of each model; the Transformer has one and a half times the parameters."""
    return [
        {
            "model": model,
            "size": f"{n}x{n}",
            "parameters": n * (1000 if model == "multiscreen" else 1500),
            "validation_loss": loss,
        }
        for model, found in losses.items()
        for n, loss in zip((2, 4, 8), found, strict=True)
    ]


@pytest.mark.parametrize(
    ("ours", "below", "worse"),
    [
        (
            (1.4, 1.3, 1.2),
            "below the Transformer of as many parameters (interpolated) at 2 of 2",
            0,
        ),
        ((2.1, 2.0, 1.9), "(interpolated) at 0 of 2 sizes", 0),
        ((1.5, 1.2, 1.3), "at 2 of 2", 1),
    ],
)
def test_scaling(ours, below, worse):
    text = scaling.report(scaling_rows(multiscreen=ours, transformer=(1.8, 1.6, 1.4)))
    assert below in text
    assert text.count("is no better than") == worse


def rate_rows(model, losses):
    facts = {"first_loss": 5.0, "last_loss": 1.5, "not_finite": 0}
    return [
        {"model": model, "rate_log2": rate, "validation_loss": loss, **facts}
        for rate, loss in losses.items()
    ]


def test_learning_rates():
    rows = rate_rows("multiscreen", {-8: 1.7, -4: 1.6, 0: 1.75})
    text = learning_rates.report([*rows, *rate_rows("transformer", {-8: 1.6, -4: 3, 0: 1e9})])
    assert "Multiscreen is best at 2^-4 (1.600) and within 10 % of that from 2^-8 to 2^0" in text
    assert "Transformer is best at 2^-8 (1.600) and within 10 % of that from 2^-8 to 2^-8" in text
    rows[-1] |= {"not_finite": 3}
    assert "steps that are not finite" in learning_rates.report(rows)


def curve_rows(model, losses, norm):
    return [
        {"model": model, "rate_log2": rate, "run": f"{model}{rate}", "seed": 0, "step": step}
        | {"loss": loss, "gradient_norm": norm}
        for rate in (-4, 0)
        for step, loss in zip((10, 20, 30, 40), losses, strict=True)
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ((3, 2, 2, 1), (4, 5, 9, 6), ["2.00 in the second half: smooth, as", "diverged, as"]),
        ((3, 2, 4, 1), (4, 3, 3, 2), ["4.00 in the second half: diverged, unlike", "smooth, unl"]),
    ],
)
def test_loss_curves(ours, theirs, said):
    rows = [*curve_rows("multiscreen", ours, 0.001), *curve_rows("transformer", theirs, 0.5)]
    text = loss_curves.report(rows)
    assert all(part in text for part in said)
    assert "0.002 times the Transformer's: almost nothing, as in the paper" in text
    rows = [*curve_rows("multiscreen", ours, 0.1), *curve_rows("transformer", theirs, 0.5)]
    assert "0.2 times the Transformer's: not almost nothing" in loss_curves.report(rows)


def digit_rows(norm, accuracy):
    return [
        {"run": f"{norm}-{seed}", "row_norm": norm, "learning_rate": 2**-8, "step": step}
        | {"digit_accuracy": value + step / 10000, "seed": seed}
        for seed, value in enumerate(accuracy)
        for step in (400, 500, 800)
    ]


@pytest.mark.parametrize(
    ("small", "said"), [((0.1, 0.3), "is confirmed"), ((0.1, 0.75), "is not confirmed")]
)
def test_embedding_rows(small, said):
    rows = [*digit_rows(1.0, (0.7, 0.8)), *digit_rows(0.1, small)]
    assert f"The direction {said}" in embedding_rows.report(rows)


def match_rows(model, rule, scores, seed=0):
    return [
        {"run": f"{model}{seed}", "model": model, "rule": rule, "learning_rate": 2**-8}
        | {"length": length, "depth": depth, "exact_match": score, "seed": seed}
        for length, score in scores.items()
        for depth in (0.1, 0.9)
    ]


def test_abcdigits():
    rule = "infinite windows"
    good = match_rows("multiscreen", rule, {50: 1.0, 400: 0.95})
    worst = match_rows("multiscreen", rule, {50: 0.5, 400: 0.25}, seed=1)
    nothing = match_rows("transformer", "factor 1", {50: 0.0, 400: 0.0})
    text = abcdigits.report([*good, *nothing])
    assert "the worst of 1: 100.0% at 50, 95.0% at 400 lines, solved at its training" in text
    assert "No Transformer answered anything" in text
    text = abcdigits.report([*good, *worst, *match_rows("transformer", "factor 1", {50: 1.0})])
    assert "the worst of 2: 50.0% at 50, 25.0% at 400 lines, not solved at its training" in text
    assert "the best of 1: 100.0% at 50 lines, solved" in text
    assert "No Transformer" not in text


def test_of_factors_the_best_of_each_cell_counts():
    rows = match_rows("transformer", "factor 1", {50: 0.25, 400: 0.0})
    rows += match_rows("transformer", "factor 8", {50: 0.0, 400: 0.5})
    assert "the best of 1: 25.0% at 50, 50.0% at 400 lines" in abcdigits.report(rows)
