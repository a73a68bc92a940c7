"""Initialization from another model: aligning the latent space and transferring the vocabulary.

The latents of two autoencoders with the same latent size are nearly linear functions of each other, because
both preserve colors and edges. A change of basis costs nothing: it is folded into the 1×1 convolutions after
the encoder and before the decoder, and decoded pictures stay the same.

| name | meaning | shape |
|---|---|---|
| A, b | z′ = z A + b, the least-squares fit to the other model's latents | (C, C), (C,) |
"""

from typing import Any

import numpy as np

from ge3d_jax.diffusion.tokenizer import CLIPTokenizer


def fit_latents(latents: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit the affine map from latents to the target latents of the same pictures, by least squares.

    Args:
        latents: (N, h, w, C) latents to map.
        wanted: (N, h, w, C) target latents.

    Returns:
        A (C, C) and b (C,), with `latents @ A + b` close to `wanted`.
    """
    flat = np.asarray(latents, np.float64).reshape(-1, latents.shape[-1])
    rows = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
    solution = np.linalg.lstsq(rows, np.asarray(wanted, np.float64).reshape(len(flat), -1), rcond=None)[0]
    return solution[:-1], solution[-1]


def change_latents(params: Any, matrix: np.ndarray, offset: np.ndarray, log_variance: np.ndarray) -> Any:
    """Change an autoencoder's latents to z A + b, leaving its decoded pictures unchanged.

    The map makes independent latents correlated, but the encoder represents only variances. The variances
    become constants: the mean variances after the map.

    Args:
        params: parameters with `quant_conv` and `post_quant_conv`.
        matrix: A (C, C), invertible.
        offset: b (C,).
        log_variance: (C,) mean log variances of the encoder's current posterior.

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
    # The 1×1 convolution applied to (z′ − b) A⁻¹.
    back_kernel = inverse @ np.asarray(before["kernel"], np.float64)
    back_bias = np.asarray(before["bias"], np.float64) - offset @ back_kernel[0, 0]
    return {
        **params,
        "quant_conv": _single(moments_kernel, moments_bias),
        "post_quant_conv": _single(back_kernel, back_bias),
    }


def with_vocabulary(params: Any, before: CLIPTokenizer, after: CLIPTokenizer) -> Any:
    """Adapt a text encoder's parameters to another tokenizer.

    Tokens that both tokenizers have keep their embeddings; new ones start at the mean embedding.

    Args:
        params: parameters of the text encoder for `before`.
        before: the current tokenizer.
        after: the new tokenizer.

    Returns:
        The parameters for `after`.
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
