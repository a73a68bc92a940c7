"""The benchmarks' peer does the same work: equal iterations from equal numbers, and comparable rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from benchmarks import iteration, peer, peer_iteration
from benchmarks.models import SIZES, random_model
from benchmarks.networks import UNET_FORWARD, VAE_WORKS, row_name

from ge3d_jax.core.random import Draws
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.diffusion.weights.parameters import parameter_shapes
from ge3d_jax.guidance.base import Progress, SeenViews
from ge3d_jax.guidance.prompts import view_texts
from ge3d_jax.training.distillation import Distillation, Prompted
from ge3d_jax.training.presets import preset
from tests.reference_models import random_parameters, relative_difference
from tests.reference_torch import fill

SIZE = SIZES["toybox64"]


@pytest.mark.parametrize("use_perp_neg", [False, True])
def test_the_iteration_hands_back_the_same_residual(use_perp_neg):
    overrides = {
        "prompts.use_perp_neg": use_perp_neg,
        "guidance.noising_prompt": "empty",
        "nodes.count": 2,
        "views": 2,
        "start.count": 20,
    }
    config = with_overrides(preset("toybox64"), overrides)
    device = torch.device("cpu")
    unet, vae = (make(SIZE, device, torch.float32) for make in (peer.make_unet, peer.make_vae))
    theirs = peer_iteration.Iteration(SIZE, config, fill(unet), vae, device, torch.float32)

    model = random_model(SIZE, jnp.dtype(jnp.float32), has_unet=False, has_vae=False)
    model = dataclasses.replace(model, unet_params=random_parameters(parameter_shapes(model.unet)))
    task, embeddings = Distillation(config), iteration.random_embeddings(SIZE)
    drawn = task.draw(iteration.first_state(config, model), Prompted(model, embeddings))
    z = np.random.default_rng(0).normal(size=drawn.per_view["loss"]["noise"].shape).astype(np.float32)

    def scalar(z, model, embeddings, drawn):
        text = view_texts(
            embeddings,
            drawn.per_view["azimuth"],
            use_perp_neg=use_perp_neg,
            weight=config.prompts.perp_neg_weight,
        )
        return config.guidance(
            (),
            SeenViews(z, drawn.per_view["cameras"], config.views),
            text,
            Draws(drawn.shared["loss"], drawn.per_view["loss"]),
            task.denoiser(model, config.views),
            Progress(0, config.iterations),
        )[0]

    ours = jax.jit(jax.grad(scalar))(jnp.asarray(z), model, embeddings, drawn)
    result = theirs.residual(torch.from_numpy(z.transpose(0, 3, 1, 2).copy())).permute(0, 2, 3, 1).numpy()
    assert relative_difference(np.asarray(ours), result) < 1e-3
    assert np.abs(result).max() > 1e-3


def test_every_work_has_a_row():
    how = {"compiles": False, "repetitions": 1, "warm_up": 1}
    rows = peer.measure_networks((UNET_FORWARD,), SIZE, jnp.dtype(jnp.float32), [1, 2], **how)
    rows += peer.measure_networks(VAE_WORKS, SIZE, jnp.dtype(jnp.bfloat16), [1], **how)
    assert [row.work for row in rows] == [
        row_name(UNET_FORWARD, 1),
        row_name(UNET_FORWARD, 2),
        *(row_name(work, 1) for work in VAE_WORKS),
    ]
    assert all(row.median > 0 and row.note == "" for row in rows)


def test_the_iteration_has_a_row_that_says_what_it_leaves_out():
    config = with_overrides(preset("toybox64"), {"nodes.count": 1, "views": 1, "start.count": 20})
    (row,) = peer_iteration.measure_iteration(
        SIZE, config, jnp.dtype(jnp.float32), compiles=False, repetitions=1, warm_up=1
    )
    assert row.median > 0 and "without rendering" in row.note


def test_a_peer_that_fails_leaves_its_reason():
    def fail():
        raise RuntimeError("no compiler\nfound")

    row = peer.measure_torch("work", peer.COMPILED, fail, flop=1, repetitions=1, warm_up=1)
    assert row.seconds == () and row.note == "RuntimeError: no compiler found"
