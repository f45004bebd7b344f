"""Feature maps that the caller of a network requests by name.

`Network.note` gives each map to the request of the call that runs, if there is one. Once it is
complete, the rest of the network is not run.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import jax

from jaxconv.errors import nearest, short

# The names that request the network's own output, and every feature map.
LOGITS, EVERY = "logits", "*"


class Complete(Exception):
    """Raised in a network by the map that completes a request; `Network.__call__` catches it."""

    def __init__(self, request: "Request"):
        super().__init__(request)
        self.request = request


class Request:
    """One call's request for feature maps.

    Attributes:
      every: whether all maps are requested.
      names: of the requested maps, in the caller's order.
    """

    def __init__(self, names: str | Sequence[str]):
        self.every = names == EVERY
        self.names = (names,) if isinstance(names, str) else tuple(names)
        if not self.names or not all(isinstance(name, str) for name in self.names):
            raise ValueError(
                f"features is {names!r}; it must be names of feature maps, such as "
                f'("conv3", "conv5"), "{LOGITS}" for the logits too, or "{EVERY}" for every map'
            )
        self._maps: dict[str, jax.Array] = {}
        self._known: list[str] = []

    @property
    def logits(self) -> bool:
        """Whether the network's own output is requested."""
        return self.every or LOGITS in self.names

    def meet(self, name: str, x: jax.Array) -> None:
        """Take a feature map; raises `Complete` if it was the last one missing."""
        self._known.append(name)
        if self.every or name in self.names:
            self._maps[name] = x
        if not self.every and self._maps.keys() >= set(self.names):
            raise Complete(self)

    def answer(self) -> dict[str, jax.Array]:
        """The maps by name, in the caller's order, or in the network's for `EVERY`."""
        return self._maps if self.every else {name: self._maps[name] for name in self.names}

    def answer_with(self, output: jax.Array, network: str) -> dict[str, jax.Array]:
        """`answer` of a network that ran to its end.

        Raises:
          ValueError: the network has no map of a name; the message names the nearest.
        """
        maps = self._maps | {LOGITS: output}
        for name in () if self.every else self.names:
            if name not in maps:
                known = [*self._known, LOGITS]
                raise ValueError(
                    f"no feature map is called {name!r}{nearest(name, known)}; {network} has "
                    f"{short(', '.join(known), 400)}"
                )
        self._maps = self._maps if self.every else maps
        return self.answer()


_CURRENT: contextvars.ContextVar[Request | None] = contextvars.ContextVar("request", default=None)


@contextlib.contextmanager
def asking(request: Request | None) -> Iterator[None]:
    """Make this the current request inside the context; None hides an outer network's."""
    token = _CURRENT.set(request)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> Request | None:
    """The request of the network that runs, or None."""
    return _CURRENT.get()
