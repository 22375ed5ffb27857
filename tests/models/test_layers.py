"""The pieces of both autoencoders: positions, mask tokens, cross layers, recomputation."""

import math

import pytest
import torch
from torch.nn import functional as F

from cadiff.errors import ConfigError
from cadiff.kernels.mask import Masking
from cadiff.layers import Block, CrossLayer, run_layers, sincos_positions, sincos_positions_2d, with_mask_tokens


def test_positions_are_sines_then_cosines_behind_a_zero_row():
    table = sincos_positions(length=2, width=4)
    expected = [[0, 0, 0, 0], [0, 0, 1, 1], [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)]]
    assert table.shape == (1, 3, 4) and table.dtype == torch.float32
    torch.testing.assert_close(table[0], torch.tensor(expected))


def test_positions_of_a_grid_hold_the_column_left_and_the_row_right():
    grid = sincos_positions_2d(side=3, width=8)[0, 1:].view(3, 3, 8)
    line = sincos_positions(length=3, width=4)[0, 1:]
    for row in range(3):
        for column in range(3):
            torch.testing.assert_close(grid[row, column], torch.cat([line[column], line[row]]))


@pytest.mark.parametrize("table", [lambda: sincos_positions(4, 5), lambda: sincos_positions_2d(2, 6)])
def test_a_width_that_cannot_hold_sines_and_cosines_is_refused(table):
    with pytest.raises(ConfigError, match="width"):
        table()


def test_mask_tokens_fill_exactly_the_hidden_places():
    masking = Masking.from_noise(torch.tensor([[0.9, 0.1, 0.8, 0.2]]), ratio=0.5)  # keeps patches 1 and 3
    tokens = torch.tensor([[[10.0], [1.0], [3.0]]])
    full = with_mask_tokens(tokens, torch.tensor([[[-1.0]]]), masking.restore_BL)
    assert full.flatten().tolist() == [10.0, -1.0, 1.0, -1.0, 3.0]


def plain_attention(part, tokens, memory, heads):
    query, key, value = part.attention.query(tokens), part.attention.key(memory), part.attention.value(memory)
    split = [x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key, value)]
    weights = (split[0] @ split[1].transpose(2, 3) / math.sqrt(split[0].shape[3])).softmax(3)
    return part.output.dense((weights @ split[2]).transpose(1, 2).reshape(query.shape))


def test_cross_layer_follows_the_papers_odd_recipe():
    torch.manual_seed(0)
    layer = CrossLayer(width=8, heads=2, hidden=12)
    torch.nn.init.normal_(layer.layernorm_before.weight)
    tokens, memory = torch.randn(2, 5, 8), torch.randn(2, 3, 8)

    normal = layer.layernorm_before(tokens)
    query = layer.layernorm_before(plain_attention(layer.attention, normal, normal, 2))  # no residual, same norm again
    crossed = tokens + plain_attention(layer.cross_attention, query, memory, 2)
    expected = crossed + layer.output.dense(F.gelu(layer.intermediate.dense(layer.layernorm_after(crossed))))

    torch.testing.assert_close(layer(tokens, memory), expected)


def test_recomputing_layers_changes_no_gradient():
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(CrossLayer(8, 2, 8) for _ in range(2))
    tokens, memory = torch.randn(1, 4, 8, requires_grad=True), torch.randn(1, 3, 8, requires_grad=True)
    leaves = [tokens, memory, *layers.parameters()]
    plain = torch.autograd.grad(run_layers(layers, tokens, memory, checkpoint=False).sum(), leaves)
    again = torch.autograd.grad(run_layers(layers, tokens, memory, checkpoint=True).sum(), leaves)
    for one, two in zip(plain, again, strict=True):
        torch.testing.assert_close(one, two)


def test_recomputing_keeps_fewer_tensors_for_backward():
    def kept(checkpoint):
        sizes = []
        layers, tokens = [Block(8, 2, 4.0)], torch.randn(1, 16, 8, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            run_layers(layers, tokens, checkpoint=checkpoint)
        return sum(sizes)

    assert kept(checkpoint=True) < kept(checkpoint=False) / 2
