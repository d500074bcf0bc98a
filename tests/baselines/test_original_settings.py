"""The solvers' own authors' settings against their formulas, as these read in the coordinates that they were published in."""

import math
from types import SimpleNamespace

import pytest
import torch

from vfmbench.baselines.flowchef import FlowChef
from vfmbench.baselines.flowdps import FlowDPS
from vfmbench.baselines.guidance import state_scale
from vfmbench.baselines.latent_daps import LatentDAPS
from vfmbench.baselines.latent_dps import LatentDPS
from vfmbench.baselines.mpgd import MPGD
from vfmbench.baselines.psld import PSLD
from vfmbench.errors import UserError

from .checks import build
from .toys import measure, random_suite, toy_task

CODECS = ("identity", "autoencoder")


def variance_preserving(t: float) -> SimpleNamespace:
    """Signal and noise of the diffusion state that is the flow's at time t, times `scale`."""
    scale = 1 / math.sqrt((1 - t) ** 2 + t**2)
    return SimpleNamespace(signal=(1 - t) * scale, noise=t * scale, scale=scale)


def diffusion_step(suite, measurement, x, t, t_next, of, length):
    """DDIM without fresh noise in variance-preserving coordinates, minus `length` times the gradient of |A D(x_0) - y| with
    respect to `of` (the state, or the clean estimate and then over its next signal); everything goes to and from the flow.
    """
    now, after = variance_preserving(t), variance_preserving(t_next)
    state = (x * now.scale).requires_grad_(True)

    def clean_of(state):
        flow_state = state / now.scale
        return flow_state - t * suite.velocity(flow_state, t, measurement.label, 1.0)

    clean = clean_of(state)
    noise = ((state - now.signal * clean) / now.noise).detach()
    leaf = state if of == "state" else clean.detach().requires_grad_(True)
    misfit = measurement.residual(suite.decode(clean if of == "state" else leaf)).flatten(1).norm(dim=1)
    gradient = torch.autograd.grad(misfit.sum(), leaf)[0]
    if of == "state":
        return (after.signal * clean.detach() + after.noise * noise - length * gradient) / after.scale
    corrected = clean.detach() - length / after.signal * gradient
    return (after.signal * corrected + after.noise * noise) / after.scale


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("problem", ["gaussian_deblur", "inpaint_box", "super_resolution"])
@pytest.mark.parametrize(
    ("solver_class", "of"), [(LatentDPS, "state"), (MPGD, "clean"), (PSLD, "state")], ids=["dps", "mpgd", "psld"]
)
@pytest.mark.parametrize(("t", "t_next"), [(0.9, 0.8), (0.5, 0.4), (0.2, 0.1)])
def test_published_step_lengths_move_a_diffusion_state(solver_class, of, problem, codec, t, t_next):
    suite, measurement = random_suite(codec), measure(problem)
    options = {**solver_class.original(problem), "guidance_scale": 1.0}
    if solver_class is PSLD:
        options["gamma"] = 0.0
    solver = build(solver_class, suite, options)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((len(measurement), *suite.latent_shape), generator=generator, dtype=torch.float64)
    found = solver.step(x, t, t_next, measurement, lambda: torch.zeros_like(x)).state
    length = options["omega"] if solver_class is PSLD else options["step_size"]
    expected = diffusion_step(suite, measurement, x, t, t_next, of, length)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_coordinates_differ_by_up_to_the_square_root_of_two():
    assert state_scale("variance_preserving", 0.5) == pytest.approx(math.sqrt(2))
    assert [state_scale("variance_preserving", t) for t in (0.0, 1.0)] == [1.0, 1.0]
    assert state_scale("flow", 0.5) == 1.0


def test_the_unit_rule_moves_by_the_step_length_in_the_chosen_coordinates():
    suite, measurement = random_suite(), measure("gaussian_deblur")
    x = torch.randn((len(measurement), *suite.latent_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for coordinates in ("flow", "variance_preserving"):
        guided, free = (
            build(LatentDPS, suite, {"step_size": size, "guidance_scale": 1.0, "coordinates": coordinates}).step(
                x, 0.5, 0.4, measurement, lambda: torch.zeros_like(x)
            )
            for size in (0.7, 0.0)
        )
        moved = (guided.state - free.state).flatten(1).norm(dim=1) * state_scale(coordinates, 0.4)
        assert moved.tolist() == pytest.approx([0.7] * len(moved))


@pytest.mark.parametrize("codec", CODECS)
def test_flowchef_leaves_the_latents_of_a_hole_to_the_prior(codec):
    """As released: the gradient of the squared difference of latents under the mask at their size, one sign step."""
    suite, measurement = random_suite(codec), measure("inpaint_box")
    options = FlowChef.original("inpaint_box")
    assert (options["data_term"], options["steps"], options["step_size"]) == ("latents", 200, 0.5)
    solver = build(FlowChef, suite, options)
    x = torch.randn((len(measurement), *suite.latent_shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = solver.step(x, 0.6, 0.595, measurement, lambda: torch.zeros_like(x))
    moved = step.state - solver.estimate(x, 0.6, measurement.label).euler(0.595)
    factor = 8 // suite.latent_shape[1]
    share = torch.nn.functional.avg_pool2d(measurement.operator.observed.double(), factor).expand_as(moved)
    assert (share == 0).any()
    assert (moved[share == 0] == 0).all()
    target = suite.encode(measurement.y * measurement.operator.observed)
    clean = solver.estimate(x, 0.6, measurement.label).clean
    seen = share == 1
    torch.testing.assert_close(moved[seen], -0.5 * (clean - target)[seen].sign())


def test_latents_are_compared_under_a_mask_only():
    suite, measurement = random_suite(), measure("gaussian_deblur")
    solver = build(FlowChef, suite, {"data_term": "latents"})
    x = torch.zeros((len(measurement), *suite.latent_shape), dtype=torch.float64)
    with pytest.raises(UserError, match=r"method\.data_term: latents are compared under a mask only"):
        solver.step(x, 0.5, 0.4, measurement, lambda: x)


def test_flowdps_ends_its_grid_as_its_scheduler_does():
    """Stable Diffusion 3's scheduler: shortest time 0.001 under shift 3, 28 equal steps from 1 to it, then shift 4."""
    shortest = 3 * 0.001 / (1 + 2 * 0.001)
    equal = torch.linspace(1, shortest, 28, dtype=torch.float64)
    expected = [*(4 * equal / (1 + 3 * equal)).tolist(), 0.0]
    grid = list(build(FlowDPS, random_suite(), FlowDPS.original("super_resolution")).times())
    assert [t for t, _ in grid] + [grid[-1][1]] == pytest.approx(expected)
    assert expected[-3:] == pytest.approx([0.143, 0.0119, 0.0], abs=5e-4)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("problem", "how"), [("gaussian_deblur", "adjoint"), ("motion_deblur", None), ("inpaint_box", None)])
def test_flowdps_takes_the_norm_of_the_transposed_residual_of_a_gaussian_blur(problem, how, codec):
    suite, measurement = random_suite(codec), measure(problem)
    solver = build(FlowDPS, suite, {**FlowDPS.original(problem), "guidance_scale": 1.0, "inner_steps": 1, "stochastic": False})
    x = torch.randn((len(measurement), *suite.latent_shape), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    estimate = solver.estimate(x, 0.5, measurement.label)
    step = solver.step(x, 0.5, 0.4, measurement, lambda: torch.zeros_like(x))
    leaf = estimate.clean.clone().requires_grad_(True)
    mapped = measurement.residual(suite.decode(leaf))
    if how == "adjoint":
        mapped = measurement.operator.adjoint(mapped)
    gradient = torch.autograd.grad(mapped.flatten(1).norm(dim=1).sum(), leaf)[0]
    torch.testing.assert_close(step.clean, estimate.clean - 0.5 * 15.0 * gradient, rtol=1e-6, atol=1e-6)


def test_a_map_that_an_operator_lacks_is_refused():
    solver = build(FlowDPS, random_suite(), {"residual_map": "adjoint"})
    measurement = measure("hdr")
    x = torch.zeros((len(measurement), 1, 8, 8), dtype=torch.float64)
    with pytest.raises(UserError, match=r"method\.residual_map: adjoint needs a linear operator"):
        solver.step(x, 0.5, 0.4, measurement, lambda: x)


def test_daps_has_the_released_rates_and_a_loss_without_a_half():
    rates = {problem: LatentDAPS.original(problem)["learning_rate"] for problem in ("gaussian_deblur", "inpaint_box", "hdr")}
    assert rates == {"gaussian_deblur": 1e-4, "inpaint_box": 5e-5, "hdr": 2e-5}
    assert LatentDAPS.original("motion_deblur")["likelihood_weight"] == 2.0


def test_mpgd_has_the_released_scale_without_projection():
    assert MPGD.preset("original", "mpgd", toy_task("denoise"), random_suite())["step_size"] == 4.0
