"""`python -m cryptfs` is the `cryptfs` command."""

from cryptfs.cli.main import main

main()
