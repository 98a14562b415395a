"""HLO in small, as XLA prints it."""

import pytest

from jaxbooth.planning.hlo import Collective, Program, shape_bytes

ONCE = r"""HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}

%fused_multiply (param_0: f32[4,8], param_1: bf16[4,8]) -> f32[4,8] {
  %param_0 = f32[4,8]{1,0} parameter(0)
  ROOT %multiply = f32[4,8]{1,0} multiply(%param_0, %param_0), metadata={op_name="jit(step)/mul"}
}

ENTRY %main (p0: f32[4,8], p1: f32[3], p2: f32[2,8]) -> f32[4,8] {
  %p0 = f32[4,8]{1,0:T(8,128)} parameter(0), sharding={replicated}, metadata={op_name="base[\'unet.kernel\']"}
  %p1 = f32[3]{0:T(128)} parameter(1), metadata={op_name="state.adapter['unet.lora_a']"}
  %p2 = f32[2,8]{1,0} parameter(2), metadata={op_name="batch.moments"}
  %all-gather = f32[4,8]{1,0} all-gather(%p2), replica_groups={{0,1}}, dimensions={0}
  %all-reduce-start = (f32[3]{0}, f32[3]{0}) all-reduce-start(%p1, %p1), to_apply=%add
USES
  ROOT %out = f32[4,8]{1,0} fusion(%all-gather, %last), kind=kLoop, calls=%fused_multiply
}
"""
KERNEL, HALF = 4 * 8 * 4, 4 * 8 * 2


def program(*uses: str) -> Program:
    return Program(ONCE.replace("USES", "\n".join(f"  {use}" for use in uses)))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[4,8]{1,0:T(8,128)}", 128),
        ("bf16[3]{0}", 6),
        ("pred[]", 1),
        ("s4[6]{0}", 3),
        ("f8e4m3fn[5]", 5),
        ("(f32[2]{0}, (u8[3]{0}, s32[]{:T(128)}))", 8 + 3 + 4),
    ],
)
def test_bytes_of_shapes(shape, size):
    assert shape_bytes(shape) == size


def test_arguments_are_told_by_the_parameter_that_they_belong_to():
    assert program().arguments() == {"base": KERNEL, "state": 12, "batch": 64}


def test_collectives_are_counted_by_kind_with_the_larger_side():
    assert program().collectives() == {"all-gather": Collective(1, KERNEL), "all-reduce": Collective(1, 24)}


def test_a_collective_that_goes_on_behind_other_work_is_counted_once():
    links = [
        f'%link.{i} = f32[4,8]{{1,0}} all-gather(%p2), dimensions={{0}}, frontend_attributes={{chain_id="7"}}'
        for i in range(3)
    ]
    assert program(*links).collectives()["all-gather"] == Collective(2, 2 * KERNEL)


def test_attributes_that_go_on_in_lines_of_their_own_do_not_end_a_program():
    kernel = '%kernel = f32[3]{0} custom-call(%p1), frontend_attributes={xprof="a"\n}}, metadata={op_name="k"}'
    later = "%later = f32[3]{0} all-reduce(%p1), to_apply=%add"
    assert program(kernel, later).collectives()["all-reduce"] == Collective(2, 24 + 12)


def test_every_reader_of_a_weight_moves_it():
    one = program("%last = f32[4,8]{1,0} negate(%p0)")
    two = program("%first = f32[4,8]{1,0} add(%p0, %p0)", "%last = f32[4,8]{1,0} negate(%p0)")
    assert (one.moved("base"), two.moved("base")) == (KERNEL, 2 * KERNEL)


def test_a_copy_in_another_dtype_is_written_once_and_then_read_by_its_readers():
    found = program(
        "%half = bf16[4,8]{1,0} convert(%p0)",
        "%renamed = bf16[32]{0} bitcast(%half)",
        "%first = f32[] custom-call(%renamed)",
        "%last = f32[4,8]{1,0} custom-call(%half, %p1)",
    )
    assert found.moved("base") == KERNEL + HALF + 2 * HALF


def test_what_was_brought_to_fast_memory_is_read_there_for_nothing():
    found = program(
        "%start = (f32[4,8]{1,0:T(8,128)S(1)}, f32[4,8]{1,0}, u32[]) copy-start(%p0)",
        "%done = f32[4,8]{1,0:T(8,128)S(1)} copy-done(%start)",
        "%first = f32[] custom-call(%done, %p1)",
        "%last = f32[4,8]{1,0} custom-call(%done, %p1)",
    )
    assert found.moved("base") == KERNEL


def test_a_slice_moves_its_part_only():
    parts = "f32[1,8]{1,0}", "((f32[4,8]{1,0}), f32[2,8]{1,0:T(8,128)S(1)})"
    found = program(
        f"%first = {parts[0]} slice(%p0), slice={{[0:1], [0:8]}}",
        f"%start = {parts[1]} slice-start(%p0), slice={{[1:3], [0:8]}}",
        "%last = f32[2,8]{1,0:T(8,128)S(1)} slice-done(%start)",
    )
    assert found.moved("base") == (1 + 2) * 8 * 4


def test_a_loop_moves_a_weight_each_time_round():
    body = """%body (arg: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %arg = (s32[], f32[4,8]{1,0}) parameter(0)
  %weight = f32[4,8]{1,0} get-tuple-element(%arg), index=1
  %used = f32[] custom-call(%weight, %weight)
}

ENTRY"""
    loop = (
        "%group = (s32[], f32[4,8]{1,0}) tuple(%p1, %p0)",
        '%while = (s32[], f32[4,8]{1,0}) while(%group), body=%body, backend_config={"known_trip_count":{"n":"5"}}',
        "%last = f32[] get-tuple-element(%while), index=0",
    )
    text = ONCE.replace("USES", "\n".join(f"  {line}" for line in loop)).replace("ENTRY", body, 1)
    assert Program(text).moved("base") == 5 * KERNEL
