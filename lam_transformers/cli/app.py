"""The command `lam`: a thin layer over the package."""

import logging
from typing import Annotated

import typer

from . import convert
from .encode import encode
from .evaluate import compare, evaluate, report
from .memory import memory
from .serve import serve
from .train import train

app = typer.Typer(help="LAM: linear-time sentence and document embeddings.", no_args_is_help=True, add_completion=False)


@app.callback()
def main(verbose: Annotated[bool, typer.Option(help="Log what is done.")] = False) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")


app.add_typer(train, name="train")
app.add_typer(evaluate, name="evaluate")
app.add_typer(memory, name="memory")
for command in (
    encode,
    serve,
    report,
    compare,
    convert.init,
    convert.export,
    convert.export_onnx,
    convert.convert,
    convert.inspect,
    convert.push,
):
    app.command()(command)
