"""Table 1: the same objects made with every loss, in equal times and in each loss's own number of iterations.

    python experiments/figures/compare_losses.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/compare_losses.py               # 2.6 hours, for docs/results.md

At full size these are eight sentences with two seeds and twelve losses, 45 seconds each, and three sentences
with the number of iterations that the `toybox` preset gives each loss, made by one process on each of two
cores. How many iterations fit into the time is measured first, and schedules are stretched accordingly;
compiling is not counted. An interrupted run continues with the next object. --only_done shows what there is
so far, even during a run:

    python experiments/figures/compare_losses.py --only_done --out=outputs/so_far

To try other settings, one trial per line ("sds guidance.scale=20"), with prompts from a file:

    python experiments/figures/compare_losses.py --trials=docs/losses/trials.txt --prompts=prompts.txt \\
        --work=outputs/trials --out=outputs/trials

For columns by LPIPS, by a CLIP, which is a downloaded folder or file or a hub id, and by FID's Inception
(published ones of the last two were never tried here):

    python experiments/figures/compare_losses.py --only_done --out=outputs/clip \\
        --metrics=psnr,lpips,clip_similarity,r_precision,cmmd,fid \\
        --clip=openai/clip-vit-large-patch14-336 --inception=pt_inception-2015-12-05-6726825d.pth

Expected from the paper: GE3D ahead of ISM and MVDream's loss, and SDS behind. On this small world, the cheap
iterations of SDS make up for much of that.
"""

from ge3d_jax.cli import loss_flags

if __name__ == "__main__":
    loss_flags.run_loss_figure("compare_losses")
