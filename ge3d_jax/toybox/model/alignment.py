"""Beginning with another model: a latent space like its own, and a vocabulary with its words.

Two autoencoders of the same latent size have latents that are nearly linear functions of each other: both
keep colors and edges. A change of basis costs nothing, because it goes into the 1×1 convolutions after the
encoder and before the decoder; decoded pictures stay the same.

| name | meaning | shape |
|---|---|---|
| A, b | z′ = z A + b, the least-squares fit of the other model's latents | (C, C), (C,) |
"""

from typing import Any

import numpy as np

from ge3d_jax.diffusion.tokenizer import CLIPTokenizer


def fit_latents(latents: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The affine map of latents that is nearest to others of the same pictures.

    Args:
        latents: (N, h, w, C).
        wanted: (N, h, w, C).

    Returns:
        A (C, C) and b (C,), with `latents @ A + b` near `wanted`.
    """
    flat = np.asarray(latents, np.float64).reshape(-1, latents.shape[-1])
    rows = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
    solution = np.linalg.lstsq(rows, np.asarray(wanted, np.float64).reshape(len(flat), -1), rcond=None)[0]
    return solution[:-1], solution[-1]


def change_latents(params: Any, matrix: np.ndarray, offset: np.ndarray, log_variance: np.ndarray) -> Any:
    """Parameters of an autoencoder whose latents are z A + b, and whose decoded pictures are as before.

    A map of independent latents makes dependent ones, of which the encoder can tell the variances alone. They
    become constants: what the map makes of the mean variances.

    Args:
        params: parameters with `quant_conv` and `post_quant_conv`.
        matrix: A (C, C), invertible.
        offset: b (C,).
        log_variance: (C,) mean log variances of the encoder's posterior now.

    Returns:
        The changed parameters.
    """
    channels = len(offset)
    after, before = params["quant_conv"], params["post_quant_conv"]
    kernel, bias = np.asarray(after["kernel"], np.float64), np.asarray(after["bias"], np.float64)
    variance = np.exp(np.asarray(log_variance, np.float64)) @ np.asarray(matrix, np.float64) ** 2
    moments_kernel = np.concatenate([kernel[..., :channels] @ matrix, 0.0 * kernel[..., channels:]], axis=-1)
    moments_bias = np.concatenate([bias[:channels] @ matrix + offset, np.log(variance)])
    inverse = np.linalg.inv(matrix)
    # A 1×1 convolution of (z′ − b) A⁻¹.
    back_kernel = inverse @ np.asarray(before["kernel"], np.float64)
    back_bias = np.asarray(before["bias"], np.float64) - offset @ back_kernel[0, 0]
    return {
        **params,
        "quant_conv": _single(moments_kernel, moments_bias),
        "post_quant_conv": _single(back_kernel, back_bias),
    }


def with_vocabulary(params: Any, before: CLIPTokenizer, after: CLIPTokenizer) -> Any:
    """A text encoder's parameters for another tokenizer.

    Args:
        params: of the text encoder that goes with `before`.
        before: its tokenizer.
        after: the other one. Tokens that both have keep their embedding; others begin with the mean.

    Returns:
        The parameters that go with `after`.
    """
    known, wanted = before.get_vocab(), after.get_vocab()
    table = np.asarray(params["embeddings"]["token_embedding"]["embedding"])
    rows = np.tile(table.mean(axis=0), (1 + max(wanted.values()), 1))
    for token in known.keys() & wanted.keys():
        rows[wanted[token]] = table[known[token]]
    embeddings = {**params["embeddings"], "token_embedding": {"embedding": rows}}
    return {**params, "embeddings": embeddings}


def _single(kernel: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
