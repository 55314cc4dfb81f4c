"""The command line: `conv2affine plan FILE`, `conv2affine convert IN OUT` and `conv2affine check A B`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
except ModuleNotFoundError as error:
    raise ImportError("the command line needs typer; install it with: pip install 'conv2affine[onnx]'") from error

import conv2affine
from conv2affine.interop import options

if TYPE_CHECKING:
    from conv2affine.network.equality import Comparison
    from conv2affine.network.report import NetworkPlan
    from conv2affine.onnx import Conversion

__all__ = ["app"]

TORCH_SUFFIXES = (".pt", ".pt2", ".pth", ".ckpt", ".safetensors")

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _print_version(is_set: bool) -> None:
    if is_set:
        print(f"conv2affine {conv2affine.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Networks in ONNX files as linear layers: convolutions, pooling, batch norm and the like become matrices."""


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file.")],
    form: options.FormOption = "graph",
    merge: options.MergeOption = "auto",
    max_pool: options.MaxPoolOption = "max",
    dtype: options.DTypeOption = None,
    shape: options.ShapeOption = None,
    max_gib: options.MaxGibOption = 1.0,
    as_json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Show the layers that a network would become, before anything large is made.

    Example: `conv2affine plan lenet.onnx --form mlp`
    """
    with _errors(debug):
        _refuse_torch_file(file)
        from conv2affine import onnx

        table = onnx.plan(file, **options.for_onnx(form, merge, max_pool, dtype, shape, max_gib))
        print(json.dumps(_plan(table), indent=2) if as_json else table)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An ONNX file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write the result.")],
    form: options.FormOption = "graph",
    merge: options.MergeOption = "auto",
    max_pool: options.MaxPoolOption = "max",
    dtype: options.DTypeOption = None,
    shape: options.ShapeOption = None,
    opset: Annotated[int | None, typer.Option(help="Opset of the result; 13 unless kept operators changed.")] = None,
    max_gib: options.MaxGibOption = 1.0,
    flat: Annotated[
        bool, typer.Option("--flat", help="Make inputs and outputs vectors, so that no Reshape is needed.")
    ] = False,
    box: options.BoxOption = None,
    spec: options.SpecOption = None,
    bounds: options.BoundsOption = None,
    certify: options.CertifyOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the files that are there.")] = False,
    as_json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Convert a network, compare the result with it on random inputs, and write it.

    Example: `conv2affine convert lenet.onnx lenet_mlp.onnx --form mlp`
    """
    with _errors(debug):
        _refuse_torch_file(source)
        if target.suffix in TORCH_SUFFIXES:
            raise ValueError(
                f"{target} must not have the name of a PyTorch file: it is written in ONNX; name it "
                f"{target.with_suffix('.onnx')}"
            )
        from conv2affine import onnx
        from conv2affine.onnx.exporting.storage import SUFFIX, check_target, save_bounds

        if bounds is not None:
            if box is None and spec is None:
                raise ValueError("--bounds must come with --box LOW HIGH or --spec: bounds are for inputs in a box")
            check_target(bounds, force, source, spec)
            if bounds.resolve() in (target.resolve(), target.resolve().with_name(target.name + SUFFIX)):
                raise ValueError(f"--bounds ({bounds}) must not be OUT or its data: name another file")
        given = options.for_onnx(form, merge, max_pool, dtype, shape, max_gib)
        result = onnx.convert(source, target, **given, opset=opset, flat=flat, box=box, spec=spec, overwrite=force)
        if bounds is not None:
            save_bounds(result.bounds, bounds)
        certificate = onnx.check(source, target, shapes=given["shapes"], spec=spec, box=box) if certify else None
        _report(result, source, target, certificate, as_json)


def _report(result: Conversion, source: Path, target: Path, certificate: Comparison | None, as_json: bool) -> None:
    """Print what became of a network."""
    opset = result.model.opset_import[0].version
    if as_json:
        report: dict[str, Any] = {"difference": result.difference, "opset": opset, "any_batch": result.is_batched}
        for name, slices in (("inputs", result.input_slices), ("outputs", result.output_slices)):
            report[name] = {key: [part.start, part.stop] for key, part in slices.items()}
        if certificate is not None:
            report["certificate"] = certificate.summary()
        print(json.dumps({**report, "kept": dict(result.kept), **_plan(result.plan)}, indent=2))
        return
    print(result.plan, file=sys.stderr)
    samples = f"one sample, as {result.static}" if result.static else "any number of samples"
    for name, reason in result.kept.items():
        print(f"kept: {name}: {reason}", file=sys.stderr)
    print(
        f"{target}: opset {opset}, {samples}; differs from {source} by {result.difference:.1e} of the largest output",
        *([] if certificate is None else [f"certificate: {certificate}"]),
        sep="\n",
        file=sys.stderr,
    )


@app.command()
def check(
    first: Annotated[Path, typer.Argument(metavar="A", help="An ONNX file.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    shape: options.ShapeOption = None,
    spec: options.SpecOption = None,
    box: options.BoxOption = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="Allowed difference. Only a box can show that none is larger: --box or --spec."),
    ] = None,
    as_json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Say whether two networks are equal: exit code 0 if so, 1 if not, 2 if that is not decided.

    Example: `conv2affine check lenet.onnx lenet_mlp.onnx`
    """
    with _errors(debug, code=2):
        for file in (first, second):
            _refuse_torch_file(file)
        from conv2affine import onnx

        result = onnx.check(first, second, shapes=options.shapes_by_name(shape), spec=spec, box=box)
    print(json.dumps(result.summary(tolerance), indent=2) if as_json else result.text(tolerance))
    raise typer.Exit({True: 0, False: 1, None: 2}[result.is_within(tolerance)])


@contextmanager
def _errors(debug: bool, code: int = 1) -> Iterator[None]:
    """Show an error as one line, or with its traceback if `debug`."""
    try:
        yield
    except Exception as error:
        if debug:
            raise
        message = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror}"
        print(f"error: {message}", file=sys.stderr)
        raise typer.Exit(code) from None


def _refuse_torch_file(path: Path) -> None:
    if path.suffix in TORCH_SUFFIXES:
        raise ValueError(
            f"{path} must be an ONNX file, and has the name of a PyTorch file; load the model in Python, and write it "
            f"with torch.onnx.export(model, (x,), '{path.stem}.onnx'), where x is an example input"
        )


def _plan(table: NetworkPlan) -> dict[str, Any]:
    """A plan, for JSON."""
    rows = [{**asdict(row), "bytes": dict(row.bytes)} for row in table.rows]
    return {"rows": rows, "nnz": table.nnz, "bytes": table.bytes, "refusal": table.refusal}
