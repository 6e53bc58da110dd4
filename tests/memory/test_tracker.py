import copy
import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from featherweight.errors import ConfigError
from featherweight.memory.ledger import CATEGORIES
from featherweight.memory.tracker import StorageTracker

SEED_AND_LOSS = 8  # bytes: the scalar loss, and the gradient 1 that torch.autograd.backward holds until it returns


class Block(nn.Module):
    """y = W2 relu(W1 x), square, without biases."""

    def __init__(self, width, generator):
        super().__init__()
        self.up = nn.Linear(width, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)
        for weight in self.parameters():
            nn.init.normal_(weight, std=width**-0.5, generator=generator)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def mlp(width=16, checkpointed=False):
    generator = torch.Generator().manual_seed(0)
    first, second = Block(width, generator), Block(width, generator)
    if not checkpointed:
        return nn.Sequential(first, second)

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x):
            for block in (self.first, self.second):
                x = checkpoint(block, x, use_reentrant=False)
            return x

    return Checkpointed()


def numel(module):
    return sum(parameter.numel() for parameter in module.parameters())


# Bytes of one (batch, width) activation are A, of one weight G. Alive while each operator of the backward pass runs,
# besides the 4 weights, loss and seed; the forward pass saved x, r1, u1, r2 (relu saves its result, linear its input):
#   down2: makes dW4 and dr2                              x r1 u1 r2  dr2        1G + 5A
#   relu2: still holds what it saved and got              x r1 u1 r2  dr2 dh2    1G + 6A
#   up2:   r2, dr2 are gone                               x r1 u1     dh2 du1    2G + 5A
#   down1: u1, dh2 are gone                               x r1        du1 dr1    3G + 4A
#   relu1: du1 is gone                                    x r1        dr1 dh1    3G + 4A
#   up1:   x needs no gradient                            x           dh1        4G + 2A
# In the forward pass x r1 u1 h2 r2 make 5A. With checkpointing only x and u1 are saved, [..] is recomputed:
#   relu2:                                                x u1 [r2]   dr2 dh2    1G + 5A
#   up2:                                                  x u1        dh2 du1    2G + 4A
#   relu1 once more, after u1 is gone                     x [h1 r1]   du1        2G + 4A
#   down1, relu1:                                         x [r1]      two        3G + 4A
#   up1:                                                  x           dh1        4G + 2A
@pytest.mark.parametrize(
    ("width", "batch", "checkpointed", "gradients", "activations"),
    [
        (16, 64, False, 1, 6),  # A = 4G: peak at relu2
        (64, 16, False, 4, 2),  # G = 4A: peak at up1
        (16, 64, True, 1, 5),
        (64, 16, True, 4, 2),
    ],
)
def test_peak_of_an_mlp_equals_the_hand_count_to_the_byte(width, batch, checkpointed, gradients, activations):
    model = mlp(width, checkpointed)
    x = torch.ones(batch, width)
    A, G = 4 * batch * width, 4 * width * width

    with StorageTracker(model) as tracker:
        loss = model(x).sum()
        loss.backward()

    assert tracker.peak_bytes == 4 * G + gradients * G + activations * A + SEED_AND_LOSS
    assert tracker.peak_phase == "backward"
    assert tracker.live_bytes == 4 * G + 4 * G + A + 4  # weights, gradients, x, loss
    peak = tracker.peak_by_category
    assert (peak["weights"], peak["gradients"], peak["inputs"]) == (4 * G, gradients * G, A)
    assert sum(peak.values()) == tracker.peak_bytes


def test_peak_equals_what_the_cpu_allocator_reports_to_the_profiler():
    # An independent witness: torch.profiler records every allocation and free of the allocator itself.
    model, x = mlp(), torch.ones(64, 16)
    options = {"activities": [torch.profiler.ProfilerActivity.CPU], "profile_memory": True, "acc_events": True}
    with torch.profiler.profile(**options) as profile:
        loss = model(x).sum()
        loss.backward()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    model.zero_grad()
    del loss

    with StorageTracker(model) as tracker:
        tracker.track(x, "inputs")
        before = tracker.live_bytes
        model(x).sum().backward()

    assert tracker.peak_bytes - before == peak


def test_fake_tensors_have_the_peak_of_real_ones():
    def measure():
        model, x = mlp(), torch.ones(64, 16)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        with StorageTracker(model, optimizer) as tracker:
            for _ in range(2):
                model(x).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        return tracker.peak_by_category, tracker.max_by_category

    real = measure()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = measure()
    assert fake == real


# -- gradients and optimizer state -------------------------------------------------------------------------------------


def test_gradients_are_the_sum_of_grads_and_vanish_with_set_to_none():
    model = mlp()
    with StorageTracker(model) as tracker:
        for _ in range(2):  # the second micro-step adds into the first one's gradients
            model(torch.ones(3, 16)).sum().backward()
            assert tracker.live_by_category["gradients"] == 4 * numel(model)
        model.zero_grad(set_to_none=False)
        assert tracker.live_by_category["gradients"] == 4 * numel(model)
        model.zero_grad(set_to_none=True)
        assert tracker.live_by_category["gradients"] == 0
    assert tracker.max_by_category["gradients"] == 4 * numel(model)


def test_gradient_that_autograd_copies_counts_once():
    parameter = nn.Parameter(torch.ones(8, 8))
    holder = nn.ParameterList([parameter])
    with StorageTracker(holder) as tracker:
        parameter.sum().backward()  # the gradient is one expanded number; autograd stores a dense copy of it
    assert tracker.live_by_category["gradients"] == 4 * 64


def test_sparse_gradient_counts_indices_and_values():
    table = nn.Embedding(100, 4, sparse=True)
    with StorageTracker(table) as tracker:
        table(torch.tensor([3, 5])).sum().backward()
    assert table.weight.grad.is_sparse
    assert tracker.live_by_category["gradients"] == 2 * 8 + 2 * 4 * 4  # two int64 indices, two rows of four fp32


@pytest.mark.parametrize("foreach", [False, True])
def test_adamw_state_is_two_moments_and_a_step_counter_to_the_byte(foreach):
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=foreach)
    with StorageTracker(model, optimizer) as tracker:
        model(torch.ones(3, 16)).sum().backward()
        optimizer.step()
        expected = 2 * 4 * numel(model) + 4 * len(list(model.parameters()))  # the step counter is one fp32 scalar
        assert tracker.live_by_category["optimizer_state"] == expected
        # The first step makes the moments; at its peak they are state already and not temporaries.
        assert tracker.peak_phase == "optimizer"
        assert tracker.peak_by_category["optimizer_state"] == expected

    with StorageTracker(model, optimizer) as again:
        assert again.live_by_category["optimizer_state"] == expected  # existing state is known from the start


@pytest.mark.parametrize(("weights", "temporaries"), [(1, 2), (4, 3)])
def test_unfused_adamw_makes_its_denominator_from_two_temporaries(weights, temporaries):
    model = nn.Sequential(*[nn.Linear(16, 16, bias=False) for _ in range(weights)])
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    with StorageTracker(model, optimizer) as tracker:
        for _ in range(2):
            model(torch.ones(1, 16)).sum().backward()
            tracker.reset_peak()  # leaves the optimizer step of the second round
            optimizer.step()
            optimizer.zero_grad()
    # denominator = (exp_avg_sq.sqrt() / bias_correction).add_(eps): root and quotient. With several weights the loop's
    # variable still holds the denominator of the one before.
    assert tracker.peak_by_category["temporaries"] == temporaries * 4 * 16 * 16


def test_optimizer_state_inside_containers_and_plain_objects_is_found():
    class Projector:
        def __init__(self, basis):
            self.basis = basis

    class Optimizer(torch.optim.SGD):
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter] = {
                    "projector": Projector(torch.ones(10)),
                    "nested": {"codes": [torch.ones(20, dtype=torch.uint8)]},
                    "itself": parameter,  # a reference to a weight stays a weight
                }

    layer = nn.Linear(4, 4, bias=False)
    optimizer = Optimizer(layer.parameters(), lr=0.1)
    with StorageTracker(layer, optimizer) as tracker:
        optimizer.step()
    assert tracker.live_by_category["optimizer_state"] == 10 * 4 + 20
    assert tracker.live_by_category["weights"] == 4 * 16


def test_gradients_freed_by_hooks_are_seen_one_at_a_time():
    model = mlp()
    optimizers = {weight: torch.optim.SGD([weight], lr=0.1) for weight in model.parameters()}

    def update(weight):
        optimizers[weight].step()
        weight.grad = None

    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(update)  # before the tracker's own hook
    with StorageTracker(model) as tracker:
        model(torch.ones(3, 16)).sum().backward()
    # Mutation: a tracker whose hook runs last finds None and counts temporaries.
    assert tracker.max_by_category["gradients"] == 4 * 16 * 16


def test_step_inside_backward_belongs_to_the_optimizer():
    layer = nn.Linear(16, 16, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters(), foreach=False)
    layer.weight.register_post_accumulate_grad_hook(lambda weight: optimizer.step())
    with StorageTracker(layer, optimizer) as tracker:
        layer(torch.ones(1, 16)).sum().backward()
    assert tracker.peak_phase == "optimizer"
    assert tracker.live_by_category["optimizer_state"] == 2 * 4 * 256 + 4


def test_closure_inside_step_keeps_its_phases():
    layer = nn.Linear(16, 16, bias=False)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=1)

    def closure():
        optimizer.zero_grad()
        loss = layer(torch.ones(64, 16)).square().sum()
        loss.backward()
        return loss

    with StorageTracker(layer, optimizer) as tracker:
        optimizer.step(closure)
    assert tracker.live_by_category["gradients"] == 4 * 256
    assert tracker.max_by_category["activations"] >= 4 * 64 * 16  # the output, saved by square()


# -- activations, temporaries, inputs ----------------------------------------------------------------------------------


def test_activations_are_what_backward_needs_and_the_rest_is_temporary():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(256))

        def forward(self, x):
            scaled = x * self.weight  # saves x and weight, not its result
            shifted = scaled + 1  # saves nothing
            return shifted.exp()  # saves its result

    layer = Layer()
    with StorageTracker(layer) as tracker:
        loss = layer(torch.ones(256)).sum()
        forward_peak = tracker.peak_bytes
        loss.backward()

    unit = 4 * 256
    assert forward_peak == 5 * unit  # weight, x, scaled, shifted, exp
    assert tracker.max_by_category["activations"] == unit + SEED_AND_LOSS
    assert tracker.max_by_category["temporaries"] == 2 * unit


def test_activations_of_a_custom_function_are_found_although_it_runs_without_grad():
    class Exp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            result = x.exp()
            ctx.save_for_backward(x * 2, result)
            return result

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[1]

    parameter = nn.Parameter(torch.ones(64))
    with StorageTracker(nn.ParameterList([parameter])) as tracker:
        shifted = parameter + 1  # outside of any module: a forward pass all the same
        Exp.apply(shifted).sum().backward()
    assert tracker.max_by_category["activations"] == 3 * 4 * 64 + SEED_AND_LOSS  # shifted, x * 2, exp


def test_recomputed_activations_are_activations():
    model = mlp(16, checkpointed=True)
    with StorageTracker(model) as tracker:
        model(torch.ones(64, 16)).sum().backward()
    assert (
        tracker.peak_by_category["activations"] >= 2 * 4 * 64 * 16
    )  # u1 and the recomputed r2 of the hand count above


def test_evaluation_without_grad_leaves_no_activations():
    model = mlp()
    with StorageTracker(model) as tracker, torch.no_grad():
        output = model(torch.ones(64, 16))
        assert tracker.live_by_category["temporaries"] == output.nbytes
    assert tracker.max_by_category["activations"] == 0
    assert tracker.peak_phase == "forward"


def test_tensors_given_to_the_model_are_inputs_and_the_rest_is_other():
    model = mlp()
    before = torch.ones(8, 16)
    with StorageTracker(model) as tracker:
        statistics = torch.ones(100)  # never given to the model
        inside = torch.ones(8, 16)
        model(before)
        model(inside)
        live = tracker.live_by_category
    assert live["inputs"] == before.nbytes + inside.nbytes
    assert live["other"] == statistics.nbytes


def test_logits_that_the_caller_keeps_stay_alive():
    model = mlp()
    with StorageTracker(model) as tracker:
        logits = model(torch.ones(8, 16))
        logits.sum().backward()
        kept = tracker.live_by_category["activations"]
        del logits
        assert kept - tracker.live_by_category["activations"] == 4 * 8 * 16


# -- storages ----------------------------------------------------------------------------------------------------------


def test_views_and_in_place_operators_add_nothing():
    with StorageTracker() as tracker:
        base = torch.zeros(10, 10)
        views = [base[2:], base.T, base.view(-1), base.detach(), base.expand(3, 10, 10), *base.split(2), base.data]
        base.add_(1).mul_(2).zero_()
        torch.add(base, 1, out=base)
        assert tracker.live_bytes == tracker.peak_bytes == 400
        del base
        assert tracker.live_bytes == 400  # the views hold it
        del views
        assert tracker.live_bytes == 0


def test_views_of_tensors_from_before_are_not_new():
    before = torch.zeros(10, 10)
    with StorageTracker() as tracker:
        kept = [before[1:], before.add_(1), before.flatten(), torch.ops.aten._unsafe_view(before, [100])]
        assert tracker.live_bytes == 0
    assert len(kept) == 4


def test_resized_storages_are_followed():
    with StorageTracker() as tracker:
        tensor = torch.empty(0)
        tensor.resize_(100)
        assert tracker.live_bytes == 400
        tensor.untyped_storage().resize_(0)  # how sharded training frees a weight
        assert tracker.live_bytes == 0
        tensor.untyped_storage().resize_(80)
        assert tracker.live_bytes == 80
        target = torch.empty(0)
        torch.mm(torch.ones(5, 2), torch.ones(2, 5), out=target)
        assert tracker.live_bytes == 80 + 100
        target.set_(tensor)  # brings the storage back to the size that the tensor's shape needs
        assert tracker.live_bytes == 400
    assert tracker.peak_bytes == 400


def test_constructors_conversions_and_set_count_as_new():
    with StorageTracker() as tracker:
        kept = [torch.tensor([1, 2]), torch.ones(3).to(torch.bfloat16), torch.ones(4).clone(), torch.eye(2)]
        assert tracker.live_bytes == 16 + 6 + 16 + 16
        kept[0].set_(torch.UntypedStorage(40))  # a storage that no operator made
        assert tracker.live_bytes == 40 + 6 + 16 + 16


def test_tied_weights_and_buffers_that_share_storage_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embedding.weight
            self.register_buffer("view", self.embedding.weight.detach()[0])
            self.register_buffer("scale", torch.ones(5))

    with StorageTracker(Tied()) as tracker:
        pass
    assert tracker.live_by_category == {**dict.fromkeys(CATEGORIES, 0), "weights": 160, "buffers": 20}


def test_subclass_counts_its_inner_tensors():
    from torch.testing._internal.two_tensor import TwoTensor

    with StorageTracker() as tracker:
        pair = TwoTensor(torch.ones(10), torch.ones(10))
        product = pair * 2
        assert tracker.live_bytes == 4 * 40
        del pair
        assert tracker.live_bytes == 2 * 40
    del product

    model = nn.ParameterList([nn.Parameter(TwoTensor(torch.ones(10), torch.ones(10)))])
    with StorageTracker(model) as tracker:
        (model[0] * 2).sum().backward()
    assert tracker.live_by_category["weights"] == tracker.live_by_category["gradients"] == 80


def test_transformed_functions_count_the_tensors_inside_their_wrappers():
    layer = nn.Linear(8, 8, bias=False)
    with StorageTracker(layer) as tracker:
        gradients = torch.func.vmap(torch.func.grad(lambda x: layer(x).sum()))(torch.ones(3, 8))
        del gradients
        peak = tracker.peak_bytes
    assert peak >= 4 * 64 + 2 * 4 * 3 * 8  # weight, inputs and their gradients
    assert tracker.live_bytes == 4 * 64


def test_random_program_leaves_exactly_the_storages_that_are_alive():
    # Slow twin: the distinct data pointers of the tensors that we hold. Thousands of frees also reuse addresses often.
    generator = torch.Generator().manual_seed(0)

    def draw(limit):
        return int(torch.randint(limit, (), generator=generator))

    before = torch.ones(7, 7)
    held: list[torch.Tensor] = []
    with StorageTracker() as tracker:
        for _ in range(1500):
            source = held[draw(len(held))] if held and draw(3) else before
            action = draw(6)
            if action == 0 and held:
                held.pop(draw(len(held)))
            elif action == 1 and held:
                del held[: draw(len(held))]
            elif action == 2:
                held.append(source.view(-1)[: 1 + draw(source.numel())])
            elif action == 3:
                source.mul_(0.5)
            else:
                held.append(source + 1)
        del source
        gc.collect()
        old = before.untyped_storage().data_ptr()
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
        assert tracker.live_bytes == sum(size for pointer, size in storages.items() if pointer != old) > 0


def test_rounding_counts_whole_blocks():
    with StorageTracker(rounding=512) as tracker:
        kept = [torch.ones(1), torch.ones(128), torch.ones(129), torch.ones(0)]
        assert tracker.live_bytes == 512 + 512 + 1024 + 0
    assert len(kept) == 4
    with pytest.raises(ConfigError, match="rounding=0 is no allocation unit"):
        StorageTracker(rounding=0)


def test_storages_on_other_devices_are_not_counted():
    with StorageTracker(device="cpu") as tracker:
        kept = torch.ones(100, device="meta")
    assert tracker.peak_bytes == 0 and kept.is_meta


# -- reports and context -----------------------------------------------------------------------------------------------


def test_top_allocations_name_size_operator_and_module():
    model = mlp()
    with StorageTracker(model) as tracker:
        model(torch.ones(64, 16)).sum().backward()
    largest = tracker.top_allocations(100)
    assert [one.size_bytes for one in largest] == sorted((one.size_bytes for one in largest), reverse=True)
    assert sum(one.size_bytes for one in largest) == tracker.peak_bytes
    made = {(one.op, one.module, one.shape) for one in largest}
    assert ("aten.relu.default", "0", (64, 16)) in made
    assert ("aten.mm.default", "0.down", (64, 16)) in made
    assert ("", "0.up.weight", (16, 16)) in made


def snapshot(model, optimizer):
    hooks = [
        (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._forward_hooks_always_called))
        for module in model.modules()
    ]
    gradients = [len(weight._post_accumulate_grad_hooks or ()) for weight in model.parameters()]
    steps = (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks))
    return hooks, gradients, steps, torch.UntypedStorage.resize_, torch._C._len_torch_dispatch_stack()


def test_an_exception_inside_restores_everything():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        with StorageTracker(model, optimizer) as tracker:
            assert snapshot(model, optimizer) != before
            model(torch.ones(3, 5))  # wrong width: fails deep inside the modules
    assert snapshot(model, optimizer) == before
    assert tracker.live_by_category["weights"] == 4 * numel(model)
    with StorageTracker(model, optimizer):  # the next measurement may start
        pass


def test_an_error_caught_inside_leaves_no_module_behind():
    model = mlp()
    with StorageTracker(model) as tracker:
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            model(torch.ones(3, 5))
        tracker.reset_peak()
        kept = torch.ones(1000)
    largest = tracker.top_allocations(1)[0]
    assert (largest.size_bytes, largest.module) == (kept.nbytes, "")  # not "0.up", where the error came from


def test_figures_stay_after_the_context():
    with StorageTracker() as tracker:
        kept = torch.ones(10)
    del kept
    assert tracker.live_bytes == 40


def test_nested_and_repeated_use_is_refused():
    with StorageTracker() as tracker:
        with pytest.raises(ConfigError, match="inside another measurement"):
            with StorageTracker():
                pass
        kept = torch.ones(5)  # the outer one goes on
        assert tracker.live_bytes == 20
    with pytest.raises(ConfigError, match="used before"):
        with tracker:
            pass
    del kept


@pytest.mark.parametrize("checkpointed", [False, True])
def test_tracking_changes_no_bit_of_losses_and_weights(checkpointed):
    def train(model, track):
        torch.manual_seed(0)  # dropout draws from the global generator
        model = nn.Sequential(model, nn.Dropout(0.5))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        losses = []
        tracker = StorageTracker(model, optimizer) if track else torch.enable_grad()
        with tracker:
            for _ in range(3):
                loss = model(torch.ones(8, 16)).square().sum()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        return losses, list(model.parameters())

    model = mlp(checkpointed=checkpointed)
    losses, weights = train(copy.deepcopy(model), track=False)
    tracked_losses, tracked_weights = train(copy.deepcopy(model), track=True)
    assert losses == tracked_losses
    assert all(torch.equal(a, b) for a, b in zip(weights, tracked_weights, strict=True))
