"""Training: state, step, optimizer, devices, checkpoints and the training loop.

The package can be called: `jaxconv.train(config, workdir)` is `jaxconv.run.train`.
"""

from jaxconv import lazy

lazy.make_callable(__name__, "jaxconv.run:train")
