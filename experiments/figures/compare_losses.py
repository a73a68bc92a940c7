"""Table 1: the same objects by every loss, in equal times and in each loss's own number of iterations.

    python experiments/figures/compare_losses.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/compare_losses.py               # 2.6 hours, for docs/results.md

A stopped one goes on where it was. The first figure on a machine takes two minutes more, to trace what
objects are recognized by.

At full size eight sentences with two seeds by twelve losses, 45 seconds each, and three sentences in the
number of iterations that the `toybox` preset gives each loss; one process on each of two cores. How many
iterations fit the time is measured first, and schedules are stretched to them; compiling is not counted.
What was stopped goes on with the next object; meanwhile and after, --only_done shows what there is:

    python experiments/figures/compare_losses.py --only_done --out=outputs/so_far

Other settings, one trial a line ("sds guidance.scale=20"), with prompts of a file:

    python experiments/figures/compare_losses.py --trials=docs/losses/trials.txt --prompts=prompts.txt \\
        --work=outputs/trials --out=outputs/trials

Columns by a CLIP, a folder of a download or an id on the hub (published ones were never tried here):

    python experiments/figures/compare_losses.py --only_done --out=outputs/clip \\
        --metrics=psnr,clip_similarity,r_precision,cmmd --clip=openai/clip-vit-large-patch14-336

Expected, after the paper: GE3D ahead of ISM and MVDream's loss, and SDS behind. On this small world the
cheap iterations of SDS make up for much of that.
"""

from ge3d_jax.cli import loss_flags

if __name__ == "__main__":
    loss_flags.run_loss_figure("compare_losses")
