"""Traffic of HBM in HLO in small, and of programs that XLA compiles here."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxbooth.planning.hbm import hbm_traffic
from jaxbooth.planning.hlo import Program

TEXT = r"""HloModule jit_step, is_scheduled=true

%of_a_part (whole: f32[64,8], at: s32[]) -> f32[1,8] {
  %at = s32[]{:S(2)} parameter(1)
  %whole = f32[64,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %part = f32[1,8]{1,0} dynamic-slice(%whole, %at, %zero), dynamic_slice_sizes={1,8}
  ROOT %twice = f32[1,8]{1,0} add(%part, %part)
}

%into_a_part (whole.1: f32[64,8], row: f32[1,8], at.1: s32[]) -> (f32[64,8], f32[1,8]) {
  %whole.1 = f32[64,8]{1,0} parameter(0)
  %row = f32[1,8]{1,0} parameter(1)
  %at.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %changed = f32[64,8]{1,0} dynamic-update-slice(%whole.1, %row, %at.1, %zero.1)
  %minus = f32[1,8]{1,0} negate(%row)
  ROOT %both = (f32[64,8]{1,0}, f32[1,8]{1,0}) tuple(%changed, %minus)
}

%beside (in: f32[64,8], running: f32[64,8]) -> (f32[64,8], f32[64,8]) {
  %in = f32[64,8]{1,0} parameter(0)
  %running = f32[64,8]{1,0} parameter(1)
  %done = f32[64,8]{1,0} negate(%in)
  ROOT %on = (f32[64,8]{1,0}, f32[64,8]{1,0}) tuple(%done, %running)
}

%body (state: (f32[64,8], f32[64,8])) -> (f32[64,8], f32[64,8]) {
  %state = (f32[64,8]{1,0}, f32[64,8]{1,0}) parameter(0)
  %first = f32[64,8]{1,0} get-tuple-element(%state), index=0
  %other = f32[64,8]{1,0} get-tuple-element(%state), index=1
  %sum = f32[64,8]{1,0} add(%first, %other)
  ROOT %next = (f32[64,8]{1,0}, f32[64,8]{1,0}) tuple(%sum, %other)
}

%small (s: f32[64,8]) -> f32[1,8] {
  %s = f32[64,8]{1,0} parameter(0)
  ROOT %cut = f32[1,8]{1,0} slice(%s), slice={[0:1], [0:8]}
}

%large (l: f32[64,8]) -> f32[64,8] {
  %l = f32[64,8]{1,0} parameter(0)
  ROOT %copied = f32[64,8]{1,0} copy(%l)
}

%begun (shard: f32[16,8]) -> (f32[16,8], f32[64,8]) {
  %shard = f32[16,8]{1,0} parameter(0)
  %link = f32[64,8]{1,0} all-gather(%shard), frontend_attributes={chain_id="7"}
  ROOT %begin = (f32[16,8]{1,0}, f32[64,8]{1,0}) custom-call(%link), custom_call_target="AsyncCollectiveStart"
}

%beside_a_link (own: f32[64,8], shard.1: f32[16,8], gathered: f32[64,8]) -> (f32[64,8], f32[16,8], f32[64,8]) {
  %own = f32[64,8]{1,0} parameter(0)
  %shard.1 = f32[16,8]{1,0} parameter(1)
  %gathered = f32[64,8]{1,0} parameter(2)
  %work = f32[64,8]{1,0} negate(%own)
  %link.1 = f32[64,8]{1,0} all-gather(%shard.1), frontend_attributes={chain_id="7"}
  ROOT %carried = (f32[64,8]{1,0}, f32[16,8]{1,0}, f32[64,8]{1,0}) tuple(%work, %shard.1, %link.1)
}

%ended (shard.2: f32[16,8], gathered.1: f32[64,8]) -> f32[64,8] {
  %shard.2 = f32[16,8]{1,0} parameter(0)
  %gathered.1 = f32[64,8]{1,0} parameter(1)
  %link.2 = f32[64,8]{1,0} all-gather(%shard.2), frontend_attributes={chain_id="7"}
  ROOT %end = f32[64,8]{1,0} custom-call(%shard.2, %gathered.1, %link.2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p0: f32[64,8], p1: f32[64,8], p2: f32[1,8], p3: s32[], p4: f32[16,8]) -> f32[64,8] {
  %p0 = f32[64,8]{1,0:T(8,128)} parameter(0)
  %p1 = f32[64,8]{1,0:T(8,128)S(1)} parameter(1)
  %p2 = f32[1,8]{1,0:T(8,128)S(1)} parameter(2)
  %p3 = s32[]{:T(128)S(2)} parameter(3)
  %p4 = f32[16,8]{1,0:T(8,128)} parameter(4)
USES
}
"""
WHOLE, ROW = 64 * 8 * 4, 8 * 4
NEAR, FAR = "{1,0:T(8,128)S(1)}", "{1,0:T(8,128)}"


@pytest.mark.parametrize(
    ("uses", "moved"),
    [
        ([f"%a = f32[64,8]{FAR} add(%p0, %p0)"], 3 * WHOLE),
        ([f"%a = f32[64,8]{FAR} add(%p0, %p1)"], 2 * WHOLE),
        ([f"%a = f32[64,8]{NEAR} add(%p1, %p1)"], 0),
        ([f"%a = f32[512]{FAR} bitcast(%p0)", "%b = (f32[512]{0}) tuple(%a)"], 0),
        ([f"%a = f32[64,8]{FAR} reshape(%p0)"], 0),
        (['%a = f32[64,8]{1,0} custom-call(%p0), custom_call_target="ConcatBitcast"'], 0),
        (['%a = f32[64,8]{1,0} custom-call(%p0), custom_call_target="tpu_custom_call"'], 2 * WHOLE),
        # Moves that go on behind other work: once, where they start.
        (
            [
                f"%s = (f32[64,8]{NEAR}, f32[64,8]{FAR}, u32[]{{:S(2)}}) copy-start(%p0)",
                f"%d = f32[64,8]{NEAR} copy-done(%s)",
                f"%a = f32[64,8]{NEAR} add(%d, %d)",
            ],
            WHOLE,
        ),
        (
            [
                f"%s = ((f32[64,8]{FAR}), f32[1,8]{NEAR}, u32[]{{:S(2)}}) slice-start(%p0), slice={{[0:1], [0:8]}}",
                f"%d = f32[1,8]{NEAR} slice-done(%s)",
            ],
            ROW,
        ),
        (
            [
                f"%s = ((f32[64,8]{FAR}), f32[64,8]{FAR}) async-start(%p0), calls=%large",
                f"%u = ((f32[64,8]{FAR}), f32[64,8]{FAR}) async-update(%s)",
                f"%d = f32[64,8]{FAR} async-done(%u)",
            ],
            2 * WHOLE,
        ),
        ([f"%a = (f32[64,8]{FAR}, u32[]{{:S(2)}}, token[]{{:S(2)}}) send(%p0, %p3), channel_id=1"], WHOLE),
        # What a fusion hands on, it neither reads nor writes.
        ([f"%a = (f32[64,8]{FAR}, f32[64,8]{FAR}) fusion(%p0, %p0), kind=kLoop, calls=%beside"], 2 * WHOLE),
        # An all-gather inside of fusions: its shard is read and its result written once, however many links it has.
        (
            [
                f"%s = (f32[16,8]{FAR}, f32[64,8]{FAR}) fusion(%p4), kind=kCustom, calls=%begun",
                f"%g = f32[16,8]{FAR} get-tuple-element(%s), index=0",
                f"%h = f32[64,8]{FAR} get-tuple-element(%s), index=1",
                f"%f = (f32[64,8]{FAR}, f32[16,8]{FAR}, f32[64,8]{FAR}) fusion(%p0, %g, %h), kind=kOutput, "
                "calls=%beside_a_link",
                f"%i = f32[64,8]{FAR} get-tuple-element(%f), index=2",
                f"%d = f32[64,8]{FAR} fusion(%g, %i), kind=kCustom, calls=%ended",
            ],
            (WHOLE / 4 + WHOLE) + 2 * WHOLE,
        ),
        # Parts.
        ([f"%a = f32[1,8]{FAR} slice(%p0), slice={{[0:1], [0:8]}}"], 2 * ROW),
        ([f"%a = f32[1,8]{NEAR} fusion(%p0, %p3), kind=kLoop, calls=%of_a_part"], ROW),
        ([f"%a = f32[64,8]{FAR} dynamic-update-slice(%p0, %p2, %p3, %p3)"], ROW),
        (
            [f"%a = (f32[64,8]{FAR}, f32[1,8]{NEAR}) fusion(%p0, %p2, %p3), kind=kLoop, calls=%into_a_part"],
            ROW,
        ),
        # Programs inside of the program.
        (
            [
                f"%t = (f32[64,8]{FAR}, f32[64,8]{FAR}) tuple(%p0, %p0)",
                f"%w = (f32[64,8]{FAR}, f32[64,8]{FAR}) while(%t), condition=%small, body=%body, "
                'backend_config={"known_trip_count":{"n":"5"}}',
            ],
            5 * 3 * WHOLE,
        ),
        ([f"%a = f32[64,8]{FAR} call(%p0), to_apply=%large"], 2 * WHOLE),
        (
            [
                f"%a = f32[64,8]{FAR} conditional(%p3, %p0, %p0), branch_computations={{%small, %large}}, "
                'metadata={op_name="%none"}'
            ],
            2 * WHOLE,
        ),
    ],
)
def test_each_instruction_counts_what_it_takes_from_hbm_and_leaves_there(uses, moved):
    lines = [*uses[:-1], f"ROOT {uses[-1]}"]
    assert hbm_traffic(Program(TEXT.replace("USES", "\n".join(f"  {line}" for line in lines)))) == moved


def _compiled(step, *shapes):
    return jax.jit(step).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def test_where_nothing_lies_on_the_chip_it_is_what_xla_counts():
    compiled = _compiled(lambda a, b: jnp.tanh(a @ b) + 1, (256, 128), (128, 512))
    assert hbm_traffic(Program(compiled.as_text())) == compiled.cost_analysis()["bytes accessed"]


def test_loops_count_as_often_as_they_run():
    def step(x, rows):
        return lax.scan(lambda total, row: (jnp.tanh(total) + row, None), x, rows)[0]

    few, many = (hbm_traffic(Program(_compiled(step, (1024,), (length, 1024)).as_text())) for length in (10, 20))
    # Each step reads its row and the total, and writes the total; the whole table is never read in a step.
    assert 10 * 3 * 4096 <= many - few <= 10 * 6 * 4096
