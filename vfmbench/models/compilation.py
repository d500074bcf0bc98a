"""Networks in half precision and compiled, as a run's `vfmbench.precision.Execution` asks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vfmbench.errors import UserError
from vfmbench.precision import PLAIN, Execution

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check(execution: Execution, device: torch.device) -> None:
    """Raises UserError for a precision that the device does not compute in."""
    cuda = device.type == "cuda"
    if execution.precision == "float16" and not cuda:
        raise UserError("--precision float16 needs a CUDA device; take float32 or bfloat16 on a CPU.")
    if execution.precision == "bfloat16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise UserError(f"--precision bfloat16: {name} does not compute in it; take float16 or float32.")


def prepared(network: nn.Module, execution: Execution) -> nn.Module:
    """The network as it is to be called; the given one is left as it is. Move it to its device first."""
    if execution == PLAIN:
        return network
    if execution.compile:
        # What was compiled for the networks of an earlier run counts towards a limit, beyond which nothing is compiled.
        torch.compiler.reset()
    return PreparedNetwork(network, execution)


class PreparedNetwork(nn.Module):
    """A network under an `Execution`; the first dimension of its first argument and of what it returns are rows."""

    def __init__(self, network: nn.Module, execution: Execution):
        super().__init__()
        self._dtype = DTYPES[execution.precision]
        self._half = execution.precision != "float32"
        self._channels_last = self._half and _has_spatial_convolutions(network)
        self.network = _in_half_precision(network, self._dtype, self._channels_last) if self._half else network
        # With gradients, several graphs would have to be alive at once, which CUDA graphs make fragile.
        self._compiled = None
        if execution.compile:
            self._compiled = tuple(
                torch.compile(self.network, dynamic=False, mode=mode) for mode in ("reduce-overhead", "default")
            )

    def forward(self, x: Tensor, *arguments: Tensor) -> Tensor | tuple[Tensor, ...]:
        with_gradient = torch.is_grad_enabled() and x.requires_grad
        scale = _GradientScale() if with_gradient and self._dtype == torch.float16 else None
        if scale is not None:
            x = scale.restored_behind(x)
        if self._channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        call, copies = self._callable(with_gradient, x.device)
        with torch.autocast(x.device.type, self._dtype, enabled=self._half):
            output = call(x, *arguments)
        if isinstance(output, tuple):
            return tuple(self._returned(part, copies) for part in output)
        output = self._returned(output, copies)
        return output if scale is None else scale.applied_to(output)

    def _callable(self, with_gradient: bool, device: torch.device) -> tuple[Callable[..., Any], bool]:
        """What to call, and whether its result lies in memory that the next call writes to."""
        if self._compiled is None:
            return self.network, False
        graphs = device.type == "cuda" and not with_gradient
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self._compiled[with_gradient], graphs

    def _returned(self, output: Tensor, copies: bool) -> Tensor:
        return output.to(torch.float32 if self._half else output.dtype, memory_format=torch.contiguous_format, copy=copies)


class _GradientScale:
    """Keeps gradients inside float16's range: a row's gradient enters the network with a largest entry of about 1.

    A vector-Jacobian product is linear in the vector, and a power of two changes no digit: only the range is different.
    """

    def __init__(self) -> None:
        self._scale = torch.ones(())

    def applied_to(self, output: Tensor) -> Tensor:
        output.register_hook(self._shrink)
        return output

    def restored_behind(self, x: Tensor) -> Tensor:
        x = x.view_as(x)
        x.register_hook(lambda gradient: gradient * self._scale)
        return x

    def _shrink(self, gradient: Tensor) -> Tensor:
        exponent = torch.frexp(gradient.flatten(1).abs().amax(1)).exponent
        self._scale = torch.ldexp(torch.ones_like(exponent, dtype=gradient.dtype), exponent)
        self._scale = self._scale.reshape(-1, *[1] * (gradient.ndim - 1))
        return gradient / self._scale


def _has_spatial_convolutions(network: nn.Module) -> bool:
    # The embedding of a transformer's patches is a matrix product in the form of a convolution.
    return any(isinstance(layer, nn.Conv2d) and layer.kernel_size != layer.stride for layer in network.modules())


def _in_half_precision(network: nn.Module, dtype: torch.dtype, channels_last: bool) -> nn.Module:
    """A copy with the weights of linear layers and convolutions in `dtype`.

    Autocast would cast the same weights to the same numbers again at every call; the others it leaves in float32.
    """
    network = copy.deepcopy(network)
    for layer in network.modules():
        if type(layer) in (nn.Linear, nn.Conv2d):
            layer.to(dtype)
    return network.to(memory_format=torch.channels_last) if channels_last else network  # type: ignore[call-overload]
