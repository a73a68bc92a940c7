"""Files of `torch.save`, read without PyTorch."""

import collections
import functools

import numpy as np
import pytest
import torch

from ge3d_jax.diffusion.weights.torch_files import open_torch_tensors


def test_modules_of_torchscript_are_read(tmp_path):
    inner = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), inner).half().eval()
    for name, script in (
        ("traced.pt", torch.jit.trace(module, torch.zeros(1, 2).half())),
        ("scripted.pt", torch.jit.script(module)),
    ):
        torch.jit.save(script, tmp_path / name)
        found = {each: tensor.read() for each, tensor in open_torch_tensors(tmp_path / name).items()}
        assert found.keys() == module.state_dict().keys()
        for each, tensor in module.state_dict().items():
            assert found[each].dtype == np.float16 and np.array_equal(found[each], tensor.numpy())


@pytest.mark.parametrize("is_archive", [True, False])
def test_what_torch_saves_is_read(tmp_path, is_archive):
    save = functools.partial(torch.save, _use_new_zipfile_serialization=is_archive)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).to(torch.float32)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    module(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    checkpoint = {
        "model_state_dict": module.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": schedule.state_dict(),
    }
    save(checkpoint, tmp_path / "cap3d.pth")
    save(module.state_dict(), tmp_path / "flat.pt")
    several = collections.OrderedDict(
        turned=module[0].weight.detach().T,
        half=module[0].weight.detach().half(),
        brain=module[0].weight.detach().bfloat16(),
        parameter=module[0].weight,
        whole=torch.arange(5),
        empty=torch.zeros(0, 2),
    )
    save(several, tmp_path / "several.pt")
    for name, wanted in (
        ("cap3d.pth", module.state_dict()),
        ("flat.pt", module.state_dict()),
        ("several.pt", several),
    ):
        found = open_torch_tensors(tmp_path / name, inside="model_state_dict")
        assert list(found) == list(wanted)
        for key, tensor in found.items():
            expected = wanted[key].detach()
            assert tensor.shape == tuple(expected.shape)
            assert np.array_equal(tensor.read().astype(np.float64), expected.double().numpy())
