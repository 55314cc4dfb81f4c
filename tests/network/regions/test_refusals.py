"""What has no linear region, what is no point of one, and what does not fit in memory."""

import pytest
import torch
from torch import nn

from conv2affine import linear_region
from conv2affine.convolution import guard
from conv2affine.network.regions import local as local_module
from tests.network.equality.test_equality import Mixed
from tests.network.models import OTHERS, Several, build, samples
from tests.network.regions.test_regions import case, family


@pytest.mark.parametrize("name", OTHERS)
def test_other_steps_are_refused_by_name(name):
    make, shape = OTHERS[name]
    with pytest.raises(
        NotImplementedError, match=r"must be affine or piecewise linear to have linear regions.*before it"
    ):
        linear_region(build(make), samples(1, *shape))


def test_steps_that_no_output_needs_are_not_refused():
    class Unused(nn.Module):
        def forward(self, x):
            x.sigmoid()
            return torch.relu(x)

    assert linear_region(Unused(), samples(1, 4)).weight.shape == (4, 4)
    with pytest.raises(NotImplementedError, match="argmax"):
        linear_region(build(Several), (samples(1, 2, 3), samples(1, 6)))


def test_refusals():
    model, x, _ = case("resnet")
    with pytest.raises(ValueError, match="'auto'"):
        linear_region(model, x, layout="auto")
    with pytest.raises(ValueError, match=r"must be \"dense\" for 3 points; or take x\[i : i \+ 1\]"):
        linear_region(model, x, layout="sparse")
    regions = linear_region(model, x)
    for name in ("constraints", "wall_slices"):
        with pytest.raises(
            ValueError, match=rf"{name} must be asked of one point, and there are 3; take x\[i : i \+ 1\]"
        ):
            getattr(regions, name)
    with pytest.raises(ValueError, match="x must have 3 samples"):
        regions.contains(x[:2])
    with pytest.raises(ValueError, match="x must have 192 elements per sample, got 64"):
        regions.contains(x[:, :1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x[:0], ValueError, r"x\[0\] must have a sample, batch first, got shape \(0, 4\)"),
        (lambda x: x[0, 0], ValueError, r"x\[0\] must have a sample, batch first, got shape \(\)"),
        (lambda x: "x", TypeError, r"x must be a tensor, or a tuple of tensors in the order .*takes, got str"),
        (lambda x: {"x": x}, TypeError, r"x must be a tensor, .* got dict; pass its tensors in a tuple"),
        (lambda x: (x, x[:1]), ValueError, r"x\[1\] must have as many samples as x\[0\], 2, got 1"),
        (lambda x: x / 0, ValueError, r"x\[0\] must be finite"),
    ],
    ids=["no sample", "no batch", "text", "by name", "two sizes", "infinite"],
)
def test_what_no_region_contains_is_refused(change, error, message):
    x = torch.rand(2, 4)
    with pytest.raises(error, match=message):
        linear_region(nn.ReLU(), x[:1]).contains(change(x))


def test_inputs_in_another_order_are_refused():
    x = torch.rand(2, 1, 4, 4), torch.rand(2, 3)
    region = linear_region(Mixed(), x)
    vector = torch.cat([each.flatten(1) for each in x], 1)
    assert region.contains(x).all()
    assert region.contains(vector).all()
    with pytest.raises(ValueError, match=r"x must have 16 \+ 3 elements per sample, got 3 \+ 16"):
        region.contains(x[::-1])


def test_a_point_must_be_finite():
    with pytest.raises(ValueError, match=r"^x\[0\] must be finite"):
        linear_region(nn.ReLU(), torch.tensor([[1.0, torch.inf]]))


def test_memory_is_refused_first(monkeypatch):
    model, x = family("unet")
    region = linear_region(model, x[:1])  # its constraints are not known yet
    monkeypatch.setattr(guard, "memory_left", lambda: 100_000)
    monkeypatch.setattr(local_module.LocalMap, "forward", None)  # nothing is computed
    with pytest.raises(
        MemoryError, match=r"constraints of 1000 x 192 with up to \d+ entries need .* radius needs less"
    ):
        region.constraints  # noqa: B018
    monkeypatch.undo()
    monkeypatch.setattr(guard, "memory_left", lambda: 100_000)
    with pytest.raises(MemoryError, match=r"^the 128 x 192 elements of weight for one point need 196.61 kB.*sparse"):
        linear_region(model, x[:1])


def test_points_that_do_not_fit_together_are_refused_first(monkeypatch):
    model, x = family("unet")
    each = linear_region(model, x[:1])._local.point_bytes
    for left, message in (
        (3 * each - 1, r"maps of 3 points need .*; pass fewer points at a time"),
        (3 * each, "weight"),
    ):
        monkeypatch.setattr(guard, "memory_left", lambda left=left: left)
        with pytest.raises(MemoryError, match=message):
            linear_region(model, x)
