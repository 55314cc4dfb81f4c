"""Random geometries of all classes and options, degenerate ones included."""

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from conv2affine import plan, reference, to_bias, to_linear, to_matrix

CONVS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


@st.composite
def layers(draw):
    """(class, constructor arguments, input size) of a layer that PyTorch accepts."""
    dims = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    largest = {1: 9, 2: 5, 3: 3}[dims]

    def per_axis(strategy):
        return draw(st.tuples(*[strategy] * dims))

    groups = draw(st.integers(1, 3))
    input_size = per_axis(st.integers(1, largest))
    kernel_size = per_axis(st.integers(1, largest))
    dilation = per_axis(st.integers(1, 4))
    stride = per_axis(st.integers(1, 4))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    arguments = {
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 2)),
        "kernel_size": kernel_size,
        "dilation": dilation,
        "stride": stride,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if transposed:
        # An output of at least 1 is left, whatever is cut off.
        full = [(i - 1) * s + r + 1 for i, s, r in zip(input_size, stride, reach, strict=True)]
        arguments["padding"] = tuple(draw(st.integers(0, (size - 1) // 2)) for size in full)
        arguments["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
        return TRANSPOSED[dims - 1], arguments, input_size
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    limits = [{"circular": i, "reflect": i - 1}.get(mode, r + 2) for i, r in zip(input_size, reach, strict=True)]
    padding = tuple(draw(st.integers(0, limit)) for limit in limits)
    # Enlarge the input until the kernel fits; more input never takes a padding mode its limit away.
    input_size = tuple(max(i, r + 1 - 2 * p) for i, r, p in zip(input_size, reach, padding, strict=True))
    arguments.update(padding=padding, padding_mode=mode)
    same = draw(st.booleans())
    if same and all(r <= i for r, i in zip(reach, input_size, strict=True)):
        arguments.update(padding="same", stride=1)
    return CONVS[dims - 1], arguments, input_size


def made(layer, arguments):
    torch.manual_seed(0)
    return layer(**arguments, dtype=torch.float64).requires_grad_(False)


@given(layers())
@example((nn.Conv1d, {"in_channels": 1, "out_channels": 1, "kernel_size": 1}, (1,)))
@settings(max_examples=300, deadline=None)
def test_matrix_is_the_references_and_the_layers(drawn):
    layer, arguments, input_size = drawn
    conv = made(layer, arguments)
    matrix, bias = to_matrix(conv, input_size), to_bias(conv, input_size)
    assert torch.equal(matrix, reference.to_matrix(conv, input_size))
    x = torch.randn(conv.in_channels, *input_size, dtype=torch.float64)
    torch.testing.assert_close(matrix @ x.flatten() + bias, conv(x).flatten(), rtol=1e-12, atol=1e-12)
    assert plan(conv, input_size).nnz == matrix.count_nonzero()


@given(layers())
@settings(max_examples=200, deadline=None)
def test_sparse_layouts_are_the_matrix(drawn):
    layer, arguments, input_size = drawn
    conv = made(layer, arguments)
    matrix = to_matrix(conv, input_size)
    for layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_coo):
        sparse = to_matrix(conv, input_size, layout=layout)
        assert torch.equal(sparse.to_dense(), matrix)
        assert sparse.values().numel() == plan(conv, input_size).nnz


@given(layers())
@settings(max_examples=100, deadline=None)
def test_gradient_is_the_adjoint(drawn):
    layer, arguments, input_size = drawn
    conv = made(layer, arguments).requires_grad_()
    gradient = torch.randn_like(to_matrix(conv, input_size))
    for layout in (torch.strided, torch.sparse_csr, torch.sparse_csc):
        conv.weight.grad = None
        (to_matrix(conv, input_size, layout=layout).to_dense() * gradient).sum().backward()
        # The matrix is linear in the weight: <A(w), G> == <w, A'(G)>
        inner = (conv.weight.grad * conv.weight).sum()
        torch.testing.assert_close(inner, (to_matrix(conv, input_size) * gradient).sum())


@given(layers(), st.data())
@settings(max_examples=100, deadline=None)
def test_row_blocks_make_up_the_matrix(drawn, data):
    layer, arguments, input_size = drawn
    conv = made(layer, arguments)
    whole = to_linear(conv, input_size).weight
    cut = data.draw(st.integers(0, len(whole)))
    blocks = [to_matrix(conv, input_size, rows=rows) for rows in (range(cut), range(cut, len(whole)))]
    assert torch.equal(torch.cat(blocks), whole)
