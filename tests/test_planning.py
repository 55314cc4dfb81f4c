"""Plan: the sizes that the conversion then has, without having it."""

import re

import pytest
import torch
from torch import nn

from conv2affine import Geometry, plan, to_linear_network, to_matrix, to_mlp
from conv2affine.convolution.sizes import readable_bytes
from tests.cases import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_counts_are_those_of_the_matrix(case):
    conv = case.conv()
    ones = nn.utils.skip_init(type(conv), **case.args, dtype=torch.float64)
    ones.weight.data.fill_(1)
    with torch.no_grad():
        matrix = to_matrix(ones, case.input_size)
    planned = plan(conv, case.input_size)
    assert (planned.rows, planned.cols) == matrix.shape
    assert planned.nnz == matrix.count_nonzero()
    assert planned.bytes["strided"] == matrix.numel() * 8
    assert planned.density == planned.nnz / matrix.numel()
    csr, csc, coo = matrix.to_sparse_csr(), matrix.to_sparse_csc(), matrix.to_sparse_coo()
    parts = {
        "sparse_csr": (csr.crow_indices(), csr.col_indices(), csr.values()),
        "sparse_csc": (csc.ccol_indices(), csc.row_indices(), csc.values()),
        "sparse_coo": (coo.indices(), coo.values()),
    }
    for layout, tensors in parts.items():
        sizes = {name: size for name, size in planned.bytes.items() if name.startswith(layout)}
        *indices, values = tensors
        for name, size in sizes.items():
            width = 4 if "int32" in name else 8
            assert size == sum(part.numel() * width for part in indices) + values.numel() * 8, name
    assert {name.partition(",")[0] for name in planned.bytes} == {"strided", *parts}


def test_nothing_is_allocated():
    conv = nn.Conv2d(3, 64, 7, stride=2, padding=3, device="meta")
    assert plan(conv, 10_000).rows == 64 * 5_000**2


def test_huge_axis():
    size = 1_000_000_000
    assert (
        plan(torch.ones(1, 1, 3, dtype=torch.int8), Geometry(1, 1, (3,), input_size=size, padding=1)).nnz
        == 3 * size - 2
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (928062468, "928.06 MB"),
        (5e20, "500000.00 PB"),
    ],
)
def test_readable_bytes(size, text):
    assert readable_bytes(size) == text


def test_table_names_every_layout():
    text = str(plan(nn.ConvTranspose1d(2, 2, 3), 10))
    assert "1-D transposed convolution" in text
    assert all(word in text for word in ("strided", "sparse_csr, int32", "sparse_csr, int64", "%"))


def test_in_a_notebook():
    planned = plan(nn.Conv2d(1, 1, 3), 4)
    assert repr(planned) == "Plan(4 x 16, 36 non-zeros, torch.float32)"
    html = planned._repr_html_()
    assert '<td style="text-align: left">input size</td><td style="text-align: left">(4, 4) -&gt; (2, 2)</td>' in html
    assert html.count("<tr>") == str(planned).count("\n") + 1


def test_a_network_in_a_notebook():
    planned = plan(nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU()), torch.rand(1, 1, 4, 4))
    assert repr(planned) == "NetworkPlan(1 layers, 1 steps, 36 entries, torch.float32)"
    html = planned._repr_html_()
    assert '<th style="text-align: left">from</th>' in html
    assert '<td style="text-align: right">4 x 16</td>' in html
    assert html.count("<tr>") == str(planned).count("\n") + 1


MODEL = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Sigmoid())
IMAGES = torch.rand(2, 1, 8, 8)


def test_a_network_in_form_mlp():
    model = MODEL[:2]
    assert plan(model, IMAGES, form="mlp") == to_mlp(model, IMAGES).plan
    assert plan(model, IMAGES, form="graph", max_pool="relu") == to_linear_network(model, IMAGES, max_pool="relu").plan
    with pytest.raises(NotImplementedError, match="2: sigmoid must be affine or piecewise linear"):
        plan(MODEL, IMAGES, form="mlp")
    with pytest.raises(ValueError, match=r"form \('cnn'\) must be one of \('graph', 'mlp'\)"):
        plan(MODEL, IMAGES, form="cnn")


def test_a_layer_that_only_carries_values_has_a_name():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    assert [row.name for row in plan(model, torch.rand(1, 3, 6, 6), form="mlp").layers] == ["0, 1", "carried"]


def test_a_layer_has_no_form():
    with pytest.raises(TypeError, match="form, dtype must be left out for a convolution layer"):
        plan(MODEL[0], IMAGES, form="mlp", dtype=torch.float64)


def test_a_network_has_other_options():
    with pytest.raises(TypeError, match="box must be left out: plan takes form, layout, merge, max_pool, dtype for a"):
        plan(MODEL[:2], IMAGES, form="mlp", box=(0, 1))


@pytest.mark.parametrize("form", ["graph", "mlp"])
def test_a_network_that_would_be_refused(form, monkeypatch):
    assert not plan(MODEL[:2], IMAGES, form=form).refusal
    monkeypatch.setattr("conv2affine.convolution.guard.memory_left", lambda: 1000)
    planned = plan(MODEL[:2], IMAGES, form=form)
    assert re.match("the layers need .* kB, and there are 1.00 kB left", planned.refusal)
    assert str(planned).endswith(f"\nrefused: {planned.refusal}")
    assert planned._repr_html_().endswith(f"<p>refused: {planned.refusal}</p>")
