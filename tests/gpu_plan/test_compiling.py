"""Compilation of programs for cards that are not present."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from benchmarks.models import SIZES, shaped_model
from gpu_plan import cards, kernels, report
from gpu_plan.compiling import as_loaded, mesh_of
from gpu_plan.program import read_program
from gpu_plan.rows import Row
from gpu_plan.walk import walk
from jax.experimental import pallas
from jax.experimental.pallas import triton

from ge3d_jax.core.devices import compiling_for, replicated
from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.networks.attention import attention
from ge3d_jax.diffusion.networks.group_norm import GroupNorm
from ge3d_jax.diffusion.networks.kernel_order import in_read_order, with_kernels_restored

SMALL = Row(
    card="h100",
    preset="toybox",
    splats=60,
    settings=(
        # For latents smaller than a kernel, XLA swaps the two, which hides how many samples there are.
        ("image_size", "64"),
        ("buffer_capacity", "16"),
        ("views", "2"),
        ("guidance.inversion", "plain"),
    ),
)


def compiled_for(name, function, *shapes, **options):
    card = cards.card(name)
    placed = replicated(mesh_of(card))
    arguments = [jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=placed) for each in shapes]
    with compiling_for(card.target):
        return jax.jit(function).lower(*arguments).compile(**options)


@pytest.mark.parametrize("name", cards.known_cards())
def test_attention_in_half_precision_is_cudnns_on_every_card(name):
    query, key = (jax.ShapeDtypeStruct((2, length, 5, 64), jnp.bfloat16) for length in (256, 77))
    program = read_program(compiled_for(name, attention, query, key, key).as_text())
    launches = walk(program, lambda loop: None).launches
    (found,) = (launch for launch in launches if launch.cost.kind == "attention")
    # The 77 keys were padded by one.
    assert found.cost.operations == 2 * (2 * 2 * 5 * 256 * 78 * 64) and found.cost.is_half


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", cards.known_cards())
def test_kernels_in_read_order_are_not_copied(name, dtype):
    images = jax.ShapeDtypeStruct((2, 16, 16, 64), dtype)
    kernel = jax.ShapeDtypeStruct((3, 3, 64, 96), dtype)
    with compiling_for(cards.card(name).target):
        ordered = jax.eval_shape(lambda: in_read_order(jnp.zeros(kernel.shape, dtype), dtype))

    def convolved(images, values):
        stored = values if values.shape == kernel.shape else dataclasses.replace(ordered, values=values)
        numbers = ("NHWC", "HWIO", "NHWC")
        exact = jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default")
        with exact:
            return jax.lax.conv_general_dilated(
                images, with_kernels_restored(stored), (1, 1), "SAME", dimension_numbers=numbers
            )

    def copies(values):
        program = read_program(compiled_for(name, convolved, images, values).as_text())
        return [
            found.name
            for found in program.computations[program.entry]
            if found.kind not in ("parameter", "bitcast") and found.arrays[0].count == 3 * 3 * 64 * 96
        ]

    assert copies(kernel) and not copies(ordered.values)


def test_a_model_is_planned_as_it_is_loaded():
    model = shaped_model(SIZES["toybox"], jnp.bfloat16)
    with compiling_for(cards.card("rtx3060").target):
        loaded = as_loaded(model, jnp.bfloat16)
    pairs = (
        (model.unet_params["conv_out"], loaded.unet_params["conv_out"]),
        (model.vae_params["quant_conv"], loaded.vae_params["quant_conv"]),
    )
    for before, after in pairs:
        height, width, channels, outputs = before["kernel"].shape
        assert after["kernel"].values.shape == (outputs, height, width, channels)
        assert after["bias"].shape == before["bias"].shape


def test_a_norm_in_half_precision_is_three_kernels_and_reads_its_input_twice():
    shape = jax.ShapeDtypeStruct((4, 32, 32, 320), jnp.bfloat16)
    norm = GroupNorm(32, 1e-5, jnp.bfloat16)

    def function(hidden):
        parameters = {"scale": jnp.ones(320), "bias": jnp.zeros(320)}
        return jax.nn.silu(norm.apply({"params": parameters}, hidden))

    program = read_program(compiled_for("h100", function, shape).as_text())
    launches = walk(program, lambda loop: None).launches
    assert len(launches) == 3
    whole = 2 * 4 * 32 * 32 * 320
    assert sum(launch.cost.moved for launch in launches) == pytest.approx(3 * whole, rel=0.1)


@pytest.mark.parametrize("name", ["a100", "a6000", "rtx4090", "h100"])
def test_a_kernel_of_ours_tells_its_registers(name, tmp_path):
    def twice(given, result):
        result[...] = 2.0 * given[...]

    def function(x):
        block = pallas.BlockSpec((128,), lambda index: (index,))
        call = pallas.pallas_call(
            twice,
            out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
            grid=(8,),
            in_specs=[block],
            out_specs=block,
            compiler_params=triton.CompilerParams(num_warps=4),
            name="twice",
        )
        return jnp.sin(call(x))

    shape = jax.ShapeDtypeStruct((1024,), jnp.float32)
    program = compiled_for(name, function, shape, compiler_options={"xla_dump_to": str(tmp_path)})
    read = read_program(program.as_text())
    assert kernels.our_kernels(read) == {"twice"}
    (kernel,) = kernels.assembled(tmp_path, ["twice"])
    assert kernel.name == "twice" and 0 < kernel.registers <= 32 and kernel.spilled == 0
    ours = [launch for launch in walk(read, lambda loop: None).launches if launch.cost.kind == "ours"]
    assert [launch.cost.moved for launch in ours] == [2 * 4 * 1024]


def test_a_whole_iteration_is_planned_from_shapes_alone(tmp_path):
    content = SMALL.made((0.5, 0.3))
    first, second = content["scenes"]
    parts = first["parts"]
    assert {"UNet, 2 samples", "UNet, 4 samples", "VAE, forward", "VAE, back"} <= parts.keys()
    assert parts["UNet, 4 samples"]["operations"] == 2 * parts["UNet, 2 samples"]["operations"]
    # The splats of a closer view are in more tile lists.
    assert first["unknown_loops"] == second["unknown_loops"] == []
    assert content["buffer"] > 16 and content["memory"]["fits"] == "yes"
    assert report.save(content, tmp_path).exists()


def test_a_specification_that_the_compiler_does_not_take_is_one_sentence(tmp_path):
    broken = tmp_path / "broken.txtpb"
    broken.write_text(f"{cards.card('h100').specification}\nwhat: 7\n")
    with pytest.raises(UserError, match="does not take the specification"):
        dataclasses.replace(SMALL, card=str(broken)).made((0.5,))
