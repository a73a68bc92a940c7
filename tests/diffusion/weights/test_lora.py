"""LoRA files in all naming schemes, merged by definition: W + strength · alpha / rank · up · down."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.checkpoint import load_model, save_model
from ge3d_jax.diffusion.weights.parameters import tensor_name
from tests.reference_models import random_array, tiny_model

RANK = 3
# Linear layers and convolutions of both networks by their diffusers names, with weight shapes (out, in, …).
UNET = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (16, 12),
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0": (16, 16),
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": (256, 32),
    "down_blocks.0.resnets.0.conv1": (16, 16, 3, 3),
    "down_blocks.0.downsamplers.0.conv": (16, 16, 3, 3),
    "down_blocks.1.resnets.0.conv_shortcut": (32, 16, 1, 1),
    "mid_block.resnets.1.time_emb_proj": (32, 64),
}
TEXT = {"encoder.layers.1.self_attn.q_proj": (12, 12), "encoder.layers.0.mlp.fc1": (40, 12)}
# The same modules of the UNet by their original names.
ORIGINAL = dict(
    zip(
        UNET,
        (
            "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
            "input_blocks_1_1_transformer_blocks_0_attn2_to_k",
            "output_blocks_3_1_transformer_blocks_0_attn2_to_out_0",
            "middle_block_1_transformer_blocks_0_ff_net_0_proj",
            "input_blocks_1_0_in_layers_2",
            "input_blocks_2_0_op",
            "input_blocks_3_0_skip_connection",
            "middle_block_2_emb_layers_1",
        ),
        strict=True,
    )
)


def _factors(module, shape):
    """down (rank, in, …) and up (out, rank, …), in the trainers' format for a layer of this shape."""
    down = random_array(f"down {module}", (RANK, *shape[1:]))
    up = random_array(f"up {module}", (shape[0], RANK, *(1 for _ in shape[2:])))
    return down, up


def _old(module):
    """Names of attention changes before PEFT: in the processor, with the output not in a list."""
    head, last = module.removesuffix(".0").rsplit(".", 1)
    return f"unet.{head}.processor.{last}_lora"


# For each file format: the names of a UNet module, a text encoder module, and the two factors.
STYLES = {
    "peft": ("unet.{}", "text_encoder.text_model.{}", ".lora_A.weight", ".lora_B.weight"),
    "peft without prefix": ("unet.{}", "text_encoder.{}", ".lora_A.weight", ".lora_B.weight"),
    "peft named": ("unet.{}", "text_encoder.{}", ".lora_A.default.weight", ".lora_B.default.weight"),
    "diffusers": ("unet.{}", "text_encoder.text_model.{}", ".lora.down.weight", ".lora.up.weight"),
    "linear layer": (
        "unet.{}",
        "text_encoder.text_model.{}",
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ),
    "kohya": ("lora_unet_{}", "lora_te_text_model_{}", ".lora_down.weight", ".lora_up.weight"),
    "kohya original": ("lora_unet_{}", "lora_te_text_model_{}", ".lora_down.weight", ".lora_up.weight"),
}


def _tensors(style, alpha=None):
    unet, text, down_ending, up_ending = STYLES[style]
    tensors = {}
    for template, modules in ((unet, UNET), (text, TEXT)):
        for module, shape in modules.items():
            name = ORIGINAL.get(module, module) if style == "kohya original" else module
            name = template.format(name.replace(".", "_") if style.startswith("kohya") else name)
            tensors[name + down_ending], tensors[name + up_ending] = _factors(module, shape)
            if alpha is not None:
                tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
    return tensors


def _expected(parameters, modules, scale):
    """The parameters with the changes added element by element, in this project's axis order."""
    result = {}
    for path, value in flatten_dict(parameters).items():
        value = np.array(value, np.float64)
        module = tensor_name(path).removesuffix(".weight")
        if path[-1] == "kernel" and module in modules:
            down, up = (factor.astype(np.float64) for factor in _factors(module, modules[module]))
            for rank in range(RANK):
                for out in range(value.shape[-1]):
                    for into in range(value.shape[-2]):
                        value[..., into, out] += scale * up[out, rank].item() * down[rank, into]
        result[path] = value
    return result


def _assert_merged(loaded, model, scale, unet=UNET, text=TEXT):
    for parameters, original, modules in (
        (loaded.unet_params, model.unet_params, unet),
        (loaded.text_params, model.text_params, text),
    ):
        expected = _expected(original, modules, scale)
        for path, value in flatten_dict(parameters).items():
            np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-5, err_msg=str(path))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A random model and its folder."""
    folder = tmp_path_factory.mktemp("saved")
    model = tiny_model(folder / "words")
    save_model(folder / "model", model)
    return model, folder / "model"


@pytest.mark.parametrize("style", STYLES)
def test_every_naming_scheme_is_merged(saved, tmp_path, style):
    model, folder = saved
    save_file(_tensors(style, alpha=2.0), tmp_path / "lora.safetensors")
    loaded = load_model(folder, loras=[(tmp_path / "lora.safetensors", 0.7)])
    _assert_merged(loaded, model, 0.7 * 2.0 / RANK)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.vae_params, model.vae_params))


def test_names_from_before_peft(saved, tmp_path):
    model, folder = saved
    attention = {module: shape for module, shape in UNET.items() if ".to_" in module}
    tensors = {}
    for module, shape in attention.items():
        down, up = _factors(module, shape)
        tensors |= {f"{_old(module)}.down.weight": down, f"{_old(module)}.up.weight": up}
    save_file(tensors, tmp_path / "lora.safetensors")
    loaded = load_model(folder, loras=[(tmp_path / "lora.safetensors", 1.0)])
    _assert_merged(loaded, model, 1.0, attention, {})


def test_without_alpha_the_scale_is_one(saved, tmp_path):
    save_file(_tensors("peft"), tmp_path / "lora.safetensors")
    _assert_merged(load_model(saved[1], loras=[(tmp_path / "lora.safetensors", -0.5)]), saved[0], -0.5)


@pytest.mark.parametrize(
    ("notes", "scale"),
    [
        ({"lora_alpha": 6, "r": RANK}, 2.0),
        ({"lora_alpha": 6, "use_rslora": True}, 6 / RANK**0.5),
        ({"lora_alpha": 1, "alpha_pattern": {"to_.+|.*proj": 9, ".*conv.*|fc1": 9}}, 3.0),
    ],
    ids=["alpha", "rank-stabilised", "pattern"],
)
def test_alpha_from_the_header(saved, tmp_path, notes, scale):
    header = {f"{part}.{name}": value for part in ("unet", "text_encoder") for name, value in notes.items()}
    metadata = {"lora_adapter_metadata": json.dumps(header)}
    save_file(_tensors("peft"), tmp_path / "lora.safetensors", metadata)
    _assert_merged(load_model(saved[1], loras=[(tmp_path / "lora.safetensors", 1.0)]), saved[0], scale)


def test_of_several_patterns_the_first_counts_and_names_are_transformers(saved, tmp_path):
    q = "text_model.encoder.layers.0.self_attn.q_proj"
    header = {
        "unet.lora_alpha": 6,
        "unet.alpha_pattern": {"to_.+|.*proj": 9, ".*conv.*|fc1": 9, ".*": 1},
        "text_encoder.lora_alpha": 6,
        "text_encoder.alpha_pattern": {q.replace("q_proj", ".*"): 9, "text_model.+": 9, q: 1},
    }
    save_file(_tensors("peft"), tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(header)})
    _assert_merged(load_model(saved[1], loras=[(tmp_path / "lora.safetensors", 1.0)]), saved[0], 9 / RANK)


def test_an_adapter_written_by_peft(saved, tmp_path):
    tensors = {
        name.replace("unet.", "base_model.model."): value
        for name, value in _tensors("peft").items()
        if name.startswith("unet.")
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="adapter_config.json is missing"):
        load_model(saved[1], loras=[(tmp_path / "adapter_model.safetensors", 1.0)])
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 8}))
    loaded = load_model(saved[1], loras=[(tmp_path / "adapter_model.safetensors", 1.0)])
    _assert_merged(loaded, saved[0], 8 / RANK, text={})


def test_several_files_add_up(saved, tmp_path):
    model, folder = saved
    for style in ("peft", "kohya"):
        save_file(_tensors(style, alpha=RANK), tmp_path / f"{style}.safetensors")
    loras = [(tmp_path / "peft.safetensors", 0.5), (tmp_path / "kohya.safetensors", 0.25)]
    _assert_merged(load_model(folder, loras=loras), model, 0.75)


def test_half_precision_is_rounded_once_after_merging(saved, tmp_path):
    model, folder = saved
    save_file(_tensors("peft", alpha=RANK), tmp_path / "lora.safetensors")
    lora = [(tmp_path / "lora.safetensors", 1.0)]
    whole, half = load_model(folder, loras=lora), load_model(folder, loras=lora, dtype=jnp.bfloat16)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), whole.unet_params)
    assert jax.tree.all(jax.tree.map(np.array_equal, half.unet_params, rounded))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lora_unet_down_blocks_9_resnets_0_conv1.alpha", "lora_unet_down_blocks_9_resnets_0_conv1"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "lora_te2_"),
        ("unet.conv_in.hada_w1_a", "LoHa, which is not supported .it has unet.conv_in.hada_w1_a"),
        ("lora_unet_double_blocks_0_img_mlp_0.lora_up.weight", "is for FLUX"),
        ("lora_unet_label_emb_0_0.alpha", "is for SDXL"),
        ("unet.conv_in.lora_magnitude_vector", "is not a LoRA but DoRA"),
        ("text_encoder.embeddings.token_embedding.lora_A.weight", "token_embedding"),
    ],
)
def test_a_name_that_the_model_does_not_have_is_reported(saved, tmp_path, name, says):
    save_file({**_tensors("kohya"), name: np.zeros((RANK, 4), np.float32)}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=says):
        load_model(saved[1], loras=[(tmp_path / "lora.safetensors", 1.0)])


def test_a_single_factor_is_refused(saved, tmp_path):
    tensors = _tensors("peft")
    del tensors["unet.down_blocks.0.resnets.0.conv1.lora_A.weight"]
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(
        UserError, match="only one of the two factors of down_blocks.0.resnets.0.conv1.weight"
    ):
        load_model(saved[1], loras=[(tmp_path / "lora.safetensors", 1.0)])


@pytest.mark.parametrize("shape", [(RANK, 20), (RANK + 1, 16), (RANK, 16, 3, 3)])
def test_factors_of_another_model_are_refused(saved, tmp_path, shape):
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    save_file({**_tensors("peft"), name: np.zeros(shape, np.float32)}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="attn1.to_q.weight of .16, 16."):
        load_model(saved[1], loras=[(tmp_path / "lora.safetensors", 1.0)])


def test_missing_and_pickled_files_are_refused(saved, tmp_path):
    with pytest.raises(UserError, match="nowhere.safetensors is missing"):
        load_model(saved[1], loras=[(tmp_path / "nowhere.safetensors", 1.0)])
    with pytest.raises(UserError, match="python -c .*lora.safetensors"):
        load_model(saved[1], loras=[(tmp_path / "lora.pt", 1.0)])


def test_embedded_times_and_ends_are_changed_too(saved, tmp_path):
    """LyCORIS' preset "full" trains all linear layers and convolutions."""
    model, folder = saved
    modules = {
        "time_embedding.linear_1": (64, 16),
        "time_embedding.linear_2": (64, 64),
        "conv_in": (16, 4, 3, 3),
        "conv_out": (4, 16, 3, 3),
    }
    tensors = {}
    for module, shape in modules.items():
        name = f"lora_unet_{module.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = _factors(module, shape)
    save_file(tensors, tmp_path / "lora.safetensors")
    loaded = load_model(folder, loras=[(tmp_path / "lora.safetensors", 1.0)])
    _assert_merged(loaded, model, 1.0, modules, {})


def test_the_text_encoder_of_newer_trainers(saved, tmp_path):
    model, folder = saved
    tensors = {name.replace("lora_te_", "lora_te1_"): value for name, value in _tensors("kohya").items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    _assert_merged(load_model(folder, loras=[(tmp_path / "lora.safetensors", 0.5)]), model, 0.5)


def _difference(loaded, model, path):
    """The change of a parameter, in the file's axis order."""
    change = np.asarray(loaded, np.float64) - np.asarray(model, np.float64)
    return change.transpose(3, 2, 0, 1) if change.ndim == 4 else change.T


def test_a_factor_between_the_two(saved, tmp_path):
    """For convolutions: W += Σ_n Σ_m up[o, n] · mid[n, m, h, w] · down[m, i], element by element."""
    model, folder = saved
    up, down = random_array("up", (16, 2, 1, 1)), random_array("down", (3, 16, 1, 1))
    mid = random_array("mid", (2, 3, 3, 3))
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    factors = {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": mid, "alpha": np.array(6.0)}
    save_file({f"{name}.{key}": value for key, value in factors.items()}, tmp_path / "lora.safetensors")
    loaded = load_model(folder, loras=[(tmp_path / "lora.safetensors", 1.0)])
    expected = np.zeros((16, 16, 3, 3))
    for n in range(2):
        for m in range(3):
            outer = up[:, n, 0, 0].astype(float)[:, None] * down[m, :, 0, 0]
            expected += outer[:, :, None, None] * mid[n, m]
    conv = [tree.unet_params["down_blocks_0"]["resnets_0"]["conv1"]["kernel"] for tree in (loaded, model)]
    np.testing.assert_allclose(_difference(*conv, None), 2.0 * expected, atol=1e-4)
    factors["lora_mid.weight"] = mid[:, :, :2]
    save_file({f"{name}.{key}": value for key, value in factors.items()}, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="made for this model"):
        load_model(folder, loras=[(tmp_path / "bad.safetensors", 1.0)])


def test_whole_differences_of_weights_biases_and_norms(saved, tmp_path):
    model, folder = saved
    changes = {
        "lora_unet_conv_in.diff": random_array("a", (16, 4, 3, 3)),
        "lora_unet_conv_in.diff_b": random_array("b", (16,)),
        "lora_unet_conv_norm_out.w_norm": random_array("c", (16,)),
        "lora_unet_conv_norm_out.b_norm": random_array("d", (16,)),
        "lora_te_text_model_final_layer_norm.w_norm": random_array("e", (12,)),
    }
    save_file(changes, tmp_path / "lora.safetensors")
    loaded = load_model(folder, loras=[(tmp_path / "lora.safetensors", 0.5)])
    found = [
        _difference(*(tree.unet_params["conv_in"]["kernel"] for tree in (loaded, model)), None),
        loaded.unet_params["conv_in"]["bias"] - model.unet_params["conv_in"]["bias"],
        loaded.unet_params["conv_norm_out"]["scale"] - model.unet_params["conv_norm_out"]["scale"],
        loaded.unet_params["conv_norm_out"]["bias"] - model.unet_params["conv_norm_out"]["bias"],
        loaded.text_params["final_layer_norm"]["scale"] - model.text_params["final_layer_norm"]["scale"],
    ]
    for change, expected in zip(found, changes.values(), strict=True):
        np.testing.assert_allclose(change, 0.5 * expected, atol=1e-6)


def test_words_in_a_lora_are_left_out_and_said(saved, tmp_path):
    tensors = _tensors("kohya") | {"bundle_emb.cat.string_to_param.*": np.zeros((2, 12), np.float32)}
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.warns(UserWarning, match="1 tensors of new words .* are left out"):
        _assert_merged(load_model(saved[1], loras=[(tmp_path / "lora.safetensors", 1.0)]), saved[0], 1.0)


DOWN, UP = (f"lora_unet_conv_in.lora_{side}.weight" for side in ("down", "up"))


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        ({DOWN: (0, 4, 3, 3), UP: (16, 0, 1, 1)}, None, "made for this model"),
        ({DOWN: (), UP: ()}, None, "made for this model"),
        ({DOWN: (2, 4, 3, 3), UP: (16, 2, 1, 1), "lora_unet_conv_in.alpha": (2,)}, None, "not one finite"),
        ({"lora_unet_conv_in.diff": (16, 4)}, None, "changes conv_in.weight of"),
        ({"lora_unet_conv_norm_out.lora_down.weight": (1, 1)}, None, "only one of the two factors"),
        ({DOWN: (2, 4, 3, 3), UP: (16, 2, 1, 1)}, "[]", "is not JSON"),
        ({DOWN: (2, 4, 3, 3), UP: (16, 2, 1, 1)}, "[" * 10**5, "is not JSON"),
        ({DOWN: (2, 4, 3, 3), UP: (16, 2, 1, 1)}, '{"unet.lora_alpha": "8"}', "lora_alpha '8'"),
        ({DOWN: (2, 4, 3, 3), UP: (16, 2, 1, 1)}, '{"unet.lora_alpha": 1e400}', "lora_alpha inf"),
        ({DOWN: (2, 4, 3, 3), UP: (16, 2, 1, 1)}, '{"unet.alpha_pattern": [1]}', "alpha_pattern"),
        ({DOWN: (2, 4, 3, 3), UP: (16, 2, 1, 1)}, '{"unet.alpha_pattern": {"(a+)+b": 1}}', "too complicated"),
        ({DOWN: (2, 4, 3, 3), UP: (16, 2, 1, 1)}, '{"unet.alpha_pattern": {"(": 1}}', "not a valid pattern"),
    ],
)
def test_damaged_files_are_named(saved, tmp_path, tensors, metadata, says):
    notes = {"lora_adapter_metadata": metadata} if metadata else None
    save_file(
        {name: np.ones(shape, np.float32) for name, shape in tensors.items()},
        tmp_path / "a.safetensors",
        notes,
    )
    with pytest.raises(UserError, match=says):
        load_model(saved[1], loras=[(tmp_path / "a.safetensors", 1.0)])


def test_a_strength_is_a_finite_number(saved, tmp_path):
    save_file(_tensors("kohya"), tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="strength of the LoRA file .* is nan"):
        load_model(saved[1], loras=[(tmp_path / "lora.safetensors", float("nan"))])
