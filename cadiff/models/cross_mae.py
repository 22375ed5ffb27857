"""The two autoencoders of phase 2, tied by cross-attention: each may look at the other's tokens (paper section 3.2).

Queries come from a branch's own tokens, keys and values from the other branch's. Without a support the fMRI branch is
the autoencoder of phase 1, cross parts unused; so is the image branch.

Legend: B records, V voxels, L patches, P values per patch, K kept, N = 1 + K tokens, M support tokens, D fMRI width,
I image width.
"""

from __future__ import annotations

from torch import Tensor, nn

from cadiff.config import CrossModel, FmriModel, ImageModel
from cadiff.kernels.mask import Masking
from cadiff.layers import CrossLayer, check_heads, run_layers
from cadiff.models.fmri_mae import FmriMae, draw_linear
from cadiff.models.image_mae import ImageMae, VitEncoder


class FmriCrossMae(FmriMae):
    """The fMRI autoencoder, whose tokens attend to image tokens between the last block and the final LayerNorm.

    The cross layers have the image branch's width and heads; two linear maps lead there and back.
    """

    def __init__(
        self, model: FmriModel, voxels: int, cross: CrossModel, image: ImageModel, *, checkpoint: bool = False
    ) -> None:
        super().__init__(model, voxels, checkpoint=checkpoint)
        check_heads(image.width, image.heads, "image.heads")
        self.residual = cross.residual
        self.cross_map_in = nn.Linear(model.width, image.width)
        self.cross_map_out = nn.Linear(image.width, model.width)
        self.cross_blocks = _cross_layers(cross, image)
        draw_linear(self.cross_map_in, self.cross_map_out, self.cross_blocks)

    def forward(self, signal_BV: Tensor, masking: Masking, support_BMI: Tensor) -> Tensor:
        """Rebuild signals float (B, V) from kept patches and image tokens (B, M, I): patches (B, L, P)."""
        return self.decode(self.encode_with(signal_BV, masking, support_BMI), masking)

    def encode_with(self, signal_BV: Tensor, masking: Masking, support_BMI: Tensor) -> Tensor:
        """Tokens (B, 1 + K, D) of the kept patches after attending to the support."""
        own_BNI = self.cross_map_in(self.hidden(signal_BV, masking))
        crossed_BNI = run_layers(self.cross_blocks, own_BNI, support_BMI, checkpoint=self.checkpoint)
        return self.norm(self.cross_map_out(own_BNI + crossed_BNI if self.residual else crossed_BNI))


class CrossVitEncoder(VitEncoder):
    """The image encoder, whose layers are followed by cross layers when there are fMRI tokens to look at."""

    def __init__(self, image: ImageModel, cross: CrossModel, support_width: int, *, checkpoint: bool) -> None:
        super().__init__(image, checkpoint=checkpoint)
        self.cross_map_in = nn.Linear(support_width, image.width)
        self.layer_cross = _cross_layers(cross, image)

    def forward(self, tokens_BNI: Tensor, support_BMD: Tensor | None = None) -> Tensor:
        tokens_BNI = super().forward(tokens_BNI)
        return tokens_BNI if support_BMD is None else self.cross(tokens_BNI, support_BMD)

    def cross(self, tokens_BNI: Tensor, support_BMD: Tensor) -> Tensor:
        """The cross layers alone, from what the other layers made of the picture."""
        return run_layers(self.layer_cross, tokens_BNI, self.cross_map_in(support_BMD), checkpoint=self.checkpoint)


class ImageCrossMae(ImageMae):
    """The image autoencoder with a cross encoder; call it with pixels, a masking and fMRI tokens (B, M, D)."""

    def __init__(
        self, image: ImageModel, image_size: int, cross: CrossModel, support_width: int, *, checkpoint: bool = False
    ) -> None:
        check_heads(image.width, image.heads, "image.heads")
        encoder = CrossVitEncoder(image, cross, support_width, checkpoint=checkpoint)
        super().__init__(image, image_size, encoder=encoder, checkpoint=checkpoint)

    def rebuild_from(self, tokens_BNI: Tensor, masking: Masking, support_BMD: Tensor) -> Tensor:
        """As ``forward``, from tokens (B, 1 + K, I) that the layers before the cross layers gave for this masking."""
        return self.decoder(self.vit.layernorm(self.vit.encoder.cross(tokens_BNI, support_BMD)), masking)

    def freeze_encoder(self) -> None:
        """Stop training of all that a pre-trained ViT-MAE encoder holds; cross parts and decoder stay trained."""
        for part in (self.vit.embeddings, self.vit.encoder.layer, self.vit.layernorm):
            part.requires_grad_(False)


def _cross_layers(cross: CrossModel, image: ImageModel) -> nn.ModuleList:
    return nn.ModuleList(CrossLayer(image.width, image.heads, image.mlp_width) for _ in range(cross.layers))
