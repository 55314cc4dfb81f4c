"""Networks in files: the network of `to_linear_network`, written by blocks of rows, and run in place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import fx, nn

from conv2affine.interop.files.datasets import check_digest
from conv2affine.interop.files.description import FLOATS, describe_network
from conv2affine.interop.files.mapped import KIND, MappedFile, MappedLinear
from conv2affine.interop.files.paths import open_hdf5, target_of
from conv2affine.interop.files.reader import Stored, read_network, read_plan
from conv2affine.interop.files.rows import LayerRows
from conv2affine.interop.files.source import source_of
from conv2affine.interop.files.storage import Block, Contents, save
from conv2affine.network.matrices.matrix import Array, Matrix
from conv2affine.network.passes.merge import Merge
from conv2affine.network.prepare import check_kept, prepare
from conv2affine.network.report import describe, with_plan
from conv2affine.network.torch.exporter import export_torch
from conv2affine.network.torch.layers import NetworkLayout, dense_layer, finite, layer
from conv2affine.network.torch.models.intake import ExampleInputs, Model, hold
from conv2affine.network.torch.models.surroundings import alone
from conv2affine.network.torch.verifying.verify import verify

DESCRIPTION = "description"


@alone
def save_network(
    path: str | os.PathLike[str],
    model: Model,
    example_inputs: ExampleInputs,
    *,
    layout: NetworkLayout = "auto",
    merge: Merge = "auto",
    max_pool: Literal["max", "relu"] = "max",
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> None:
    """Write the network of `to_linear_network` to an HDF5 file, layer after layer, a block of rows at a time.

        open_network(path)(x) == model(x)

    The rows go to `path` with ".part" appended. When all of them are on the disk, the network in the file is checked
    against the model, and the file gets its name. If the process is killed, the same call continues where it stopped.

    A convolution, alone or with batch norm or another scaling of its channels, and a fully-connected layer take memory
    for a block of rows. Any other layer, such as an interpolation or a product of two convolutions, is in memory as a
    whole while it is written.

    Args:
        path: The file to write, which must not exist.
        model: As in `to_linear_network`, on the CPU. Its nonlinear steps must be piecewise linear, and its outputs in
            tuples, lists and dicts.
        example_inputs: As in `to_linear_network`.
        layout: As in `to_linear_network`.
        merge: As in `to_linear_network`.
        max_pool: As in `to_linear_network`.
        dtype: As in `to_linear_network`.
        progress: Whether to show a progress bar on standard error, where that is a terminal. Default: True.

    Raises:
        TypeError: As `to_linear_network`; or if the model takes another dtype than it computes in.
        ValueError: As `to_linear_network`; or if there is a ".part" file that this call cannot continue.
        NotImplementedError: As `to_linear_network`; or if a step is not piecewise linear.
        MemoryError: If a layer that is in memory as a whole needs more than is left.
        RuntimeError: As `to_linear_network`.
        FileExistsError: If `path` exists.
        OSError: If the disk has not enough space left.
        ImportError: If h5py or, for the progress bar, rich is not installed.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
        >>> x = torch.rand(5, 3, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_network(f"{folder}/net.h5", model, x)
        ...     torch.allclose(open_network(f"{folder}/net.h5")(x), model(x), atol=1e-5)
        True
    """
    target = target_of(path)
    model, inputs = hold(model, example_inputs)
    network, dtype = prepare(model, inputs, layout, merge, max_pool, dtype)
    check_kept(
        network.graph,
        "to be saved in a file",
        "let the model end before it or begin after it, or use to_linear_network",
    )
    if dtype not in FLOATS or network.input_dtypes != (network.dtype,) * len(inputs):
        raise TypeError(
            "a network in a file must take the floating-point dtype that it computes in, and this one computes "
            f"{network.dtype} and takes {', '.join(map(str, network.input_dtypes))}; cast before the model, not in it"
        )
    if network.device.type != "cpu":
        raise ValueError(f"model must be on the CPU to be saved in a file, and is on {network.device}; call .cpu()")
    description = describe_network(network, describe(network.graph, dtype, layout), layout)
    layers = [LayerRows(f"layers/{n}/", each, dtype) for n, each in enumerate(description.layers)]
    text, rows = json.dumps(description.text), sum(each.rows for each in layers)
    contents = Contents(
        source=source_of(text, description.layers, description.arrays),
        rows=rows,
        datasets={name: kind for each in layers for name, kind in each.datasets.items()},
        attributes={"/": {"encoding-type": KIND, "rows": rows}, **{each.group: each.attributes for each in layers}},
        arrays={**description.arrays, DESCRIPTION: np.frombuffer(text.encode(), np.uint8)},
    )

    def blocks(written: int) -> Iterator[Block]:
        before = 0
        for each in layers:
            for pieces, count in each.blocks(max(0, written - before)):
                for values in (values for _, _, values in pieces if values.is_floating_point()):
                    finite(each.layer.name, values)
                yield pieces, before + count
            before += each.rows

    save(target, contents, blocks, progress, lambda part: verify(model, open_network(part), inputs, network, dtype))


@alone
def open_network(path: str | os.PathLike[str], *, check: bool = False) -> fx.GraphModule:
    """The network in a file of `save_network`, in place: it reads from the disk what it needs.

        open_network(path)(x) == model(x)

    Nothing in the file is executed. Whatever it holds, the network computes with the numbers in it, or is refused.

    Args:
        path: A file that `save_network` wrote. It must not change while the network is in use.
        check: Whether to read all of it first, and refuse a file whose bytes are not those that were written. Default:
            False.

    Returns:
        A `torch.fx.GraphModule` as `to_linear_network` makes it, on the CPU, with the attribute `plan`. Its layers are
        memory maps of the file: a run goes through each of them once, and memory that others need is taken from them.
        What is written to them, as in training, stays in memory, and so does what `.to(...)` converts. Copies, by
        `copy.deepcopy`, pickle, `torch.save` or for a process that is not forked, are in memory as a whole.
        `torch.export`, and the functions of this package that take a model, need a run before, which checks the file.

    Raises:
        ValueError: If the file is not finished, or not one of `save_network`; or if a check finds it damaged.
        OSError: If there is no such file, or if it is not HDF5.
        ImportError: If h5py is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_network(f"{folder}/net.h5", nn.Linear(2, 3), torch.rand(1, 2))
        ...     open_network(f"{folder}/net.h5")(torch.rand(5, 2)).shape
        torch.Size([5, 3])
    """
    file = MappedFile(path)
    if check:
        with open_hdf5(path) as opened:
            check_digest(opened)
    try:
        text = json.loads(file.text(DESCRIPTION))
        network, plan = read_network(text, file), read_plan(text)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(f"path ({path}) must be a file of save_network as it was written: {error!r}") from error

    def make(name: str, matrix: Matrix, bias: Array | None) -> nn.Module:
        if not isinstance(matrix, Stored):  # a bias alone
            return layer(matrix, bias, network.dtype)
        rounded = None if bias is None else torch.tensor(bias, dtype=network.dtype)
        is_sparse = matrix.weight.layout is torch.sparse_csr
        return (MappedLinear if is_sparse else dense_layer)(matrix.weight, rounded)

    return with_plan(export_torch(network, lambda each: each, make), plan)
