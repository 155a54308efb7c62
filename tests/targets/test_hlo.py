"""Programs are counted by their text: what crosses memory, runs, is a convolution, is exchanged."""

import jax
import jax.numpy as jnp
import pytest

from covidjax.targets import hlo

TPU = """HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%fused (map: bf16[8,16,16,4], kernel: bf16[3,3,4,6]) -> (f32[6], bf16[8,16,16,6]) {
  %map = bf16[8,16,16,4]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %kernel = bf16[3,3,4,6]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %conv = bf16[8,16,16,6]{3,0,2,1:T(8,128)(2,1)} convolution(%map, %kernel), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
  %zero = f32[] constant(0)
  %mean = f32[6]{0:T(128)S(1)} reduce(%conv, %zero), dimensions={0,1,2}, to_apply=%sum
  ROOT %tuple.1 = (f32[6]{0:T(128)S(1)}, bf16[8,16,16,6]{3,0,2,1:T(8,128)(2,1)}) tuple(%mean, %conv)
}

ENTRY %main (image: bf16[8,16,16,4], weights: bf16[3,3,4,6]) -> f32[6] {
  %image = bf16[8,16,16,4]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %weights = bf16[3,3,4,6]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %copy-start = (bf16[3,3,4,6]{3,2,1,0:T(8,128)(2,1)S(1)}, bf16[3,3,4,6]{3,2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%weights)
  %copy-done = bf16[3,3,4,6]{3,2,1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %fusion = (f32[6]{0:T(128)S(1)}, bf16[8,16,16,6]{3,0,2,1:T(8,128)(2,1)}) fusion(%image, /*index=1*/%copy-done), kind=kOutput, calls=%fused, metadata={op_name="jit(step)/params[\\'conv\\']"}
  %get-tuple-element = f32[6]{0:T(128)S(1)} get-tuple-element(%fusion), index=0
  %get-tuple-element.1 = bf16[8,16,16,6]{3,0,2,1:T(8,128)(2,1)} get-tuple-element(%fusion), index=1
  %slice-start = ((bf16[8,16,16,6]{3,0,2,1:T(8,128)(2,1)}), bf16[1,16,16,6]{3,0,2,1:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%get-tuple-element.1), slice={[0:1], [0:16], [0:16], [0:6]}
  %slice-done = bf16[1,16,16,6]{3,0,2,1:T(8,128)(2,1)S(1)} slice-done(%slice-start)
  ROOT %all-reduce = f32[6]{0:T(128)} all-reduce(%get-tuple-element), channel_id=1, to_apply=%sum
}
"""  # noqa: E501 - as XLA writes it

GPU = """HloModule jit_step, is_scheduled=true

%body (carry: (s32[], f32[64])) -> (s32[], f32[64]) {
  %carry = (s32[], f32[64]{0}) parameter(0)
  %turn = s32[] get-tuple-element(%carry), index=0
  %vector = f32[64]{0} get-tuple-element(%carry), index=1
  %wrapped = f32[64]{0} fusion(%vector), kind=kLoop, calls=%double
  ROOT %next = (s32[], f32[64]{0}) tuple(%turn, %wrapped)
}

%double (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  ROOT %twice = f32[64]{0} add(%x, %x)
}

%turns (carry.1: (s32[], f32[64])) -> pred[] {
  %carry.1 = (s32[], f32[64]{0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (dy: bf16[32,4,4,512], kernel: bf16[512,3,3,256], a: bf16[32,512], b: bf16[512,3]) -> f32[64] {
  %dy = bf16[32,4,4,512]{3,2,1,0} parameter(0)
  %kernel = bf16[512,3,3,256]{3,2,1,0} parameter(1)
  %a = bf16[32,512]{1,0} parameter(2)
  %b = bf16[512,3]{1,0} parameter(3)
  %cudnn-conv-bw-input = (bf16[32,8,8,256]{3,2,1,0}, u8[0]{0}) custom-call(%dy, %kernel), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %dot = f32[32,3]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %start = (s32[], f32[64]{0}) tuple()
  %while = (s32[], f32[64]{0}) while(%start), condition=%turns, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[64]{0} get-tuple-element(%while), index=1
}
"""  # noqa: E501


def test_on_a_tpu_only_what_lies_in_hbm_is_counted() -> None:
    costs = {cost.instruction.name: cost.bytes for cost in hlo.costs(hlo.parse(TPU))}
    image, weights, out = 8 * 16 * 16 * 4 * 2, 3 * 3 * 4 * 6 * 2, 8 * 16 * 16 * 6 * 2
    assert costs == {"copy-start": weights, "fusion": image + out, "slice-start": out // 8, "all-reduce": 6 * 4}


def test_collectives_are_counted_with_what_they_exchange() -> None:
    counts = hlo.count(hlo.parse(TPU))
    assert (counts.all_reduces, counts.all_reduce_bytes, counts.all_reduce_elements) == (1, 24, 6)


PARTS = """HloModule jit_step, is_scheduled=true, num_partitions=8

ENTRY %main (kernel: f32[4,64]) -> (f32[16,64], f32[4,64], f32[16,64]) {
  %kernel = f32[4,64]{1,0} parameter(0)
  %all-gather-start = (f32[4,64]{1,0}, f32[16,64]{1,0}) all-gather-start(%kernel), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %all-gather-done = f32[16,64]{1,0} all-gather-done(%all-gather-start)
  %reduce-scatter = f32[4,64]{1,0} reduce-scatter(%all-gather-done), channel_id=2, replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%sum
  %all-reduce = f32[16,64]{1,0} all-reduce(%all-gather-done), channel_id=3, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%sum
  ROOT %out = (f32[16,64]{1,0}, f32[4,64]{1,0}, f32[16,64]{1,0}) tuple(%all-gather-done, %reduce-scatter, %all-reduce)
}
"""  # noqa: E501


def test_collectives_are_told_apart_with_what_leaves_a_device() -> None:
    counts, whole = hlo.count(hlo.parse(PARTS)), 16 * 64 * 4
    assert counts.by_kind() == {"all-gather": (1, whole), "all-reduce": (1, whole), "reduce-scatter": (1, whole)}
    sent = {each.kind: each.sent(8) for each in counts.collectives}
    assert sent == {"all-gather": 0.75 * whole, "reduce-scatter": 0.75 * whole, "all-reduce": 2 * 0.5 * whole}


def test_a_convolution_within_a_fusion_counts_without_its_padding() -> None:
    counts = hlo.count(hlo.parse(TPU))
    pairs = 3 * 16 - 2  # of a row of 16 under 3 taps, of which two fall outside
    assert (counts.convolutions, counts.flops) == (1, 2 * 8 * pairs**2 * 4 * 6)


def test_a_loop_counts_as_often_as_it_runs_and_library_calls_as_convolutions() -> None:
    counts = hlo.count(hlo.parse(GPU))
    pairs = 3 * 4 - 1  # four outputs, three taps, the first of which once falls outside
    assert counts.flops == 2 * 32 * pairs**2 * 256 * 512 + 2 * 32 * 512 * 3
    assert (counts.convolutions, counts.kernels) == (1, 2 + 5)
    moved = 2 * (32 * 4 * 4 * 512 + 512 * 9 * 256 + 32 * 8 * 8 * 256) + 2 * (32 * 512 + 512 * 3) + 4 * 32 * 3
    assert counts.bytes_accessed == moved + 5 * 2 * 4 * 64


def test_an_operation_says_what_it_comes_from() -> None:
    origins = [line.origin for line in hlo.parse(TPU).computations["main"] if line.opcode == "fusion"]
    assert origins == ["jit(step)/params['conv']"]


@pytest.mark.parametrize(("stride", "dilation", "holes"), [(1, 1, 1), (2, 1, 1), (2, 2, 1), (1, 1, 2), (2, 1, 3)])
def test_flops_of_a_convolution_are_those_that_xla_counts(stride: int, dilation: int, holes: int) -> None:
    def convolve(image: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            image, kernel, (stride,) * 2, [(1, 2), (2, 0)], (holes,) * 2, (dilation,) * 2, ("NHWC", "HWIO", "NHWC")
        )

    shapes = jax.ShapeDtypeStruct((2, 9, 8, 3), jnp.float32), jax.ShapeDtypeStruct((3, 2, 3, 5), jnp.float32)
    compiled = jax.jit(convolve).lower(*shapes).compile()
    assert hlo.count(hlo.parse(compiled.as_text() or "")).flops == (compiled.cost_analysis() or {})["flops"]
