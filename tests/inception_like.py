"""A TorchScript file built like inception-2015-12-05.pt, with small random layers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mixed(nn.Module):
    """A block of two branches, joined; the first is `conv`."""

    def __init__(self, width: int, first: int, second: int):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(width, first, 1), nn.ReLU())
        self.tower = nn.Conv2d(width, second, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x)], 1)


class Inception(nn.Module):
    """Images 0 to 255 -> features (B, 2048), or probabilities (B, 1008); the resize is inside."""

    def __init__(self, shift: float = 1.0):
        super().__init__()
        self.shift = shift  # 0 in place of TensorFlow's sampling points: half-pixel ones
        self.layers = nn.Sequential()
        self.layers.add_module("conv", nn.Conv2d(3, 8, 27, 17))
        self.layers.add_module("mixed", nn.Tanh())
        self.layers.add_module("mixed_6", Mixed(8, 9, 7))
        self.layers.add_module("mixed_7", nn.Conv2d(16, 2048, 1))
        self.layers.add_module("pool2", nn.AvgPool2d(17))
        self.output = nn.Linear(2048, 1008)
        nn.init.normal_(self.output.bias)
        with torch.no_grad():
            self.layers.conv.weight.mul_(6)  # past what is linear, so that places count

    def forward(
        self,
        img: Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> Tensor:
        batch, channels, height, width = img.shape
        x = img.to(torch.float32)
        theta = torch.eye(2, 3, device=x.device)
        theta[0, 2] += self.shift * (1 / width - 1 / 299)
        theta[1, 2] += self.shift * (1 / height - 1 / 299)
        grid = F.affine_grid(theta[None].repeat(batch, 1, 1), [batch, channels, 299, 299], False)
        x = F.grid_sample(x, grid, "bilinear", "border", False)
        features = self.layers((x - 128) / 128).view(-1, 2048)
        if return_features:
            return features
        if no_output_bias:
            return F.linear(features, self.output.weight).softmax(1)
        return self.output(features).softmax(1)


def write(path, seed: int = 0, shift: float = 1.0):
    """The file; one with another resize inside has another `shift`."""
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    torch.jit.script(Inception(shift).eval()).save(path)
    torch.set_rng_state(before)
    return path
