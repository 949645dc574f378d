"""A tower's products on a CPU in fewer bits: bfloat16 where the processor has it, or 8 bits; float32 stays the default.

8 bits: every row of a linear layer's input and every row of its weights becomes whole numbers in -127..127 times a
scale of its own, taken when the row is there (dynamic), so no calibration images are needed; the product is exact in
int32 (oneDNN behind `torch._int_mm`, torchao's own basis), everything else stays float32. Layers that are not plain
`torch.nn.Linear` (convolutions, `nn.MultiheadAttention`'s) stay as they are.
What is lost depends on the weights: so the first call of a process is made both ways and compared
(`CpuArithmetic.checked`).
Why not a runtime of its own: docs/decisions/0050.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tasks.errors import ConfigError

COSINE = 0.999  # that the first call's vectors keep to float32's, at least
COMPARED = 16  # images or texts of the first call


class Int8Linear(torch.nn.Module):
    """A linear layer's product in 8 bits; `linear`'s own while `is_exact`."""

    def __init__(self, linear: Any) -> None:
        """`linear`: a torch.nn.Linear, weights (out, in) float32; it is kept."""
        super().__init__()
        self.linear = linear
        self.is_exact = False
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(1).clamp(min=1e-30).div(127)  # (out)
        self.codes = weight.div(self.scale[:, None]).round().to(torch.int8).t()  # (in, out)

    @property
    def weight(self) -> Any:
        """(out, in) float32: models ask it for its type."""
        return self.linear.weight

    @property
    def bias(self) -> Any:
        return self.linear.bias

    def forward(self, x: Any) -> Any:
        """(..., in) float32 -> (..., out) float32."""
        if self.is_exact or not x.numel():
            return self.linear(x)
        rows = x.reshape(-1, x.shape[-1])
        scale = rows.abs().amax(1, keepdim=True).clamp_(min=1e-30).div_(127)
        y = torch._int_mm(rows.div(scale).round_().to(torch.int8), self.codes).float().mul_(scale).mul_(self.scale)
        if self.linear.bias is not None:
            y.add_(self.linear.bias)
        return y.reshape(*x.shape[:-1], -1)


def products_are_exact() -> bool:
    """Whether this processor's 8-bit product is right where sums are largest; without VNNI some kernels saturate in 16
    bits.
    """
    signs = torch.tensor([1, -1], dtype=torch.int8).repeat(32)
    left = torch.full((40, 64), 127, dtype=torch.int8) * torch.where(
        torch.arange(40)[:, None] % 2 == 0, 1, signs[None, :]
    ).to(torch.int8)
    right = torch.full((64, 24), 127, dtype=torch.int8) * torch.where(
        torch.arange(24)[None, :] % 3 == 0, -1, signs[:, None]
    ).to(torch.int8)
    return bool(torch.equal(torch._int_mm(left, right).long(), left.long() @ right.long()))


class CpuArithmetic:
    """How a model computes on a CPU.

    Attributes:
        name: float32, bfloat16 or int8.
        suffix: what a revision is followed by, so that vectors of two kinds do not meet in one index; empty for
            float32.
    """

    def __init__(self, model: Any, name: str, device: str) -> None:
        """Replaces the model's linear layers for int8. On another device than the CPU nothing is done.

        Raises:
            ConfigError: this processor has no such arithmetic.
        """
        self.name = name if device == "cpu" else "float32"
        self.suffix = "" if self.name == "float32" else f"+{self.name}"
        self.layers: list[Int8Linear] = []
        self.is_checked = self.name == "float32"
        self.is_exact = False
        if self.name == "bfloat16" and not (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        ):
            raise ConfigError(
                "cpu_dtype 'bfloat16': this processor has neither avx512_bf16 nor AMX, float32 is faster on it; set float32 or int8"
            )
        if self.name == "int8":
            if not products_are_exact():
                raise ConfigError("cpu_dtype 'int8': this processor's 8-bit product saturates; set float32")
            self._replace(model)

    def _replace(self, module: Any) -> None:
        for name, child in list(module.named_children()):
            # Not its subclasses: their owners read the weights themselves. Of one column torch 2.13's product is wrong
            # on a CPU.
            if type(child) is torch.nn.Linear and child.in_features > 1:
                layer = Int8Linear(child)
                setattr(module, name, layer)
                self.layers.append(layer)
            else:
                self._replace(child)

    @contextlib.contextmanager
    def mode(self) -> Iterator[None]:
        """Where the model is called: no gradients, and bfloat16 if that is the arithmetic."""
        with torch.inference_mode():
            if self.name == "bfloat16" and not self.is_exact:
                with torch.autocast("cpu", torch.bfloat16):
                    yield
            else:
                yield

    def _set_exact(self, is_exact: bool) -> None:
        self.is_exact = is_exact
        for layer in self.layers:
            layer.is_exact = is_exact

    def checked(self, encode: Callable[[Sequence[Any]], np.ndarray], items: Sequence[Any], model: str) -> np.ndarray:
        """`encode(items)`, (n, d) unit rows; the first call's first items in float32, too.

        Raises:
            ConfigError: the model's vectors move too far.
        """
        if self.is_checked or not len(items):
            return encode(items)
        vectors = encode(items)
        few = items[:COMPARED]
        self._set_exact(True)
        try:
            exact = encode(few)
        finally:
            self._set_exact(False)
        cosine = float((vectors[: len(few)].astype(np.float64) * exact).sum(axis=1).min())
        if np.isfinite(exact).all() and not cosine >= COSINE:
            raise ConfigError(
                f"encoder '{model}': cpu_dtype {self.name} moves its vectors to a cosine of {cosine:.4f}, expected {COSINE}; set float32"
            )
        self.is_checked = True
        return vectors
