"""Machine instructions that numba's Python has no words for: prefetches, bits, vector registers."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

VECTOR = 8
"""Rays that `sum_rays` takes at a time: so many float32 numbers has a vector register of AVX2."""

FAST = ("fast",)


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


def _constant(like, value):  # type: ignore[no-untyped-def]
    """A number, or as many of it as a vector has."""
    return ir.Constant(like, [value] * like.count if isinstance(like, ir.VectorType) else value)


def _phase(builder, travelled, direction, phase):  # type: ignore[no-untyped-def]
    """Phases of rays in 2^-32 turns, modulo one, of 16-bit directions and phases."""
    wide = travelled.type
    product = builder.mul(travelled, builder.sext(direction, wide))
    return builder.add(product, builder.shl(builder.sext(phase, wide), _constant(wide, 16)))


def _cos_sin(builder, phase, real):  # type: ignore[no-untyped-def]
    """Cosine and sine of phases in 2^-32 turns, of type `real`."""

    def constant(value):  # type: ignore[no-untyped-def]
        return _constant(real, float(np.float32(value)))

    suffix = f"v{real.count}f32" if isinstance(real, ir.VectorType) else "f32"

    def called(name, *operands):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(real, [real] * len(operands))
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{suffix}")
        return builder.call(function, operands)

    def sine(y):  # type: ignore[no-untyped-def]
        # sin(2 pi y) for y in [-0.25, 0.25] turns: the best polynomial of 7th order, error < 1e-6
        y2, series = builder.fmul(y, y, flags=FAST), constant(-70.993427)
        for coefficient in (81.34077, -41.337142, 6.283164):
            series = builder.fadd(builder.fmul(series, y2, flags=FAST), constant(coefficient), flags=FAST)
        return builder.fmul(y, series, flags=FAST)

    turn = builder.fmul(builder.sitofp(phase, real), constant(2**-32), flags=FAST)
    fold, quarter = called("fabs", turn), constant(0.25)
    beyond = called("fabs", builder.fsub(fold, quarter, flags=FAST))
    cosine = sine(builder.fsub(quarter, fold, flags=FAST))
    return cosine, called("copysign", sine(builder.fsub(quarter, beyond, flags=FAST)), turn)


def _ray(context, travelled, direction, phase):  # type: ignore[no-untyped-def]
    """Cosine and sine of a ray's phase."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        parts = _cos_sin(builder, _phase(builder, *arguments), ir.FloatType())
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(types.float32, 2)(travelled, direction, phase), generate


def _rays(context, travelled, directions, phases, first):  # type: ignore[no-untyped-def]
    """Sums of the cosines and of the sines of `VECTOR` rays of flat arrays, from the first one on."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        short = ir.VectorType(ir.IntType(16), VECTOR)
        wide, real = ir.VectorType(ir.IntType(32), VECTOR), ir.VectorType(ir.FloatType(), VECTOR)

        def load(kind, array):  # type: ignore[no-untyped-def]
            data = context.make_array(kind)(context, builder, array).data
            place = builder.bitcast(builder.gep(data, [arguments[3]]), short.as_pointer())
            return builder.load(place, align=2)

        travelled = builder.insert_element(ir.Constant(wide, ir.Undefined), arguments[0], ir.IntType(32)(0))
        travelled = builder.shuffle_vector(
            travelled, ir.Constant(wide, ir.Undefined), ir.Constant(wide, [0] * VECTOR)
        )
        direction, phase = (load(signature.args[k], arguments[k]) for k in (1, 2))
        kind, zero = ir.FunctionType(real.element, [real.element, real]), ir.Constant(real.element, 0.0)
        add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{VECTOR}f32")
        parts = _cos_sin(builder, _phase(builder, travelled, direction, phase), real)
        sums = [builder.call(add, [zero, part], fastmath=FAST) for part in parts]
        return context.make_tuple(builder, signature.return_type, sums)

    return types.UniTuple(types.float32, 2)(travelled, directions, phases, first), generate


def _at_least(context, values, first, least):  # type: ignore[no-untyped-def]
    """Which of `VECTOR` numbers of a flat array, from the first one on, aren't less: a bit each."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        real = ir.VectorType(ir.FloatType(), VECTOR)
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), real.as_pointer())
        bar = builder.insert_element(ir.Constant(real, ir.Undefined), arguments[2], ir.IntType(32)(0))
        every = ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), [0] * VECTOR)
        bar = builder.shuffle_vector(bar, ir.Constant(real, ir.Undefined), every)
        bits = builder.fcmp_ordered(">=", builder.load(place, align=4), bar)
        return builder.zext(builder.bitcast(bits, ir.IntType(VECTOR)), ir.IntType(64))

    return types.uint64(values, first, least), generate


def _lowest_bit(context, bits):  # type: ignore[no-untyped-def]
    """Number of the lowest bit that is set, of 64 of which one is."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.uint64(types.uint64), generate


def _reread(target: Any) -> Any:
    """The same 32 bits as another type."""

    def typed(context, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(value), generate

    return typed


prefetch: Any = intrinsic(_fetch)
ray: Any = intrinsic(_ray)
sum_rays: Any = intrinsic(_rays)
at_least: Any = intrinsic(_at_least)
lowest_bit: Any = intrinsic(_lowest_bit)
bits_of: Any = intrinsic(_reread(types.int32))
float_of: Any = intrinsic(_reread(types.float32))
