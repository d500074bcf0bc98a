"""LPIPS through its authors' package."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import torch
from torch import Tensor

from vfmbench.errors import unknown_name
from vfmbench.files import file_sha256
from vfmbench.interfaces import PerceptualDistance
from vfmbench.models.images import require_rgb
from vfmbench.weights.external import ExternalPaths, ExternalWeights, load_external

# Name -> the package's name of the trunk, and the smallest side that its pooling layers can take.
NETS = {"lpips_alex": ("alex", 31), "lpips_vgg": ("vgg", 16)}
# Pairs at once: VGG keeps about 150 MB of activations for a pair at 256x256.
_BATCH = 8


class LPIPS:
    """LPIPS, version 0.1; a `vfmbench.interfaces.PerceptualDistance`.

    Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric". Images keep their size. The
    linear weights come with the package, the trunk's from torchvision's file; `weights_sha256` is over the hashes of both.

    Args:
        name: lpips_alex or lpips_vgg.
        weights: the trunk's.

    Raises:
        UserError: the weights are not the trunk's.
    """

    def __init__(self, name: str, weights: ExternalWeights, device: torch.device):
        import lpips

        self.name, self._device = name, device
        net, self._smallest = NETS[name]
        with warnings.catch_warnings():
            # lpips builds the trunk by a torchvision call that torchvision deprecates.
            warnings.simplefilter("ignore", UserWarning)
            self._network = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
        trunk = self._network.net

        def fill_trunk(tensors: dict[str, Tensor]) -> None:
            # The trunk's slices keep the layers' numbers: slice2.3.weight is torchvision's features.3.weight.
            sources = {key: "features." + key.partition(".")[2] for key in trunk.state_dict()}
            trunk.load_state_dict({key: tensors[source] for key, source in sources.items() if source in tensors})

        weights.fill(fill_trunk)
        self._network.requires_grad_(False).to(device)
        linear = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
        hashes = weights.sha256 + file_sha256(linear)
        self.weights_sha256 = hashlib.sha256(hashes.encode()).hexdigest()
        self.settings = f"{weights.origin}; LPIPS 0.1, net {net}, images in [-1,1] at their own size"

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Raises UserError for images that are too small or have other than three channels."""
        require_rgb(a, self._smallest, self.name)
        pairs = zip(a.split(_BATCH), b.split(_BATCH), strict=True)
        with torch.no_grad():
            return torch.cat([self._network(x.to(self._device), y.to(self._device)).flatten().cpu() for x, y in pairs])


def perceptual_distance(name: str, paths: ExternalPaths, device: torch.device) -> PerceptualDistance:
    """The distance of that name, ready on `device`.

    Raises:
        MissingError: its weights are not there.
        UserError: an unknown name, or weights that the user names and that are not the network's.
    """
    if name not in NETS:
        raise unknown_name("perceptual distance", name, NETS)
    return LPIPS(name, load_external(name, paths.path_of(name)), device)
