"""Beside a CPU torch the index's torchvision lacks its C++ operators and will not import; declaring two schemas lets
its pure-torch transforms work.

`make test-vllm` copies this file into its environment and loads it by a .pth file, so that vLLM's own processes have it
too.
"""

import importlib.abc
import sys


class Declare(importlib.abc.MetaPathFinder):
    """Declares the operators right before torchvision is imported for the first time."""

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if not torch.backends.cuda.is_built():
                for operator in ("nms", "qnms"):
                    torch.library.define(
                        f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                    )


sys.meta_path.insert(0, Declare())
