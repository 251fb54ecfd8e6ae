"""Images as rows of patches, and random subsets of them."""

import torch
from torch import Tensor


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) -> (B, N, p*p*C), patches in raster order, channels last inside a patch."""
    B, C, H, W = x.shape
    p = patch_size
    x = x.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(B, (H // p) * (W // p), p * p * C)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """(B, N, p*p*C), N = rows * columns of the grid -> (B, C, H, W), the inverse of `patchify`."""
    (rows, columns), p = grid, patch_size
    x = patches.unflatten(1, (rows, columns)).unflatten(3, (p, p, -1)).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(len(x), -1, rows * p, columns * p)


def num_kept(num_patches: int, mask_ratio: float) -> int:
    """How many patches a mask leaves: at least one."""
    return max(1, round(num_patches * (1 - mask_ratio)))


def take_tokens(tokens: Tensor, keep: Tensor) -> Tensor:
    """tokens (B, N, D), keep (B, K) long -> the kept tokens (B, K, D), in the order of keep."""
    return tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))


def take_kept(tokens: Tensor, keep: Tensor, class_token: bool) -> Tensor:
    """tokens (B, [1 +] N, D), the class token first if there is one -> it and the patches `keep`
    (B, [1 +] K, D)."""
    if class_token:
        keep = torch.cat([torch.zeros_like(keep[:, :1]), keep + 1], dim=1)
    return take_tokens(tokens, keep)
