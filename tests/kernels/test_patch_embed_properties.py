"""Masked patch embedding for any shape, layout, dtype and length: values and all gradients against float64.

Errors are held against the same sums made of absolute values, so that what cancels is not asked for.
"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cadiff.kernels.patch_embed import masked_patch_embed, masked_patch_embed_reference

DTYPES = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SIGNALS = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int16, torch.uint8)


def laid_out(part, layout):
    """The same numbers in another order in memory."""
    if layout == "turned":
        return part.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "every second":
        return torch.stack((part, part), -1).flatten(-2)[..., ::2]
    return part[:1].expand(part.shape) if layout == "shared" else part


@st.composite
def worlds(draw, device="cpu", dtypes=tuple(DTYPES)):
    """Signals, kept patches, [weight, bias, position], gradient, options."""
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape):
        return torch.randn(shape, generator=source, dtype=torch.float64)

    batch, width, dtype = draw(st.integers(1, 5)), draw(st.integers(1, 9)), draw(st.sampled_from(dtypes))
    image, options = draw(st.booleans()), {}
    if image:
        channels, tall, wide, down, across = (draw(st.integers(1, 3)) for _ in range(5))
        height, columns = (
            (down - 1) * tall + draw(st.integers(1, tall)),
            (across - 1) * wide + draw(st.integers(1, wide)),
        )
        shape, patch, length = (channels, height, columns), (channels, tall, wide), down * across
    else:
        patch, length = (draw(st.integers(1, 20)),), draw(st.integers(1, 7))
        shape = ((length - 1) * patch[0] + draw(st.integers(1, patch[0])),)
        if draw(st.booleans()):
            options["lengths_B"] = torch.randint(0, shape[0] + 1, (batch,), generator=source)
    stored = draw(st.sampled_from(SIGNALS))
    signal = (
        normal(batch, *shape) if stored.is_floating_point else (normal(batch, *shape) * 40).clamp(-120, 120).round()
    )
    signal = (signal.abs() if stored == torch.uint8 else signal).to(stored)
    signal = laid_out(signal, draw(st.sampled_from(["as it is", "turned", "every second", "shared"])))
    for name in ("gain", "shift"):
        if draw(st.booleans()):
            options[name] = normal(
                *draw(st.sampled_from([(), shape[-1:], (batch, *[1] * len(shape)), (batch, *shape)]))
            )
            options[name] = options[name].to(draw(st.sampled_from([torch.float32, torch.float16])))
    keep_BK = torch.rand(batch, length, generator=source).argsort(1)[:, : draw(st.integers(1, length))]
    leaves = [normal(*size).to(dtype) for size in ((width, *patch), (width,), (length, width))]
    grad_DBK = normal(width, *keep_BK.shape).to(dtype)
    options = {name: part.to(device) for name, part in options.items()}
    return signal.to(device), keep_BK.to(device), [leaf.to(device) for leaf in leaves], grad_DBK.to(device), options


def answer(embed, signal, keep_BK, leaves, grad_DBK, options):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    tokens_BKD = embed(signal, keep_BK, *leaves, **options)
    return tokens_BKD.detach(), *torch.autograd.grad(tokens_BKD, leaves, grad_DBK.permute(1, 2, 0))


def truth(signal, keep_BK, leaves, grad_DBK, options, change):
    """The definition in float64, of all numbers changed by ``change``."""
    exact = [change(leaf.double()) for leaf in leaves]
    options = {name: part if name == "lengths_B" else change(part.double()) for name, part in options.items()}
    return answer(
        masked_patch_embed_reference, change(signal.double()), keep_BK, exact, change(grad_DBK.double()), options
    )


def close_to_float64(world):
    signal, keep_BK, leaves, grad_DBK, options = world
    dtype = leaves[0].dtype
    got = answer(masked_patch_embed, signal, keep_BK, leaves, grad_DBK, options)
    wanted, most = (truth(signal, keep_BK, leaves, grad_DBK, options, change) for change in (torch.clone, torch.abs))
    for name, live, exact, bound in zip(("tokens", "weight", "bias", "position"), got, wanted, most, strict=True):
        assert live.dtype == dtype
        worst = ((live.double() - exact).abs() / (bound + 1e-3)).max().item()
        assert worst <= DTYPES[dtype], f"{name}: off by {worst:.3g} of its terms"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(worlds())
def test_any_batch_has_the_values_and_gradients_of_float64(world):
    close_to_float64(world)
