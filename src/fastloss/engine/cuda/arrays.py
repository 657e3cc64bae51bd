"""Arrays on a CUDA device, whosever they are: where they lie, and how their library makes another one.

`DeviceArray` speaks as much of NumPy's language (``shape``, ``reshape``, ``transpose``, `numpy.broadcast_to`) as the
code needs that lays targets and predictions out, so that one code serves both kinds of memory.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from fastloss.engine import storage
from fastloss.engine.cuda.target import SIMULATED, cuda, element_type, simulated_array

Shape = tuple[int, ...]


class DeviceArray:
    """Elements in device memory.

    Parameters
    ----------
    library : Library
        Who allocated it, and allocates what is made of it.
    owner : object
        Keeps the memory.
    memory : int or numpy.ndarray
        The address of the first element; in the simulator, an array that begins there.
    shape, strides : tuple of int
        Strides in elements.
    code : str
        How the elements are stored.
    writable : bool
        Whether the library lets others write it.
    """

    __slots__ = ("_flat", "code", "library", "memory", "owner", "shape", "strides", "writable")

    def __init__(
        self, library: Library, owner: Any, memory: Any, shape: Shape, strides: Shape, code: str, writable: bool = True
    ) -> None:
        self.library, self.owner, self.memory = library, owner, memory
        self.shape, self.strides, self.code, self.writable = shape, strides, code, writable
        self._flat: Any = None

    @property
    def ndim(self) -> int:
        """The rank."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(np.dtype(element_type(self.code)).itemsize)

    @property
    def is_float(self) -> bool:
        """Whether the elements are floats."""
        return self.code in ("f4", "f8", "f2", "bf2")

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie one after the other in C order."""
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length != 1 and stride != expected:
                return self.size == 0
            expected *= length
        return True

    def extent(self) -> tuple[int, int]:
        """The addresses of its first byte and of the one after its last."""
        address = self.memory.ctypes.data if SIMULATED else self.memory
        if not self.size:
            return address, address
        last = sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))
        return address, address + (last + 1) * self.itemsize

    def overlaps(self, other: DeviceArray) -> bool:
        """Whether the two may share memory."""
        (low, high), (other_low, other_high) = self.extent(), other.extent()
        return low < other_high and other_low < high

    def view(self, shape: Shape, strides: Shape) -> DeviceArray:
        """The same memory in another shape."""
        return DeviceArray(self.library, self.owner, self.memory, shape, strides, self.code, self.writable)

    def flat(self) -> Any:
        """All its memory as one row, as a kernel takes it."""
        if self._flat is None:
            low, high = self.extent()
            self._flat = self.library.flat(self, (high - low) // self.itemsize)
        return self._flat

    def contiguous(self) -> DeviceArray:
        """Itself, or a copy in C order."""
        if self.is_contiguous:
            return self
        made = self.library.empty(self.shape, self.code)
        self.library.copy(self, made)
        return made

    def astype(self, code: str) -> DeviceArray:
        """Itself, or a converted copy in C order."""
        if code == self.code:
            return self
        made = self.library.empty(self.shape, code)
        self.library.copy(self, made)
        return made

    def reshape(self, *shape: Any) -> DeviceArray:
        """As NumPy's: a view if the memory allows it."""
        wanted = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        if -1 in wanted:
            rest = math.prod(n for n in wanted if n != -1)
            wanted[wanted.index(-1)] = self.size // rest if rest else 0
        new = tuple(wanted)
        if math.prod(new) != self.size:
            raise ValueError(f"cannot reshape an array of shape {self.shape} to {new}")
        if new == self.shape:
            return self
        long = [(n, s) for n, s in zip(self.shape, self.strides, strict=True) if n != 1]
        if [n for n, _ in long] == [n for n in new if n != 1] and not self.is_contiguous:
            remaining = iter([s for _, s in long])
            return self.view(new, tuple(next(remaining) if n != 1 else 0 for n in new))
        return self.contiguous().view(new, c_strides(new))

    def transpose(self, order: Any) -> DeviceArray:
        """As NumPy's."""
        return self.view(tuple(self.shape[i] for i in order), tuple(self.strides[i] for i in order))

    def squeeze(self, axis: int) -> DeviceArray:
        """As NumPy's."""
        return self.reshape(self.shape[:axis] + self.shape[axis + 1 :])

    def __getitem__(self, key: Any) -> DeviceArray:
        if key != (slice(None), None):
            raise TypeError("only [:, None] is known")
        return self.reshape(self.size, 1)

    def __ne__(self, other: object) -> Any:
        """The elements that are not this integer, as a mask."""
        if not isinstance(other, int):
            return NotImplemented
        from fastloss.engine.cuda import launch

        return launch.samples_that_count(self.contiguous(), other, None)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]

    def __array_function__(self, function: Any, kinds: Any, arguments: Any, keywords: Any) -> Any:
        if function is not np.broadcast_to:
            return NotImplemented
        _, shape = arguments
        missing = len(shape) - self.ndim
        fits = missing >= 0 and all(n in (1, m) for n, m in zip(self.shape, shape[missing:], strict=True))
        if not fits:
            raise ValueError(f"shape {self.shape} does not broadcast to {shape}")
        strides = tuple(
            0 if n == 1 and m != 1 else s for n, s, m in zip(self.shape, self.strides, shape[missing:], strict=True)
        )
        return self.view(tuple(shape), (0,) * missing + strides)


def c_strides(shape: Shape) -> Shape:
    """The strides of C order, in elements."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(1, n)
    return tuple(reversed(strides))


class Library:
    """Who owns arrays: how its arrays are read, made and returned, and on which stream.

    Parameters
    ----------
    number : int
        Of the device.
    """

    name = ""

    def __init__(self, number: int) -> None:
        self.number = number

    def read(self, argument: str, value: Any) -> DeviceArray:
        """An array of this or any other library, as this one's to use."""
        interface = value.__cuda_array_interface__
        shape = tuple(interface["shape"])
        code = _code(argument, interface["typestr"])
        size = int(interface["typestr"][2:])
        strides = interface.get("strides")
        steps = c_strides(shape) if strides is None else tuple(s // size for s in strides)
        if any(s < 0 for s in steps):
            raise ValueError(f"`{argument}` must not run backwards in memory; pass a contiguous copy")
        address, read_only = interface["data"]
        return DeviceArray(self, value, address, shape, steps, code, not read_only)

    def empty(self, shape: Shape, code: str) -> DeviceArray:
        """A new array."""
        raise NotImplementedError

    def stream(self) -> Any:
        """The library's current stream, for a launch."""
        raise NotImplementedError

    def upload(self, array: np.ndarray[Any, Any], code: str) -> DeviceArray:
        """A copy of a small array of the host's; its elements as stored under `code`."""
        made = self.empty(array.shape, code)
        bits = np.ascontiguousarray(array).reshape(-1)
        made.flat().copy_to_device(bits.view(element_type(code)), stream=self.stream())
        return made

    def flat(self, array: DeviceArray, count: int) -> Any:
        """So many elements from the array's first on, as a kernel takes them."""
        interface = {
            "shape": (count,),
            "typestr": np.dtype(element_type(array.code)).str,
            "data": (array.memory, False),
            "strides": None,
            "version": 3,
        }
        return cuda.from_cuda_array_interface(interface, owner=array.owner, sync=False)

    def product(self, a: DeviceArray, b: DeviceArray, transposed: bool = False) -> DeviceArray:
        """The product of two contiguous matrices in a compute dtype, or of the first and the second's transpose."""
        from fastloss.engine.cuda import launch

        return launch.product(a, b, transposed)

    def copy(self, source: DeviceArray, destination: DeviceArray) -> None:
        """Copy elements between arrays of one shape, converting them."""
        from fastloss.engine.cuda import launch

        launch.copy(source, destination)


class Numba(Library):
    """Numba's device arrays; also for arrays of libraries that this module does not know."""

    name = "numba"

    def empty(self, shape: Shape, code: str) -> DeviceArray:
        """A new array."""
        owner = cuda.device_array(shape or (1,), element_type(code))
        if shape == ():
            owner = owner.reshape(())
        memory = owner.__cuda_array_interface__["data"][0]
        return DeviceArray(self, owner, memory, shape, c_strides(shape), code)

    def stream(self) -> Any:
        """Numba launches on the default stream unless told otherwise."""
        return cuda.default_stream()


class Simulator(Library):
    """Numba's imitation of device arrays, which are NumPy's."""

    name = "numba"

    def read(self, argument: str, value: Any) -> DeviceArray:
        """An array of the simulator's."""
        array = value._ary
        code = _code(argument, array.dtype.str)
        steps = tuple(s // array.itemsize for s in array.strides)
        seen = array.view(element_type(code)) if code == "b1" else array
        return DeviceArray(self, value, seen, array.shape, steps, code, array.flags.writeable)

    def empty(self, shape: Shape, code: str) -> DeviceArray:
        """A new array, of garbage: whatever is not written shows."""
        kind = element_type(code)
        array = np.full(shape, np.nan if np.dtype(kind).kind == "f" else 77, kind)
        return DeviceArray(self, self._wrap(array), array, shape, c_strides(shape), code)

    def stream(self) -> Any:
        """There is one only."""
        return 0

    def upload(self, array: np.ndarray[Any, Any], code: str) -> DeviceArray:
        """A copy."""
        made = self.empty(array.shape, code)
        made.memory[...] = array.view(element_type(code))
        return made

    def flat(self, array: DeviceArray, count: int) -> Any:
        """As NumPy sees the memory."""
        seen = np.lib.stride_tricks.as_strided(array.memory, (count,), (array.itemsize,))
        return self._wrap(seen)

    @staticmethod
    def _wrap(array: np.ndarray[Any, Any]) -> Any:
        return simulated_array(array)


class Torch(Library):
    """PyTorch's tensors."""

    name = "torch"

    def read(self, argument: str, value: Any) -> DeviceArray:
        """A tensor; PyTorch's interface for others refuses bfloat16 and tensors that want a gradient."""
        torch = sys.modules["torch"]
        if not isinstance(value, torch.Tensor):
            return super().read(argument, value)
        code = storage.CODES.get(str(value.dtype).rpartition(".")[2])
        if code is None:
            raise TypeError(f"`{argument}` must hold real numbers, got {value.dtype}")
        if value.device.index != self.number:
            raise ValueError(f"`{argument}` is on {value.device}, but `y_pred` on cuda:{self.number}")
        value = value.detach()
        return DeviceArray(self, value, value.data_ptr(), tuple(value.shape), tuple(value.stride()), code)

    def empty(self, shape: Shape, code: str) -> DeviceArray:
        """A new tensor."""
        torch = sys.modules["torch"]
        owner = torch.empty(shape, dtype=_torch_dtypes()[code], device=f"cuda:{self.number}")
        return DeviceArray(self, owner, owner.data_ptr(), shape, c_strides(shape), code)

    def product(self, a: DeviceArray, b: DeviceArray, transposed: bool = False) -> DeviceArray:
        """PyTorch's product, in this dtype whatever `torch.autocast` says."""
        torch = sys.modules["torch"]
        place = f"cuda:{self.number}"
        x, y = (torch.as_tensor(m.flat(), device=place).view(m.shape) for m in (a, b))
        made = self.empty((a.shape[0], b.shape[0 if transposed else 1]), a.code)
        with torch.no_grad(), torch.autocast("cuda", enabled=False):
            torch.matmul(x, y.T if transposed else y, out=made.owner)
        return made

    def stream(self) -> Any:
        """PyTorch's current stream."""
        return _stream(sys.modules["torch"].cuda.current_stream(self.number).cuda_stream)


class CuPy(Library):
    """CuPy's arrays."""

    name = "cupy"

    def empty(self, shape: Shape, code: str) -> DeviceArray:
        """A new array."""
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(self.number):
            owner = cupy.empty(shape, np.bool_ if code == "b1" else element_type(code))
        return DeviceArray(self, owner, owner.data.ptr, shape, c_strides(shape), code)

    def product(self, a: DeviceArray, b: DeviceArray, transposed: bool = False) -> DeviceArray:
        """CuPy's product."""
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(self.number):
            x, y = (cupy.asarray(m.flat()).reshape(m.shape) for m in (a, b))
            made = self.empty((a.shape[0], b.shape[0 if transposed else 1]), a.code)
            cupy.matmul(x, y.T if transposed else y, out=made.owner)
        return made

    def stream(self) -> Any:
        """CuPy's current stream."""
        return _stream(sys.modules["cupy"].cuda.get_current_stream().ptr)


@cache
def _torch_dtypes() -> dict[str, Any]:
    torch = sys.modules["torch"]
    return {code: getattr(torch, name) for name, code in storage.CODES.items() if hasattr(torch, name)}


@cache
def _stream(handle: int) -> Any:
    return cuda.external_stream(handle) if handle else cuda.legacy_default_stream()


def _code(argument: str, typestr: str) -> str:
    dtype = np.dtype(typestr)
    code = storage.code(dtype)
    if code is None:
        raise TypeError(f"`{argument}` must hold real numbers in this machine's byte order, got {dtype}")
    return code


_KINDS: dict[str, Callable[[int], Library]] = {"torch": Torch, "cupy": CuPy}


@cache
def _library(name: str, number: int) -> Library:
    return _KINDS.get(name, Numba)(number)


@cache
def _simulator() -> Library:
    return Simulator(0)


def library_of(value: Any) -> tuple[Library, Any]:
    """The library of an array on a device, and the array as that library has it.

    An array that speaks DLPack alone goes to CuPy or PyTorch, whichever is imported.
    """
    if SIMULATED:
        return _simulator(), value
    name = type(value).__module__.partition(".")[0]
    if name not in _KINDS and not hasattr(value, "__cuda_array_interface__"):
        for name in _KINDS:
            if name in sys.modules:
                value = sys.modules[name].from_dlpack(value)
                break
        else:
            raise TypeError(
                f"a {type(value).__module__}.{type(value).__name__} has no `__cuda_array_interface__`; import cupy or "
                "torch, which read it by DLPack"
            )
    if name == "torch":
        return _library(name, value.device.index), value
    if name == "cupy":
        return _library(name, value.device.id), value
    return _library("numba", cuda.get_current_device().id), value
