"""The registry of distillation losses, by name."""

from ge3d_jax.guidance.base import Loss
from ge3d_jax.guidance.cds import CDS
from ge3d_jax.guidance.csd import CSD
from ge3d_jax.guidance.fps import FPS
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.ism import ISM
from ge3d_jax.guidance.mvdream import MVDream
from ge3d_jax.guidance.pfd import PFD
from ge3d_jax.guidance.sctd import SCTD
from ge3d_jax.guidance.sdi import SDI
from ge3d_jax.guidance.sds import SDS
from ge3d_jax.guidance.vsd import VSD
from ge3d_jax.guidance.x0 import X0

LOSSES: dict[str, type[Loss]] = {
    "ge3d": GE3D,
    "sds": SDS,
    "csd": CSD,
    "vsd": VSD,
    "cds": CDS,
    "mvdream": MVDream,
    "ism": ISM,
    "fps": FPS,
    "sdi": SDI,
    "x0": X0,
    "pfd": PFD,
    "sctd": SCTD,
}
