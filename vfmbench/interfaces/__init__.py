"""The vocabulary of vfmbench: what a suite, task, data set, network and sampler are to each other.

`Dataset`, `Task`, `Suite` and `Sampler` are bases with defaults, to be subclassed; the others are protocols, for which it is
enough to have the members. Conventions that hold everywhere:

* images are float tensors [B,C,H,W] in [-1, 1], points float tensors [B,d,1,1] of any range; what is said of images holds for
  points too. How they are stored, `vfmbench.domains` says;
* time runs from t = 1 (noise) to t = 0 (data);
* randomness comes from a `NoiseSource`, never from a global generator, so that a result depends neither on batch size
  nor on sharding nor on order;
* a sampler sees a `Measurement` and never the true image.
"""

from vfmbench.interfaces.data import Dataset, DataSource, ExactPosterior, ExactPrior, Task
from vfmbench.interfaces.networks import Codec, FeatureSpace, FlowModel, IdentityCodec, PerceptualDistance, Vjp
from vfmbench.interfaces.sampler import MethodGrid, Sampler
from vfmbench.interfaces.suite import Backbone, RunDefaults, Suite

__all__ = [
    "Backbone",
    "Codec",
    "DataSource",
    "Dataset",
    "ExactPosterior",
    "ExactPrior",
    "FeatureSpace",
    "FlowModel",
    "IdentityCodec",
    "MethodGrid",
    "PerceptualDistance",
    "RunDefaults",
    "Sampler",
    "Suite",
    "Task",
    "Vjp",
]
