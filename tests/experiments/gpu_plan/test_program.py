"""Launches, bytes and operations of a small program, and of XLA's compiled code for this processor."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_plan.costs import Costs
from gpu_plan.program import arrays_of, read_program
from gpu_plan.turns import turn_counter
from gpu_plan.walk import REST, TILES, VAE_BACK, by_part, walk

from ge3d_jax.core.errors import UserError

TEXT = (Path(__file__).parent / "program.txt").read_text(encoding="utf-8")
CHUNKS = "jvp(vmap())/while"


@pytest.fixture(scope="module")
def program():
    return read_program(TEXT)


def cost_of(program, name):
    instructions = (each for body in program.computations.values() for each in body)
    return Costs(program).of(next(each for each in instructions if each.name == name))


def test_types_have_sizes():
    sizes = {"bf16[3,5]{1,0}": 30, "pred[7]": 7, "f32[]": 4, "c64[2]": 16, "s4[3]": 2, "token[]": 0}
    assert {text: sum(array.size for array in arrays_of(text)) for text in sizes} == sizes
    assert [array.shape for array in arrays_of("(s32[], /*index=1*/u8[4,2])")] == [(), (4, 2)]


def test_a_kernel_knows_where_in_the_source_it_comes_from(program):
    update = next(each for each in program.computations["chunk"] if each.kind == "fusion")
    places = [("splatting/compositing.py", 208), ("splatting/rasterize.py", 122)]
    assert list(program.places(update)) == places


def test_products_convolutions_and_attention_count_their_multiplications(program):
    product = cost_of(program, "gemm_fusion_dot")
    assert (product.kind, product.operations, product.is_half) == ("product", 2 * 16 * 320 * 64, True)
    assert product.moved == 2 * (16 * 320 + 320 * 64 + 16 * 64)
    convolution = cost_of(program, "conv")
    assert convolution.operations == 2 * (2 * 4 * 4 * 16) * (3 * 3 * 8)
    # Excluding the library's workspace.
    assert convolution.moved == 2 * (2 * 4 * 4 * 8 + 16 * 3 * 3 * 8 + 2 * 4 * 4 * 16)
    # Queries times keys, and weights times values.
    assert cost_of(program, "attention").operations == 2 * (2 * (2 * 4) * 6 * 8)


def test_slices_and_updates_in_place_count_what_they_touch(program):
    assert cost_of(program, "loop_multiply_fusion").moved == 2 * (16 * 64 + 16 * 32)
    assert cost_of(program, "update_fusion").moved == 4 * (2 * 8) + 4 + 4 * (2 * 8)


def test_launches_count_as_often_as_their_loops_turn(program):
    walked = walk(program, lambda loop: {CHUNKS: 50}[loop.key])
    launches = {part: sum(launch.times for launch in each) for part, each in by_part(walked).items()}
    assert launches == {
        # Six nodes, each with a product, a convolution, an attention and the fusion that follows.
        "UNet, 2 samples": 24,
        # The loop iterations, and the condition before each and after the last.
        "compositing, forward": 50 + 51,
        TILES: 1,
        VAE_BACK: 1,
        REST: 1,
    }
    assert walked.questions == {REST: 6, "compositing, forward": 51}
    assert walked.unknown == []


def test_a_loop_that_nobody_knows_counts_once_and_is_named(program):
    walked = walk(program, lambda loop: None)
    assert walked.unknown == ["jit(step)/jvp(vmap())/while"]
    assert sum(launch.times for launch in by_part(walked)["compositing, forward"]) == 1 + 2


@pytest.mark.parametrize("text", ["", "HloModule jit_f\n", "%f (x: f32[]) -> f32[] {\n}\n"])
def test_what_is_no_program_is_refused(text):
    with pytest.raises(UserError, match="text of a compiled program"):
        read_program(text)


def test_the_operations_of_a_program_for_this_processor_are_those_of_its_products():
    def function(x, kernel, weights):
        def body(x, _):
            y = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return jnp.sin(y), None

        x, _ = jax.lax.scan(body, x, None, length=5)
        return x.reshape(2, -1) @ weights

    arguments = [np.ones(shape, np.float32) for shape in ((2, 8, 8, 4), (3, 3, 4, 4), (256, 7))]
    compiled = jax.jit(function).lower(*arguments).compile()
    launches = walk(read_program(compiled.as_text()), lambda loop: None).launches
    operations = sum(launch.times * launch.cost.operations for launch in launches)
    assert operations == 5 * 2 * (2 * 8 * 8 * 4) * (3 * 3 * 4) + 2 * 2 * 256 * 7
    assert not any(launch.cost.is_half for launch in launches)


def collatz(n):
    def step(state):
        n, halvings = state
        _, half = jax.lax.while_loop(lambda s: s[1] % 2 == 0, lambda s: (s[0], s[1] // 2), (n, n))
        n, half = jax.jit(lambda half: (3 * half + 1, half))(half)
        return jnp.where(half == 1, 1, n), halvings + 1

    return jax.lax.while_loop(lambda state: state[0] != 1, step, (n, 0))[1]


def test_turns_are_counted_loop_by_loop():
    def by_hand(n):
        outer = inner = 0
        while n != 1:
            outer += 1
            while n % 2 == 0:
                n, inner = n // 2, inner + 1
            n = 1 if n == 1 else 3 * n + 1
        return outer, inner

    count = turn_counter(collatz, jnp.int32(1))
    for number in (27, 8, 1):
        assert count(jnp.int32(number)) == dict(
            zip(("while", "while/body/while"), by_hand(number), strict=True)
        )
    assert turn_counter(jnp.sin, jnp.float32(1.0))(jnp.float32(2.0)) == {}
