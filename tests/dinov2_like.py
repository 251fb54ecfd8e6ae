"""A file built like dinov2_vitl14_pretrain.pth, with random weights and fewer blocks."""

import torch

DEPTH = 1


def write(path, depth: int = DEPTH):
    """The file: names and shapes as DINOv2's own code has them, positions of 37 x 37 patches."""
    from stages.methods.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    import timm

    before = torch.get_rng_state()
    torch.manual_seed(0)
    model = timm.create_model("vit_large_patch14_dinov2", num_classes=0, depth=depth)
    state = model.state_dict()
    state = {name: torch.randn_like(x) / 30 if x.ndim > 1 else x for name, x in state.items()}
    torch.save(state | {"mask_token": torch.zeros(1, 1024)}, path)
    torch.set_rng_state(before)
    return path
