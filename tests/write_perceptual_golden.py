"""Write tests/golden/perceptual.npz and open_clip.npz: what other packages give for the same weights.

The packages are pytorch-fid for Inception, lpips, and OpenCLIP. Use a separate environment, for the sake of
torchvision:

    pip install torch torchvision lpips==0.1.4 pytorch-fid==0.3.0 open_clip_torch==3.3.0 -e .
    python -m tests.write_perceptual_golden
"""

import numpy as np

from tests import open_clip_model
from tests import perceptual_networks as shared


def inception_features():
    """Features by pytorch-fid's blocks in torchvision's network, as `fid_inception_v3` assembles them."""
    import torch
    import torchvision
    from pytorch_fid import inception as patched

    network = torchvision.models.inception_v3(
        num_classes=1008, aux_logits=False, weights=None, init_weights=False
    )
    network.Mixed_5b = patched.FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = patched.FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = patched.FIDInceptionA(288, pool_features=64)
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        setattr(network, f"Mixed_{name}", patched.FIDInceptionC(768, channels_7x7=width))
    network.Mixed_7b = patched.FIDInceptionE_1(1280)
    network.Mixed_7c = patched.FIDInceptionE_2(2048)
    state = {
        name: torch.from_numpy(shared.inception_tensor(name, tuple(value.shape)))
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    network.load_state_dict(state, strict=False)
    network.eval()
    network.fc = torch.nn.Identity()
    pictures = torch.from_numpy(shared.inception_pictures().transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        features = network(pictures).numpy()
    shapes = {name: np.asarray(value.shape) for name, value in state.items()}
    return features, shapes


def lpips_distances():
    """Distances by the package lpips."""
    import lpips
    import torch

    reference = lpips.LPIPS(net="vgg", pnet_rand=True, pretrained=False, verbose=False).eval()
    slices = [getattr(reference.net, f"slice{number}") for number in range(1, 6)]
    convolutions = [layer for each in slices for layer in each if isinstance(layer, torch.nn.Conv2d)]
    layers = {f"Conv_{number}": layer for number, layer in enumerate(convolutions)}
    layers |= {f"NetLinLayer_{number}": lin.model[-1] for number, lin in enumerate(reference.lins)}
    for name, layer in layers.items():
        out, into, height, width = layer.weight.shape
        kernel = shared.lpips_tensor(name, "kernel", (height, width, into, out))
        layer.weight.data = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
        if layer.bias is not None:
            layer.bias.data = torch.from_numpy(shared.lpips_tensor(name, "bias", (out,)))
    first, second = (torch.from_numpy(each.transpose(0, 3, 1, 2).copy()) for each in shared.lpips_pictures())
    with torch.no_grad():
        return reference(first, second, normalize=True).numpy().reshape(-1)


def write_open_clip():
    """Features of texts and images by OpenCLIP."""
    import open_clip
    import torch

    found, shapes = {}, {}
    for activation in open_clip_model.ACTIVATIONS:
        model = open_clip.CLIP(**open_clip_model.CONFIG, quick_gelu=activation == "quick_gelu").eval()
        shapes = {name: tuple(each.shape) for name, each in model.state_dict().items()}
        random = {name: np.asarray(open_clip_model.tensor(name, shape)) for name, shape in shapes.items()}
        model.load_state_dict({name: torch.from_numpy(each) for name, each in random.items()})
        pictures = torch.from_numpy(open_clip_model.pictures().transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            found[f"{activation}/texts"] = model.encode_text(torch.from_numpy(open_clip_model.IDS)).numpy()
            found[f"{activation}/pictures"] = model.encode_image(pictures).numpy()
    sizes = {f"shape/{name}": np.asarray(shape, int) for name, shape in shapes.items()}
    np.savez_compressed(open_clip_model.GOLDEN_FILE, **found, **sizes)


def main():
    """Compute the values, and write the files."""
    write_open_clip()
    features, shapes = inception_features()
    stored = {f"shape/{name}": shape for name, shape in shapes.items()}
    np.savez_compressed(shared.GOLDEN_FILE, features=features, distances=lpips_distances(), **stored)


if __name__ == "__main__":
    main()
