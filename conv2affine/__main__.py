"""`conv2affine` on the command line, which is also `python -m conv2affine`."""

import sys


def main() -> None:
    """Run the command; without what it needs, one line says what to install."""
    try:
        from conv2affine.cli import app
    except ImportError as error:
        sys.exit(f"error: {error}")
    app(prog_name="conv2affine")


if __name__ == "__main__":
    main()
