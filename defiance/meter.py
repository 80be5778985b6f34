"""Counting what computing takes: real-valued operations from the model itself, CPU and wall time from clocks.

Operations are counted once per shape, on tensors without memory (``device="meta"``), where fused kernels fall
apart into what can be counted. A multiply-accumulate is two operations; an addition, a comparison or one of
exp, log, erf, tanh, sqrt is one; moving, selecting and reshaping numbers is none. Of complex numbers a
multiply-accumulate is eight real operations, an addition two. What the tables here don't know is refused,
never counted as nothing.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from defiance.errors import DefianceError
from defiance.hardware import SERVER_CPU, ComputeProfile


@dataclass(frozen=True)
class OperationCount:
    """Real-valued operations: those of matrix products and convolutions, and all others."""

    matmul: int = 0
    other: int = 0

    def __add__(self, more: "OperationCount") -> "OperationCount":
        return OperationCount(self.matmul + more.matmul, self.other + more.other)

    def __mul__(self, times: int) -> "OperationCount":
        return OperationCount(self.matmul * times, self.other * times)

    @property
    def total(self) -> int:
        """All of them."""
        return self.matmul + self.other


@dataclass(frozen=True)
class Operations:
    """Operations of a model on one batch: `forward` alone is inference, `training_step` all three."""

    forward: OperationCount
    backward: OperationCount
    optimiser: OperationCount

    @property
    def training_step(self) -> OperationCount:
        """Forward pass, loss and backward pass, and the optimiser's update."""
        return self.forward + self.backward + self.optimiser


OPTIMISER_OPERATIONS = {"sgd": 2, "adam": 12, "adamw": 13}
"""Operations per trained parameter w with gradient g, scalars such as bias corrections computed once.

SGD: w - lr g (2). Adam: m = b1 m + (1-b1) g (3); v = b2 v + (1-b2) g g (4); w - lr m / (sqrt(v) + eps), both
bias corrections inside lr and eps (5). AdamW: and w (1 - lr decay) (1).
"""


def operations_of(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    loss: Callable[[Any], Tensor],
    optimiser: Literal["sgd", "adam", "adamw"] = "adam",
) -> Operations:
    """Count one training step of a model on a batch of that shape; nothing is computed.

    Args:
        model: is copied, and counted in the mode (training or evaluation) that it is in.
        inputs: what the model is called with; only shapes and types matter.
        loss: takes the model's output to a scalar, and is counted with the backward pass. Tensors that it
            makes must have its argument's device.
        optimiser: whose update is counted, on parameters that require a gradient.

    Raises:
        DefianceError: the model uses an operation that is not in this module's tables.
    """
    model = copy.deepcopy(model).to("meta")
    tensors = [inputs] if isinstance(inputs, Tensor) else inputs
    with _Counting() as forward:
        output = model(*(tensor.detach().to("meta") for tensor in tensors))
    with _Counting() as backward:
        loss(output).backward()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Operations(
        forward=forward.count,
        backward=backward.count,
        optimiser=OperationCount(other=OPTIMISER_OPERATIONS[optimiser] * trained),
    )


def operations_of_loss(
    loss: Callable[..., Tensor],
    parameters: Mapping[str, Tensor],
    batch: Sequence[Tensor],
    optimiser: Literal["sgd", "adam", "adamw"] = "adam",
) -> Operations:
    """Count one training step of a function of weights, such as `torch.func` makes; nothing is computed.

    Args:
        loss: from weights and the batch's tensors, all on `meta`; is counted with the forward pass.
        parameters: that are trained; only shapes and types matter, as of the batch.
        batch: its tensors.
        optimiser: whose update is counted.

    Raises:
        DefianceError: the function uses an operation that is not in this module's tables.
    """
    weights = {name: weight.detach().to("meta").requires_grad_() for name, weight in parameters.items()}
    with _Counting() as forward:
        value = loss(weights, *(tensor.detach().to("meta") for tensor in batch))
    with _Counting() as backward:
        value.sum().backward()
    trained = sum(weight.numel() for weight in weights.values())
    update = OperationCount(other=OPTIMISER_OPERATIONS[optimiser] * trained)
    return Operations(forward.count, backward.count, update)


def count_operations(function: Callable[..., object], *arguments: Tensor) -> OperationCount:
    """Count a function's operations on tensors of these shapes; nothing is computed.

    Raises:
        DefianceError: it uses an operation that is not in this module's tables.
    """
    return count_while(lambda: function(*(argument.detach().to("meta") for argument in arguments)))


def count_while(function: Callable[[], object]) -> OperationCount:
    """Count the operations that a function does while it computes; what it does outside of torch is not seen.

    Raises:
        DefianceError: it uses an operation that is not in this module's tables.
    """
    counting = _Counting()
    with counting:
        function()
    return counting.count


@dataclass(frozen=True)
class Work:
    """What a training step asks of a machine: operations, bytes that its calls read and write, calls."""

    operations: OperationCount = OperationCount()
    bytes: int = 0
    calls: int = 0

    def __add__(self, more: "Work") -> "Work":
        return Work(self.operations + more.operations, self.bytes + more.bytes, self.calls + more.calls)


def work_of(model: nn.Module, inputs: Tensor | Sequence[Tensor], loss: Callable[[Any], Tensor]) -> Work:
    """The work of one training step with Adam, counted as by `operations_of`; nothing is computed.

    Bytes are those of each call's arguments and results, whether a cache holds them or not; Adam reads
    weight, gradient and both moments and writes all but the gradient, in one call per operation.
    """
    model = copy.deepcopy(model).to("meta")
    tensors = [inputs] if isinstance(inputs, Tensor) else inputs
    counting = _Working()
    with counting:
        loss(model(*(tensor.detach().to("meta") for tensor in tensors))).backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    numbers, per_number = sum(parameter.numel() for parameter in trained), OPTIMISER_OPERATIONS["adam"]
    moved = 7 * sum(parameter.nbytes for parameter in trained)
    return counting.work + Work(OperationCount(other=per_number * numbers), moved, per_number)


@dataclass(frozen=True)
class Usage:
    """What a node has spent: counted operations, CPU seconds of all threads, seconds on the clock."""

    operations_matmul: int = 0
    operations_other: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0

    def __add__(self, more: "Usage") -> "Usage":
        return Usage(*(getattr(self, field.name) + getattr(more, field.name) for field in fields(self)))

    @property
    def operations(self) -> int:
        """Matrix products and the rest."""
        return self.operations_matmul + self.operations_other


class Meter:
    """Sums what one node (a device, a base station, the core) spends.

    >>> meter = Meter("base-station")
    >>> with meter.running():
    ...     meter.count(OperationCount(matmul=2_000, other=100), times=3)
    >>> meter.usage.operations
    6300
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self.usage = Usage()

    def count(self, operations: OperationCount, times: int = 1) -> None:
        """Add operations that were done `times` times."""
        self.usage += Usage(operations.matmul * times, operations.other * times)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add the time spent inside, also when it ends in an exception."""
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            self.usage += Usage(cpu_s=time.process_time() - cpu_s, wall_s=time.perf_counter() - wall_s)


@dataclass(frozen=True)
class Energy:
    """An energy with its range, and whether it was modelled or estimated."""

    provenance: Literal["modelled", "estimated"]
    energy_j: float
    low_j: float
    high_j: float


def joules(usage: Usage, profile: ComputeProfile, host: ComputeProfile = SERVER_CPU) -> tuple[Energy, Energy]:
    """Return the energy of this usage in two ways, to be shown beside each other, never added.

    Args:
        usage: what was done.
        profile: the hardware that the node would have; modelled = its J/operation x counted operations.
        host: the machine that this ran on; estimated = its W/core x CPU seconds.
    """
    operations, cpu_s = usage.operations, usage.cpu_s
    return (
        Energy(
            "modelled",
            operations * profile.joules_per_operation,
            operations * profile.joules_per_operation_low,
            operations * profile.joules_per_operation_high,
        ),
        Energy(
            "estimated",
            cpu_s * host.watts_per_core,
            cpu_s * host.watts_per_core_low,
            cpu_s * host.watts_per_core_high,
        ),
    )


# No arithmetic on real numbers: makes, moves, selects, relabels. Views are recognised by themselves.
_FREE = frozenset(
    """
    __lshift __rshift _local_scalar_dense _to_copy _unsafe_view arange bitwise_and bitwise_not
    bitwise_or bitwise_xor cat clone constant_pad_nd copy diagonal_backward embedding empty
    empty_like empty_strided fill flip full full_like gather index index_select isfinite isinf isnan
    lift_fresh logical_and logical_not logical_or masked_fill new_empty new_empty_strided new_full
    new_ones new_zeros ones ones_like rand rand_like randint randn randn_like repeat roll scalar_tensor
    scatter select_backward slice_backward split stack tril triu unsafe_split upsample_nearest2d
    where zero zeros zeros_like
    """.split()
)

# Operations per element of the largest tensor.
_PER_ELEMENT = {
    **dict.fromkeys(
        """
        _adaptive_avg_pool2d abs add bernoulli bincount clamp clamp_max clamp_min cos cumsum div eq
        erf erfc exp floor ge gt le log log1p lt maximum mean minimum mul ne neg pow reciprocal relu
        remainder rsqrt rsub sgn sign sin sqrt sub tanh threshold_backward
        """.split(),
        1,
    ),
    "addcdiv": 3,
    "addcmul": 3,
    "lerp": 3,  # a + w (b - a)
    "sigmoid": 4,  # 1/(1 + exp(-x))
    "sigmoid_backward": 3,  # g y (1 - y)
    "log_sigmoid_forward": 5,  # min(x, 0) - log(1 + exp(-|x|))
    "log_sigmoid_backward": 4,  # g exp(-x)/(1 + exp(-x)), the exponential kept
    "aminmax": 2,
    "tanh_backward": 3,  # g (1 - y y)
    "silu": 5,  # x sigmoid(x)
    "silu_backward": 9,  # g s (1 + x (1 - s)), s = sigmoid(x)
    "gelu": 5,  # 0.5 x (1 + erf(x/sqrt 2))
    "gelu_backward": 11,  # g (c + x p), c = 0.5 (1 + erf(x/sqrt 2)), p = exp(-0.5 x x)/sqrt(2 pi)
    "logsumexp": 4,  # maximum, difference, exp, sum
    "_softmax": 5,  # maximum, difference, exp, sum, quotient
    "_safe_softmax": 5,
    "_softmax_backward_data": 4,  # y (g - sum(g y))
    "_log_softmax": 5,  # maximum, difference, exp, sum, difference
    "_log_softmax_backward_data": 4,  # g - exp(y) sum(g)
    "nll_loss_forward": 0,  # adds one entry of each row
    "nll_loss_backward": 0,
    "nll_loss2d_forward": 0,
    "nll_loss2d_backward": 0,
    "mse_loss": 3,  # difference, square, sum
    "mse_loss_backward": 2,  # difference, product
    "huber_loss": 6,  # difference, abs, comparison, square, half, sum
    "huber_loss_backward": 3,  # difference, comparison, product
    "smooth_l1_loss": 6,
    "smooth_l1_loss_backward": 3,
    "binary_cross_entropy_with_logits": 9,  # max(x, 0) - x y + log(1 + exp(-|x|)), sum
    "var": 4,  # mean, difference, square, sum
    "std": 4,
    "linalg_vector_norm": 2,  # square, sum
}

# A reduction of n numbers to one takes n - 1.
_REDUCTIONS = frozenset("amax amin any argmax argmin max min prod sum".split())

# These add the elements of one argument, at this position, into another tensor (index_put if told to).
_SCATTERS = {"embedding_dense_backward": 0, "index_put": 2, "index_add": 3, "scatter_add": 3}

# Matrix products that torch's own registry lacks: multiply-accumulates per element of this argument.
_VECTOR_PRODUCTS = {"mv": 0, "dot": 0, "vdot": 0, "addmv": 1}


class _Counting(TorchDispatchMode):
    """Counts every operation called inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = OperationCount()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += _operations_of_call(func, args, kwargs or {}, result)
        return result


class _Working(_Counting):
    """Counts bytes and calls, too."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.calls = 0

    @property
    def work(self) -> Work:
        return Work(self.count, self.bytes, self.calls)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if not func.is_view:
            moved = [item for item in (*_flat(args), *_flat(result)) if isinstance(item, Tensor)]
            self.bytes += sum(tensor.nbytes for tensor in moved)
            self.calls += 1
        return result


def _operations_of_call(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> OperationCount:
    if func.is_view or func.namespace == "profiler":  # optimisers mark their steps for it
        return OperationCount()
    packet = func._overloadpacket
    name = packet.__name__.rstrip("_")  # in place or not
    results = [item for item in _flat(result) if isinstance(item, Tensor)]
    tensors = [item for item in _flat(args) if isinstance(item, Tensor)] + results
    complex_ = any(tensor.is_complex() for tensor in tensors)
    if packet in flop_registry:
        products = flop_registry[packet](*args, **kwargs, out_val=result)
        added = _bias(name, args, results)
        return OperationCount(4 * products, 2 * added) if complex_ else OperationCount(products, added)
    if name in _FREE or (name == "index_put" and args[3:4] != (True,)):
        return OperationCount()
    largest = max(tensor.numel() for tensor in tensors)
    if complex_:
        return _of_complex(name, args, results, largest)
    if name.startswith("native_layer_norm"):
        return OperationCount(other=_layer_norm(name, args) * largest)
    if name in _PER_ELEMENT and kwargs.get("approximate", "none") == "none":
        scaled = kwargs.get("alpha", 1) != 1  # a + alpha b
        return OperationCount(other=(_PER_ELEMENT[name] + scaled) * largest)
    if name in _REDUCTIONS:
        return OperationCount(other=largest - results[0].numel())
    if name in _SCATTERS:
        return OperationCount(other=args[_SCATTERS[name]].numel())
    if name in _VECTOR_PRODUCTS:
        added = results[0].numel() if name == "addmv" else 0
        return OperationCount(2 * args[_VECTOR_PRODUCTS[name]].numel(), added)
    raise DefianceError(f"nobody has said how many operations aten.{name} takes; add it to defiance/meter.py")


# Real operations per element of the largest tensor where all factors are complex.
_PER_COMPLEX_ELEMENT = {
    **dict.fromkeys("add sub rsub neg mean cumsum".split(), 2),
    "_conj_physical": 1,
    "conj_physical": 1,
    "mul": 6,
    "div": 11,  # as (a + bi)(c - di)/(c^2 + d^2)
    "reciprocal": 5,
    "abs": 4,  # two squares, sum, root
    "angle": 2,  # quotient, arctangent
    "exp": 5,  # exp, cos, sin, two products
    "sgn": 6,
    "polar": 4,
}


def _of_complex(name: str, args: tuple[Any, ...], results: list[Tensor], largest: int) -> OperationCount:
    if name == "complex":
        return OperationCount()
    if name == "sum":
        return OperationCount(other=2 * (largest - results[0].numel()))
    if name in _VECTOR_PRODUCTS:
        added = 2 * results[0].numel() if name == "addmv" else 0
        return OperationCount(8 * args[_VECTOR_PRODUCTS[name]].numel(), added)
    if name in _PER_COMPLEX_ELEMENT:
        factors = [factor for factor in args[:2] if isinstance(factor, Tensor | complex | float | int)]
        real = [
            f for f in factors if not (f.is_complex() if isinstance(f, Tensor) else isinstance(f, complex))
        ]
        cost = 2 if name in ("mul", "div") and real else _PER_COMPLEX_ELEMENT[name]
        return OperationCount(other=cost * largest)
    raise DefianceError(
        f"nobody has said how many operations complex aten.{name} takes; add it to defiance/meter.py"
    )


def _layer_norm(name: str, args: tuple[Any, ...]) -> int:
    """Return the operations per element of a layer norm, forwards or backwards."""
    if name == "native_layer_norm":
        affine = args[2] is not None
        return 5 + 2 * affine  # mean 1, variance 3, scale 1
    input_wanted, weight_wanted, bias_wanted = args[-1]
    affine = args[5] is not None
    # x_hat = (x - mean)/std 2; input: two means 3, then a difference, product, difference, quotient, and g w
    return 2 + int((7 + affine) * input_wanted + 2 * weight_wanted + bias_wanted)


def _bias(name: str, args: tuple[Any, ...], results: list[Tensor]) -> int:
    """Return the additions that torch's registry leaves out of products with a bias."""
    if name in ("addmm", "baddbmm") or (name == "convolution" and args[2] is not None):
        return results[0].numel()
    if name == "convolution_backward" and args[-1][2]:
        gradient: Tensor = args[0]
        return gradient.numel() - gradient.shape[1]
    return 0


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value
