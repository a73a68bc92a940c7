"""Density control, which changes the number of splats over a run: the strategies, by name."""

from ge3d_jax.scenes.clone_and_split import CloneAndSplit
from ge3d_jax.scenes.markov_chain import MarkovChain
from ge3d_jax.scenes.relocate import Relocate
from ge3d_jax.scenes.replace_unseen import ReplaceUnseen
from ge3d_jax.scenes.strategy import Strategy

STRATEGIES: dict[str, type[Strategy]] = {
    "clone_split": CloneAndSplit,
    "mcmc": MarkovChain,
    "relocate": Relocate,
    "replace_unseen": ReplaceUnseen,
}
