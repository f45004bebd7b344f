"""Validation of the messages that a page sends."""

import dataclasses
import json
from typing import Any

from jaxconv.data import xo
from jaxconv.errors import UserError
from jaxconv.playground.learner import Settings

# The most characters of a message that is not a file.
_TEXT = 100_000


class Message:
    """A JSON object sent by a page; reading an invalid field of it raises UserError."""

    def __init__(self, content: dict[str, Any]):
        self.content = content

    @classmethod
    def read(cls, text: str) -> "Message":
        if len(text) > _TEXT:
            raise UserError(f"the message has {len(text):,} characters; at most {_TEXT:,} are read")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError("the message is not JSON") from error
        if not isinstance(content, dict):
            raise UserError("the message is not a JSON object")
        return cls(content)

    @property
    def id(self) -> int:
        """The number that its answer will carry."""
        return self.whole("id", 2**32 - 1)

    def value(self, name: str, kind: type | tuple[type, ...]) -> Any:
        if name not in self.content or not isinstance(self.content[name], kind):
            raise UserError(f"the message has no valid {name!r}")
        return self.content[name]

    def text(self, name: str) -> str:
        return self.value(name, str)

    def number(self, name: str) -> float:
        value = self.value(name, (int, float))
        if not -1e9 <= value <= 1e9:  # also rejects NaN
            raise UserError(f"{name} is {value}; it must be between -1e9 and 1e9")
        return float(value)

    def whole(self, name: str, most: int) -> int:
        value = self.value(name, int)
        if not 0 <= value <= most:
            raise UserError(f"{name} is {value}; it must be a whole number from 0 to {most}")
        return value

    def variation(self) -> xo.Variation:
        """The variation of a sample or of the training pictures."""
        part = Message(self.value("variation", dict))
        return xo.Variation(
            **{field.name: part.number(field.name) for field in dataclasses.fields(xo.Variation)}
        )

    def settings(self) -> Settings:
        """The settings of the network to train."""
        given, wanted = self.value("settings", dict), dataclasses.asdict(Settings())
        if given.keys() != wanted.keys():
            raise UserError(f"the settings must be {', '.join(wanted)}")
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }
        return Settings(**fields)
