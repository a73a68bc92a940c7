"""Table 1: make the same objects with every loss, in equal times and in each loss's own number of iterations.

    python experiments/figures/compare_losses.py

Eight sentences with two seeds by twelve losses, 45 seconds each, and three of them in the number of
iterations that the `toybox` preset gives each loss: about two and a half hours on two CPU cores, one process
on each. How many iterations fit the time is measured first, and schedules are stretched to them; compiling is
not counted. A run that was stopped goes on with the next object; meanwhile and after, --only_done shows what
there is:

    python experiments/figures/compare_losses.py --only_done --out=outputs/so_far

Other settings, one trial a line ("sds guidance.scale=20"), with prompts of a file:

    python experiments/figures/compare_losses.py --trials=docs/losses/trials.txt --prompts=prompts.txt \\
        --work=outputs/trials --out=outputs/trials

To expect, after the paper: GE3D ahead of ISM and MVDream's loss, and SDS behind. On this small world the
cheap iterations of SDS make up for much of that.
"""

from ge3d_jax.cli import loss_flags

if __name__ == "__main__":
    loss_flags.run_loss_figure("compare_losses")
