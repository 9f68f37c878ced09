"""The costs of a token: what the page in docs says, what mixers say, and what a hand counts."""

from pathlib import Path

from experiments.bench.mixer_costs import ROWS, kept, page
from tests.programs import run_module

MIXERS = {row.name: row for row in ROWS}


def test_the_page_is_up_to_date():
    file = Path(__file__).parents[2] / "docs" / "costs.md"
    assert file.read_text() == page(), "run python -m experiments.bench.mixer_costs"


def test_help():
    assert "usage" in run_module("experiments.bench.mixer_costs", "--help").stdout


def decode(name, context):
    return MIXERS[name].mixer.decode_flops(context)


def test_one_more_token_by_hand():
    weights = 4 * 1024 * 1024
    assert decode("softmax attention", 99) == 2 * weights + 4 * 100 * 1024
    assert kept(MIXERS["softmax attention"], 100) == 2 * 100 * 1024
    projections = 1024 * 4 * (2 * 192 + 3 * 384 + 2) + 4 * (2 * 192 + 384) * 4
    one_state = 4 * 192 * 384  # each key looked up and erased, and the state read
    of_chunks = 4 * (1 / 3 + 1 + 4 * 192 + 2 * 384)
    wanted = 2 * (projections + 3 * one_state + of_chunks)
    assert abs(decode("Gated DeltaNet", 99) / wanted - 1) < 1e-9
    levels = 2 * (1024 * 4 * 18 + 17 * 3 * one_state)  # 18 states, where the other has one
    assert decode("Log-Linear Gated DeltaNet", 99) == decode("Gated DeltaNet", 99) + levels


def test_a_step_costs_what_the_past_it_reads_costs():
    assert decode("softmax attention", 1000) > decode("softmax attention", 999)
    assert decode("screening, initial windows", 1000) == decode("screening, initial windows", 999)
