"""`fastloss.torch` against PyTorch: its gradcheck, its own losses, its compiler."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to adapt to")

import data  # noqa: E402
import fastloss  # noqa: E402
import fastloss.torch  # noqa: E402
from fastloss import losses  # noqa: E402
from fastloss.registry import BATCH_LOSSES, LOSSES  # noqa: E402

ROWS = [pytest.param(row, id=name) for name, row in {**LOSSES, **BATCH_LOSSES}.items()]
SOME = ["mean_squared_error", "sparse_categorical_crossentropy", "triplet_semihard_loss"]


def inputs(row, options, size=4, dtype=torch.float64):
    """Predictions that need a gradient, and targets."""
    if row.name in BATCH_LOSSES:
        y, p = data.batch_inputs(row, options, size)
    else:
        y, p = data.inputs(row, options, (size, 3))
    target = torch.from_numpy(np.ascontiguousarray(y))
    if target.is_floating_point():
        target = target.to(dtype)
    return torch.from_numpy(p).to(dtype).requires_grad_(), target


def reduced(row, **options):
    return row.cls(**{**row.variants[0], "reduction": "sum_over_batch_size", **options})


@pytest.mark.parametrize("row", ROWS)
def test_gradcheck(row):
    criterion = fastloss.torch.wrap(reduced(row))
    p, t = inputs(row, row.variants[0])
    assert torch.autograd.gradcheck(lambda p: 2 * criterion(p, t), p)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("reduction", ["sum", "mean_with_sample_weight", "none"])
def test_gradcheck_of_reductions_and_weights(name, reduction):
    row = {**LOSSES, **BATCH_LOSSES}[name]
    criterion = fastloss.torch.wrap(name, reduction=reduction)
    p, t = inputs(row, {})
    weight = torch.tensor(0.7 if row.name in BATCH_LOSSES else [0.5, 1.0, 0.0, 2.0], dtype=torch.float64)
    flow = torch.tensor([0.3, 2.0, 1.0, -1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: flow[: max(criterion(p, t).ndim, 1) * 4] * criterion(p, t, weight), p)


def test_training_is_that_of_torchs_own_loss():
    def train(criterion):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        optimizer = torch.optim.Adam(net.parameters(), 0.05)
        x, t = torch.randn(32, 6), torch.rand(32, 3)
        history = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = criterion(net(x), t)
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        return history

    found = train(fastloss.torch.wrap("huber", delta=0.5))
    np.testing.assert_allclose(found, train(torch.nn.HuberLoss(delta=0.5)), rtol=2e-5)
    assert found[-1] < found[0]


class Spy:
    """A loss that notes what it is called with, and what it returns."""

    def __init__(self, monkeypatch, cls=losses.MeanSquaredError):
        self.values, self.gradients = [], []
        value, both = cls.__call__, cls.value_and_grad

        def call(loss, y_true, y_pred, **arguments):
            self.values.append(y_pred)
            return value(loss, y_true, y_pred, **arguments)

        def value_and_grad(loss, y_true, y_pred, **arguments):
            result = both(loss, y_true, y_pred, **arguments)
            self.gradients.append((y_pred, result[1]))
            return result

        monkeypatch.setattr(cls, "__call__", call)
        monkeypatch.setattr(cls, "value_and_grad", value_and_grad)


def test_memory_is_shared_from_predictions_to_gradient(monkeypatch):
    spy = Spy(monkeypatch)
    criterion = fastloss.torch.wrap("mse")
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        p = torch.ones(4, 3, dtype=dtype, requires_grad=True)
        criterion(p, torch.zeros(4, 3)).backward()
        seen, gradient = spy.gradients.pop()
        assert seen.ctypes.data == p.data_ptr()
        assert gradient.ctypes.data == p.grad.data_ptr(), "a gradient that comes with 1 is handed on, not scaled"
    assert not spy.values
    assert not spy.gradients


def test_no_gradient_is_computed_where_none_is_needed(monkeypatch):
    spy = Spy(monkeypatch)
    criterion = fastloss.torch.wrap("mse")
    p, t = torch.ones(4, 3, requires_grad=True), torch.zeros(4, 3)
    with torch.no_grad():
        assert not criterion(p, t).requires_grad
    with torch.inference_mode():
        criterion(p, t)
    criterion(p.detach(), t)
    assert len(spy.values) == 3
    assert not spy.gradients


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    name = "mean_squared_error"
    p, t = inputs(LOSSES[name], {}, dtype=torch.float32)
    half = p.detach().to(dtype).requires_grad_()
    wide = half.detach().float().requires_grad_()
    criterion = fastloss.torch.wrap(name)
    for x in (half, wide):
        loss = criterion(x, t)
        assert loss.dtype == torch.float32
        (loss * 0.75).backward()
    assert half.grad.dtype == dtype
    torch.testing.assert_close(half.grad.float(), wide.grad, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
    assert fastloss.torch.wrap(name, dtype="bfloat16")(wide, t).dtype == torch.bfloat16


def test_a_scaled_loss_keeps_small_gradients_in_float16():
    p = torch.full((1, 4000), 1e-3, dtype=torch.float16, requires_grad=True)
    fastloss.torch.wrap("mse")(p, torch.zeros(1, 4000)).backward()
    coarse, p.grad = p.grad, None
    scale = 65536.0
    (fastloss.torch.wrap("mse")(p, torch.zeros(1, 4000)) * scale).backward()
    compiled, p.grad = p.grad, None
    criterion = torch.compile(fastloss.torch.wrap("mse"), fullgraph=True, backend="aot_eager")
    (criterion(p, torch.zeros(1, 4000)) * scale).backward()
    torch.testing.assert_close(p.grad, compiled)
    exact = 2 * p.detach().double() / 4000
    torch.testing.assert_close(p.grad.double() / scale, exact, rtol=1e-3, atol=0)
    assert ((coarse.double() - exact).abs() / exact).min() > 0.01


def test_autocast():
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 3)
    x, t = torch.randn(8, 6), torch.randint(0, 3, (8,))
    found = []
    for criterion in (fastloss.torch.wrap(SOME[1], from_logits=True), torch.nn.CrossEntropyLoss()):
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = net(x)
            loss = criterion(out, t)
        assert out.dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        loss.backward()
        found.append((loss.detach(), net.weight.grad.clone()))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0.02, atol=1e-3)


def test_strided_tensors():
    criterion = fastloss.torch.wrap("mse")
    base = torch.arange(24.0).reshape(4, 6)
    for view in (lambda x: x.T, lambda x: x[::2, 1:4], lambda x: x[:1].expand(5, 6)):
        p, t = base.clone().requires_grad_(), torch.ones(())
        q = base.clone().requires_grad_()
        ours, theirs = criterion(view(p), t.expand_as(view(p))), ((view(q) - t) ** 2).mean()
        torch.testing.assert_close(ours, theirs)
        ours.backward()
        theirs.backward()
        torch.testing.assert_close(p.grad, q.grad)


def test_a_gradient_may_be_asked_for_twice():
    p, t = torch.ones(4, 3, requires_grad=True), torch.zeros(4, 3)
    loss = fastloss.torch.wrap("mse")(p, t)
    loss.backward(retain_graph=True)
    first = p.grad.clone()
    p.grad.zero_()
    loss.backward()
    torch.testing.assert_close(p.grad, first)


def test_targets_that_change_before_the_backward_pass():
    p, t = torch.ones(4, 3, requires_grad=True), torch.zeros(4, 3)
    value = fastloss.torch.wrap("mse", reduction="none")(p, t).sum()
    t += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_a_second_derivative_is_refused():
    p, t = torch.ones(4, 3, requires_grad=True), torch.zeros(4, 3)
    for reduction in ("sum", "none"):
        value = fastloss.torch.wrap("mse", reduction=reduction)(p, t).sum()
        (gradient,) = torch.autograd.grad(value, p, create_graph=True)
        with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
            (gradient**2).sum().backward()


def test_masks_class_weights_and_lengths():
    criterion = fastloss.torch.wrap(SOME[1], from_logits=True)
    p, t = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 0, 1, 9])
    mask, weights = t < 9, torch.tensor([1.0, 2.0, 0.5]).double()
    loss = criterion(p, t, mask=mask, class_weight=weights)
    loss.backward()
    expected = (torch.nn.functional.cross_entropy(p[:5], t[:5], reduction="none") * weights[t[:5]]).sum() / 5
    torch.testing.assert_close(loss, expected)
    assert (p.grad[5] == 0).all()
    frames, labels = torch.randn(2, 5, 3).double(), torch.tensor([[1, 2], [1, 0]])
    lengths = {"input_lengths": torch.tensor([5, 3]), "label_lengths": torch.tensor([2, 1])}
    ours = fastloss.torch.wrap("ctc", reduction="none")(frames, labels, **lengths)
    logs = frames.log_softmax(-1).transpose(0, 1)
    torch.testing.assert_close(ours, torch.nn.functional.ctc_loss(logs, labels, *lengths.values(), reduction="none"))


# --------------------------------------------------------------------------------------------------------------
# torch.compile
# --------------------------------------------------------------------------------------------------------------


class Quartic(losses.Loss):
    """A loss that no config finds."""

    def call_with_grad(self, y_true, y_pred):
        e = y_pred - y_true
        return np.mean(e**4, axis=-1), 4 * e**3 / e.shape[-1]


@pytest.mark.parametrize(
    "criterion",
    [
        fastloss.torch.wrap(SOME[1]),
        fastloss.torch.wrap("mse", reduction="none"),
        fastloss.torch.wrap("triplet_semihard_loss"),
        fastloss.torch.wrap(Quartic()),
    ],
    ids=lambda criterion: criterion.loss.name,
)
def test_compiled_without_a_graph_break(criterion):
    def step(x, t, weight):
        return (criterion(2 * x, t, weight) * 3).sum()

    torch._dynamo.reset()  # it counts how often `step` was compiled, whatever the criterion
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    dense = isinstance(criterion.loss, losses.MeanSquaredError | Quartic)
    for size in (6, 8):
        x = torch.rand(size, 5, dtype=torch.float64, requires_grad=True)
        t = torch.rand(size, 5, dtype=torch.float64) if dense else torch.arange(size) % 3
        weight = torch.rand(() if isinstance(criterion.loss, losses.TripletSemiHardLoss) else size).double()
        value = step(x, t, weight)
        value.backward()
        expected, x.grad = x.grad, None
        found = compiled(x, t, weight)
        found.backward()
        torch.testing.assert_close(found, value)
        torch.testing.assert_close(x.grad, expected)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, t, weight), value)


def test_operators_are_what_torch_expects():
    sums = fastloss.torch.wrap("mse")
    each = fastloss.torch.wrap("mse", reduction="none")
    p, t = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    static = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(fastloss.torch._value_and_grad, (p, [t], "y_true", sums._handle), test_utils=static)
    torch.library.opcheck(fastloss.torch._waiting, (p, [t], "y_true", each._handle))
    torch.library.opcheck(fastloss.torch._value, (p.detach(), [t], "y_true", sums._handle))


def test_the_operators_gradient_is_not_differentiated():
    criterion = fastloss.torch.wrap("mse")
    p, t = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    value, _ = fastloss.torch._value_and_grad(p, [t], "y_true", criterion._handle)
    (gradient,) = torch.autograd.grad(value, p, create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        gradient.sum().backward()


# --------------------------------------------------------------------------------------------------------------
# torch.func
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "none"])
def test_gradients_of_each_sample(reduction):
    torch.manual_seed(0)
    ours = fastloss.torch.wrap(SOME[1], from_logits=True, reduction=reduction)
    net = torch.nn.Linear(6, 3)
    x, t, weight = torch.randn(5, 6), torch.randint(0, 3, (5,)), torch.tensor(0.5)

    def slopes(criterion):
        def value(parameters, x, t):
            return criterion(torch.func.functional_call(net, parameters, (x[None],)), t[None]).sum()

        return torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0))(dict(net.named_parameters()), x, t)

    found = slopes(lambda out, t: ours(out, t, weight))
    expected = slopes(lambda out, t: 0.5 * torch.nn.functional.cross_entropy(out, t))
    for name, slope in expected.items():
        torch.testing.assert_close(found[name], slope)


def test_a_map_within_a_gradient():
    criterion = fastloss.torch.wrap("mse")
    p, t = torch.randn(4, 3, requires_grad=True), torch.randn(3)
    each = torch.func.vmap(criterion, in_dims=(0, None))
    torch.testing.assert_close(each(p, t), ((p - t) ** 2).mean(1))
    (2 * each(p, t)).sum().backward()
    expected = 4 * (p.detach() - t) / 3
    torch.testing.assert_close(p.grad, expected)
    torch.testing.assert_close(torch.func.grad(lambda p: 2 * each(p, t).sum())(p.detach()), expected)
    pull = torch.func.vjp(lambda p: criterion(p, t), p.detach()[0])[1]
    torch.testing.assert_close(pull(torch.tensor(6.0))[0], expected[0] * 3)


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # PyTorch's own, where it first computes forwards
def test_what_transformations_cannot_do():
    p = torch.ones(4, 3)
    for reduction in ("sum", "none"):
        criterion = fastloss.torch.wrap("mse", reduction=reduction)

        def value(p, criterion=criterion):
            return criterion(p, torch.zeros(4, 3)).sum()

        with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
            torch.func.jacrev(torch.func.grad(value))(p)
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
            torch.func.jvp(value, (p,), (p,))
    with pytest.raises(ValueError, match="`target` needs a gradient"):
        torch.func.grad(lambda t: fastloss.torch.wrap("mse")(p, t))(p)


# --------------------------------------------------------------------------------------------------------------
# CUDA tensors, imitated: tests/cuda/test_gpu.py has real ones
# --------------------------------------------------------------------------------------------------------------


class OnDevice(torch.Tensor):
    """A tensor of the CPU that says it is on a CUDA device, and lets nobody look into it."""

    is_cpu, is_cuda = False, True
    device = torch.device("cuda", 0)

    def __dlpack_device__(self):
        return 2, 0

    def numpy(self):
        raise AssertionError("copied to the host")

    item = cpu = tolist = __array__ = numpy

    def host(self):
        return self.as_subclass(torch.Tensor).detach().numpy()


@pytest.fixture
def calls(monkeypatch):
    """What the CUDA kernels are asked for, where those of the CPU do the work."""
    pytest.importorskip("numba.cuda.core", reason="needs the extra fastloss[cuda]")
    from fastloss.losses import device

    noted = []

    def evaluate(loss, outputs, y_true, y_pred, sample_weight, mask, class_weight, upstream, out):
        assert not any(x.requires_grad for x in (y_true, y_pred))
        noted.append((outputs, upstream))
        arrays = [None if x is None else x.host() for x in (sample_weight, mask)]
        arrays.append(class_weight)
        arrays.append(None if upstream is None else upstream.as_subclass(torch.Tensor).numpy())
        found = loss._evaluate(outputs, y_true.host(), y_pred.host(), *arrays, None, None)
        return tuple(None if x is None else torch.from_numpy(np.array(x)).as_subclass(OnDevice) for x in found)

    monkeypatch.setattr(device, "evaluate", evaluate)
    return noted


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_cuda_tensors_go_to_cuda_kernels(reduction, dtype, calls):
    criterion = fastloss.torch.wrap("mse", reduction=reduction)
    p, t = torch.randn(4, 3).to(dtype), torch.randn(4, 3)
    weight = torch.tensor([1.0, 0.5, 2.0, 0.0])
    arguments = [x.as_subclass(OnDevice) for x in (t, weight)]
    leaf = p.clone().as_subclass(OnDevice).requires_grad_()
    value = criterion(leaf, *arguments)
    assert isinstance(value, OnDevice)
    flow = torch.full(value.shape, 3.0)
    value.backward(flow.as_subclass(OnDevice))
    waits = reduction == "none" or dtype is torch.float16
    assert [outputs for outputs, _ in calls] == ([0, 1] if waits else [1])
    assert [upstream is not None for _, upstream in calls] == ([False, True] if waits else [False])
    p.requires_grad_()
    expected = criterion(p, t, weight)
    expected.backward(flow)
    torch.testing.assert_close(value.as_subclass(torch.Tensor), expected)
    torch.testing.assert_close(leaf.grad.as_subclass(torch.Tensor), p.grad)
    with torch.no_grad():
        criterion(leaf, *arguments)
    assert calls[-1] == (0, None)


def test_operators_take_cuda_tensors(calls):
    criterion = fastloss.torch.wrap("mse")
    p, t = torch.randn(4, 3), torch.randn(4, 3)
    value, gradient = fastloss.torch._value_and_grad_op(
        p.as_subclass(OnDevice), [t.as_subclass(OnDevice)], "y_true", criterion._handle
    )
    assert type(value) is type(gradient) is OnDevice
    torch.testing.assert_close(gradient.as_subclass(torch.Tensor), 2 * (p - t) / 12)


def test_fake_cuda_tensors_are_traced():
    from torch._subclasses import FakeTensorMode

    criterion = fastloss.torch.wrap("mse")
    with FakeTensorMode():
        p, t = torch.empty(4, 3, device="cuda"), torch.empty(4, 3, device="cuda")
        value, gradient = fastloss.torch._value_and_grad(p, [t], "y_true", criterion._handle)
    assert value.device == gradient.device == torch.device("cuda", 0)
    assert (value.shape, gradient.shape) == ((), (4, 3))


def test_devices_do_not_mix(calls):
    criterion = fastloss.torch.wrap("sparse_categorical_crossentropy", from_logits=True)
    p, t = torch.randn(4, 3).as_subclass(OnDevice), torch.arange(4) % 3
    with pytest.raises(ValueError, match="`target` is on cpu, but `input` is on cuda:0"):
        criterion(p, t)
    weights = torch.tensor([1.0, 2.0, 0.5])
    t = t.as_subclass(OnDevice)
    found = criterion(p, t, class_weight=weights).as_subclass(torch.Tensor)
    torch.testing.assert_close(found, criterion(torch.from_numpy(p.host()), torch.arange(4) % 3, class_weight=weights))


# --------------------------------------------------------------------------------------------------------------
# Modules, and errors
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_modules_are_copied_and_pickled(row):
    module = torch.nn.Sequential(fastloss.torch.wrap(row.cls(**row.variants[-1])))
    assert not module.state_dict()
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other[0].loss.get_config() == module[0].loss.get_config()
        assert other[0]._handle == module[0]._handle
    handle = module[0]._handle
    read = fastloss.torch._losses.pop(handle)
    assert fastloss.torch._find(handle).get_config() == read.get_config(), "a config is read in any process"
    assert repr(module[0].loss) in repr(module)


def test_a_handle_of_another_process():
    module = fastloss.torch.wrap(Quartic())
    fastloss.torch._losses.pop(module._handle)
    with pytest.raises(RuntimeError, match="compile it again"):
        fastloss.torch._find(module._handle)
    p = torch.ones(2, 2, requires_grad=True)
    copy.deepcopy(module)(p, torch.zeros(2, 2)).backward()
    assert (p.grad == 1).all()


def test_wrap_takes_what_names_a_loss():
    assert fastloss.torch.wrap("Huber", delta=2.0).loss.delta == 2
    assert fastloss.torch.wrap(losses.huber).loss.delta == 1
    assert fastloss.torch.wrap(losses.Huber, delta=3).loss.delta == 3
    assert fastloss.torch.wrap({"class_name": "Huber", "config": {"delta": 2.0}}).loss.delta == 2
    with pytest.raises(TypeError, match="options are for losses given by name or class, got delta"):
        fastloss.torch.wrap(losses.Huber(), delta=2.0)
    with pytest.raises(ValueError, match="Could not interpret loss identifier: 'hubert'; did you mean"):
        fastloss.torch.wrap("hubert")
    for wrong in (None, 3, losses.Weighted(["mse"])):
        with pytest.raises(TypeError, match="`loss` must be a loss of one output"):
            fastloss.torch.wrap(wrong)


def test_errors_name_the_argument():
    criterion = fastloss.torch.wrap("mse")
    p, t = torch.ones(4, 3, requires_grad=True), torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"`target` needs a gradient.*pass target.detach\(\)"):
        criterion(p, t.clone().requires_grad_())
    with pytest.raises(ValueError, match="`weight` needs a gradient"):
        criterion(p, t, torch.ones(4, requires_grad=True))
    with pytest.raises(TypeError, match=r"`input` must be a torch.Tensor, got ndarray"):
        criterion(np.ones((4, 3)), t)
    with pytest.raises(ValueError, match="shape"):
        criterion(p, torch.zeros(4, 2))
    with pytest.raises(NotImplementedError, match="`input` is on meta"):
        criterion(p.to("meta"), t)
    with pytest.raises(ValueError, match="`target` is on meta, but `input` is on the CPU"):
        criterion(p, t.to("meta"))
    with pytest.raises(TypeError, match="nothing"):
        criterion(p, t, nothing=t)
