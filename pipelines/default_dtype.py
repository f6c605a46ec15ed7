"""torch's default dtype for one thread alone, while the libraries build networks on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FACTORIES = frozenset({torch.empty, torch.ones, torch.zeros, torch.rand, torch.randn})
"""What parameters are made with."""


@contextmanager
def own_default_dtype() -> Iterator[None]:
    """Have changes of the default dtype hold for this thread only, and only for what parameters are made with.

    diffusers and transformers build a network of half precision under another default dtype. That is the whole
    process's: beside them, the samplers of the thread that computes would make their tables in half precision.
    """
    mode = _DefaultDtype(torch.get_default_dtype())
    getter, setter = torch.get_default_dtype, torch.set_default_dtype
    owner = get_ident()

    def get() -> torch.dtype:
        return mode.dtype if get_ident() == owner else getter()

    def change(dtype: torch.dtype) -> None:
        if get_ident() == owner:
            mode.dtype = dtype
        else:
            setter(dtype)

    vars(torch).update(get_default_dtype=get, set_default_dtype=change)
    try:
        with mode:
            yield
    finally:
        vars(torch).update(get_default_dtype=getter, set_default_dtype=setter)


class _DefaultDtype(TorchFunctionMode):
    """What the default dtype is to one thread: modes are a thread's own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _FACTORIES and kwargs.get("dtype") is None:
            kwargs = kwargs | {"dtype": self.dtype}
        return function(*args, **kwargs)
