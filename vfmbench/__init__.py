"""vfmbench measures one-step posterior samplers of inverse problems against guidance solvers on one shared flow backbone.

>>> import vfmbench
>>> run = vfmbench.run(vfmbench.RunConfig(method="vfm", task="gaussian_deblur", num_images=16))
>>> run.metrics()[["name", "value", "low", "high", "n"]]
"""

from typing import Any

from vfmbench import threads

threads.settle()

__all__ = ["RunConfig", "__version__", "run"]

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    # Resolved on first use: importing torch takes seconds that `vfmbench list` should not.
    if name == "run":
        from vfmbench.running.runner import run

        return run
    if name == "RunConfig":
        from vfmbench.config import RunConfig

        return RunConfig
    raise AttributeError(f"module 'vfmbench' has no attribute {name!r}")
