"""`python -m gateway` is the `remontoir` command."""

from gateway.command.cli import main

if __name__ == "__main__":
    main()
