"""What the solvers share: time grid, step rules, gradients, noise, counted evaluations, presets, bad input."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from vfmbench.baselines.flowchef import FlowChef
from vfmbench.baselines.flowdps import FlowDPS
from vfmbench.baselines.guidance import data_gradient, directed, draws, time_grid, unit
from vfmbench.baselines.latent_daps import LatentDAPS
from vfmbench.baselines.latent_dps import LatentDPS
from vfmbench.baselines.mpgd import MPGD
from vfmbench.baselines.psld import PSLD
from vfmbench.baselines.unguided import Unguided
from vfmbench.config import RunConfig
from vfmbench.domains import IMAGES
from vfmbench.errors import MissingError, UserError
from vfmbench.interfaces import MethodGrid
from vfmbench.options import validate
from vfmbench.randomness import PhiloxNoise, sample_rows
from vfmbench.registry import samplers, suites
from vfmbench.running.plan import plan

from .checks import advance, build
from .toys import CPU, PROBLEMS, Float64Noise, ToySuite, measure, random_suite, toy_task

SOLVERS = [Unguided, LatentDPS, LatentDAPS, PSLD, MPGD, FlowChef, FlowDPS]
NAMES = {"unguided", "latent_dps", "latent_daps", "psld", "mpgd", "flowchef", "flowdps"}


def test_every_solver_is_registered():
    assert {samplers.get(name) for name in NAMES} == set(SOLVERS)


# Time grid.


def test_time_grid_is_uniform():
    assert list(time_grid(4)) == [(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]
    assert list(time_grid(1)) == [(1.0, 0.0)]


@pytest.mark.parametrize("shift", [0.1, 0.5, 3.0, 4.0])
def test_shifted_time_grid(shift):
    grid = list(time_grid(28, shift))
    assert [t for t, _ in grid[1:]] == [t_next for _, t_next in grid[:-1]]
    assert (grid[0][0], grid[-1][1]) == (pytest.approx(1.0), 0.0)
    assert grid[7][0] == pytest.approx(shift * 0.75 / (1 + (shift - 1) * 0.75))
    # The shift adds log(shift) to the logarithm of the signal-to-noise ratio, whatever the step.
    assert grid[14][0] / (1 - grid[14][0]) == pytest.approx(shift)


@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_euler_is_exact_for_a_straight_path_on_any_grid(shift):
    """v = z - x_0, the same at all times: any grid goes from z to x_0."""
    target = torch.full((1, 8, 8), 0.3, dtype=torch.float64)
    network = torch.nn.Module()
    network.forward = lambda x, t, r, label: (x - target) / t[:, None, None, None]
    measurement = measure("denoise")
    solver = build(Unguided, ToySuite(network, (1, 8, 8), 0), {"steps": 7, "shift": shift})
    steps = list(solver.trajectory(measurement, Float64Noise(measurement.index)))
    assert len(steps) == 7
    assert (steps[-1].state - target).abs().max() < 1e-12
    start = Float64Noise(measurement.index).normal((1, 8, 8), 0)
    for (_, t_next), step in zip(time_grid(7, shift), steps, strict=True):
        assert (step.state - (t_next * start + (1 - t_next) * target)).abs().max() < 1e-12


# Step rules and gradients.


def test_unit_is_per_sample_and_leaves_zero():
    gradient = torch.zeros(3, 2, 2, 2)
    gradient[1] = 3.0
    gradient[2, 0, 0, 1] = -1e-6
    lengths = unit(gradient).flatten(1).norm(dim=1)
    assert lengths.tolist() == pytest.approx([0.0, 1.0, 1.0])
    assert unit(gradient)[2, 0, 0, 1] == -1


def test_rules_of_a_step():
    gradient = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 2.0]]]])
    residual_norm = torch.tensor([10.0, 0.0])
    assert directed(gradient, residual_norm, "unit").flatten(1).tolist() == [pytest.approx([0.6, -0.8]), [0.0, 1.0]]
    assert directed(gradient, residual_norm, "sign").flatten(1).tolist() == [[1.0, -1.0], [0.0, 1.0]]
    assert directed(gradient, residual_norm, "residual")[0].flatten().tolist() == pytest.approx([0.3, -0.4])
    # Where the residual is zero, so is its gradient.
    assert directed(torch.zeros(1, 1, 1, 2), torch.zeros(1), "residual").abs().max() == 0


@pytest.mark.parametrize("codec", ["identity", "autoencoder"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_gradient_of_the_data_term_against_finite_differences(problem, codec):
    suite, measurement = random_suite(codec), measure(problem)
    solver = build(LatentDPS, suite, {})
    generator = torch.Generator().manual_seed(2)
    latents, direction = torch.randn((2, 4, *suite.latent_shape), generator=generator, dtype=torch.float64)

    def half_squares(z):
        return 0.5 * measurement.residual(suite.decode(z)).square().flatten(1).sum(1)

    gradient, residual_norm = solver.clean_gradient(latents, measurement)
    slope = (half_squares(latents + 1e-6 * direction) - half_squares(latents - 1e-6 * direction)) / 2e-6
    assert (gradient * direction).flatten(1).sum(1).tolist() == pytest.approx(slope.tolist(), rel=1e-6)
    assert residual_norm.square().tolist() == pytest.approx((2 * half_squares(latents)).tolist())
    if codec == "identity":
        assert torch.equal(data_gradient(measurement, latents)[0], gradient)


@pytest.mark.parametrize("codec", ["identity", "autoencoder"])
@pytest.mark.parametrize("problem", ["super_resolution", "hdr", "phase_retrieval"])
def test_gradient_through_the_network_against_finite_differences(problem, codec):
    suite, measurement = random_suite(codec), measure(problem)
    solver = build(LatentDPS, suite, {"rule": "residual"})
    generator = torch.Generator().manual_seed(2)
    x, direction = torch.randn((2, 4, *suite.latent_shape), generator=generator, dtype=torch.float64)

    def norm(x):
        clean = x - 0.6 * suite.velocity(x, 0.6, measurement.label, 2.0)
        return measurement.residual(suite.decode(clean)).flatten(1).norm(dim=1)

    correction = solver.estimate(x, 0.6, measurement.label).euler(0.5) - solver.step(x, 0.6, 0.5, measurement, None).state
    slope = (norm(x + 1e-6 * direction) - norm(x - 1e-6 * direction)) / 2e-6
    assert (correction * direction).flatten(1).sum(1).tolist() == pytest.approx(slope.tolist(), rel=1e-5)


@pytest.mark.parametrize("solver_class", SOLVERS)
def test_no_graph_outlives_its_step(solver_class):
    measurement = measure("super_resolution")
    noise = Float64Noise(measurement.index)
    with torch.enable_grad():
        for step in advance(build(solver_class, random_suite("autoencoder"), {}), measurement, noise):
            assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in step)


# Noise.


@pytest.mark.parametrize("at_once", [1, 3])
def test_draws_are_fresh_and_do_not_depend_on_the_batch(at_once):
    index = torch.arange(3)
    together = draws(PhiloxNoise(0, "sampling", *sample_rows(index, range(2))), (1, 2, 2), at_once)
    alone = draws(PhiloxNoise(0, "sampling", torch.tensor([1]), torch.tensor([1])), (1, 2, 2), at_once)
    numbers = [together() for _ in range(8)]
    assert all(torch.equal(number[3:4], alone()) for number in numbers)
    assert torch.stack(numbers).unique().numel() == 8 * 6 * 4


@pytest.mark.parametrize("solver_class", SOLVERS)
def test_samples_of_one_image_differ_and_can_be_drawn_apart(solver_class):
    """A run draws an image's samples in several calls if they do not fit into one batch."""
    measurement = measure("super_resolution")
    solver = build(solver_class, random_suite(), {"steps": 2})

    def sample(chosen):
        noise = PhiloxNoise(0, "sampling", *sample_rows(measurement.index, chosen))
        double = type("Double", (), {"normal": lambda self, shape, draw: noise.normal(shape, draw).double()})()
        return solver.sample(measurement, len(chosen), double).images

    whole = sample(range(3))
    assert torch.allclose(torch.cat([sample(range(2)), sample(range(2, 3))], 1), whole, rtol=0, atol=1e-9)
    for first, second in pairwise(whole.unbind(1)):
        assert ((first - second).flatten(1).norm(dim=1) > 0.1).all()


# Evaluations.

N = 6
LEDGER = {
    # Rows a sample through: network, network back, decoder, decoder back, encoder, encoder back.
    "unguided": (Unguided, {"steps": N}, (2 * N, 0, 1, 0, 0, 0)),
    "dps": (LatentDPS, {"steps": N}, (2 * N, 2 * N, N + 1, N, 0, 0)),
    "mpgd": (MPGD, {"steps": N}, (2 * N, 0, N + 1, N, 0, 0)),
    "flowchef": (FlowChef, {"steps": N}, (2 * N, 0, N + 1, N, 0, 0)),
    "flowchef-two": (FlowChef, {"steps": N, "inner_steps": 2}, (2 * N, 0, 2 * N + 1, 2 * N, 0, 0)),
    "flowchef-not-last": (FlowChef, {"steps": N, "guide_last": False}, (2 * N, 0, N, N - 1, 0, 0)),
    "flowdps": (FlowDPS, {"steps": N}, (2 * N, 0, 3 * N + 1, 3 * N, 0, 0)),
    "psld": (PSLD, {"steps": N}, (2 * N, 2 * N, N + 1, N, N, N)),
    "no-guidance": (LatentDPS, {"steps": N, "guidance_scale": 1.0}, (N, N, N + 1, N, 0, 0)),
    "null-label": (PSLD, {"steps": N, "label": "null"}, (N, N, N + 1, N, N, N)),
    "daps": (
        LatentDAPS,
        {"steps": 3, "ode_steps": 5, "langevin_steps": 4, "learning_rate": 1e-3},
        (2 * 15, 0, 12 + 1, 12, 0, 0),
    ),
    # The largest curvature: one gradient and eight iterations at first, two iterations at the other levels; an iteration
    # decodes two latents and goes back once.
    "daps-automatic": (
        LatentDAPS,
        {"steps": 3, "ode_steps": 5, "langevin_steps": 4},
        (2 * 15, 0, 12 + 1 + (1 + 16) + 2 * 4, 12 + (1 + 8) + 2 * 2, 0, 0),
    ),
}


@pytest.mark.parametrize("case", LEDGER)
def test_evaluations_are_as_many_as_the_method_needs(case):
    """Rows seen by hooks on the networks themselves, and by the meter."""
    solver_class, options, expected = LEDGER[case]
    suite, measurement = random_suite("autoencoder"), measure("super_resolution")
    seen, hooks = dict.fromkeys(range(6), 0), []
    for number, network in enumerate((suite.network, suite.decoder, suite.encoder)):

        def forwards(module, inputs, output, key=2 * number):
            seen[key] += len(output)

        def backwards(module, inputs, outputs, key=2 * number + 1):
            seen[key] += len(outputs[0])

        hooks += [network.register_forward_hook(forwards), network.register_full_backward_hook(backwards)]
    solver = build(solver_class, suite, options)
    try:
        solver.sample(measurement, 3, Float64Noise(measurement.index, 3))
    finally:
        for hook in hooks:
            hook.remove()
    assert [count / 12 for count in seen.values()] == list(expected)
    cost = solver.meter.per_sample(12)
    counted = (cost.network_forwards, cost.network_vjps, cost.decoder_forwards, cost.decoder_vjps)
    assert (*counted, cost.encoder_forwards, cost.encoder_vjps) == expected


# The shipped digits, in float32.


@pytest.fixture(scope="module")
def digits():
    suite = suites.get("digits")({})
    images, label = suite.dataset("validation").load(range(4))
    index = torch.arange(4)
    return suite, suite.task("super_resolution", {}).measure(IMAGES.restore(images), label, index, seed=0)


@pytest.mark.parametrize(
    ("name", "off"),
    [(name, {"step_size": 0.0}) for name in ("latent_dps", "mpgd", "flowchef", "flowdps")]
    + [("psld", {"omega": 0.0, "gamma": 0.0})],
)
def test_zero_strength_on_digits(digits, name, off):
    suite, measurement = digits
    sampler_class = samplers.get(name)
    noise = PhiloxNoise(0, "sampling", *sample_rows(measurement.index, range(2)))
    images, free = (
        cls(suite, validate(cls.Options, {"steps": 25, **options}), suite.backbone(CPU)).sample(measurement, 2, noise).images
        for cls, options in ((sampler_class, off), (samplers.get("unguided"), {}))
    )
    assert images.dtype == torch.float32
    assert (images - free).norm() < 1e-4 * free.norm()


@pytest.mark.parametrize("name", ["hdr", "phase_retrieval", "super_resolution_x4"])
def test_daps_stays_in_the_range_of_digits(digits, name):
    """Saturated pixels have no gradient, so the curvature of the data term comes and goes."""
    suite, _ = digits
    images, label = suite.dataset("validation").load(range(8))
    measurement = suite.task(name, {}).measure(IMAGES.restore(images), label, torch.arange(8), seed=0)
    noise = PhiloxNoise(0, "sampling", *sample_rows(measurement.index, range(1)))
    samples = LatentDAPS(suite, LatentDAPS.Options(steps=20), suite.backbone(CPU)).sample(measurement, 1, noise)
    assert samples.images.abs().max() < 5


# Presets and bad input.


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver_class", SOLVERS)
def test_presets_are_valid_options(solver_class, problem):
    task = toy_task(problem)
    for name in ("paper", "original"):
        options = validate(solver_class.Options, solver_class.preset(name, "method", task, random_suite()))
        assert options.steps >= 28
    assert solver_class.preset("paper", "method", task, random_suite()) == {}


def test_original_settings_depend_on_the_problem():
    box, blur = toy_task("inpaint_box"), toy_task("gaussian_deblur")

    def original(solver_class, task):
        return solver_class.preset("original", "method", task, random_suite())

    assert [original(LatentDPS, task)["step_size"] for task in (box, blur)] == [0.5, 0.3]
    assert [original(FlowChef, task)["steps"] for task in (box, blur)] == [200, 100]
    assert [original(PSLD, task)["omega"] for task in (box, blur)] == [0.1, 1.0]


@pytest.mark.parametrize("solver_class", [solver for solver in SOLVERS if solver is not Unguided])
def test_nothing_tuned_says_how_to_tune_if_it_has_a_grid(solver_class, monkeypatch):
    task, suite = toy_task("denoise"), random_suite()
    suite.tuning = {"tasks": ["denoise"]}
    with pytest.raises(MissingError, match="plans no tuning"):
        solver_class.preset("tuned", "mine", task, suite)
    monkeypatch.setattr(solver_class, "grid", lambda method, suite: MethodGrid(grid={"guidance_scale": (1.0, 2.0)}))
    with pytest.raises(MissingError, match="vfmbench tune --suite toy --method mine --task denoise"):
        solver_class.preset("tuned", "mine", task, suite)


@pytest.mark.parametrize("method", ["pinv", "flowchef"])
def test_preset_that_does_not_exist(method, tmp_path):
    def planned(preset):
        return plan(RunConfig(method=method, task="denoise", preset=preset, out=tmp_path))

    with pytest.raises(UserError, match=r"Unknown preset 'papr'\. Did you mean 'paper'"):
        planned("papr")
    with pytest.raises(UserError, match=r"no file .*mine\.yaml"):
        planned(str(tmp_path / "mine.yaml"))


def test_the_anchor_has_nothing_to_tune():
    assert Unguided.preset("tuned", "unguided", toy_task("denoise"), random_suite()) == {}


def test_unit_of_a_gradient_whose_squares_overflow():
    gradient = torch.full((2, 1, 2, 2), 1e25)
    assert torch.allclose(unit(gradient), torch.full_like(gradient, 0.5))


FLOATS = [
    (solver_class, name)
    for solver_class in SOLVERS
    for name, field in solver_class.Options.model_fields.items()
    if field.annotation in (float, float | None)
]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, "much"])
@pytest.mark.parametrize(("solver_class", "name"), FLOATS)
def test_numbers_are_checked(solver_class, name, value):
    with pytest.raises(UserError, match=rf"method\.{name}: "):
        validate(solver_class.Options, {name: value}, "method.")


@pytest.mark.parametrize(
    ("solver_class", "options"),
    [
        *[(solver_class, {"steps": value}) for solver_class in SOLVERS for value in (0, -3, 2.5)],
        *[(solver_class, {"label": "maybe"}) for solver_class in SOLVERS],
        (LatentDPS, {"rule": "sign"}),
        (LatentDPS, {"shift": 0.0}),
        (MPGD, {"scaling": "noise"}),
        (FlowChef, {"inner_steps": 0}),
        (FlowChef, {"rule": "residual"}),
        (FlowDPS, {"inner_steps": 0}),
        (FlowDPS, {"stochastic": "very"}),
        (PSLD, {"back_projection": "inverse"}),
        (PSLD, {"rule": "residual"}),
        (LatentDAPS, {"sigma_max": 0.1}),
        (LatentDAPS, {"ode_sigma_min": 0.1}),
        (LatentDAPS, {"ode_sigma_min": 0.0}),
        (LatentDAPS, {"ode_steps": 0}),
        (LatentDAPS, {"langevin_steps": 0}),
        (LatentDAPS, {"likelihood_std": 0.0}),
        (LatentDAPS, {"learning_rate": 0.0}),
        (LatentDAPS, {"step_size": 2.0}),
        (LatentDAPS, {"decay": 0.0}),
        (LatentDAPS, {"decay": 1.1}),
    ],
)
def test_bad_options_name_the_field(solver_class, options):
    with pytest.raises(UserError, match=f"method.{next(iter(options))}: "):
        validate(solver_class.Options, options, "method.")


@pytest.mark.parametrize("solver_class", SOLVERS)
def test_unknown_option_names_the_nearest(solver_class):
    with pytest.raises(UserError, match=r"Did you mean 'method\.guidance_scale'"):
        validate(solver_class.Options, {"guidance": 1.0}, "method.")


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver_class", SOLVERS)
def test_only_psld_needs_a_linear_operator(solver_class, problem):
    task = toy_task(problem)
    supported, reason = solver_class.supports(task, random_suite())
    assert supported == (task.linear or solver_class is not PSLD)
    assert supported or f"{problem} is not linear" in reason


def test_psld_needs_an_encoder():
    whole = random_suite("autoencoder")
    half = ToySuite(whole.network, whole.latent_shape, 3, whole.decoder)
    with pytest.raises(UserError, match=r"PSLD .* no encoder"):
        build(PSLD, half, {})
    measurement = measure("super_resolution")
    build(LatentDPS, half, {"steps": 1}).sample(measurement, 1, Float64Noise(measurement.index))


@pytest.mark.parametrize("label", [-1, 3, 1000])
@pytest.mark.parametrize("solver_class", SOLVERS)
def test_image_without_a_class_of_the_network(solver_class, label):
    measurement = measure("super_resolution")
    measurement = replace(measurement, label=torch.tensor([0, 1, label, 2]), index=measurement.index + 40)
    solver = build(solver_class, random_suite("autoencoder"), {})
    with pytest.raises(UserError, match=f"Image 42 has the class label {label}; .* 0 to 2; .*method.label=null"):
        solver.sample(measurement, 2, Float64Noise(measurement.index, 2))
    # Before any work.
    assert not any(solver.meter.counts.values())
    unconditional = build(solver_class, random_suite("autoencoder"), {"label": "null", "steps": 1})
    assert unconditional.sample(measurement, 2, Float64Noise(measurement.index, 2)).images.isfinite().all()


@pytest.mark.parametrize("solver_class", SOLVERS)
def test_data_without_classes_needs_no_label_and_no_guidance(solver_class):
    network = random_suite().network
    unlabelled = torch.nn.Module()
    unlabelled.forward = lambda x, t, r, label: network(x, t, r, torch.zeros_like(label))
    measurement = measure("super_resolution")
    solver = build(solver_class, ToySuite(unlabelled, (1, 8, 8), 0), {"guidance_scale": 5.0, "steps": 1})
    solver.sample(replace(measurement, label=measurement.label - 7), 1, Float64Noise(measurement.index))
    per_level = 2 if solver_class is LatentDAPS else 1
    assert solver.meter.per_sample(4).network_forwards == per_level
