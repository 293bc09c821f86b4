"""Networks with a few weights, of every layout that a probe must tell apart."""

import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, channels, dims=2, inputs=None, stride=1):
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
        self.conv = convolution(inputs or channels, channels, 3, stride, 1)
        self.norm = norm(channels)
        self.keeps = stride == 1 and not inputs

    def forward(self, x):
        y = self.norm(self.conv(x)).relu()
        return y + x if self.keeps else y


class Pyramid(nn.Module):
    """Three stages of two blocks, the maps a half, a quarter and an eighth of the image."""

    def __init__(self, dims=2, classes=3):
        super().__init__()
        self.stem = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](3, 4, 3, 2, 1)
        self.stage1 = nn.Sequential(Residual(4, dims), Residual(4, dims))
        self.stage2 = nn.Sequential(Residual(8, dims, 4, 2), Residual(8, dims))
        self.stage3 = nn.Sequential(Residual(8, dims, 8, 2), Residual(8, dims))
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.head(x.flatten(2).mean(2))


class LastBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, x):
        return x + self.linear(self.norm(x))


class ChannelsLast(nn.Module):
    """Maps of (N, H, W, C) in two stages."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.stage1 = nn.Sequential(LastBlock(8), LastBlock(8))
        self.stage2 = nn.Sequential(LastBlock(8), LastBlock(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stage1(self.embed(x).permute(0, 2, 3, 1))
        return self.head(self.stage2(x[:, ::2, ::2]).mean((1, 2)))


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm, self.all = nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)

    def forward(self, x):
        q, k, v = self.all(self.norm(x)).chunk(3, -1)
        return x + (q @ k.transpose(-2, -1)).softmax(-1) @ v


class Transformer(nn.Module):
    """Tokens of a grid behind a class token; `fixed` takes one size alone, `scrambled` sorts its tokens by parity."""

    def __init__(self, fixed=0, scrambled=False):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.Sequential(Attention(8), Attention(8), Attention(8))
        self.head = nn.Linear(8, 3)
        self.fixed, self.scrambled = fixed, scrambled

    def forward(self, x):
        if self.fixed and x.shape[-1] != self.fixed:
            raise AssertionError("one size alone")
        x = self.embed(x)
        if self.scrambled:
            x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 3, 5, 2, 4)
        x = x.flatten(2).transpose(1, 2)
        x = self.blocks(torch.cat([self.token.expand(len(x), -1, -1), x], 1))
        return self.head(x[:, 0])
