"""The check of a step: its report and advice, its table, one-line errors, a real TPU compile."""

import csv
import dataclasses

import jax
import pytest

from experiments.aot import findings, report
from experiments.aot.chips import CHIPS, GIB, Topology, parse_topology
from experiments.aot.collectives import Collective
from experiments.aot.findings import check, check_mesh
from experiments.aot.program import Memory, too_large
from experiments.aot_check import find_config, main, parse_mesh, requested
from multiscreen_jax.train import override
from tests.aot.run_compiler import need_gpu_compiler, need_tpu_compiler
from tests.aot.test_hlo import CONDITIONAL
from tests.programs import OPTIMIZED, run_module


class Host(Topology):
    """This machine's CPU in place of a slice."""

    def devices(self):
        return jax.devices()[:1]


@pytest.fixture(scope="module")
def found():
    config = override(find_config("tiny"), data={"batch_size": 4}, train={"accumulate": 2})
    return check(config, Host("v5e:1x1", CHIPS["v5e"], (1, 1)), {"data": 1})


@pytest.mark.slow
def test_the_report_names_what_it_found(found):
    text = report.text(found)
    parameters = found.config.model.parameter_count()
    assert f"{parameters:,} parameters on v5e:1x1, 1 chips; mesh 1" in text
    assert found.parameter_bytes == 4 * parameters
    assert 8 * parameters <= found.optimizer_bytes <= 8 * parameters + 16
    assert "of 16.0: fits" in text
    assert "screening by chunked" in text
    assert "not counted, taken from the formula: loop of run-time length" in text
    assert f"{found.counted / found.formula_flops:.1%} of it, no recomputation" in text
    assert abs(found.counted / found.formula_flops - 1) < 0.1
    assert "No collectives." in text
    assert "compute" in text
    assert "at 197 TFLOP/s bfloat16" in text
    assert "What helps" not in text


@pytest.mark.slow
def test_the_least_time_takes_the_cheapest_branches(found, monkeypatch):
    text = CONDITIONAL.replace(
        "BRANCHES", "conditional(%y), branch_computations={%everything, %neighbour}"
    )
    program = dataclasses.replace(found.program, text=text)
    monkeypatch.setattr(findings, "compile_step", lambda trace, mesh: program)
    here = check(found.config, found.topology, {"data": 1})
    assert (here.traffic, here.most_traffic) == (2 * 2 * 128, 2 * 5 * 128)
    # On one chip nobody is a neighbour.
    assert here.seconds["links"] == 0
    assert here.most_seconds["links"] == 2 * 384 / 200e9
    assert here.seconds["memory"] < here.most_seconds["memory"]
    assert "Of 1 conditional(s) the branch counts that sends least" in report.text(here)
    row = report.row("tiny", here)
    assert row["most memory s"] == here.most_traffic / 819e9
    assert "conditional" not in report.text(found)
    assert report.row("tiny", found)["most memory s"] is None


def test_traffic_between_nodes_takes_the_slower_network(found):
    gathered = Collective("all-gather", "f32[1]", 16, 16 * 10**9, 1, "", nodes=2)
    here = dataclasses.replace(
        found, collectives=[gathered], topology=parse_topology("h100:2x8"), traffic=0.0
    )
    # 8 GB of the other node by eight adapters take 1 / 50 s, less than 15 GB on the ring.
    assert here.seconds["links"] == 15 / 450
    alone = dataclasses.replace(gathered, chips=2, bytes=2 * 10**9)
    assert dataclasses.replace(here, collectives=[alone]).seconds["links"] == 1 / 50


def test_of_a_gpu_a_program_gets_the_default_pool(found):
    def with_gib(gib):
        return with_memory(found, gib, topology=parse_topology("h100:1x1"))

    assert with_gib(55).fits
    assert not with_gib(57).fits  # of 60e9 bytes
    text = report.text(with_gib(57))
    assert "of 55.9: DOES NOT FIT (75% of 74.5: JAX's default pool" in text
    assert "nodes" not in text
    nodes = dataclasses.replace(with_gib(57), topology=parse_topology("h100:2x8"))
    assert "Links between the 2 nodes: 50 GB/s of each GPU" in report.text(nodes)


def test_rows_are_added_to_a_table_with_their_commands(found, tmp_path):
    path = tmp_path / "table.csv"
    for name in ("first", "second"):
        report.append(path, report.row(name, found), f"check {name}", ["date: today"])
    lines = path.read_text().splitlines()
    assert lines[:3] == ["# date: today", "# command: check first", "# command: check second"]
    first, second = csv.DictReader(lines[3:])
    assert (first.pop("config"), second.pop("config")) == ("first", "second")
    assert first == second
    assert (first["parts"], first["fits"]) == ("2", "yes")


def with_memory(found, gib, **changes):
    """The findings as if the step needed so much."""
    program = dataclasses.replace(found.program, memory=Memory(0, 0, 0, int(gib * GIB), 0))
    return dataclasses.replace(found, program=program, **changes)


@pytest.mark.parametrize(
    "says",
    [
        "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity",
        "Ran out of memory on HBM, the total memory required for HLO temporaries (19.50G) exceeds "
        "available HBM (15.75G). HLO module: jit_step.",
    ],
)
def test_a_refusal_of_the_compiler_is_read(found, says):
    refused = too_large(f"RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: {says}", GIB)
    assert (refused.needed, refused.allowed) == (int(20.5 * GIB), int(15.75 * GIB))
    assert refused.message in says
    config = override(found.config, data={"batch_size": 64})
    text = report.text(
        dataclasses.replace(found, config=config, program=refused, collectives=[], traffic=0.0)
    )
    assert f"(the compiler gave up: {refused.message})" in text
    assert "of 16.0: DOES NOT FIT" in text
    assert "--accumulate 4: 16 of 32 sequences at a time" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find_config("5b"), "unknown config '5b'; did you mean 4b"),
        (lambda: parse_topology("v5f:4x4"), "unknown chip 'v5f'; did you mean v5p or v5e"),
        (lambda: parse_topology("v5e:4x4x4"), "allowed: 2 sizes, as v5e:4x4"),
        (lambda: parse_topology("h100"), "allowed: 2 sizes, as h100:1x8"),
        (lambda: parse_mesh("fdsp=8"), "unknown mesh axis 'fdsp'; did you mean fsdp"),
        (lambda: parse_mesh("fsdp=0"), "allowed: as fsdp=64,model=4"),
        (lambda: parse_mesh("fsdp=2,fsdp=2"), "each axis once"),
        (
            lambda: check_mesh({"fsdp": 8}, parse_topology("v5e:4x4")),
            "mesh is fsdp=8, 8 chips; allowed: a product of 16",
        ),
        (
            lambda: check_mesh({"seq": 16}, parse_topology("h100:2x8")),
            "mesh is seq=16; allowed: data x fsdp a multiple of 2, the nodes of h100:2x8",
        ),
        (
            lambda: requested("tiny", "v5e:4x4", "fsdp=16"),
            "allowed: a multiple of mesh.data x mesh.fsdp, 16",
        ),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as raised:
        call()
    assert message in str(raised.value)


def test_short_and_registered_names():
    assert find_config("4b") == find_config("multiscreen_4b")
    assert find_config("1.3b").model.model_dim == 48**2
    assert find_config("log-linear-gdn-tiny").data.batch_size == 2**10


def test_a_batch_that_is_no_number_of_sequences_is_refused(capsys):
    with pytest.raises(SystemExit):
        main("28m", "v5e:4x4", batch_tokens=1000)
    assert "batch-tokens is 1000; allowed: a multiple of length, 4096" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "mesh"),
    [
        ("v5e:2x2", "fsdp=2,model=2"),
        pytest.param("h100:1x2", "fsdp=2", marks=pytest.mark.exhaustive),
    ],
)
def test_a_step_compiles_for_a_slice(topology, mesh, tmp_path):
    need_compiler = need_gpu_compiler if topology.startswith("h100") else need_tpu_compiler
    need_compiler()
    table = tmp_path / "table.csv"
    options = ["--config", "tiny", "--topology", topology, "--mesh", mesh, "--csv", str(table)]
    run_module("experiments.aot_check", *options, "--dtype", "bfloat16", variables=OPTIMIZED)
    (row,) = csv.DictReader(x for x in table.read_text().splitlines() if not x.startswith("#"))
    assert (row["mesh"], row["fits"]) == (mesh.replace(",", " "), "yes")
    assert float(row["counted PFLOP"]) == pytest.approx(float(row["formula PFLOP"]), rel=0.25)
    assert float(row["sent GB"]) > 0
