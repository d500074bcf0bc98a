"""SiT: the scalable-interpolant transformer in decoupled mean-flow (DMF) form.

One class serves the eight-pixel digits and SiT-B/2 on 32x32x4 latents. Parameter names equal those of the public SiT
checkpoints, and DMF adds no parameter, so a plain SiT state dict loads unchanged.

Sources: SiT (Ma et al., arXiv 2401.08740), DiT (Peebles & Xie, arXiv 2212.09748), decoupled mean flow (arXiv 2510.24474).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfmbench.errors import unknown_name

# Width class -> hidden_size, depth, num_heads (SiT, table 1) and dmf_depth: 20 and 8 are those of the published DMF-XL/2 and of
# VFM's DMF-B/2, the others follow DMF's advice of two thirds of the depth.
WIDTHS = {
    "S": {"hidden_size": 384, "depth": 12, "num_heads": 6, "dmf_depth": 8},
    "B": {"hidden_size": 768, "depth": 12, "num_heads": 12, "dmf_depth": 8},
    "L": {"hidden_size": 1024, "depth": 24, "num_heads": 16, "dmf_depth": 16},
    "XL": {"hidden_size": 1152, "depth": 28, "num_heads": 16, "dmf_depth": 20},
}
PATCH_SIZES = (2, 4, 8)


def expand_sit_size(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `SiT` in which a named `size`, "B/2" for width class B and patches of 2x2, is written out.

    Other keys of the architecture win over those that the size stands for. Raises UserError for an unknown size.
    """
    options = dict(architecture)
    if "size" not in options:
        return options
    size = str(options.pop("size"))
    width, _, patch = size.partition("/")
    if width not in WIDTHS or patch not in map(str, PATCH_SIZES):
        raise unknown_name("SiT size", size, [f"{name}/{patch}" for name in WIDTHS for patch in PATCH_SIZES])
    return {"patch_size": int(patch), **WIDTHS[width], **options}


def sinusoidal_position_grid(dim: int, grid_size: int) -> Tensor:
    """Fixed 2D sine-cosine position embedding, shape [grid_size**2, dim]; the first half of `dim` encodes the column."""
    if dim % 4:
        raise ValueError(f"hidden_size must be a multiple of 4 for the 2D position embedding, got {dim}")
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(grid_size), torch.arange(grid_size), indexing="ij")

    def encode(position: Tensor) -> Tensor:
        angle = position.reshape(-1, 1).double() * frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    return torch.cat([encode(columns), encode(rows)], dim=1).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def time_frequencies(frequency_size: int) -> Tensor:
    """Angular frequencies w of the time features [cos(w t), sin(w t)], float32 [frequency_size / 2], from 1 down to 1e-4."""
    half = frequency_size // 2
    return torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half)


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of a time in [0, 1], then a two-layer MLP. `time_scale` multiplies the time first."""

    def __init__(self, hidden_size: int, frequency_size: int = 256, time_scale: float = 1.0):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequency_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
        self.frequencies: Tensor
        self.register_buffer("frequencies", time_scale * time_frequencies(frequency_size), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None] * self.frequencies
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


class LabelEmbedder(nn.Module):
    """Class embedding with one extra row, `num_classes`, for the null label of classifier-free guidance."""

    def __init__(self, num_classes: int, hidden_size: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, label: Tensor) -> Tensor:
        return self.embedding_table(label)


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, in_channels: int, hidden_size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention. `fused` allows the fast kernel, which has no forward-mode derivative."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, fused: bool) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # On CPUs the fused kernel takes twice the time of the plain product in bfloat16, measured at 64 tokens.
        if fused and (x.is_cuda or q.dtype == torch.float32):
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
            out = weights @ v
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    def __init__(self, hidden_size: int, mlp_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, mlp_size)
        self.fc2 = nn.Linear(mlp_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SiTBlock(nn.Module):
    """Transformer block with adaptive layer norm, gates initialised to zero (adaLN-Zero)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x: Tensor, condition: Tensor, fused: bool) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(condition).chunk(6, dim=1)
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a), fused)
        return x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class FinalLayer(nn.Module):
    def __init__(self, hidden_size: int, patch_size: int, out_channels: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class SiT(nn.Module):
    """u(x, t, r, label): average velocity over [r, t]; with r = t the instantaneous velocity.

    The first `dmf_depth` blocks are modulated by emb(t) + emb(label), the others and the final layer by emb(r) + emb(label)
    (decoupled mean flow). Defaults are SiT-B/2 on 32x32x4 latents with the paper's dmf_depth of 8.

    Args:
        input_size: height and width of the input, divisible by `patch_size`.
        num_classes: labels are 0..num_classes-1, and num_classes is the null label.
        time_scale: factor on times before the sinusoidal embedding (1 in SiT).
    """

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 768,
        depth: int = 12,
        dmf_depth: int = 8,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        time_scale: float = 1.0,
    ):
        super().__init__()
        if input_size % patch_size:
            raise ValueError(f"input_size {input_size} is not divisible by patch_size {patch_size}")
        if not 0 < dmf_depth <= depth:
            raise ValueError(f"dmf_depth must be between 1 and depth={depth}, got {dmf_depth}")
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not divisible by num_heads {num_heads}")
        self.patch_size, self.in_channels, self.dmf_depth, self.num_classes = patch_size, in_channels, dmf_depth, num_classes
        self.grid_size = input_size // patch_size
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size, time_scale=time_scale)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        position = sinusoidal_position_grid(hidden_size, self.grid_size)
        self.pos_embed = nn.Parameter(position.unsqueeze(0), requires_grad=False)
        self.blocks = nn.ModuleList(SiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size, in_channels)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # adaLN-Zero: every block starts as the identity and the network's first output is zero.
        for module in self.modules():
            if isinstance(module, SiTBlock | FinalLayer):
                nn.init.zeros_(module.get_parameter("adaLN_modulation.1.weight"))
        nn.init.zeros_(self.final_layer.linear.weight)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.get_parameter("proj.bias"))
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in (0, 2):
            nn.init.normal_(self.t_embedder.get_parameter(f"mlp.{layer}.weight"), std=0.02)

    def forward(self, x: Tensor, t: Tensor, r: Tensor, label: Tensor, fused_attention: bool = True) -> Tensor:
        """Args: x [B,C,H,W]; t, r [B] in [0, 1]; label [B] integers. Returns [B,C,H,W].

        Set `fused_attention=False` under forward-mode differentiation.
        """
        label_embedding = self.y_embedder(label)
        early = self.t_embedder(t) + label_embedding
        late = self.t_embedder(r) + label_embedding
        h = self.x_embedder(x) + self.pos_embed
        for index, block in enumerate(self.blocks):
            h = block(h, early if index < self.dmf_depth else late, fused_attention)
        return self._unpatchify(self.final_layer(h, late))

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        batch, grid, patch = tokens.shape[0], self.grid_size, self.patch_size
        image = tokens.reshape(batch, grid, grid, patch, patch, self.in_channels)
        return image.permute(0, 5, 1, 3, 2, 4).reshape(batch, self.in_channels, grid * patch, grid * patch)
