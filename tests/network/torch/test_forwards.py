"""Models whose forward quantises, writes to its weights, or calls what torch.vmap or torch.export does not take."""

import copy

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from conv2affine import check, plan, to_linear, to_linear_network, to_mlp
from conv2affine.network.torch.modules import PerSample
from tests.network.models import Function

X5 = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) - 0.5


class Qat(nn.Module):
    """As torch.ao.quantization.prepare_qat makes of a layer, with switches of its own."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.fake_quant = nn.Linear(5, 4), kind.with_args(quant_min=0, quant_max=255)()

    def forward(self, x):
        return torch.relu(self.fake_quant(self.layer(x)))


@pytest.mark.filterwarnings("ignore:torch.ao:DeprecationWarning")
@pytest.mark.parametrize("observes", [True, False])
@pytest.mark.parametrize("kind", ["FakeQuantize", "FusedMovingAvgObsFakeQuantize"])
def test_fake_quantisation_that_is_off(kind, observes):
    quantisation = torch.ao.quantization
    model, x = Qat(getattr(quantisation, kind)), torch.randn(6, 5)
    model(x)
    model.apply(quantisation.disable_fake_quant)
    if not observes:
        model.apply(quantisation.disable_observer)
    state = copy.deepcopy(model.eval().state_dict())
    for convert in (to_linear_network, to_mlp):
        torch.testing.assert_close(convert(model, x)(x), torch.relu(model.layer(x)))
    assert model.fake_quant.fake_quant_enabled.numel() == 1
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


SCALES = torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, dtype=torch.int32)
# torch.vmap has no rules for these operators, and warns of the time that they take.
ON_BATCHES = {
    "fake-quantise": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127),
    "fake-quantise-by-tensors": lambda x: torch.fake_quantize_per_tensor_affine(
        x, torch.tensor(0.1), torch.tensor(0, dtype=torch.int32), -128, 127
    ),
    "fake-quantise-channels": lambda x: torch.fake_quantize_per_channel_affine(x, *SCALES, 1, -128, 127),
    "matmul": lambda x: x @ x.mT,
    "inverse": lambda x: torch.linalg.inv(x[:, :, :3] + 5 * torch.eye(3)),
    "solve": lambda x: torch.linalg.solve(x[:, :, :3] + 5 * torch.eye(3), x[:, :, 3]),
    "solve-for-a-constant": lambda x: torch.linalg.solve(x[:, :, :3] + 5 * torch.eye(3), torch.ones(3, 2)),
    "cholesky-solve": lambda x: torch.cholesky_solve(x, torch.linalg.cholesky(x @ x.mT + torch.eye(3))),
    "distances": lambda x: torch.cdist(x, torch.eye(4)),
    "distances-of-rows": lambda x: torch.cdist(x.flatten(0, 1), torch.eye(4)).unflatten(0, (-1, 3)),
    "norms-of-rows": lambda x: x.flatten(0, 1).norm(dim=1).unflatten(0, (-1, 3)),
    "norms-of-rows-first": lambda x: x.transpose(0, 1).norm(dim=2).mT,
    "pooling-of-frames": lambda x: torch.nn.functional.max_pool1d(x.flatten(0, 1)[:, None] ** 2, 2).view(len(x), -1),
    "determinant": lambda x: torch.linalg.det(x[:, :, :3] + 5 * torch.eye(3)).exp(),
    "norm": lambda x: x.norm(dim=(1, 2)),
    "variance": lambda x: x.var(-1),
    "argmax": lambda x: x.argmax(2).float(),
    "mask": lambda x: (x > 0).any(1).float(),
    "instance-norm": torch.nn.functional.instance_norm,
    "embedding": lambda x: torch.nn.functional.embedding(x.abs().clamp(max=2).long(), SCALES[0][:, None]),
    "lookup": lambda x: SCALES[0][x.argmax(1)],
    "lookup-of-pairs": lambda x: torch.eye(4)[x.argmax(2), x.argmin(2)],
    "search": lambda x: torch.searchsorted(SCALES[0], x).float(),
    "masks": lambda x: torch.cat([x > 0, (x < 0).roll(1, 2)], 1),
    "padded-masks": lambda x: torch.nn.functional.pad(x > 0, (1, 2, 0, 1), value=True).float(),
    "bucketize": lambda x: torch.bucketize(x, SCALES[0]).float(),
}


@pytest.mark.parametrize("function", ON_BATCHES.values(), ids=ON_BATCHES)
def test_kept_operators_run_on_batches(function, capfd):
    x = torch.randn(5, 3, 4)
    net = to_linear_network(Function(function), x)
    torch.testing.assert_close(net(x), function(x))
    assert net.plan.kept
    assert not any(isinstance(module, PerSample) for module in net.modules())
    assert "batching rule" not in capfd.readouterr().err


@pytest.mark.parametrize("solve", [torch.linalg.solve, lambda *args, **left: torch.linalg.solve_ex(*args, **left)[0]])
@pytest.mark.parametrize("left", [True, False])
def test_a_constant_to_solve_for_is_a_matrix_in_every_batch(solve, left):
    model = Function(lambda x: solve(x + 5 * torch.eye(3), torch.ones(3, 3).tril(), left=left))
    x = torch.randn(3, 3, 3)  # for this number of samples PyTorch takes it as vectors
    net = to_linear_network(model, x[:1])
    torch.testing.assert_close(net(x), torch.cat([model(sample[None]) for sample in x]))


def test_an_operator_that_does_not_run_in_float64_is_named():
    model, x = Function(ON_BATCHES["fake-quantise-channels"]), torch.randn(2, 3, 4)
    result = check(model, to_linear_network(model, x), x)
    assert result.verdict == "undecided"
    assert "fake_quantize_per_channel_affine_cachemask does not run in float64 on the inputs tried" in result.note


def test_a_bilinear_layer_of_two_values_is_a_layer_and_a_product(capfd):
    model, x = Function(lambda x: torch.nn.functional.bilinear(x, x.flip(2), torch.ones(2, 4, 4))), torch.randn(5, 3, 4)
    net = to_linear_network(model, x)
    torch.testing.assert_close(net(x), model(x))
    assert [row.kind for row in net.plan.kept] == ["kept: mul"]
    assert "batching rule" not in capfd.readouterr().err


REASONS = {
    "no rule covers the operator": torch.sigmoid,
    "it multiplies values": lambda x: x * x,
    "it is computed in torch.float64, and most in torch.float32": lambda x: (torch.relu(x.flip(1)) + 1).double() * 2,
}


@pytest.mark.parametrize(("reason", "function"), REASONS.items())
def test_plans_say_why_a_step_is_kept(reason, function):
    table = plan(Function(function), torch.ones(2, 3))
    assert reason in [row.reason for row in table.kept]
    assert reason in str(table)
    assert not any(row.reason for row in table.rows if row not in table.kept)


def renorm(layer):
    """As in EEGNet."""
    layer.weight.data = torch.renorm(layer.weight.data, 2, 0, 1)


def copied(layer):
    with torch.no_grad():
        layer.weight.copy_(torch.renorm(layer.weight, 2, 0, 1))


class Assigned(nn.Linear):
    """A layer whose forward changes its weight before it is used."""

    def __init__(self, assign):
        super().__init__(5, 4)
        self.assign = assign

    def forward(self, x):
        self.assign(self)
        return super().forward(x)


ASSIGNMENTS = {
    "renorm": renorm,
    "no-grad": copied,
    "in-place": lambda layer: layer.weight.data.clamp_(-0.1, 0.1),
    "view": lambda layer: layer.weight.data.t().clamp_(-0.1, 0.1),
    "copy": lambda layer: layer.weight.data.copy_(layer.weight.data.sign()),
    "bias": lambda layer: setattr(layer.bias, "data", layer.bias.data.abs()),
}


@pytest.mark.parametrize("assign", ASSIGNMENTS.values(), ids=ASSIGNMENTS)
def test_a_forward_that_assigns_its_weight(assign):
    model, x = nn.Sequential(Assigned(assign), nn.ReLU(), nn.Linear(4, 3)), X5
    state = copy.deepcopy(model.state_dict())
    expected = copy.deepcopy(model)(x)
    for convert in (to_linear_network, to_mlp):
        net = convert(model, x)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        torch.testing.assert_close(net(x), expected)


def moved_by_itself(x, w):
    first, second = w.chunk(2)
    first.clamp_(-0.1, 0.1)
    second.mul_(0.1)
    return x @ w


def written_by_inputs_too(x, w):
    h, y = x @ w.clamp_(-0.1, 0.1), torch.zeros(len(x), 4)
    y[:, 0] += 0.1
    y[:, 1:] = h[:, 1:]
    return y


WRITTEN = {  # 0.1 in float32 is not 0.1
    "clamped": lambda x, w: x @ w.clamp_(-0.1, 0.1),
    "views": moved_by_itself,
    "assembled": lambda x, w: x @ torch.zeros(5, 4).copy_(w).mul_(0.1).add_(0.1),
    "by-inputs-too": written_by_inputs_too,
    "an-output": lambda x, w: (x @ w.clamp_(-0.1, 0.1), w.sum().expand(len(x), 1)),
    "after-it-was-read": lambda x, w: x @ w * w.clamp_(-0.1, 0.1).sum().item(),
}


@pytest.mark.parametrize("function", WRITTEN.values(), ids=WRITTEN)
def test_constants_that_forward_writes_to_are_computed_in_their_dtype(function):
    layer = nn.Linear(5, 4)
    model = Function(lambda x: function(x, layer.weight.detach().t().clone()))
    expected = pytree.tree_leaves(model(X5))
    for got, y in zip(pytree.tree_leaves(to_linear_network(model, X5)(X5)), expected, strict=True):
        torch.testing.assert_close(got, y, rtol=1e-6, atol=1e-7)


def test_a_constant_that_forward_writes_to_is_the_weight():
    layer = nn.Linear(5, 4)
    fc = to_linear(Function(lambda x: x @ layer.weight.detach().t().clone().clamp_(-0.1, 0.1)), X5)
    assert torch.equal(fc.weight, layer.weight.clamp(-0.1, 0.1))


CAUSES = {
    "random-numbers": (
        lambda x: x @ torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
        r"forward must use tensors only, and uses torch\._C\.Generator; .* as a buffer",
    ),
    "selects": (lambda x: scaled(x), "h = torch.where"),
    "least-squares": (lambda x: torch.linalg.lstsq(torch.eye(5).expand(len(x), 5, 5), x[..., None])[0], "linalg.pinv"),
}


def scaled(x):
    x = x.clone()
    x[x < 0] *= 0.1
    return x


@pytest.mark.parametrize(("function", "advice"), CAUSES.values(), ids=CAUSES)
def test_what_torch_export_does_not_take(function, advice):
    with pytest.raises(NotImplementedError, match=advice):
        to_mlp(Function(function), X5)


@pytest.mark.filterwarnings("ignore")  # of what is deprecated
def test_a_quantized_model_is_refused():
    if torch.backends.quantized.engine == "none":
        pytest.skip("PyTorch has no engine for quantized layers")
    made = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(5, 4)), {nn.Linear})
    with pytest.raises(NotImplementedError, match=r"packed weights, .*; pass the float model that it was made from"):
        to_linear_network(made, X5)


def test_distributions_are_not_validated_while_a_model_is_traced(monkeypatch):
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)  # torch.compile ends it for a process

    def function(x):
        normal = torch.distributions.Normal(x, 2 * torch.ones(4))
        policy = torch.distributions.Categorical(logits=x)
        return normal.log_prob(x.flip(1)) + normal.entropy(), policy.probs, policy.entropy()

    model, x = Function(function), torch.randn(5, 4)
    torch.testing.assert_close(to_linear_network(model, x)(x), model(x))
    with pytest.raises(ValueError, match="to satisfy the constraint"):  # it is again
        torch.distributions.Normal(x, -1.0)
