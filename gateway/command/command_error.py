"""How a command of `remontoir` ends when it failed, or was asked wrongly."""


class CommandError(Exception):
    """Ends the command with this one line on stderr."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
