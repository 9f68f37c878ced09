"""Reading compiled programs: loops multiplied out, collectives in every notation, bytes moved."""

import pytest

from experiments.aot import branches, hlo
from experiments.aot.collectives import by_kind, collectives
from experiments.aot.traffic import memory_bytes

# As XLA writes it for CPUs: the lengths of loops are known. 3 x 5 runs of the inner body.
NESTED = """\
HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %gathered = f32[32,4]{1,0} all-gather(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %part = f32[8,4]{1,0} reduce-scatter(%gathered), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %new = (s32[], f32[8,4]{1,0}) tuple(%count, %part)
}

%always (state: (s32[], f32[8,4])) -> pred[] {
  %state.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

%outer_body (state.2: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state.2 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[8,4]{1,0}) while(%state.2), condition=%always, body=%inner_body, \
backend_config={"known_trip_count":{"n":"5"}}
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %p)
  %loop.1 = (s32[], f32[8,4]{1,0}) while(%start), condition=%always, body=%outer_body, \
backend_config={"known_trip_count":{"n":"3"}}
  %y = f32[8,4]{1,0} get-tuple-element(%loop.1), index=1
  ROOT %total = f32[8,4]{1,0} all-reduce(%y), replica_groups=mesh['a'=2,'b'=4] {'a'}, \
to_apply=%add, metadata={op_name="jit(step)/sum"}
}
"""

# As for TPUs: the condition tells, through a copy and with a step of 2. S(1) is on-chip memory.
COUNTED = """\
HloModule jit_step

%body (state: (s32[], bf16[16,128])) -> (s32[], bf16[16,128]) {
  %state = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %two = s32[]{:T(128)} constant(2)
  %count = s32[]{:T(128)} get-tuple-element(%state), index=0
  %copied = s32[]{:T(128)} copy(%count)
  %next = s32[]{:T(128)} add(%copied, %two)
  %x = bf16[16,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %sent = (bf16[16,128]{1,0:T(8,128)(2,1)}, bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) \
collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %got = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} collective-permute-done(%sent)
  %y = bf16[16,128]{1,0:T(8,128)(2,1)} add(%x, %got)
  ROOT %new = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) tuple(%next, %y)
}

%condition (state.1: (s32[], bf16[16,128])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %seven = s32[]{:T(128)} constant(7)
  %count.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%count.1, %seven), direction=LT
}

ENTRY %main (p: bf16[16,128]) -> bf16[16,128] {
  %p = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) tuple(%zero, %p)
  %loop = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) while(%start), condition=%condition, \
body=%body
  ROOT %y.1 = bf16[16,128]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""


def test_nested_loops_are_multiplied_out():
    counts, unknown = hlo.executions(hlo.parse(NESTED))
    assert (counts["outer_body"], counts["inner_body"], unknown) == (3, 15, [])


def test_collectives_have_their_runs_sizes_and_groups():
    found = collectives(hlo.parse(NESTED), 8)
    assert [(x.kind, x.shape, x.chips, x.bytes, x.times) for x in found] == [
        ("all-reduce", "f32[8,4]", 2, 128, 1),
        ("all-gather", "f32[32,4]", 4, 512, 15),
        ("reduce-scatter", "f32[8,4]", 4, 512, 15),
    ]
    assert found[0].source == "jit(step)/sum"
    assert by_kind(found) == {
        "all-gather": (15, 15 * 512, 15 * 384),
        "all-reduce": (1, 128, 128),
        "reduce-scatter": (15, 15 * 512, 15 * 384),
    }


def test_a_loop_is_as_long_as_its_condition_says():
    module = hlo.parse(COUNTED)
    counts, unknown = hlo.executions(module)
    assert (counts["body"], unknown) == (4, [])  # 0, 2, 4, 6
    (sent,) = collectives(module, 2)
    assert (sent.kind, sent.shape, sent.bytes, sent.times) == (
        "collective-permute", "bf16[16,128]", 4096, 4,
    )  # fmt: skip


def test_a_collective_spread_over_a_loop_counts_once():
    """Started in front of the loop, carried on inside it by fusions of the TPU compiler."""
    spread = (
        "= f32[32,4]{1,0} all-gather(%s), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}"
        ', backend_config={"async_collective_fusion_config":{"flag_start":"2"}}'
    )
    text = NESTED.replace("  %part = ", f"  %piece {spread % '%x'}\n  %part = ").replace(
        "  %zero = ", f"  %begun {spread % '%p'}\n  %zero = "
    )
    gathered = [x for x in collectives(hlo.parse(text), 8) if x.kind == "all-gather"]
    assert sorted(x.times for x in gathered) == [1, 15]


# Neighbours or everything, twice in a step: the second sends more, the first moves more in memory.
CONDITIONAL = """\
HloModule jit_step

%neighbour (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %past = f32[8,4]{1,0} collective-permute(%x), source_target_pairs={{0,1},{1,2},{2,3}}
  ROOT %both = f32[8,4]{1,0} add(%x, %past)
}

%everything (x.1: f32[8,4]) -> f32[8,4] {
  %x.1 = f32[8,4]{1,0:S(1)} parameter(0)
  %all = f32[32,4]{1,0:S(1)} all-gather(%x.1), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %end = f32[8,4]{1,0} slice(%all), slice={[24:32], [0:4]}
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %y = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %is_short = pred[] constant(true)
  %z = f32[8,4]{1,0} BRANCHES
  ROOT %new = (s32[], f32[8,4]{1,0}) tuple(%count, %z)
}

%always (state.1: (s32[], f32[8,4])) -> pred[] {
  %state.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[8,4]{1,0}) while(%p), condition=%always, body=%body, \
backend_config={"known_trip_count":{"n":"2"}}
}
"""


@pytest.mark.parametrize(
    "notation",
    [
        "conditional(%is_short, %y, %y), branch_computations={%everything, %neighbour}",
        "conditional(%is_short, %y, %y), true_computation=%neighbour, "
        "false_computation=%everything",
    ],
)
def test_of_a_conditional_one_branch_counts(notation):
    module = hlo.parse(CONDITIONAL.replace("BRANCHES", notation))
    least, most = (branches.by_sent(best, module, 4) for best in (min, max))
    assert (least.longest, most.longest) == (False, True)
    assert by_kind(collectives(module, 4, least)) == {"collective-permute": (2, 256, 256)}
    assert by_kind(collectives(module, 4, most)) == {"all-gather": (2, 1024, 768)}
    assert branches.count(module, least) == branches.count(module, most) == 1
    # A slice is read and written; x is sent, and added to what came.
    moved = [memory_bytes(module, branches.by_traffic(best, module)) for best in (min, max)]
    assert moved == [2 * (2 * 128), 2 * (2 + 3) * 128]
    # Without a choice, every branch.
    assert len(by_kind(collectives(module, 4))) == 2
    assert memory_bytes(module) == sum(moved)


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    text = COUNTED.replace("direction=LT", "direction=NE")
    counts, unknown = hlo.executions(hlo.parse(text))
    assert (counts["body"], unknown) == (1, ["loop"])


def test_a_loop_that_may_end_earlier_runs_as_often_as_it_can_where_most_is_asked_for():
    test = next(line for line in COUNTED.splitlines() if "ROOT" in line and "compare" in line)
    both = "  %other = pred[] constant(true)\n  ROOT %both = pred[] and(%ends, %other)"
    name = test.split("=")[0].split()[-1]
    text = COUNTED.replace(test, f"{test.replace('ROOT ', '')}\n{both.replace('%ends', name)}")
    module = hlo.parse(text)
    assert hlo.executions(module)[1] == ["loop"]
    for longest, times in ((False, 1), (True, 4)):
        choice = hlo.Choice(lambda branches: branches[0], longest)
        assert hlo.executions(module, choice)[0]["body"] == times
        (sent,) = collectives(module, 2, choice)
        assert sent.times == times


def test_bytes_in_main_memory():
    # Each run reads x and sends it, adds x and what came from on-chip memory into y, and counts:
    # a copy of the counter and an addition. Conditions are left out.
    x, counter = 16 * 128 * 2, 4
    run = (x) + (2 * x) + (2 * counter) + (3 * counter)
    assert memory_bytes(hlo.parse(COUNTED)) == 4 * run


SLICED = """\
HloModule jit_step

%fused (big: f32[64,1024], at: s32[], x: f32[1,1024]) -> f32[64,1024] {
  %big = f32[64,1024]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %x = f32[1,1024]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,1024]{1,0} dynamic-slice(%big, %at, %zero), dynamic_slice_sizes={1,1024}
  %sum = f32[1,1024]{1,0} add(%row, %x)
  ROOT %new = f32[64,1024]{1,0} dynamic-update-slice(%big, %sum, %at, %zero)
}

ENTRY %main (big.1: f32[64,1024], at.1: s32[], x.1: f32[1,1024]) -> f32[64,1024] {
  %big.1 = f32[64,1024]{1,0} parameter(0)
  %at.1 = s32[] parameter(1)
  %x.1 = f32[1,1024]{1,0} parameter(2)
  ROOT %out = f32[64,1024]{1,0} fusion(%big.1, %at.1, %x.1), kind=kLoop, calls=%fused
}
"""


def test_a_slice_of_a_larger_array_counts_as_the_slice():
    assert memory_bytes(hlo.parse(SLICED)) == 3 * 4096 + 4


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("HloModule nothing")
