"""The registry of editing methods, by name."""

from ge3d_jax.editing.base import Method
from ge3d_jax.editing.ddim import DDIM
from ge3d_jax.editing.ddpm import DDPM
from ge3d_jax.editing.direct import Direct
from ge3d_jax.editing.edict import EDICT
from ge3d_jax.editing.flow import FlowEdit
from ge3d_jax.editing.imagic import Imagic
from ge3d_jax.editing.npi import NPI, ProximalNPI
from ge3d_jax.editing.nti import NTI
from ge3d_jax.editing.pti import PTI
from ge3d_jax.editing.spdinv import SPDInv

METHODS: dict[str, type[Method]] = {
    "ddim": DDIM,
    "direct": Direct,
    "npi": NPI,
    "proximal": ProximalNPI,
    "nti": NTI,
    "pti": PTI,
    "spdinv": SPDInv,
    "ddpm": DDPM,
    "edict": EDICT,
    "imagic": Imagic,
    "flow": FlowEdit,
}
