"""The `remontoir` command: its flags, its subcommands, and what they print."""
