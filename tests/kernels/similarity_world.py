"""What the tests of the contrastive loss share: leaves to draw, and loss and gradients to compare."""

import torch

from cadiff.kernels.pairs import Pairs
from cadiff.kernels.similarity import info_nce_reference


def draw(*shapes, dtype=torch.float32, device="cpu", seed=5):
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=source).to(dtype).to(device).requires_grad_() for shape in shapes]


def answer(loss_of, leaves, *args, **options):
    """Loss and gradients, detached."""
    copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    loss = loss_of(*copies, *args, **options)
    return (loss.detach(), *torch.autograd.grad(loss, copies))


def truth(leaves, *args, **options):
    """The definition's answer in float64."""
    return answer(info_nce_reference, [leaf.double() for leaf in leaves], *args, **options)


def close(got, wanted, tolerance):
    """Each tensor, relative to its own largest entry; where all cancel, as with one feature, to what cancels."""
    for mine, theirs in zip(got, wanted, strict=True):
        size = max(theirs.abs().max().item(), 1e-2)
        assert mine.isfinite().all()
        assert (mine.double() - theirs).abs().max().item() <= tolerance * size, (mine, theirs)


def some_pairs(batch, repeats, subjects, device="cpu", seed=0):
    """Stimuli of which some repeat and some are unknown, and two subjects."""
    source = torch.Generator().manual_seed(seed)
    stimulus_B = torch.randint(-1, batch // 2 + 1, (batch,), generator=source).to(device)
    return Pairs(stimulus_B, repeats, torch.randint(0, 2, (batch,), generator=source).to(device), subjects)
