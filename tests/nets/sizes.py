"""The published sizes of SiT and of the networks made from it."""

# The published sizes: SiT's S, B, L and XL, to be used as SiT(**SIZES["B"]).
#
# Millions of parameters on 32x32x4 latents at patch 2, the frozen positions among them, for B and
# XL: SiT 130.5 and 675.1, REG (class token of 768) 131.7 and 676.9, MaskAlign (two mixing blocks)
# 152.9 and 724.7. Its paper (table 7) gives 154 and 732, which no number of mixing blocks meets.
SIZES = {
    "S": {"width": 384, "depth": 12, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
    "XL": {"width": 1152, "depth": 28, "num_heads": 16},
}
