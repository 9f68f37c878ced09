"""Groups of chips in all notations, and what they send to other nodes."""

import pytest

from experiments.aot import hlo
from experiments.aot.chips import CHIPS, parse_topology
from experiments.aot.collectives import collectives
from experiments.aot.groups import groups

EVENS = [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}", EVENS),
        ("channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}", EVENS),
        ("replica_groups=[4,2]<=[8], dimensions={0}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add", EVENS),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", [list(range(8))]),
        # The order of the chips differs from the mesh's.
        ("replica_groups=mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'c'}, x={1}", EVENS),
        ("replica_groups=mesh['a'=2,'c'=2], device_ids=(3,1,2,0) {'a'}", [[3, 2], [1, 0]]),
        # Parts of axes: the outer 2 of 4, the inner 2 of 4.
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(2)2,'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("source_target_pairs={{0,1},{7,0}}", [[0, 1], [7, 0]]),
        ("replica_groups={}, to_apply=%add", [list(range(8))]),
    ],
)
def test_groups_in_every_notation(attributes, expected):
    assert groups(attributes, 8).tolist() == expected


PROGRAM = """\
HloModule jit_step

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %out = f32[8,4]{1,0} COLLECTIVE
}
"""


@pytest.mark.parametrize(
    ("collective", "nodes", "crossing"),
    [
        # 128 bytes of each. All of the other node's come in, by the four of this one.
        ("all-gather(%p), replica_groups={{0,1,2,3,4,5,6,7}}", 2, 1024 / 2 / 4),
        ("all-gather(%p), replica_groups={{0,1,2,3},{4,5,6,7}}", 1, 0),
        ("all-gather(%p), replica_groups=[4,2]<=[2,4]T(1,0)", 2, 128),
        ("all-reduce(%p), replica_groups=[4,2]<=[2,4]T(1,0)", 2, 128),
        ("all-to-all(%p), replica_groups=[1,8]<=[8]", 2, 64),
        ("collective-permute(%p), source_target_pairs={{0,1},{3,4}}", 2, 128),
        ("collective-permute(%p), source_target_pairs={{0,1},{4,5}}", 1, 0),
    ],
)
def test_what_chips_send_to_other_nodes(collective, nodes, crossing):
    module = hlo.parse(PROGRAM.replace("COLLECTIVE", collective))
    (found,) = collectives(module, 8, nodes=2)
    assert (found.nodes, found.crossing) == (nodes, crossing)
    (found,) = collectives(module, 8)
    assert (found.nodes, found.crossing) == (1, 0)


def test_only_gpus_have_nodes():
    assert [parse_topology(x).nodes for x in ("h100:2x8", "v5e:4x4", "a100:1x8")] == [2, 1, 1]
    assert CHIPS["h100"].network < CHIPS["h100"].links
