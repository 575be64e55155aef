"""``python -m fastcv``: the command line."""

from .cli import main

main()
