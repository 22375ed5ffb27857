"""Phase 2 as the paper's code computes and trains it, plainly: what our own is compared with, in numbers and in speed.

Written from a description of that code, with its parameter names and its costs: pictures are resized and normalised in
the training process at every step, the frozen image encoder runs twice a step, both networks are clipped on their own,
AdamW goes tensor by tensor, predictions are copied to the host and correlated there. It uses nothing of the package.

Legend: B samples, V voxels, S pixels per side, L patches, K kept, N = 1 + K tokens, M tokens of the support, P values
per patch, I width of the image branch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from plain_image import ImageSizes, Layer, PlainImage, cut, extract
from plain_phase1 import PlainMae, Sizes, Terms, View, draw, masked_error
from torch import Tensor, nn

ORDER = ("0_img_full", "1_fmri_masked", "2_fmri_full", "3_img_masked")  # in which the paper's code draws its masks


@dataclass(frozen=True)
class Pair:
    """Weights and switches under the names of the paper's code, with its defaults, which are not its README's."""

    fmri_recon_weight: float = 1.0
    img_recon_weight: float = 1.0
    mask_ratio: float = 0.75
    img_mask_ratio: float = 0.75
    do_cross_residual: bool = True
    norm_pix_loss: bool = False

    @property
    def ratios(self) -> dict[str, float]:
        return dict(zip(ORDER, (0.0, self.mask_ratio, 0.0, self.img_mask_ratio)))


class PlainCrossMae(PlainMae):
    """The fMRI autoencoder of phase 1, whose tokens may attend to an image's before the last LayerNorm."""

    def __init__(self, sizes: Sizes, image: ImageSizes, residual: bool) -> None:
        super().__init__(sizes, Terms())
        self.residual = residual
        layer = (image.width, image.heads, image.hidden, image.eps)
        self.cross_blocks = nn.ModuleList(Layer(*layer, cross=True) for _ in range(image.cross_layers))
        self.cross_map_in = nn.Linear(sizes.width, image.width)
        self.cross_map_out = nn.Linear(image.width, sizes.width)
        for part in (self.cross_blocks, self.cross_map_in, self.cross_map_out):
            part.apply(draw)

    def encode(self, x_B1V: Tensor, view: View, support_BMI: Tensor | None = None) -> Tensor:
        x = self.patch_embed(x_B1V) + self.pos_embed[:, 1:]
        x = torch.gather(x, 1, view.ids_keep[:, :, None].repeat(1, 1, x.shape[2]))
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        if support_BMI is not None:
            x = self.cross(x, support_BMI)
        return self.norm(x)

    def cross(self, x_BND: Tensor, support_BMI: Tensor) -> Tensor:
        own = self.cross_map_in(x_BND)
        crossed = own
        for layer in self.cross_blocks:
            crossed = layer(crossed, support_BMI)
        return self.cross_map_out(own + crossed if self.residual else crossed)


class PlainPair(nn.Module):
    """Both networks and the joint loss."""

    def __init__(self, sizes: Sizes, image: ImageSizes, pair: Pair) -> None:
        super().__init__()
        self.pair = pair
        self.fmri = PlainCrossMae(sizes, image, pair.do_cross_residual)
        self.img = PlainImage(image, sizes.width)
        of_image, of_fmri = (image.size // image.patch) ** 2, sizes.voxels // sizes.patch
        self.lengths = dict(zip(ORDER, (of_image, of_fmri, of_fmri, of_image)))

    def drawn(self, batch: int) -> dict[str, View]:
        """Masks as they are drawn at every step: a ratio of 0 shuffles all the same."""
        return {name: View.drawn(batch, self.lengths[name], ratio) for name, ratio in self.pair.ratios.items()}

    def forward(self, x_B1V: Tensor, pixels_BCSS: Tensor, views: dict[str, View]) -> dict[str, Tensor]:
        """Losses ("loss", "fmri_loss", "img_loss") and all tensors on the way, under the names of the stored cases."""
        whole_image, masked_fmri, whole_fmri, masked_image = (views[name] for name in ORDER)
        told = {"img_support": self.img.encode(pixels_BCSS, whole_image)}
        told["fmri_latent_cross"] = self.fmri.encode(x_B1V, masked_fmri, told["img_support"])
        told["fmri_pred"] = self.fmri.decode(told["fmri_latent_cross"], masked_fmri)
        told["fmri_loss"] = masked_error(told["fmri_pred"], x_B1V.view(told["fmri_pred"].shape), masked_fmri.mask)
        told["fmri_support"] = self.fmri.encode(x_B1V, whole_fmri)
        told["img_latent_cross"] = self.img.encode(pixels_BCSS, masked_image, told["fmri_support"])
        told["img_logits"] = self.img.decode(told["img_latent_cross"], masked_image)
        told["img_target_patches"] = cut(pixels_BCSS, self.img.sizes.patch)
        target = told["img_target_patches"]
        if self.pair.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        # Nothing hidden gives 0 / 0 here, unlike on the fMRI side.
        error_BL = ((told["img_logits"] - target) ** 2).mean(dim=-1) * masked_image.mask
        told["img_loss"] = error_BL.sum() / masked_image.mask.sum()
        weights = self.pair.fmri_recon_weight, self.pair.img_recon_weight
        return {"loss": weights[0] * told["fmri_loss"] + weights[1] * told["img_loss"], **told}


class PairTrainer:
    """A training step of phase 2.

    Attributes:
        correlations: of the last step: of the fMRI prediction with the signal, visible voxels included, mean over
            samples; and what the paper's code takes for that of the image.
    """

    def __init__(self, network: PlainPair, weight_decay: float = 0.05, clip: float = 0.8) -> None:
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")], "weight_decay": 0.0},
            {"params": [p for name, p in named if p.ndim > 1 and not name.endswith(".bias")]},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=weight_decay)
        self.network, self.clip, self.correlations = network, clip, (float("nan"), float("nan"))

    def pictures(self, images_BSSC: Tensor) -> Tensor:
        return extract(images_BSSC, self.network.img.sizes.size)

    def step(self, x_B1V: Tensor, pixels_BCSS: Tensor, views: dict[str, View], lr: float) -> dict[str, float]:
        """Losses of the step, and the sum of both networks' gradient norms before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        told = self.forward(x_B1V, pixels_BCSS, views)
        self.backward(told["loss"])
        norm = self.update()
        return self.copied({**told, "norm": norm}, x_B1V)

    def forward(self, x_B1V: Tensor, pixels_BCSS: Tensor, views: dict[str, View]) -> dict[str, Tensor]:
        return self.network(x_B1V, pixels_BCSS, views)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> Tensor:
        parts = (self.network.fmri, self.network.img)
        norms = [torch.nn.utils.clip_grad_norm_(part.parameters(), self.clip) for part in parts]
        self.optimizer.step()
        return norms[0] + norms[1]

    def copied(self, told: dict[str, Tensor], x_B1V: Tensor) -> dict[str, float]:
        numbers = {name: told[name].item() for name in ("loss", "fmri_loss", "img_loss", "norm")}
        rows, signals = (value.detach().to("cpu").flatten(1).numpy() for value in (told["fmri_pred"], x_B1V))
        of_fmri = np.mean([np.corrcoef(row, signal)[0, 1] for row, signal in zip(rows, signals)])
        self.correlations = float(of_fmri), image_correlation(told["img_logits"], told["img_target_patches"])
        return numbers


def image_correlation(pred_BLP: Tensor, target_BLP: Tensor) -> float:
    """What the paper's code selects checkpoints by: of all patches it correlates the first two predicted ones."""
    pairs = zip(pred_BLP.detach().to("cpu").numpy(), target_BLP.detach().to("cpu").numpy())
    return float(np.mean([np.corrcoef(pred, target)[0, 1] for pred, target in pairs]))
