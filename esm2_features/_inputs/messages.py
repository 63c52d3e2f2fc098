"""Messages that Python and the command line word differently."""

from __future__ import annotations

from collections.abc import Callable


class Message(str):
    """The text of an error or warning whose remedy is worded otherwise on the command line."""

    shell: str

    def __new__(cls, text: str, shell: str) -> Message:
        message = super().__new__(cls, text)
        message.shell = shell
        return message

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.shell)

    def with_text(self, change: Callable[[str], str]) -> Message:
        """Change both wordings in the same way."""
        return Message(change(str(self)), change(self.shell))


def in_shell(error: BaseException) -> str:
    """Give the text of an error or warning as the command line words it."""
    return str(getattr(error.args[0], "shell", error)) if error.args else str(error)
