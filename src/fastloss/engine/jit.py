"""The one place where Numba's compilation flags are chosen.

Two kinds of code are compiled, and what is right for one is wrong for the other:

* *Scalar mathematics* (the toolbox and every loss kernel) may contract ``a * b + c`` into one fused
  multiply-add and nothing else. ``reassoc`` would cancel the rounding trick and the Cody-Waite reduction of
  `exp` (a result wrong in every digit; 4.1 ULP instead of 1.0).
* *Loops* (the drivers) must be allowed to reassociate their sums, or a reduction stays scalar.

The outermost function, which adds the parts of a result, is neither: its order of summation is what makes results
independent of the number of threads, so it gets no fast-math at all.

Fast-math flags belong to single instructions and survive inlining, so both kinds meet in one compiled loop without
mixing. ``nnan`` and ``ninf`` appear nowhere: NaN and infinity must come through.

``error_model="numpy"`` is on everything: the default tests each divisor for zero and raises, and that branch stops
vectorisation (17 ns against 1.6 ns an element for binary cross-entropy from logits).
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba import extending
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

# Numba's annotations lack some of its options, and that an intrinsic takes one argument less than its function.
njit: Any = numba.njit
intrinsic: Any = extending.intrinsic
overload: Any = extending.overload

F = TypeVar("F", bound=Callable[..., Any])

# Nothing but compiled code calls a part, so it needs neither of the wrappers that Numba adds to a function.
_NO_WRAPPERS: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
SCALAR_FLAGS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}, "forceinline": True}
LOOP_FLAGS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz", "arcp"}}
DRIVER_FLAGS: dict[str, Any] = {"error_model": "numpy", "nogil": True}


def scalar(function: F) -> F:
    """Compile scalar mathematics, to be inlined into every loop that calls it."""
    compiled: F = njit(**SCALAR_FLAGS, **_NO_WRAPPERS, pipeline_class=_PartCompiler)(function)
    return compiled


def inner_loop(function: F) -> F:
    """Compile a loop that a driver inlines."""
    compiled: F = njit(**LOOP_FLAGS, forceinline=True, **_NO_WRAPPERS, pipeline_class=_PartCompiler)(function)
    return compiled


def vector_loop(function: F) -> F:
    """Compile a loop over elements, none of whose array arguments overlaps another one that is written.

    LLVM believes that, so it neither tests for overlaps at every entry nor gives a loop up that would need many tests
    (more than eight), nor does a short loop run element by element because two buffers happen to be neighbours. An
    array that is read and written must be one argument.
    """
    compiled: F = njit(**LOOP_FLAGS, forceinline=True, **_NO_WRAPPERS, pipeline_class=_LoopCompiler)(function)
    return compiled


def item(function: F) -> F:
    """Compile what an itemwise kernel does for one item: too large to be inlined, and its loops may reassociate."""
    compiled: F = njit(**LOOP_FLAGS, **_NO_WRAPPERS, pipeline_class=_PartCompiler)(function)
    return compiled


class _Part(JITCodeLibrary):
    """The code of a function that only compiled functions call: LLVM's intermediate code, for them to take in.

    Numba makes a finished library of each function: it optimises it, translates it to machine code and has the JIT
    engine look for every symbol among all modules so far, though the callers take in the intermediate code, and
    optimise and translate that anew. Done so, a kernel of 40 functions compiled in 1.9 s instead of 1.2, and the rate
    fell from 130 to 45 kernels a minute within the first 500 of a process.
    """

    optimised = False

    def _optimize_functions(self, module):
        """Simplify each function, or loops stay scalar whose mathematics has branches.

        With one pass manager, as making one takes as long as running it; Numba makes one for every declaration.
        """
        module.data_layout = self._codegen._data_layout
        passes, builder = self._codegen._function_pass_manager()
        for function in module.functions:
            if not function.is_declaration:
                passes.run(function, builder)

    def _optimize_final_module(self):
        if self.optimised:
            super()._optimize_final_module()

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name):
        self._ensure_finalized()
        return _NOT_CALLABLE

    @property
    def codegen(self):
        return _WithoutEngine()


# Numba wants the address of a function for Python to call. This one raises TypeError, as its first argument is then no
# callable; without one, or with the address of no function, that call would end the process.
_NOT_CALLABLE: int = ctypes.cast(ctypes.pythonapi.PyObject_Call, ctypes.c_void_p).value or 0


class _WithoutEngine:
    """What Numba asks a library's code generator for, of code that is in no engine."""

    def set_env(self, name, environment):
        pass


class _PartCompiler(Compiler):
    """Numba's compiler, making a `_Part`."""

    def __init__(self, typingctx, targetctx, library, args, return_type, flags, locals):
        super().__init__(typingctx, targetctx, _Part(targetctx.codegen(), "part"), args, return_type, flags, locals)


class _LoopCompiler(_PartCompiler):
    """The compiler of a loop whose array arguments do not overlap, a flag that Numba's decorators do not offer.

    Such a loop is optimised by itself before a caller takes it in, so its results have the same bits in every caller,
    in one of one thread and in one of several.
    """

    def __init__(self, typingctx, targetctx, library, args, return_type, flags, locals):
        flags.noalias = True
        super().__init__(typingctx, targetctx, library, args, return_type, flags, locals)
        self.state.library.optimised = True


@intrinsic
def maximum(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of two floats, NaN if either is: LLVM's ``maximum``, the one form it reduces over vector lanes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        function = builder.module.declare_intrinsic("llvm.maximum", [kind], ir.FunctionType(kind, [kind, kind]))
        return builder.call(function, args)

    return a(a, a), generate


def pointer_call(signature: Any) -> Any:
    """``call(address, *arguments)`` calls compiled code of that signature, which the caller need not be compiled with.

    Parameters
    ----------
    signature : numba.core.typing.Signature
        Of the function whose ``llvm_func_name`` has that address.
    """
    from numba import types
    from numba.core import cgutils

    @intrinsic
    def call(typing_context: Any, address: Any, arguments: Any) -> Any:
        def generate(context: Any, builder: Any, own: Any, args: Any) -> Any:
            convention = context.call_conv
            kind = convention.get_function_type(signature.return_type, signature.args)
            function = builder.inttoptr(args[0], kind.as_pointer())
            values = [
                context.cast(builder, builder.extract_value(args[1], i), given, wanted)
                for i, (given, wanted) in enumerate(zip(own.args[1], signature.args, strict=True))
            ]
            status, found = convention.call_function(builder, function, signature.return_type, signature.args, values)
            with cgutils.if_unlikely(builder, status.is_error):
                convention.return_status_propagate(builder, status)
            return found

        return signature.return_type(types.uintp, arguments), generate

    return call


def keep(x: Any) -> Any:
    """The constant `x`, which compiled code is to keep in a register or on the stack.

    A loop with more constants than the processor has registers (16 with AVX2) fetches most of them anew in each round,
    with two instructions for each: its address, and a load that spreads it over the lanes. A constant whose origin
    LLVM does not see is spread once, before the loop, and read from the stack by the very multiply-add that uses it:
    69 instead of 88 instructions a round in binary cross-entropy from logits, 8-13 % of the time of the arithmetic.
    """
    return x


@intrinsic
def _held(typing_context: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if platform.machine() not in ("x86_64", "AMD64"):
            return args[0]
        # No instruction at all, but one that LLVM cannot look into. Without these attributes it stays in the loop.
        held = builder.asm(ir.FunctionType(args[0].type, [args[0].type]), "", "=x,0", args, side_effect=False)
        held.attributes.add("nounwind")
        held.attributes.add("readnone")
        return held

    return x(x), generate


@overload(keep, jit_options={"no_cfunc_wrapper": True, "no_cpython_wrapper": True})
def _keep_compiled(x):
    return lambda x: _held(x)
