"""The examples of stages/methods/README.md run as they stand, on a model whose truth is known."""

import re
from pathlib import Path

import torch

import stages.methods

README = Path(stages.methods.__file__).with_name("README.md")


def test_every_example_runs_and_gives_what_it_says():
    code = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code) == 5
    assert all(len(block.splitlines()) <= 10 for block in code)
    torch.manual_seed(0)
    scale = torch.linspace(0.2, 1.0, 64, dtype=torch.float64).reshape(1, 8, 8)
    names = {
        "images": scale * torch.randn(400, 1, 8, 8, dtype=torch.float64),
        # E[x0 | y] of independent Gaussian pixels
        "denoiser": lambda y, s: y * scale**2 / (scale**2 + s**2),
        "features_of": lambda images: images.flatten(1)[:, :8].double(),
    }
    for block in code:
        exec(compile(block, str(README), "exec"), names)

    exact = names["noise"] * scale / (scale**2 + names["levels"][0] ** 2).sqrt()
    error = (names["plain"] - exact).square().mean()
    assert error < 0.02
    assert not torch.equal(names["corrected"], names["plain"])
    assert (names["few"] - exact).square().mean() < error
    assert names["grid"][0] == 1
    assert names["grid"][-1] == 0
    assert names["t"].min() > 0
    assert names["t"].max() < 1
    assert 0 < names["icr"](names["features"]).value < 1
    assert names["found"].standard_error > 0
