"""Network inspection: activations by layer, backward rules, attribution, depth."""

from jaxconv import lazy

__getattr__ = lazy.names_of(__name__, lazy.submodules_of(__name__))
