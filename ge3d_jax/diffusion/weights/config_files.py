"""Reading a model's JSON files safely: settings of known types within known bounds.

A `config.json` can come from anywhere, and it decides how large the networks are and how often loops run. So
every setting has a kind: what values it may have, and what they become. The keys are those of diffusers and
transformers.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ge3d_jax.core.errors import UserError, shown

# Bounds far beyond published models. Values within them may still not match the weights file.
MOST_BLOCKS = 8
MOST_LAYERS = 64
MOST_CHANNELS = 2**15
MOST_TOKENS = 2**24
MOST_TIMES = 10**5
_LARGEST_LATENTS, _LARGEST_PICTURE = 2**10, 2**14

# Converts a JSON value to its type; raises a ValueError that says what the value must be.
Kind = Callable[[Any], Any]


def whole(least: int, most: int) -> Kind:
    """An integer from `least` to `most`, possibly written as 2.0."""

    def read(value: Any) -> int:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # Compare before converting, since conversion fails for infinity and NaN.
        if not is_number or not least <= value <= most or value != int(value):
            raise ValueError(f"a whole number from {least} to {most}")
        return int(value)

    return read


def number(least: float, most: float) -> Kind:
    """A number from `least` to `most`."""

    def read(value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            raise ValueError(f"a number from {least:g} to {most:g}")
        return float(value)

    return read


def switch(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def one_of(names: Collection[str]) -> Kind:
    """One of the given names."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(" or ".join(names))
        return value

    return read


def several(kind: Kind, most: int) -> Kind:
    """A list of 1 to `most` values of a kind, as a tuple."""

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= most:
            raise ValueError(f"a list of 1 to {most} values")
        try:
            return tuple(kind(item) for item in value)
        except ValueError as error:
            raise ValueError(f"a list, each of {error}") from error

    return read


def one_or_several(kind: Kind, most: int) -> Kind:
    """One value of a kind, or a list of them."""
    listed = several(kind, most)
    return lambda value: listed(value) if isinstance(value, list | tuple) else kind(value)


def same_for_all(kind: Kind, most: int) -> Kind:
    """One value of a kind, possibly written as a list of equal values."""
    either = one_or_several(kind, most)

    def read(value: Any) -> Any:
        result = either(value)
        if isinstance(result, tuple) and len(set(result)) > 1:
            raise ValueError("one value for all blocks")
        return result[0] if isinstance(result, tuple) else result

    return read


_CHANNELS = whole(1, MOST_CHANNELS)
_LAYERS = whole(1, MOST_LAYERS)
_EPSILON = number(0.0, 1.0)

UNET_BLOCKS = {
    "down": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
UNET: Mapping[str, Kind] = {
    "sample_size": same_for_all(whole(1, _LARGEST_LATENTS), 2),
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "flip_sin_to_cos": switch,
    "freq_shift": whole(0, MOST_CHANNELS),
    "down_block_types": several(one_of(UNET_BLOCKS["down"]), MOST_BLOCKS),
    "up_block_types": several(one_of(UNET_BLOCKS["up"]), MOST_BLOCKS),
    "block_out_channels": several(_CHANNELS, MOST_BLOCKS),
    "layers_per_block": same_for_all(_LAYERS, MOST_BLOCKS),
    "norm_num_groups": _CHANNELS,
    "norm_eps": _EPSILON,
    "cross_attention_dim": same_for_all(_CHANNELS, MOST_BLOCKS),
    "transformer_layers_per_block": same_for_all(_LAYERS, MOST_BLOCKS),
    "attention_head_dim": one_or_several(_CHANNELS, MOST_BLOCKS),
    "use_linear_projection": switch,
    "upcast_attention": switch,
}

VAE_BLOCKS = {"down": "DownEncoderBlock2D", "up": "UpDecoderBlock2D"}
VAE: Mapping[str, Kind] = {
    # Images have three color channels.
    "in_channels": whole(3, 3),
    "out_channels": whole(3, 3),
    "down_block_types": several(one_of((VAE_BLOCKS["down"],)), MOST_BLOCKS),
    "up_block_types": several(one_of((VAE_BLOCKS["up"],)), MOST_BLOCKS),
    "block_out_channels": several(_CHANNELS, MOST_BLOCKS),
    "layers_per_block": same_for_all(_LAYERS, MOST_BLOCKS),
    "latent_channels": _CHANNELS,
    "norm_num_groups": _CHANNELS,
    "sample_size": same_for_all(whole(1, _LARGEST_PICTURE), 2),
    "scaling_factor": number(1e-6, 1e6),
    "force_upcast": switch,
}

TEXT_ACTIVATIONS = ("gelu", "quick_gelu")
TEXT: Mapping[str, Kind] = {
    "vocab_size": whole(1, MOST_TOKENS),
    "hidden_size": _CHANNELS,
    "intermediate_size": whole(1, 8 * MOST_CHANNELS),
    "num_hidden_layers": whole(1, MOST_BLOCKS * MOST_LAYERS),
    "num_attention_heads": _CHANNELS,
    # The start and end tokens count, too.
    "max_position_embeddings": whole(2, 2**16),
    "hidden_act": one_of(TEXT_ACTIVATIONS),
    "layer_norm_eps": _EPSILON,
}

VISION: Mapping[str, Kind] = {
    "hidden_size": _CHANNELS,
    "intermediate_size": whole(1, 8 * MOST_CHANNELS),
    "num_hidden_layers": whole(1, MOST_BLOCKS * MOST_LAYERS),
    "num_attention_heads": _CHANNELS,
    "image_size": whole(1, _LARGEST_PICTURE),
    "patch_size": whole(1, _LARGEST_PICTURE),
    "hidden_act": one_of(TEXT_ACTIVATIONS),
    "layer_norm_eps": _EPSILON,
}

PREDICTION_TYPES = ("epsilon", "v_prediction")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
_BETA = number(1e-9, 0.9999)
SCHEDULER: Mapping[str, Kind] = {
    "beta_start": _BETA,
    "beta_end": _BETA,
    "beta_schedule": one_of(BETA_SCHEDULES),
    "num_train_timesteps": whole(2, MOST_TIMES),
    "prediction_type": one_of(PREDICTION_TYPES),
    "rescale_betas_zero_snr": switch,
    "timestep_spacing": one_of(TIMESTEP_SPACINGS),
    "trained_betas": several(_BETA, MOST_TIMES),
}


def _is_off(value: Any) -> bool:
    """Whether a setting says that a feature is absent."""
    return value is None or value is False or (isinstance(value, list | tuple) and all(map(_is_off, value)))


def read_settings(
    model: str,
    config: Mapping[str, Any],
    *,
    used: Mapping[str, Kind],
    fixed: Mapping[str, Collection[Any]] | None = None,
    ignored: Collection[str] | None = (),
) -> dict[str, Any]:
    """Select the settings we use, typed and within bounds, and reject any that would change the arithmetic.

    Args:
        model: name of the model, for messages.
        config: contents of a `config.json`. Keys that start with "_" are metadata of its writer.
        used: kinds of the keys to return if they are present and not None.
        fixed: the supported values by key.
        ignored: keys that do not affect inference. Other unknown keys are accepted only if they are off
            (None, False, or a list of these). None ignores all.

    Returns:
        The settings we use, with lists as tuples.

    Raises:
        UserError: a setting is not supported, has the wrong type, or is out of bounds; the message names the
            key and its value.
    """
    fixed = fixed or {}
    settings = {}
    for name, value in config.items():
        if name in used:
            if value is None:
                continue
            try:
                settings[name] = used[name](value)
            except ValueError as error:
                raise UserError(
                    f"{model} config: {name} = {shown(value)} is not supported; it must be {error}."
                ) from error
        elif name in fixed:
            if value not in fixed[name]:
                allowed = " or ".join(repr(item) for item in fixed[name])
                raise UserError(
                    f"{model} config: {name} = {shown(value)} is not supported; it must be {allowed}."
                )
        elif ignored is not None and not (name.startswith("_") or name in ignored or _is_off(value)):
            raise UserError(
                f"{model} config: the setting {shown(name)} = {shown(value)} is unknown; remove it."
            )
    return settings


@contextlib.contextmanager
def naming(file: str | os.PathLike[str]) -> Iterator[None]:
    """Prefix the message of a UserError with the file's name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{os.fspath(file)}: {error}") from error
