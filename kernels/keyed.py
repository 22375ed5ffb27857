"""Random numbers that are a function of their name: Philox4x32-10 keyed by seed, stream, epoch and sample id.

Nothing is drawn from a generator with a state, so a sample gets the same mask and noise whatever the batch it travels
in, the rank that holds it, the number of workers or the step a job was resumed from.

Layout (changing any line of it changes every run; a test holds golden values):
    key      first 64 bits of sha256("<seed>/<stream>"), so streams and seeds of any size do not overlap
    counter  word 0: epoch; words 1 and 2: sample id, low and high half; word 3: number of the block of four draws

Legend: B samples, n draws per sample. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_ROUNDS = 10
_WORD = 0xFFFFFFFF
# The two multipliers less 2**32: the product with a 32-bit word then fits a signed 64-bit integer without overflow,
# and the high half is restored by adding the word back.
_MULTIPLIERS = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)
_WEYL = (0x9E3779B9, 0xBB67AE85)
FRACTION = 30  # bits after the point of keyed_exponential; a square of a number with so many still fits 64 bits


def keyed_uniform(seed: int, stream: str, epoch_B: Tensor, sample_id_B: Tensor, n: int) -> Tensor:
    """Draw ``n`` uniform numbers for each sample.

    Args:
        seed: the job's seed, any integer.
        stream: what the numbers are for, such as "phase1/view1"; different names give independent numbers.
        epoch_B: int64 (B,); -1 stands for validation.
        sample_id_B: int64 (B,), not negative.
        n: draws per sample; the first m columns do not depend on n.

    Returns:
        float32 (B, n) in [0, 1), multiples of 2**-24, bit for bit the same on CPU and GPU, on sample_id_B's device.
    """
    return keyed_draws(seed, stream, epoch_B, sample_id_B, n).to(torch.float32) * 2.0**-24


def keyed_draws(seed: int, stream: str, epoch_B: Tensor, sample_id_B: Tensor, n: int) -> Tensor:
    """``keyed_uniform`` times 2**24: int64 (B, n) in 0..2**24-1."""
    return _words(seed, stream, epoch_B, sample_id_B, n) >> 8


def keyed_exponential(seed: int, stream: str, epoch_B: Tensor, sample_id_B: Tensor, n: int) -> Tensor:
    """Draw ``n`` exponential numbers for each sample: -log2(1 - u) of ``keyed_uniform``'s u, in fixed point.

    Returns:
        int64 (B, n) in units of 2**-FRACTION, 0..24 * 2**FRACTION; bit for bit the same on every device, because only
        integers are multiplied and shifted. The mean is 1 / ln 2.
    """
    return fixed_point_log(keyed_draws(seed, stream, epoch_B, sample_id_B, n))


def fixed_point_log(draw: Tensor) -> Tensor:
    """-log2(1 - draw / 2**24) for int64 draws in 0..2**24-1, in units of 2**-FRACTION.

    The bits of a logarithm come one by one: squaring x in [1, 2) doubles log2(x), and the bit before the point says
    whether that reached 1; if so, halve x and go on. Each step cuts x to FRACTION bits, which moves the answer by less
    than 2**(2 - FRACTION): a twentieth of the step between neighbouring draws, so it grows strictly with the draw.
    """
    _, exponent = torch.frexp((2**24 - draw).to(torch.float32))  # exact: an integer of at most 24 bits, or 2**24
    zeros = 25 - exponent.to(torch.int64)  # 1 - u = 2**-zeros * x with x in [1, 2)
    x = (2**24 - draw) << (FRACTION - 24) << zeros
    answer = zeros << FRACTION
    for bit in reversed(range(FRACTION)):
        x.mul_(x).bitwise_right_shift_(FRACTION)
        reached = x >> (FRACTION + 1)
        x.bitwise_right_shift_(reached)
        answer.sub_(reached, alpha=1 << bit)
    return answer


def stream_key(seed: int, stream: str) -> tuple[int, int]:
    """Philox's key for a seed and a stream: two words in 0..2**32-1."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[0:4], "little"), int.from_bytes(digest[4:8], "little")


def keyed_normal(seed: int, stream: str, epoch_B: Tensor, sample_id_B: Tensor, n: int) -> Tensor:
    """Draw ``n`` standard normal numbers for each sample, by Box and Muller's transform of the same bits.

    Returns:
        float32 (B, n). The transform is computed in float64 and rounded once, because logarithm and cosine differ
        between devices in their last bit: what is left is a difference of one float32 step in very rare entries.
    """
    words_Bn = _words(seed, stream, epoch_B, sample_id_B, n + n % 2)
    radius_Bh = ((words_Bn[:, 0::2] + 1).to(torch.float64) * 2.0**-32).log_().mul_(-2).sqrt_()
    angle_Bh = words_Bn[:, 1::2].to(torch.float64) * (2.0 * math.pi * 2.0**-32)
    pairs_Bh2 = torch.stack((radius_Bh * angle_Bh.cos(), radius_Bh * angle_Bh.sin()), dim=-1)
    return pairs_Bh2.flatten(1)[:, :n].to(torch.float32)


def keyed_integers(seed: int, stream: str, epoch_B: Tensor, sample_id_B: Tensor, n: int, high: int) -> Tensor:
    """Draw ``n`` integers in [0, high) for each sample.

    Returns:
        int64 (B, n), bit for bit the same on every device. Probabilities are uneven by at most high / 2**32.

    Raises:
        ValueError: ``high`` lies outside 1..2**31.
    """
    if not 1 <= high <= 2**31:
        raise ValueError(f"keyed_integers: high is {high}; expected 1..2**31.")
    return (_words(seed, stream, epoch_B, sample_id_B, n) * high) >> 32


def _words(seed: int, stream: str, epoch_B: Tensor, sample_id_B: Tensor, n: int) -> Tensor:
    """Give n random 32-bit words for each sample, as int64 (B, n)."""
    batch, blocks = sample_id_B.shape[0], (n + 3) // 4
    block_n = torch.arange(blocks, device=sample_id_B.device)
    epoch_B = epoch_B.to(sample_id_B.device)
    counter = torch.stack(
        (
            (epoch_B & _WORD)[:, None].expand(batch, blocks),
            (sample_id_B & _WORD)[:, None].expand(batch, blocks),
            (sample_id_B >> 32 & _WORD)[:, None].expand(batch, blocks),
            block_n[None, :].expand(batch, blocks),
        )
    )
    return torch.stack(philox(counter, stream_key(seed, stream)), dim=-1).view(batch, 4 * blocks)[:, :n]


def philox(counter: Tensor, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 on 32-bit words held in int64, which every device of PyTorch can multiply and shift.

    Args:
        counter: int64 (4, ...), each word in 0..2**32-1.
        key: two words in 0..2**32-1.

    Returns:
        Four int64 tensors of the trailing shape, each word in 0..2**32-1.
    """
    c0, c1, c2, c3 = counter.unbind(0)
    for turn in range(_ROUNDS):
        key0, key1 = ((k + turn * step) & _WORD for k, step in zip(key, _WEYL))
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c2 = high1.bitwise_xor_(c1).bitwise_xor_(key0), high0.bitwise_xor_(c3).bitwise_xor_(key1)
        c1, c3 = low1, low0
    return c0, c1, c2, c3


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of ``word * (multiplier + 2**32)``."""
    product = word * multiplier
    high = (product >> 32).add_(word).bitwise_and_(_WORD)
    return high, product.bitwise_and_(_WORD)
