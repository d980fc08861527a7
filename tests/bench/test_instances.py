"""What the compiler says of the verify kernels, and shapes that reach each of them."""

from __future__ import annotations

import pytest

from pyllm.bench.attention.shapes import from_file
from pyllm.bench.instances import kernels, record, shapes
from pyllm.errors import ConfigError
from pyllm.routes.verify import HEADS, INSTANCES, TYPES, Instance, choose, takes_types

TEXT = """\
ptxas info    : Compiling entry function '_ZN5pyllm6verify6attendINS0_4TileILi128ELi128ELi64ELi32ELi4ELi8ELi8ELi8EEELi2EEEvNS0_9ArgumentsE' for 'sm_80'
ptxas info    : Function properties for _ZN5pyllm6verify6attendINS0_4TileILi128ELi128ELi64ELi32ELi4ELi8ELi8ELi8EEELi2EEEvNS0_9ArgumentsE
    0 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 182 registers, used 1 barriers, 128 bytes smem, 592 bytes cmem[0], 80 bytes cmem[2]
ptxas info    : Compiling entry function '_ZN5pyllm6verify15attend_in_teamsINS0_5TeamsI\
Li128ELi128ELi16ELi64ELi8ELi4ELi2ELi6ELi6EEELi1EEEvNS0_9ArgumentsE' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 186 registers, used 5 barriers, 132 bytes smem
ptxas info    : Compiling entry function '_ZN5pyllm6verify4joinEv' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 9 registers
"""


def test_what_the_compiler_says_is_read():
    together, teams = kernels(TEXT)
    assert Instance(*together.pop("instance")) == Instance(128, 128, 64, 32, 4, 8, 0, 1, "any", "any", 2)
    assert together == {"arch": 80, "registers": 182, "spilled": 24, "static": 128}
    assert Instance(*teams.pop("instance")) == Instance(128, 128, 16, 64, 8, 0, 4, 2, "q4_0", "q4_0", 1)
    assert teams == {"arch": 80, "registers": 186, "spilled": 0, "static": 132}


@pytest.mark.parametrize("smem", [232448, 101376])
def test_a_sample_reaches_each_instance_that_a_device_chooses(tmp_path, smem):
    found = shapes(smem)
    path = tmp_path / "shapes"
    path.write_text("\n".join(found.values()))
    for one, shape in zip(found, from_file(path), strict=True):
        node = shape.node
        rows = node.n_head // node.n_head_kv * node.n_q
        assert choose((node.d_k, node.d_v), node.type_k, node.type_v, rows, smem, beside=node.n_head_kv) == one
    # What is chosen with any number of rows at all.
    every = {
        choose(head, kind, kind, rows, smem, beside=beside)
        for head in HEADS
        for beside in (1, 4)
        for kind in ("f16", "q8_0", "q4_0", "bf16", "q5_1")
        for rows in range(1, 65)
        if takes_types(head[0], kind)
    }
    assert every - {None} <= set(found)
    assert {(one.d_k, one.d_v) for one in found} == set(HEADS)


def test_in_two_parts_each_team_of_a_sample_uses_a_slot_again(tmp_path):
    """What the sanitizers are to see: `ci/gpu` splits these caches in two (PYLLM_TEST_PARTS), and a ring has two slots."""
    found = shapes(232448)
    path = tmp_path / "shapes"
    path.write_text("\n".join(found.values()))
    for one, shape in zip(found, from_file(path), strict=True):
        assert -(-shape.node.n_kv // one.n) // 2 > 2 * max(1, one.teams)


def test_an_instance_that_is_missing_is_told(tmp_path):
    (tmp_path / "sm_80-d128.txt").write_text(TEXT)
    with pytest.raises(ConfigError, match=f"{len(INSTANCES) - 2} instances were not compiled, such as .* for sm_80"):
        record(tmp_path, "abc", "13.0", [80])


def test_a_record_has_each_instance_for_each_device(tmp_path):
    head = "ptxas info    : Compiling entry function '_ZN5pyllm6verify{}I{}EELi{}EEEvNS0_9ArgumentsE' for 'sm_{}'\n"
    rest = "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\nptxas info    : Used 96 registers, 128 bytes smem\n"
    for arch in (80, 86):
        kernels_of = []
        for one in INSTANCES:
            way = (one.teams, one.heads) if one.teams else (one.rows,)
            numbers = (*one[:5], *way, TYPES.index(one.type_k), TYPES.index(one.type_v))
            name = "17attend_transposedINS0_10Transposed" if one.m % 16 else "15attend_in_teamsINS0_5Teams" if one.teams else "6attendINS0_4Tile"
            kernels_of.append(head.format(name, "".join(f"Li{number}E" for number in numbers), one.blocks, arch) + rest)
        (tmp_path / f"sm_{arch}-all.txt").write_text("".join(kernels_of))
    made = record(tmp_path, "abc", "13.0", [80, 86])
    assert len(made["results"]["kernels"]) == 2 * len(INSTANCES)
    assert made["commands"] == ["ci/instances 80 86"]
    with pytest.raises(ConfigError, match=f"{len(INSTANCES)} instances were not compiled, such as .* for sm_90"):
        record(tmp_path, "abc", "13.0", [80, 86, 90])
