"""An encoder's matrix products on a CPU in lower precision: bfloat16 where the processor has it, or 8 bits.

float32 is the default. 8 bits is dynamic quantisation: every row of a linear layer's input and every row of its weights
becomes integers in -127..127 times a scale of its own, computed for the row at hand, so no calibration images are
needed. The product is exact in int32 (oneDNN behind `torch._int_mm`, which torchao builds on); everything else stays
float32. Layers that are not plain `torch.nn.Linear` (convolutions, those of `nn.MultiheadAttention`) stay as they are.

What is lost depends on the weights, so the first call of a process is computed in both precisions and compared
(`CpuPrecision.encode_checked`). Why not a runtime of its own: docs/decisions/0050.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tasks.errors import ConfigError

MIN_COSINE = 0.999  # of the first call's vectors with those of float32
COMPARED_ITEMS = 16  # images or texts of the first call


class Int8Linear(torch.nn.Module):
    """A linear layer whose product is computed in 8 bits; in float32 while `is_exact`."""

    def __init__(self, linear: Any) -> None:
        """`linear`: a torch.nn.Linear, weights (out, in) float32; it stays for exact calls."""
        super().__init__()
        self.linear = linear
        self.is_exact = False
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(1).clamp(min=1e-30).div(127)  # (out)
        self.codes = weight.div(self.scale[:, None]).round().to(torch.int8).t()  # (in, out)

    @property
    def weight(self) -> Any:
        """(out, in) float32; models read its dtype."""
        return self.linear.weight

    @property
    def bias(self) -> Any:
        """(out) float32, or None."""
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
    """Whether this processor's 8-bit product is right where sums are largest.

    Without VNNI some kernels sum in 16 bits, which saturate.
    """
    signs = torch.tensor([1, -1], dtype=torch.int8).repeat(32)
    left = torch.full((40, 64), 127, dtype=torch.int8) * torch.where(
        torch.arange(40)[:, None] % 2 == 0, 1, signs[None, :]
    ).to(torch.int8)
    right = torch.full((64, 24), 127, dtype=torch.int8) * torch.where(
        torch.arange(24)[None, :] % 3 == 0, -1, signs[:, None]
    ).to(torch.int8)
    return bool(torch.equal(torch._int_mm(left, right).long(), left.long() @ right.long()))


class CpuPrecision:
    """The precision of a model's products on a CPU.

    Attributes:
        name: float32, bfloat16 or int8.
        suffix: appended to the model's revision, so that vectors of two precisions are not mixed in one index; empty
            for float32.
    """

    def __init__(self, model: Any, name: str, device: str) -> None:
        """Replace the model's linear layers, for int8. On another device than the CPU nothing changes.

        Args:
            model: a torch.nn.Module.
            name: float32, bfloat16 or int8.
            device: of torch.
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
                "cpu_dtype 'bfloat16': this processor has neither avx512_bf16 nor AMX; expected one of them, without "
                "which float32 is faster; set float32 or int8"
            )
        if self.name == "int8":
            if not products_are_exact():
                raise ConfigError(
                    "cpu_dtype 'int8': this processor's 8-bit product saturates; expected an exact one; set float32"
                )
            self._replace(model)

    def _replace(self, module: Any) -> None:
        for name, child in list(module.named_children()):
            # Not its subclasses: their owners read the weights themselves. For inputs of one column torch 2.13's
            # product is wrong on a CPU.
            if type(child) is torch.nn.Linear and child.in_features > 1:
                layer = Int8Linear(child)
                setattr(module, name, layer)
                self.layers.append(layer)
            else:
                self._replace(child)

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """The context to call the model in: no gradients, and bfloat16 if that is the precision."""
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

    def encode_checked(
        self, encode: Callable[[Sequence[Any]], np.ndarray], items: Sequence[Any], model: str
    ) -> np.ndarray:
        """`encode(items)`, (n, d) unit rows; on the first call some items are compared with their float32 vectors.

        Args:
            encode: items -> vectors.
            items: images or texts.
            model: name, for the error.
        Raises:
            ConfigError: the lower precision moves the model's vectors too far.
        """
        if self.is_checked or not len(items):
            return encode(items)
        vectors = encode(items)
        compared = items[:COMPARED_ITEMS]
        self._set_exact(True)
        try:
            exact = encode(compared)
        finally:
            self._set_exact(False)
        cosine = float((vectors[: len(compared)].astype(np.float64) * exact).sum(axis=1).min())
        if np.isfinite(exact).all() and not cosine >= MIN_COSINE:
            raise ConfigError(
                f"encoder '{model}': cpu_dtype {self.name} moves its vectors to a cosine of {cosine:.4f}, "
                f"expected {MIN_COSINE}; set float32"
            )
        self.is_checked = True
        return vectors
