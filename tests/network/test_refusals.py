"""What whole networks are refused for, and what the messages say."""

import pytest
import torch
from torch import nn

from conv2affine import plan, to_linear, to_linear_network, to_mlp
from tests.network.models import Counts, Function, samples


class Mixes(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)


def add_noise(x):
    return x + torch.randint(5, (1, 3, 8, 8))


X = samples(3, 3, 8, 8)
MASK = samples(3, 8, 8) > 0
DROPOUT = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Dropout(0.3))
REFUSED = {
    "training-norm": (
        to_linear_network,
        nn.Sequential(nn.BatchNorm2d(3)),
        X,
        ValueError,
        r"0 \(.*batch_norm.*\) must not depend .*call model.eval\(\)",
    ),
    "no-statistics": (
        to_linear_network,
        nn.BatchNorm2d(3, track_running_stats=False).eval(),
        X,
        ValueError,
        "running statistics",
    ),
    "dropout": (to_linear_network, DROPOUT, X, ValueError, r"1 \(.*dropout.*\) must not depend on chance"),
    "noise": (to_linear_network, Function(add_noise), X, ValueError, r"randint \(randint\) must not depend on chance"),
    "random-slope": (
        to_linear_network,
        nn.Sequential(nn.RReLU()),
        X,
        ValueError,
        r"0 \(rrelu.*must not depend on chance",
    ),
    "reads-its-count": (to_linear_network, Counts(True), X, ValueError, "same result for the same input"),
    "reads-its-count-in-a-chain": (to_mlp, Counts(True), X, ValueError, "same result for the same input"),
    "mixes-samples": (
        to_linear_network,
        nn.Sequential(nn.ReLU(), Mixes()),
        X,
        ValueError,
        r"^1 \(mean\) mixes the samples of a batch",
    ),
    "mixes-samples-in-a-chain": (to_mlp, nn.Sequential(Mixes()), X, ValueError, r"^0 \(mean\) mixes the samples"),
    "softmax-over-the-batch": (
        to_linear_network,
        Function(lambda x: x.softmax(0)),
        X,
        ValueError,
        r"softmax \(_softmax\) mixes the samples",
    ),
    "mixes-integers": (
        to_linear_network,
        nn.Sequential(nn.Embedding(9, 2), Mixes()),
        (torch.arange(3, 6)[None],),
        ValueError,
        r"^1 \(mean\) mixes the samples of a batch",
    ),
    "mixes-complex-numbers": (
        to_linear_network,
        Function(lambda x: torch.fft.fft(x, dim=0)),
        X,
        ValueError,
        r"fft_r2c \(_fft_r2c\) mixes the samples of a batch",
    ),
    "counts-samples": (
        to_linear_network,
        Function(lambda x: x / len(x)),
        X,
        ValueError,
        r"div \(div\) mixes the samples of a batch: .* depends on the others, or on their number",
    ),
    "other-samples": (to_linear_network, Function(lambda x: x.flip(0)), X, ValueError, "the model mixes the samples"),
    "one-number": (to_linear_network, Function(lambda x: x.mean()), X, ValueError, "one number of a whole batch"),
    "divided-by-one-number": (
        to_linear_network,
        nn.Sequential(Function(lambda x: x / x.norm())),
        X,
        ValueError,
        "^0 must not make one number of a whole batch",
    ),
    "python-number": (
        to_linear_network,
        nn.Sequential(Function(lambda x: x * x[0, 0, 0, 0].item())),
        X,
        ValueError,
        r"^0 \(_local_scalar_dense\) must not make one number of a whole batch; let it stay a tensor",
    ),
    "one-batch-only": (
        to_linear_network,
        Function(lambda x: x.view(1, -1)),
        X,
        ValueError,
        r"output 0 must have one row per sample, .* has shape \(1, 1152\) for 6 samples, \(1, 192\) for one",
    ),
    "batch-last": (
        to_linear_network,
        Function(lambda x: (x, x.movedim(0, -1))),
        X,
        ValueError,
        r"output 1 must have one row per sample, batch first, and has shape \(3, 8, 8, 6\) for 6 samples, .*permute it",
    ),
    "constant-output": (
        to_linear_network,
        Function(lambda x: (x, torch.ones(2, 3))),
        X,
        ValueError,
        r"output 1 must .* has shape \(2, 3\) for 6 samples, \(2, 3\) for one; .*expand a constant",
    ),
    "number-of-samples": (
        to_linear_network,
        Function(lambda x: (x, len(x))),
        X,
        ValueError,
        "output 1 must be a tensor, or the same for every batch, and is 6 for 6 samples, 1 for one",
    ),
    "masked-by-values": (
        to_linear_network,
        nn.Sequential(Function(lambda x: x[:, :, :, x[0, 0, 0] > 0])),
        X,
        NotImplementedError,
        r"^0 \(index\) must not select elements by values of the inputs",
    ),
    "nonzero": (
        to_linear_network,
        Function(lambda x: x.nonzero()),
        X,
        NotImplementedError,
        r"nonzero \(nonzero\) must not select elements",
    ),
    "written-where-a-value-is": (
        to_linear_network,
        nn.Sequential(Function(lambda x: x.index_put((x[:, :, 0, 0] < 0,), torch.zeros((), dtype=x.dtype)))),
        X,
        NotImplementedError,
        r"^0 \(index_put\) must not select elements by values of the inputs, .* use torch.where",
    ),
    "chain-infinite": (
        to_mlp,
        Function(lambda x: x.masked_fill(MASK, -torch.inf)),
        X,
        NotImplementedError,
        "where must be affine or piecewise linear .*, and is not: its constants are not finite",
    ),
    "linear-infinite": (
        to_linear,
        nn.Sequential(Function(lambda x: x * torch.inf)),
        X,
        TypeError,
        r"0 \(mul\) is not: its constants are not finite",
    ),
    "infinities-spread": (
        to_linear_network,
        Function(lambda x: x.masked_fill(MASK, -torch.inf).mean(1)),
        X,
        ValueError,
        "output 0 does not have the infinities or NaN of the model's: .* make all constants finite",
    ),
    **{
        f"{name}-compared": (
            to_linear_network,
            nn.Sequential(nn.Linear(8, 8).double(), Function(lambda x, f=f: (f(x) >= 0).to(x.dtype))),
            X,
            ValueError,
            rf"output 0 must not depend on infinities or NaN, which 1 \({name}\) gives .*; give it only what",
        )
        for name, f in {
            "log": lambda x: torch.log(x) * 0,
            "exp": lambda x: torch.exp(9e3 * x) * 0,
            "sqrt": lambda x: torch.sqrt(x) - torch.sqrt(x),  # noise moves it from 0, and the comparison
            "div": lambda x: x / x.relu() - x / x.relu(),
        }.items()
    },
    "number": (to_linear_network, nn.ReLU(), 3, TypeError, "example_inputs must be a tensor, or a tuple .*, got int"),
    "nothing": (to_linear_network, nn.ReLU(), (), TypeError, "must be a tensor, or a tuple .*, got an empty tuple"),
    "names": (
        to_linear_network,
        nn.ReLU(),
        {"x": X},
        ValueError,
        "fails on their first sample: .*; name the tensors as forward does: input",
    ),
    "complex": (to_mlp, nn.ReLU(), (X + 0j,), TypeError, r"example_inputs\[0\] \(torch.complex128\) must be real"),
    "infinite": (to_mlp, nn.ReLU(), X / 0, ValueError, r"example_inputs\[0\] must be finite, got infinities or NaN"),
    "no-values": (
        to_mlp,
        nn.ReLU(),
        X.to("meta"),
        TypeError,
        r"must be a dense tensor with values, got torch.strided on device meta",
    ),
    "other-batch": (
        to_linear_network,
        Function(torch.add),
        (X, X[:1]),
        ValueError,
        r"example_inputs\[1\] must have as many samples as example_inputs\[0\], 3, got 1",
    ),
    "meta-model": (
        to_linear_network,
        nn.Linear(8, 2, device="meta"),
        X,
        ValueError,
        "model must have values, and its weight is on the meta device",
    ),
    "lazy-model": (
        to_mlp,
        nn.Sequential(nn.LazyLinear(3)),
        X,
        ValueError,
        "its 0.weight has no values yet; run",
    ),
    "function": (to_mlp, torch.relu, (X,), TypeError, "model must be an nn.Module, got builtin_function_or_method"),
    "chain-of-numbers": (
        to_mlp,
        nn.ReLU(),
        X[:, 0, 0, 0],
        ValueError,
        r"a chain takes vectors, and the model takes numbers; let it take x of shape \(batch, 1\)",
    ),
    "too-many-inputs": (
        to_linear,
        nn.Sequential(),
        (X, X),
        ValueError,
        r"must take its example inputs, .* takes 2 positional arguments but 3 were given; pass what it takes",
    ),
    "not-a-tensor": (to_linear_network, nn.ReLU(), (X, 3), TypeError, r"example_inputs\[1\] must be a tensor, got int"),
    "no-sample": (
        to_linear_network,
        nn.ReLU(),
        X[:0],
        ValueError,
        r"example_inputs\[0\] must have a sample, .*\(0, 3, 8, 8\)",
    ),
    "chain-sigmoid": (
        to_mlp,
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.Sigmoid()),
        X,
        NotImplementedError,
        "1: sigmoid must be affine or piecewise linear",
    ),
    "chain-of-two-dtypes": (
        to_mlp,
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 3), Function(lambda x: x.half())),
        X,
        NotImplementedError,
        "2: _to_copy must be .*, and is not: it is computed in torch.float16, and most in torch.float64",
    ),
    "not-affine": (
        to_linear,
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()),
        X,
        TypeError,
        r"module \(Sequential\) must be affine in its input, and 1 \(relu\) is not",
    ),
}


class Hidden(nn.Module):
    """A factor that float16 does not hold, with a ReLU after it."""

    def forward(self, x):
        return torch.relu(x.abs() * -7e4 + 0.5)


@pytest.mark.parametrize("convert", [to_linear_network, to_mlp], ids=lambda convert: convert.__name__)
def test_numbers_that_overflow_in_the_dtype_are_refused(convert):
    with pytest.raises(ValueError, match=r"^mul: weight of its layer must be finite in torch.float16, and some"):
        convert(Hidden(), torch.rand(1, 3), dtype=torch.float16)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused(case):
    convert, model, x, error, message = case
    with pytest.raises(error, match=message):
        convert(model.double() if isinstance(x, torch.Tensor) else model, x)


@pytest.mark.parametrize("option", ["layout", "merge", "max_pool", "dtype"])
def test_options(option, model, x):
    with pytest.raises(ValueError, match=rf"{option} \('csr'\) must be one of \("):
        to_linear_network(model, x, **{option: "csr"})


@pytest.mark.parametrize("merge", ["always", "never"])
def test_a_chain_is_merged_in_one_way(merge, model, x):
    with pytest.raises(ValueError, match=rf"merge \('{merge}'\) must be left out in form 'mlp'"):
        plan(model, x, form="mlp", merge=merge)


@pytest.mark.parametrize("convert", [to_linear_network, to_mlp])
def test_integers_are_no_dtype_of_layers(convert, model, x):
    with pytest.raises(ValueError, match=r"dtype \(torch.int8\) must be one of \(None, torch.float64, "):
        convert(model, x, dtype=torch.int8)


def test_a_wrong_rule_is_noticed(model, x, monkeypatch):
    from conv2affine.network.rules import formulas as rules

    diagonal = rules.diagonal
    monkeypatch.setattr(rules, "diagonal", lambda scale, shape: diagonal(1.000001 * scale, shape))
    with pytest.raises(RuntimeError, match=r"the result does not equal the model, off by .*, where rounding explains"):
        to_linear_network(model, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "function",
    [lambda x: x.flip(0), lambda x: x.softmax(0), lambda x: x - x.mean(0, keepdim=True)],
    ids=["flip", "softmax", "mean"],
)
def test_samples_that_mix_are_found_in_half_precision(function, dtype):
    with pytest.raises(ValueError, match=r"mixes the samples of a batch|take a batch of any size"):
        to_linear_network(Function(function), samples(4, 8).to(dtype))


def test_what_cannot_be_exported_is_refused_with_the_reason():
    model = Function(lambda x: x if x.sum() > 0 else -x)
    with pytest.raises(NotImplementedError, match=r"Function must be a module that torch.export takes.*Guard"):
        to_linear_network(model, samples(4, 8))
