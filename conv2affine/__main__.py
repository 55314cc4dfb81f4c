"""`python -m conv2affine`: the command line."""

from conv2affine.cli import app

if __name__ == "__main__":
    app(prog_name="conv2affine")
