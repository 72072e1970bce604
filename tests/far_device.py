"""A device that is not there, for tests without a GPU: its tensors are computed on the CPU, but say that they are not.

As on a GPU, an operation refuses tensors of both together; as on an Apple one, there are no float64 and no eigenvalues.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from codec.model import weights

NAME = "far"
COPIES = ("aten::copy_", "aten::_to_copy", "aten::to")
"""Operations that take tensors of both."""
TAKING_INDICES = ("aten::index", "aten::index_put", "aten::index_put_")
"""Operations that take indices from the CPU."""


def call(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function where there is the device; in a process of its own, as torch does not forget it."""
    _add_device()
    with _Functions(), _Operations():
        function(*arguments)


@functools.cache
def _add_device() -> None:
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

    class Module(_DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16]

    _setup_privateuseone_for_python_backend(NAME, Module())
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters take only their own class of tensors
    others = weights.choose_device
    weights.choose_device = lambda device: torch.device(NAME, 0) if str(device).startswith(NAME) else others(device)


class FarTensor(torch.Tensor):
    """Says that it is on the device; `near` has its values."""

    near: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> "FarTensor":
        if near.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"the device has no {near.dtype}")
        near = near.resolve_conj().resolve_neg()
        with torch.inference_mode(False):
            tensor = cls._make_wrapper_subclass(
                cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device=torch.device(NAME, 0)
            )
        tensor.near = near
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> None:
        raise RuntimeError(f"{function}: there is no such device here")


class _Operations(TorchDispatchMode):
    """Computes with tensors of the device."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        given, name = (arguments, options or {}), function._schema.name
        leaves = tree_leaves(given)
        far = [leaf for leaf in leaves if isinstance(leaf, FarTensor)]
        if far and name == "aten::_linalg_eigh":
            raise NotImplementedError(f"the device has no {name}")
        near = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.device.type != NAME]
        indexes_far = name in TAKING_INDICES and isinstance(arguments[0], FarTensor)
        if far and near and name not in COPIES and not indexes_far:
            raise RuntimeError(f"{function}: tensors are on the device and on the CPU")
        on_cpu = tree_map_only(torch.device, lambda _: torch.device("cpu"), given)
        arguments, options = tree_map_only(FarTensor, lambda tensor: tensor.near, on_cpu)
        result = function(*arguments, **options)
        if far and torch.Tag.inplace_view in function.tags:
            _view_in_place(function, *given)
        targets = [leaf.type for leaf in leaves if isinstance(leaf, torch.device)]
        if not (NAME in targets if targets else far):
            return result
        changed = {id(tensor.near): tensor for tensor in far if function._schema.is_mutable}
        return tree_map_only(
            torch.Tensor, lambda tensor: changed[id(tensor)] if id(tensor) in changed else FarTensor(tensor), result
        )


class _Functions(TorchFunctionMode):
    """What is done without an operation is done on the CPU."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if function is torch.asarray:  # of the bytes of a file
            with _disable_current_modes():
                return function(*arguments, **options)
        if function is torch.Tensor.tolist:
            return arguments[0].cpu().tolist()
        if function in (torch.tensor, torch.as_tensor) and options.get("device") is not None:
            return function(*arguments, **{**options, "device": "cpu"}).to(options["device"])
        return function(*arguments, **options)


def _view_in_place(function: Any, arguments: Any, options: Any) -> None:
    """Give a far tensor the shape that the near one has got."""
    before = torch._C._meta_in_tls_dispatch_include()
    torch._C._set_meta_in_tls_dispatch_include(True)
    try:
        with torch._C._DisableTorchDispatch(), _disable_current_modes():
            function(*arguments, **options)
    finally:
        torch._C._set_meta_in_tls_dispatch_include(before)
