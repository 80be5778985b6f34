"""Machine instructions that numba's Python has no words for, and a ray's cosine and sine."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic


def _fetch(context, array, index):  # type: ignore[no-untyped-def]
    """Asks for the cache line of a flat array's element, which may lie beyond its end."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        integer = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, integer, integer, integer])
        function = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
        place = builder.bitcast(builder.gep(data, [arguments[1]]), cgutils.voidptr_t)
        read, keep, is_data = integer(0), integer(3), integer(1)
        builder.call(function, [place, read, keep, is_data])
        return context.get_dummy_value()

    return types.void(array, index), generate


def _turn(context, travelled, direction, phase):  # type: ignore[no-untyped-def]
    """Phase of a ray in 2^-32 turns, modulo one: in Python's numbers a product of 32 bits has 64."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        integer = ir.IntType(32)
        product = builder.mul(arguments[0], builder.sext(arguments[1], integer))
        return builder.add(product, builder.shl(builder.sext(arguments[2], integer), integer(16)))

    return types.int32(travelled, direction, phase), generate


def _reread(target: Any) -> Any:
    """The same 32 bits as another type."""

    def typed(context, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(value), generate

    return typed


prefetch: Any = intrinsic(_fetch)
ray_phase: Any = intrinsic(_turn)
bits_of: Any = intrinsic(_reread(types.int32))
float_of: Any = intrinsic(_reread(types.float32))


@njit(inline="always", fastmath=True)
def cos_sin(phase):  # type: ignore[no-untyped-def]
    """Cosine and sine of a phase in 2^-32 turns."""
    turn = np.float32(phase) * np.float32(2**-32)
    fold, quarter = np.abs(turn), np.float32(0.25)
    return _sine(quarter - fold), np.copysign(_sine(quarter - np.abs(fold - quarter)), turn)


@njit(inline="always", fastmath=True)
def _sine(y):  # type: ignore[no-untyped-def]
    """sin(2 pi y) for y in [-0.25, 0.25] turns: the best polynomial of 7th order, error < 1e-6."""
    y2 = y * y
    return y * (
        np.float32(6.283164)
        + y2 * (np.float32(-41.337142) + y2 * (np.float32(81.34077) + y2 * np.float32(-70.993427)))
    )
