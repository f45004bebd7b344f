"""What a page sends, looked at before it is used."""

import dataclasses
import json
from typing import Any

from jaxconv.data import xo
from jaxconv.errors import UserError
from jaxconv.playground.learner import Settings

# Characters of a message that is no file.
_TEXT = 100_000


class Message:
    """A JSON object that a page has sent, whose parts are looked at before they are used; all raise
    UserError.
    """

    def __init__(self, content: dict[str, Any]):
        self.content = content

    @classmethod
    def read(cls, text: str) -> "Message":
        if len(text) > _TEXT:
            raise UserError(f"the message has {len(text):,} characters; at most {_TEXT:,} are read")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError("the message is no JSON") from error
        if not isinstance(content, dict):
            raise UserError("the message is no JSON object")
        return cls(content)

    @property
    def id(self) -> int:
        """The number that its answer will bear."""
        return self.whole("id", 2**32 - 1)

    def value(self, name: str, kind: type | tuple[type, ...]) -> Any:
        if name not in self.content or not isinstance(self.content[name], kind):
            raise UserError(f"the message has no {name!r} as it should be")
        return self.content[name]

    def text(self, name: str) -> str:
        return self.value(name, str)

    def number(self, name: str) -> float:
        value = self.value(name, (int, float))
        if not -1e9 <= value <= 1e9:  # neither is NaN
            raise UserError(f"{name} is {value}, which is no number to work with")
        return float(value)

    def whole(self, name: str, most: int) -> int:
        value = self.value(name, int)
        if not 0 <= value <= most:
            raise UserError(f"{name} is {value}; it must be a whole number from 0 to {most}")
        return value

    def variation(self) -> xo.Variation:
        """How a sample, or the pictures that are learnt from, may differ."""
        part = Message(self.value("variation", dict))
        return xo.Variation(
            **{field.name: part.number(field.name) for field in dataclasses.fields(xo.Variation)}
        )

    def settings(self) -> Settings:
        """Of the network that is trained."""
        given, wanted = self.value("settings", dict), dataclasses.asdict(Settings())
        if given.keys() != wanted.keys():
            raise UserError(f"the settings are {', '.join(wanted)}")
        return Settings(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in given.items()
            }
        )
