"""What a compiled program sends, against programs and texts whose collectives are known exactly."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.tools.chips import CHIPS
from whale_jax.tools.inspect.hlo import Collective, collectives, wire_seconds
from whale_jax.tools.inspect.mesh import inspect_mesh

PROGRAM = Path(__file__).parent / "collective_programs.py"
MESH = {"data": 4, "model": 2}
BLOCK = 8 * 16 * 4  # bytes of f32[8, 16], what every device holds


@pytest.fixture(scope="module")
def programs():
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env=tiny.environment(JAX_PLATFORMS="cpu"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "kind", "size", "group", "axes", "times"),
    [
        ("sum_over_data", "all-reduce", BLOCK, 4, "data", 1),
        ("gather_over_model", "all-gather", 2 * BLOCK, 2, "model", 1),
        ("scatter_over_model", "reduce-scatter", BLOCK, 2, "model", 1),
        ("exchange_over_data", "all-to-all", BLOCK, 4, "data", 1),
        ("sum_in_a_loop", "all-reduce", BLOCK, 8, "data+model", 5),
        ("rotate_in_nested_loops", "collective-permute", BLOCK, 4, "data", 12),
    ],
)
def test_a_program_sends_what_it_was_written_to_send(programs, name, kind, size, group, axes, times):
    (one,) = programs["collectives"][name]
    wanted = {"kind": kind, "bytes": size, "widened_bytes": size, "group": group, "axes": axes, "times": times}
    assert {key: one[key] for key in wanted} == wanted
    assert one["exact"] and one["source"].startswith(f"jit({name})")


def test_what_a_cpu_widens_counts_as_it_was(programs):
    (one,) = programs["collectives"]["sum_of_bfloat16"]
    assert (one["bytes"], one["widened_bytes"]) == (BLOCK // 2, BLOCK)


def test_a_loop_of_unknown_length_is_told_and_counts_once(programs):
    inside = [one for one in programs["collectives"]["sum_until_small"] if one["bytes"] == BLOCK]
    assert [(one["times"], one["exact"]) for one in inside] == [(1, False)]


def test_memory_of_a_program_that_writes_over_its_argument(programs):
    memory = programs["memory"]
    assert (memory["arguments"], memory["outputs"], memory["aliased"]) == (BLOCK, BLOCK, BLOCK)
    assert memory["peak"] == BLOCK + memory["temporary"]


def read(*lines: str, mesh=MESH) -> list[Collective]:
    return collectives("\n".join(["HloModule m", "", "ENTRY %main (p: f32[4]) -> f32[4] {", *lines, "}"]), mesh)


def test_a_combined_all_reduce_counts_all_its_operands():
    (one,) = read(
        "  %p.1 = f32[4,8]{1,0:T(8,128)} parameter(0)",
        "  %p.2 = bf16[16]{0} parameter(1)",
        "  ROOT %r = (f32[4,8]{1,0}, /*index=1*/bf16[16]{0}) all-reduce(%p.1, /*index=1*/%p.2), channel_id=1,"
        ' replica_groups={{0,2,4,6},{1,3,5,7}}, metadata={op_name="jit(f)/sum"}',
    )
    assert one == Collective("all-reduce", 160, 160, 4, "data", 1, True, "jit(f)/sum")


@pytest.mark.parametrize(
    ("groups", "group", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", 2, "model"),
        ("[4,2]<=[8]", 2, "model"),
        ("[2,4]<=[4,2]T(1,0)", 4, "data"),
        ("[1,8]<=[8]", 8, "data+model"),
        ("{}", 8, "data+model"),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", 4, "data"),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8, "data+model"),
        ("mesh['axis_0'=8,'axis_1'=1] {'axis_0':(4)2}", 2, "model"),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_0'}", 2, "model"),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_2'}", 4, "data"),
        ("[4,2]<=[2,4]T(1,0)", 2, "other"),
    ],
)
def test_groups_are_found_in_every_way_that_they_are_written(groups, group, axes):
    (one,) = read(
        "  %p = f32[4]{0} parameter(0)",
        f"  ROOT %r = f32[4]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}, use_global_device_ids=true",
    )
    assert (one.group, one.axes) == (group, axes)


def test_groups_of_a_form_that_is_not_known_are_an_error():
    with pytest.raises(WhaleError, match="device groups .* not understood"):
        read("  %p = f32[4]{0} parameter(0)", "  ROOT %r = f32[4]{0} all-reduce(%p), replica_groups=[a]<=b")


def test_a_start_and_its_done_are_one_collective():
    found = read(
        "  %p = bf16[4,8]{1,0} parameter(0)",
        "  %s = (bf16[4,8]{1,0}, bf16[8,8]{1,0}) all-gather-start(%p), replica_groups=[4,2]<=[8], dimensions={0}",
        "  %d = bf16[8,8]{1,0} all-gather-done(%s)",
        "  %t = (bf16[4,8], bf16[4,8], u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,2},{2,0}}",
        "  ROOT %e = bf16[4,8]{1,0} collective-permute-done(%t)",
    )
    assert [(one.kind, one.bytes, one.axes) for one in found] == [
        ("all-gather", 128, "model"),
        ("collective-permute", 64, "data"),
    ]


def test_calls_are_followed_and_of_two_branches_the_dearer_counts():
    def computation(name, size):
        return [
            f"%{name} (p: f32[{size}]) -> f32[{size}] {{",
            f"  %x = f32[{size}]{{0}} parameter(0)",
            f"  ROOT %r = f32[{size}]{{0}} all-reduce(%x), replica_groups=[4,2]<=[8]",
            "}",
        ]

    text = [
        "HloModule m",
        *computation("small", 4),
        *computation("large", 64),
        *computation("wrapped", 16),
        "ENTRY %main (p: f32[4]) -> f32[4] {",
        "  %p = f32[4]{0} parameter(0)",
        "  %c = f32[4]{0} conditional(%p, %p, %p), branch_computations={%small, %large}",
        "  %a = ((f32[16]), f32[16], u32[]) async-start(%p), calls=%wrapped",
        "  ROOT %b = f32[16]{0} async-done(%a), calls=%wrapped",
        "}",
    ]
    assert [one.bytes for one in collectives("\n".join(text), MESH)] == [256, 64]


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        ("all-reduce", 3.0),
        ("all-gather", 1.5),
        ("reduce-scatter", 1.5),
        ("all-to-all", 1.5),
        ("collective-permute", 2.0),
    ],
)
def test_a_ring_of_four_takes_what_the_formula_says(kind, seconds):
    assert wire_seconds(Collective(kind, 10**9, 10**9, 4, "data", 2, True, ""), 1.0) == seconds


def test_inspecting_a_mesh_reports_every_part(whale):
    done = whale("inspect", "--config=tests/tiny.py", "--mesh=4x2", "--stages=reward", "--json")
    assert done.status == 0, done.err
    assert "reward: compiled for 8 devices in" in done.err
    report = json.loads(done.out)
    assert report["mesh"] == {"data": 4, "model": 2, "fully_sharded": False}
    stage = report["stages"]["reward"]
    memory, compiled = stage["memory_per_device"], stage["memory_per_device"]["compiled"]
    held = sum(memory[part] for part in ("parameters", "optimizer", "frozen", "batch"))
    # Of the frozen parameters the program takes what it reads alone.
    assert held - memory["frozen"] < compiled["arguments"] < held
    assert memory["batch"] == 2 * 4 * (16 * 16 * 3 + 4 * 4 + 4 + 2) + 2 * 8
    assert memory["estimate"] == held + memory["gradients"] + max(memory["saved"], memory["live"])
    assert 0.4 < stage["flops_per_step"]["executed"] / stage["flops_per_step"]["model"] < 1.1
    assert {"data", "model"} <= {one["axes"] for one in stage["collectives"]}
    assert all(one["exact"] and one["times"] >= 1 for one in stage["collectives"])
    assert list(stage["chips"]) == [chip.name for chip in CHIPS]
    assert all(figures["fits"] for figures in stage["chips"].values())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mesh=8"], "--mesh=8 is no mesh"),
        (["--mesh=0x2"], "--mesh=0x2 is no mesh"),
        (["--mesh=3x1"], "stages.tokenizer.batch_size is 8, which does not divide over 3 devices"),
        (["--mesh=2x1", "--stages=dynamic"], "no stage named 'dynamic'; did you mean dynamics"),
        (["--stages=dynamics"], "give one with --mesh"),
    ],
)
def test_what_cannot_be_compiled_is_said_before_anything_is(whale, arguments, says):
    done = whale("inspect", "--config=tests/tiny.py", *arguments)
    assert says in done.error() and "devices in" not in done.err


def test_devices_that_are_there_already_are_left_alone():
    before = jax.devices()
    with pytest.raises(WhaleError, match="process of its own"):
        inspect_mesh(tiny.get_config(), "4x2")
    assert jax.devices() == before
