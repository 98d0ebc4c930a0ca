"""Runs at the start of every simulated process: puts CPU kernels into the real torch_npu.

The kernels can only be replaced after torch_npu has been imported in full, whoever imports it
(``import torch`` does, by its entry point); so its loader is wrapped. Where the pure-Python device
stands in for torch_npu there is nothing to replace, and ``NPU_SIM_WAY`` says so.
"""

import importlib.abc
import importlib.machinery
import os
import sys


class _ReplaceKernelsAfterImport(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "torch_npu":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader.exec_module = _then_replace(spec.loader.exec_module)
        return spec


def _then_replace(exec_module):
    def execute(module):
        exec_module(module)
        import kernels_on_host  # noqa: PLC0415 - needs torch

        kernels_on_host.install()

    return execute


if os.environ.get("NPU_SIM_WAY") == "real":
    sys.meta_path.insert(0, _ReplaceKernelsAfterImport())
