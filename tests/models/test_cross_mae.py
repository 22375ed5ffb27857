"""Two autoencoders tied by cross-attention: names, sizes, who looks at whom, and what is trained."""

import pytest
import torch
from test_fmri_mae import TINY as FMRI
from test_fmri_mae import some_masking
from test_image_mae import TINY as IMAGE
from test_image_mae import normalise_image, pictures

from cadiff.config import CrossModel, FmriModel, ImageModel
from cadiff.errors import ConfigError
from cadiff.kernels.mask import Masking
from cadiff.models.cross_mae import FmriCrossMae, ImageCrossMae
from cadiff.models.fmri_mae import FmriMae
from cadiff.models.image_mae import ImageMae

CROSS = CrossModel(layers=2)


def fmri_net(cross=CROSS, **options):
    torch.manual_seed(0)
    return FmriCrossMae(FMRI, 24, cross, IMAGE, **options)


def image_net(**options):
    torch.manual_seed(0)
    return ImageCrossMae(IMAGE, 8, CROSS, support_width=16, **options)


def size_of(tensors):
    return sum(tensor.numel() for tensor in tensors)


def test_the_papers_models_have_the_papers_sizes():
    with torch.device("meta"):
        fmri = FmriCrossMae(FmriModel(decoder_depth=6), 291 * 16, CrossModel(), ImageModel())
        image = ImageCrossMae(ImageModel(), 224, CrossModel(), support_width=1024)
    image.freeze_encoder()
    assert size_of(fmri.state_dict().values()) == 191_637_520 and len(fmri.state_dict()) == 450
    assert size_of(fmri.parameters()) == 191_189_008
    assert size_of(image.state_dict().values()) == 134_740_992 and len(image.state_dict()) == 376
    # The paper's 48,942,336 include the decoder's position table, which its code trains by accident.
    assert size_of(p for p in image.parameters() if p.requires_grad) == 48_942_336 - 197 * 512


def cross_layer_names(prefix):
    parts = [
        f"{kind}.attention.{name}" for kind in ("attention", "cross_attention") for name in ("query", "key", "value")
    ]
    parts += ["attention.output.dense", "cross_attention.output.dense", "intermediate.dense", "output.dense"]
    parts += ["layernorm_before", "layernorm_after"]
    return {f"{prefix}.{part}.{kind}" for part in parts for kind in ("weight", "bias")}


def test_cross_parts_have_the_names_of_the_papers_weights():
    extra = fmri_net().state_dict().keys() - FmriMae(FMRI, 24).state_dict().keys()
    maps = {f"cross_map_{way}.{kind}" for way in ("in", "out") for kind in ("weight", "bias")}
    assert extra == maps | cross_layer_names("cross_blocks.0") | cross_layer_names("cross_blocks.1")
    extra = image_net().state_dict().keys() - ImageMae(IMAGE, 8).state_dict().keys()
    prefix = "vit.encoder.layer_cross"
    maps = {f"vit.encoder.cross_map_in.{kind}" for kind in ("weight", "bias")}
    assert extra == maps | cross_layer_names(f"{prefix}.0") | cross_layer_names(f"{prefix}.1")


def test_fmri_prediction_depends_on_the_image_but_its_encoding_does_not():
    net, signal, masking = fmri_net(), torch.randn(3, 24), some_masking()
    one, two = torch.randn(3, 5, 16), torch.randn(3, 5, 16)
    assert net(signal, masking, one).shape == (3, 6, 4)
    assert not torch.allclose(net(signal, masking, one), net(signal, masking, two))
    net.encode(signal).square().sum().backward()
    assert all(p.grad is None for name, p in net.named_parameters() if "cross" in name)


def test_the_order_of_support_tokens_does_not_matter():
    net, signal, masking, support = fmri_net(), torch.randn(3, 24), some_masking(), torch.randn(3, 5, 16)
    torch.testing.assert_close(net(signal, masking, support), net(signal, masking, support.flip(1)))


def test_the_residual_adds_the_own_tokens():
    signal, masking, support = torch.randn(3, 24), some_masking(), torch.randn(3, 5, 16)
    added, replaced = fmri_net(), fmri_net(CrossModel(layers=2, residual=False))
    for net in (added, replaced):
        torch.nn.init.zeros_(net.cross_map_out.bias)
    own = added.cross_map_in(added.hidden(signal, masking))
    crossed = own
    for layer in added.cross_blocks:
        crossed = layer(crossed, support)
    out = added.cross_map_out
    torch.testing.assert_close(added.encode_with(signal, masking, support), added.norm(out(own + crossed)))
    torch.testing.assert_close(replaced.encode_with(signal, masking, support), added.norm(out(crossed)))


def test_image_prediction_depends_on_the_signal_and_reaches_it():
    net, pixels = image_net(), normalise_image(pictures())
    masking, support = Masking.from_noise(torch.rand(2, 4), 0.5), torch.randn(2, 7, 16, requires_grad=True)
    net(pixels, masking, support).square().sum().backward()
    assert support.grad.abs().sum() > 0
    assert not torch.allclose(net(pixels, masking, support), net(pixels, masking, -support))


def test_without_a_support_the_image_net_is_the_plain_autoencoder():
    net, plain, pixels = image_net(), ImageMae(IMAGE, 8), normalise_image(pictures())
    plain.load_state_dict({name: net.state_dict()[name] for name in plain.state_dict()})
    masking = Masking.from_noise(torch.rand(2, 4), 0.5)
    torch.testing.assert_close(net(pixels, masking), plain(pixels, masking))


def test_a_frozen_encoder_leaves_cross_parts_and_decoder_trained():
    net = image_net()
    net.freeze_encoder()
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    plain = {name for name, _ in ImageMae(IMAGE, 8).named_parameters()}
    assert frozen == {name for name in plain if name.startswith("vit.")}


def test_recomputing_layers_gives_the_same_gradients():
    signal, masking, support = torch.randn(3, 24), some_masking(), torch.randn(3, 5, 16)
    gradients = []
    for checkpoint in (False, True):
        net = fmri_net(checkpoint=checkpoint)
        net(signal, masking, support).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_heads_that_do_not_divide_the_image_width_are_refused():
    odd = IMAGE.model_copy(update={"heads": 3})
    with pytest.raises(ConfigError, match="heads"):
        FmriCrossMae(FMRI, 24, CROSS, odd)
    with pytest.raises(ConfigError, match="heads"):
        ImageCrossMae(odd, 8, CROSS, support_width=16)
