"""Figure 8: objects of other seeds, and of seeds that go together for a part of the iterations.

    python experiments/figures/diversity.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/diversity.py               # 28 minutes, for docs/results.md

A stopped one goes on where it was. The first figure on a machine takes two minutes more, to trace what
objects are recognized by.

Expected: seeds that go together at first, the start included, have less diversity of shape than other seeds
throughout, and keep more of that of texture. diversity.png has the objects, diversity.md how far the seeds
of a sentence are from each other in shape and in texture, without any truth, and how near they are to the
truth.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("diversity")
