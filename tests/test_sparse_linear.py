"""The sparse linear layer: its values, its gradients, its life as a layer."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from conv2affine import SparseLinear, to_linear
from tests.cases import CASES
from tests.conftest import random

# PyTorch's own, when it first loads inductor
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")

NAMES = {"values", "crow_indices", "col_indices", "bias"}


def layers(dtype=torch.float32, **options):
    """A convolution, and its sparse linear layer."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, dtype=dtype, **options)
    return conv, to_linear(conv, 9, layout=torch.sparse_csr)


class Operators(torch.utils._python_dispatch.TorchDispatchMode):
    """Names of the operators that run within."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def dense_twin(sparse):
    """The nn.Linear of the same weight and bias."""
    dense = nn.Linear(sparse.in_features, sparse.out_features, dtype=sparse.values.dtype)
    dense.load_state_dict({"weight": sparse.weight.to_dense(), "bias": sparse.bias})
    return dense


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: case.id)
def test_computes_what_the_convolution_computes(case, shape):
    conv = case.conv()
    layer = to_linear(conv, case.input_size, layout=torch.sparse_csr)
    x = random(*shape, layer.in_features, dtype=torch.float64)
    y = layer(x)
    assert y.shape == (*shape, layer.out_features)
    expected = nn.functional.linear(x, to_linear(conv, case.input_size).weight, layer.bias)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_is_a_linear_layer_of_the_parts_of_a_csr_tensor():
    conv, layer = layers()
    assert isinstance(layer, nn.Linear)
    assert repr(layer) == "SparseLinear(in_features=243, out_features=200, bias=True, nnz=4056)"
    assert {name for name, _ in layer.named_parameters()} == {"values", "bias"}
    assert layer.state_dict().keys() == NAMES
    weight = layer.weight
    assert (weight.layout, weight.shape) == (torch.sparse_csr, (200, 243))
    for name in NAMES - {"bias"}:
        assert getattr(weight, name)().data_ptr() == getattr(layer, name).data_ptr()
    assert torch.equal(weight.to_dense(), to_linear(conv, 9).weight)
    assert layer.values.is_leaf
    assert to_linear(nn.Conv1d(1, 1, 3, bias=False), 4, layout=torch.sparse_csr).bias is None


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_follows_the_convolution(frozen, training):
    conv = nn.Conv1d(1, 1, 3).train(training)
    conv.weight.requires_grad_(not frozen)
    layer = to_linear(conv, 4, layout=torch.sparse_csr)
    assert (layer.values.requires_grad, layer.weight.requires_grad, layer.bias.requires_grad) == (
        not frozen,
        not frozen,
        True,
    )
    assert layer.training is training


def test_samples_are_innermost_and_need_no_copy_in_the_next_layer():
    _, layer = layers()
    y = layer(random(4, 243))
    assert y.T.is_contiguous()
    assert y.relu().T.is_contiguous()
    assert layer(random(1, 243)).is_contiguous()


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_gradients_keep_to_the_pattern(dtype, batch):
    _, layer = layers(dtype)
    dense = dense_twin(layer)
    x = random(batch, 243, dtype=dtype).requires_grad_()
    upstream = random(batch, 200, dtype=dtype)
    actual = torch.autograd.grad(layer(x), (x, layer.values, layer.bias), upstream)
    expected = torch.autograd.grad(dense(x), (x, dense.weight, dense.bias), upstream)
    rows = torch.repeat_interleave(layer.crow_indices.diff())
    torch.testing.assert_close(actual, (expected[0], expected[1][rows, layer.col_indices], expected[2]))


def test_gradient_through_the_weight_keeps_to_the_pattern():
    _, layer = layers()
    x = random(243, 4)
    (actual,) = torch.autograd.grad(torch.sparse.mm(layer.weight, x).sum(), layer.values)
    (expected,) = torch.autograd.grad(layer(x.T).sum(), layer.values)
    torch.testing.assert_close(actual, expected)


def test_gradient_to_the_input_is_summed_by_blocks(monkeypatch):
    _, layer = layers(torch.float64)
    x = random(3, 243, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(layer(x).sin().sum(), x)
    monkeypatch.setattr("conv2affine.operators.products.BLOCK_ENTRIES", 100)
    (actual,) = torch.autograd.grad(layer(x).sin().sum(), x)
    torch.testing.assert_close(actual, expected)


def test_a_large_layer_trains_without_a_dense_matrix():
    layer = to_linear(nn.Conv2d(8, 8, 3, padding=1), 110, layout=torch.sparse_csr)  # 38 GB dense
    x = random(2, layer.in_features).requires_grad_()
    layer(x).square().sum().backward()
    assert layer.values.grad.shape == layer.values.shape
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiles_as_one_graph(backend):
    torch.compiler.reset()
    _, layer = layers()
    x = random(4, 243)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    expected = torch.autograd.grad(layer(x).sin().sum(), layer.values)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sin().sum(), layer.values), expected)


def test_exports_with_a_batch_of_any_size():
    _, layer = layers()
    program = torch.export.export(layer, (random(4, 243),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    x = random(7, 243)
    torch.testing.assert_close(program.module()(x), layer(x))


CONVERSIONS = {
    "double": (nn.Module.double, torch.float64, "cpu"),
    "half": (nn.Module.half, torch.float16, "cpu"),
    "bfloat16": (nn.Module.bfloat16, torch.bfloat16, "cpu"),
    "to float64": (lambda layer: layer.to(torch.float64), torch.float64, "cpu"),
    "to meta": (lambda layer: layer.to("meta"), torch.float32, "meta"),
}


@pytest.mark.parametrize("after_backward", [False, True])
@pytest.mark.parametrize("name", CONVERSIONS)
def test_takes_another_dtype_or_device(name, after_backward):
    convert, dtype, device = CONVERSIONS[name]
    _, layer = layers()
    if after_backward:
        layer(random(4, 243)).sum().backward()
    values, bias = layer.values, layer.bias
    assert convert(layer) is layer
    assert layer.values is values or device == "meta"
    assert layer.bias is bias or device == "meta"
    for tensor in (layer.values, layer.bias, *([layer.values.grad, layer.bias.grad] if after_backward else [])):
        assert (tensor.dtype, tensor.device.type) == (dtype, device)
    for indices in (layer.crow_indices, layer.col_indices):
        assert (indices.dtype, indices.device.type) == (torch.int32, device)
    y = layer(random(4, 243).to(device, dtype))
    assert (y.dtype, y.shape, y.device.type) == (dtype, (4, 200), device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_two_bytes_are_rounded_once(dtype):
    _, layer = layers()
    layer.to(dtype)
    x = random(4, 243).to(dtype).requires_grad_()
    y = layer(x)
    wide = copy.deepcopy(layer).float()
    assert torch.equal(y, wide(x.float()).to(dtype))
    actual = torch.autograd.grad(y.sum(), (x, layer.values))
    expected = torch.autograd.grad(wide(x.float()).sum(), (x, wide.values))
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1].to(dtype))


def test_autocast_leaves_the_layer_in_its_dtype():
    _, layer = layers()
    x = random(4, 243).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert torch.equal(layer(x.bfloat16()), layer(x.bfloat16().float()))
        gradients = torch.autograd.grad(y.sum(), (x, layer.values))
    assert torch.equal(y, layer(x))
    torch.testing.assert_close(gradients, torch.autograd.grad(layer(x).sum(), (x, layer.values)), rtol=0, atol=0)


def of_bias(layer, x):
    """The layer as a function of its bias."""
    return lambda bias: torch.func.functional_call(layer, {"bias": bias}, (x,))


def scalar_of_bias(layer, x):
    return lambda bias: of_bias(layer, x)(bias).sin().sum()


FUNC = torch.func
TRANSFORMS = {
    "vmap": lambda layer, x, b: FUNC.vmap(of_bias(layer, x))(b),
    "vmap-one-sample": lambda layer, x, b: FUNC.vmap(of_bias(layer, x[0]))(b),
    "vmap-in-chunks": lambda layer, x, b: FUNC.vmap(of_bias(layer, x), out_dims=1, chunk_size=2)(b),
    "vmap-of-vmap": lambda layer, x, b: FUNC.vmap(lambda s: FUNC.vmap(of_bias(layer, s))(b))(x),
    "vmap-of-vmap-of-both": lambda layer, x, b: FUNC.vmap(lambda c: FUNC.vmap(lambda s: of_bias(layer, s)(c))(x))(b),
    "vmap-of-grad": lambda layer, x, b: FUNC.vmap(FUNC.grad(scalar_of_bias(layer, x)))(b),
    "grad-of-vmap": lambda layer, x, b: FUNC.grad(lambda c: FUNC.vmap(scalar_of_bias(layer, x))(c).sum())(b),
    "vmap-of-grad-by-input": lambda layer, x, b: FUNC.vmap(
        lambda c: FUNC.grad(lambda s: scalar_of_bias(layer, s)(c))(x)
    )(b),
    "vmap-of-jvp": lambda layer, x, b: FUNC.vmap(lambda c: FUNC.jvp(of_bias(layer, x), (c,), (c,))[1])(b),
    "hessian": lambda layer, x, b: FUNC.hessian(scalar_of_bias(layer, x))(b[0]),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_of_the_bias_alone(transform, compiled):
    torch.compiler.reset()
    _, layer = layers(torch.float64)
    x, biases = random(4, 243, dtype=torch.float64), random(3, 200, dtype=torch.float64)
    run = torch.compile(transform, backend="aot_eager") if compiled else transform
    torch.testing.assert_close(run(layer, x, biases), transform(dense_twin(layer), x, biases))


def test_the_bias_is_added_in_place():
    """So that the output takes no second memory."""
    _, layer = layers()
    with Operators() as operators:
        layer(torch.ones(4, 243))
    assert [name for name in operators.names if "add" in name] == ["aten::add_.Tensor"]


def saved_by_torch(layer, path):
    torch.save(layer.state_dict(), path)
    return torch.load(path, weights_only=True)


def saved_by_safetensors(layer, path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(layer.state_dict(), path)
    return safetensors.load_file(path)


@pytest.mark.parametrize(
    "saved", [saved_by_torch, saved_by_safetensors, lambda layer, _: copy.deepcopy(layer.state_dict())]
)
def test_state_is_saved_and_loaded(saved, tmp_path):
    _, layer = layers()
    _, fresh = layers()
    with torch.no_grad():
        fresh.values.zero_()
    state = saved(layer, tmp_path / "layer")
    assert fresh.load_state_dict(state, strict=True) == ([], [])
    assert torch.equal(fresh(random(4, 243)), layer(random(4, 243)))
    empty = layers()[1].to("meta")
    empty.load_state_dict(state, assign=True)
    assert torch.equal(empty(random(4, 243)), layer(random(4, 243)))


def test_state_that_is_incomplete_is_refused():
    _, layer = layers()
    state = layer.state_dict()
    del state["col_indices"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "col_indices"'):
        layer.load_state_dict(state)
    assert layer.load_state_dict(state, strict=False).missing_keys == ["col_indices"]


@pytest.mark.parametrize(
    "change",
    [
        {"col_indices": torch.full((4056,), 243, dtype=torch.int32)},
        {"col_indices": torch.full((4056,), -1, dtype=torch.int32)},
        {"crow_indices": torch.full((201,), 4056, dtype=torch.int32)},
        {"values": torch.zeros(4055)},
        {"crow_indices": torch.zeros(200, dtype=torch.int32)},
    ],
    ids=lambda change: "-".join(map(str, change)),
)
def test_state_that_is_no_matrix_is_refused_and_changes_nothing(change):
    _, layer = layers()
    model = nn.Sequential(layer)
    before = copy.deepcopy(model.state_dict())
    state = {**before, **{f"0.{name}": tensor for name, tensor in change.items()}, "0.bias": torch.ones(200)}
    with pytest.raises(
        RuntimeError, match=r"0\.crow_indices, 0\.col_indices, 0\.values are no CSR matrix of \(200, 243\)"
    ):
        model.load_state_dict(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_share_nothing(copied):
    _, layer = layers()
    x = random(4, 243)
    expected = layer(x)
    twin = copied(nn.Sequential(layer))
    with torch.no_grad():
        twin[0].values.zero_()
        twin[0].bias.zero_()
    assert torch.equal(layer(x), expected)
    assert not twin(x).any()


@pytest.mark.parametrize(
    "changed", [lambda model: model, nn.Module.double, copy.deepcopy], ids=["as is", "double", "deepcopy"]
)
def test_tied_values_stay_tied(changed):
    _, first = layers()
    _, second = layers()
    second.values = first.values
    model = changed(nn.ModuleList([first, second]))
    assert model[0].values is model[1].values
    assert len(list(model.parameters())) == 3


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW], ids=lambda c: c.__name__)
def test_trains_as_a_dense_layer_that_keeps_its_zeros(optimizer):
    _, layer = layers(torch.float64)
    dense = dense_twin(layer)
    pattern = (dense.weight != 0).double()
    dense.weight.register_hook(pattern.mul)
    x, target = random(8, 243, dtype=torch.float64), random(8, 200, dtype=torch.float64)
    for model in (layer, dense):
        steps = optimizer(model.parameters(), lr=0.01)
        for _ in range(5):
            steps.zero_grad()
            nn.functional.mse_loss(model(x), target).backward()
            steps.step()
    torch.testing.assert_close(layer.weight.to_dense(), dense.weight)


def test_shares_its_memory():
    _, layer = layers()
    layer.share_memory()
    assert all(tensor.is_shared() for tensor in layer.state_dict().values())


def test_distributed_data_parallel(tmp_path):
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch is built without gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        _, layer = layers()
        parallel = nn.parallel.DistributedDataParallel(layer)
        parallel(random(4, 243)).sum().backward()
        assert torch.equal(layer.values.grad, torch.autograd.grad(layer(random(4, 243)).sum(), layer.values)[0])
        # The group must not end with it: its threads would wait for the lock of Python that is held then.
        del parallel
        gc.collect()
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("weight", "bias", "error", "message"),
    [
        ([[1.0]], None, TypeError, r"weight must be a tensor of layout torch.sparse_csr, got list; convert it"),
        (torch.ones(2, 2), None, TypeError, r"got a tensor of layout torch.strided; convert it with to_sparse_csr\(\)"),
        (torch.ones(2, 2).to_sparse_csc(), None, TypeError, "got a tensor of layout torch.sparse_csc"),
        (torch.ones(1, 2, 2).to_sparse_csr(), None, ValueError, r"must be a matrix of numbers, got shape \(1, 2, 2\)"),
        (torch.ones(2, 3).to_sparse_csr(), torch.ones(3), ValueError, r"bias must be.* shape \(2,\).*got shape \(3,\)"),
        (torch.ones(2, 3).to_sparse_csr(), 1.0, ValueError, r"bias must be None or a tensor.*got float"),
    ],
)
def test_bad_parts_are_refused(weight, bias, error, message):
    with pytest.raises(error, match=message):
        SparseLinear(weight, bias)


def test_bad_inputs_are_refused():
    _, layer = layers()
    with pytest.raises(ValueError, match=r"input must have shape \(\*, 243\), got \(486, 1\)"):
        layer(torch.ones(486, 1))
    with pytest.raises(ValueError, match=r"got \(\)"):
        layer(torch.ones(()))
    with pytest.raises(TypeError, match=r"input must have the dtype of values, torch.float32, got torch.float64"):
        layer(torch.ones(243, dtype=torch.float64))


def test_there_are_no_random_weights():
    with pytest.raises(NotImplementedError, match="no random initial weights; set values and bias"):
        layers()[1].reset_parameters()
