"""Advice follows from the numbers, and the command takes all of it."""

import shlex
import types

import pytest
import tyro

from experiments.aot.advice import advice
from experiments.aot.chips import GIB
from experiments.aot_check import requested


def advised(given, needed, parameters=0.01):
    """The advice for options of the command if a chip needed so many GiB, and so many of them for
    parameters and twice that for the optimizer; each line's options joined to those given."""
    config, topology, mesh = requested(**given)
    found = types.SimpleNamespace(
        config=config,
        topology=topology,
        mesh={"data": 1, "fsdp": 1, "seq": 1, "model": 1, **mesh},
        fits=needed * GIB <= topology.chip.usable,
        needed=int(needed * GIB),
        parameter_bytes=int(parameters * GIB),
        optimizer_bytes=int(2 * parameters * GIB),
    )
    return advice(found)


def follow(given, line):
    """Config, topology and mesh as the command's parser and checks give them for advice."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    new = shlex.split(line.split(": ")[0])
    replaced = [x for x in options if x.split("=")[0] not in new]
    return tyro.cli(requested, args=[*replaced, *new])


def at_a_time(config, topology, mesh):
    """Tokens of a chip at a time."""
    tokens = config.data.batch_size * config.data.sequence_length
    return tokens * mesh.get("model", 1) // (config.train.accumulate * topology.chips)


SHORT = {"config": "286m", "topology": "v5e:4x4", "batch_tokens": 2**20}
LONG = {"config": "286m", "topology": "v5e:16x16", "length": 131072, "batch_tokens": 2**25}


def test_what_fits_needs_no_advice():
    assert advised(SHORT, 15) == []
    assert advised(SHORT, 0) == []  # nor can there be any where nothing is known


def test_fewer_sequences_at_a_time():
    dtype, parts = advised({**SHORT, "dtype": "float32"}, 40)
    assert dtype.startswith("--dtype bfloat16: ")
    # 16 rows need 40 GiB; a quarter of them fits.
    assert parts == "--accumulate 4: 4 of 16 sequences at a time on each chip, about 10.0 GiB"
    remat, _ = advised({**SHORT, "remat": "dots"}, 40)
    assert remat.startswith("--remat full: ")


def test_where_one_long_sequence_does_not_fit_a_share_of_it_comes_first():
    seq, length = advised(LONG, 40)
    assert seq.startswith("--mesh fsdp=64,seq=4 --accumulate 4: one sequence at a time on 4 chips")
    assert length.startswith("--length 32768 --batch-tokens 33554432 --accumulate 4: ")
    assert advised({**LONG, "dtype": "float32"}, 40)[0].startswith("--mesh fsdp=64,seq=4 ")
    # Copies make room for shares without dividing the state less.
    seq, _, _ = advised({**LONG, "mesh": "data=4,fsdp=64"}, 40)
    assert seq.startswith("--mesh fsdp=64,seq=4 --accumulate 4: ")


def test_the_state_is_divided_over_what_held_copies_and_other_axes_stay():
    given = {**LONG, "topology": "v5e:4x4", "mesh": "data=2,fsdp=2,seq=4"}
    _, state = advised(given, 30, 0.5)
    assert state == "--mesh fsdp=4,seq=4: no copies of the state, 1.0 GiB less on each chip"
    assert advised({**SHORT, "mesh": "data=4,fsdp=4"}, 40, 8) == [
        "--mesh fsdp=16: no copies of the state, 24.0 GiB less on each chip"
    ]
    (chips,) = advised(SHORT, 40, 8)
    assert chips.startswith("3 times the chips, all in fsdp")


@pytest.mark.parametrize("times", [1.1, 2.5, 12, 180])
@pytest.mark.parametrize("parameters", [0.01, 1])
@pytest.mark.parametrize(
    "given",
    [
        SHORT,
        {**SHORT, "mesh": "data=2,fsdp=4,model=2", "dtype": "float32", "remat": "none"},
        {**SHORT, "length": 131072, "mesh": "data=2,fsdp=2,seq=4"},
        {**SHORT, "length": 65536, "accumulate": 2, "mesh": "fsdp=8,seq=2"},
        {**SHORT, "length": 8192, "mesh": "data=2,seq=8", "config": "transformer-353m"},
        LONG,
        {**LONG, "mesh": "data=4,fsdp=8,seq=4,model=2"},
        {**LONG, "topology": "h100:3x8", "mesh": "fsdp=24", "batch_tokens": 24 * 2**17},
        {**LONG, "topology": "h100:2x8", "mesh": "data=4,fsdp=2,model=2"},
        {**LONG, "topology": "h100:2x8", "mesh": "fsdp=2,seq=8"},
        {**LONG, "length": 100000, "batch_tokens": 256 * 10**5},
    ],
)
def test_the_command_takes_all_advice_and_it_helps(given, parameters, times):
    before, topology, old = requested(**given)
    lines = advised(given, times * topology.chip.usable / GIB, parameters)
    assert lines
    for line in lines:
        if not line.startswith("--"):
            assert "times the chips" in line
            continue
        after, topology, mesh = follow(given, line)
        assert after.data.batch_size * after.data.sequence_length == (
            before.data.batch_size * before.data.sequence_length
        )
        assert mesh.get("model", 1) == old.get("model", 1)
        changed = after.model != before.model or mesh.get("fsdp", 1) > old.get("fsdp", 1)
        assert changed or (at_a_time(after, topology, mesh) < at_a_time(before, topology, old))
