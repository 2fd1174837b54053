"""FAPN, the focus affinity perception network: where is which of two photos in focus?

    I1 ─ AEM ─ SAM ─ CAM ─┐
                          ├─ concat (7) ─ FPM (8, 9) ─ M1, M2
    I2 ─ AEM ─ SAM ─ CAM ─┘            (one set of weights for both photos)

Inputs: two RGB images (B, 3, h, w) in [0, 1]. Output: two maps (B, 1, h, w) in [0, 1]; photo 1 is taken
for the sharper one where M1 ≥ M2. Reference: section III-A of the paper, equations (1)–(9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mffsr.model.blocks import (
    LEAK,
    MOST_BLOCKS,
    WIDEST,
    Stack,
    box_mean,
    check_sizes,
    check_switches,
    conv,
    conv_stack,
    convolve,
    crop,
    merge_windows,
    narrowed,
    whole,
    windows,
)
from mffsr.tiles import Region, round_up

__all__ = ["AEM", "CAM", "FAPN", "FPM", "FR", "SAM", "FapnConfig", "FocusMaps"]

Attention = Literal["sam-cam", "cam-sam", "sam", "cam", "none"]

NARROW_EVERY = 5  # FR blocks: each copy costs a tenth of a block


class FocusMaps(NamedTuple):
    """What FAPN says of a pair."""

    m1: Tensor  # (B, 1, h, w) in [0, 1]: photo 1 is in focus
    m2: Tensor  # (B, 1, h, w) in [0, 1]: photo 2 is in focus


@dataclass(frozen=True, kw_only=True)
class FapnConfig:
    """The shape of a FAPN; the defaults are the paper's (widths from the authors' implementation)."""

    affinity: bool = True  # False: Table II's baseline without affinity perception
    attention: Attention = "sam-cam"  # the others are Table IV's variants
    sam_window: int = 16  # eq. 4's product is taken in windows of this size: local and linear in pixels
    cam_window: int = 33  # eq. 6's average pooling, local so that a tile equals the whole
    width: int = 64  # channels of FPM's local and global features
    blocks: int = 10  # FR blocks

    def __post_init__(self) -> None:
        if self.attention not in ("sam-cam", "cam-sam", "sam", "cam", "none"):
            raise ValueError(f"attention is {self.attention!r}, expected sam-cam, cam-sam, sam, cam or none")
        check_sizes(self, ("sam_window", "cam_window", "width"), WIDEST)
        check_sizes(self, ("blocks",), MOST_BLOCKS)
        check_switches(self, ("affinity",))
        if self.cam_window % 2 != 1:
            raise ValueError(f"cam_window is {self.cam_window}, expected an odd number")

    @property
    def reach(self) -> int:
        """Radius in pixels beyond which an input pixel cannot influence an output pixel."""
        windows = self.sam_window - 1 if self._sam else 0
        return self._before_windows + windows + self._after_windows

    @property
    def halo(self) -> int:
        """Pixels around a core that suffice where what they end on is the grid of SAM's windows.

        Fewer than `reach`: what lies in no window that counts is not needed.
        """
        return self._after_windows + round_up(self._before_windows, self.sam_window if self._sam else 1)

    @property
    def fpm_reach(self) -> int:
        """The part of `reach` that is FPM's."""
        return 3 * 2 + self.refine_reach(0)  # three 5×5

    def refine_reach(self, depth: int) -> int:
        """The part of `reach` that comes after `depth` FR blocks."""
        return self.blocks - depth + 5  # one 3×3 in each FR, then five 3×3

    @property
    def mean_reach(self) -> int:
        """How many pixels around those wanted FAPN works on, about: FPM, on fewer, is the larger half."""
        return (self.halo + self.refine_reach(self.blocks)) // 2

    @property
    def _sam(self) -> bool:
        return "sam" in self.attention

    @property
    def _before_windows(self) -> int:
        aem = 4 * 2 + 2  # four 5×5 convolutions, then 3×3 and 3×3 for the affinity map
        return aem + 4 * self._sam + self._cam * (self.attention == "cam-sam")  # four 3×3

    @property
    def _after_windows(self) -> int:
        return 2 * self._sam + self._cam * (self.attention != "cam-sam") + self.fpm_reach  # two 3×3

    @property
    def _cam(self) -> int:
        return self.cam_window // 2 if "cam" in self.attention else 0


class AEM(nn.Module):
    """Affinity estimation module, equations (1)–(3)."""

    def __init__(self, *, affinity: bool = True) -> None:
        super().__init__()
        self.conv3 = conv_stack((3, 32, 64, 32, 3), kernel=3)
        self.conv5 = conv_stack((3, 32, 64, 32, 3), kernel=5)
        self.affinity = (
            Stack(conv(3, 16), nn.ReLU(), conv(16, 3), nn.ReLU(), conv(3, 1, 1)) if affinity else None
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f3, f5 = self.conv3(image), self.conv5(image)  # (1)
        if self.affinity is None:
            return f3, f5, torch.ones_like(f3[:, :1])
        w = torch.sigmoid(self.affinity(f3 * f5))  # (2)
        return f3 + f3 * w, f5 + f5 * w, w  # (3)


class SAM(nn.Module):
    """Spatial attention module, equations (4)–(5), one instance per kernel size.

    The paper multiplies whole h×w maps as matrices, which ties every row to every other and to the image's
    size. Here the same product is taken inside windows on the image's own grid and divided by the
    window's size.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.first = nn.Sequential(conv_stack((3, 32, 64, 32, 3)), conv(3, 1, 1))
        self.second = nn.Sequential(conv_stack((3, 32, 64, 32, 3)), conv(3, 1, 1))
        self.attend = Stack(conv(2, 16), nn.ReLU(), conv(16, 3), nn.ReLU(), conv(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        f1 = windows(self.first(x), self.window)
        f2 = windows(self.second(x), self.window)
        w = f2 @ f1.transpose(-1, -2) / self.window  # each window's self-attention map, in the authors' order
        both = torch.cat((w @ f1, w @ f2), 1) / self.window  # (4)
        attention = torch.sigmoid(self.attend(merge_windows(both, height, width)))
        return attention * x + x  # (5)


class CAM(nn.Module):
    """Channel attention module, equation (6), one instance per kernel size."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.fc = nn.Sequential(
            nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 3, 1, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor, affinity: Tensor) -> Tensor:
        out: Tensor = x * self.fc(box_mean(x, self.window)) * affinity + x  # (6)
        return out


class FR(nn.Module):
    """Feature refine block, equation (9): 3×3 convolution → ReLU → sigmoid → batch norm, in this order.

    Takes and returns F^l and F^g as one tensor (B, 2·width, h, w); without gradients it is changed in place.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = conv(2 * width, width)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, feature: Tensor, local: Tensor) -> Tensor:
        refined = convolve(self.conv, feature, slope=0.0)
        if self.training or torch.is_grad_enabled():
            # Normalised in float32: half-precision statistics are rough, and on a CPU twice as slow to train.
            normal = self.norm(torch.sigmoid(refined).to(self.norm.weight.dtype))
            return torch.cat((normal.to(local.dtype) + local, feature[:, local.shape[1] :]), 1)  # (9)
        scale, shift = (x.to(local.dtype).view(1, -1, 1, 1) for x in self._affine())
        torch.addcmul(shift, refined.sigmoid_(), scale, out=refined)
        torch.add(local, refined, out=feature[:, : local.shape[1]])  # (9)
        return feature

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Return what the trained batch norm is: x · scale + shift, of its running statistics."""
        norm = self.norm
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            raise TypeError("batch norm without running statistics")
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        return scale, norm.bias - mean * scale


class FPM(nn.Module):
    """Focus prediction module, equations (8)–(9): F^EN (B, 12, h, w) → logits (B, 2, h, w)."""

    def __init__(self, config: FapnConfig) -> None:
        super().__init__()
        self.config = config
        width, half = config.width, config.width // 2
        self.conv3 = Stack(conv(12, half), nn.LeakyReLU(LEAK), conv(half, width))
        self.conv5 = Stack(
            conv(12, half, 5),
            nn.LeakyReLU(LEAK),
            conv(half, width, 5),
            nn.LeakyReLU(LEAK),
            conv(width, width, 5),
        )
        self.refine = nn.ModuleList(FR(width) for _ in range(config.blocks))
        self.decide = nn.Sequential(conv_stack((2 * width, half, 16, 16, 8)), conv(8, 2))

    def forward(self, enhanced: Tensor, wanted: Region | None = None) -> Tensor:
        """With `wanted`, of that region alone: the same, for less work."""
        region, (enhanced,) = narrowed(wanted or whole(enhanced), self.config.fpm_reach, enhanced)
        local = self.conv3(enhanced)  # (8)
        feature = torch.cat((local, self.conv5(enhanced)), 1)  # F^l and F^g
        for depth, block in enumerate(self.refine):
            if depth % NARROW_EVERY == 0:
                region, (feature, local) = narrowed(region, self.config.refine_reach(depth), feature, local)
            feature = block(feature, local)
        out: Tensor = self.decide(feature)
        return crop(out, region)


def _initialise(module: nn.Module) -> None:
    """Keep the signal's variance through the stacks (He et al. 2015).

    With PyTorch's default a photo's detail fades by a factor of three a layer, and biases drown it.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=LEAK, nonlinearity="leaky_relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class FAPN(nn.Module):
    """Focus affinity perception network."""

    def __init__(self, config: FapnConfig) -> None:
        super().__init__()
        self.config = config
        self.aem = AEM(affinity=config.affinity)
        use = config.attention
        self.sam3 = SAM(config.sam_window) if "sam" in use else None
        self.sam5 = SAM(config.sam_window) if "sam" in use else None
        self.cam3 = CAM(config.cam_window) if "cam" in use else None
        self.cam5 = CAM(config.cam_window) if "cam" in use else None
        self.fpm = FPM(config)
        self.apply(_initialise)

    def _attend(self, x: Tensor, affinity: Tensor, sam: SAM | None, cam: CAM | None) -> Tensor:
        if self.config.attention == "cam-sam":  # Table IV, row 4
            x = cam(x, affinity) if cam else x
            return sam(x) if sam else x
        x = sam(x) if sam else x
        return cam(x, affinity) if cam else x

    def enhance(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return one photo's enhanced features (F3, F5), (B, 3, h, w) each: AEM → SAM → CAM."""
        f3, f5, affinity = self.aem(image)
        return (
            self._attend(f3, affinity, self.sam3, self.cam3),
            self._attend(f5, affinity, self.sam5, self.cam5),
        )

    def logits(self, image1: Tensor, image2: Tensor, wanted: Region | None = None) -> Tensor:
        """Return (B, 2, h, w): the maps before their sigmoid, which is where losses are steady.

        With a `wanted` region of the images, of that region alone: FPM then runs on what it depends on.
        """
        batch = image1.shape[0]
        f3, f5 = self.enhance(torch.cat((image1, image2)))  # both photos, one set of weights
        enhanced = torch.cat((f3[:batch], f3[batch:], f5[:batch], f5[batch:]), 1)  # (7)
        out: Tensor = self.fpm(enhanced, wanted)
        return out

    def forward(self, image1: Tensor, image2: Tensor, wanted: Region | None = None) -> FocusMaps:
        """Return M1 and M2, (B, 1, h, w) in [0, 1]; with `wanted`, of that region alone, for less work."""
        m1, m2 = torch.sigmoid(self.logits(image1, image2, wanted).float()).split(1, 1)
        return FocusMaps(m1, m2)
