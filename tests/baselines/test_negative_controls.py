"""Solvers that are wrong on purpose: each must fail the check that is there to find it, and the right solver must pass it."""

import pytest
import torch

from vfmbench.baselines import flowdps, guidance, psld
from vfmbench.baselines.flowchef import FlowChef
from vfmbench.baselines.flowdps import FlowDPS
from vfmbench.baselines.guidance import GuidanceSampler, Step, interpolate
from vfmbench.baselines.latent_daps import LatentDAPS
from vfmbench.baselines.latent_dps import LatentDPS
from vfmbench.baselines.mpgd import MPGD
from vfmbench.baselines.psld import PSLD
from vfmbench.measurement import Measurement
from vfmbench.models.flow import NetworkFlow

from .checks import (
    check_batch_invariance,
    check_derivation,
    check_exact_guidance,
    check_gradient_directions,
    check_hole,
    check_step_length,
    check_zero_strength,
    daps_moments,
)


def must_fail(check, *arguments):
    with pytest.raises(AssertionError):
        check(*arguments)


@pytest.mark.parametrize(
    ("module", "name", "wrong", "solver_class", "options"),
    [
        (guidance, "norms", lambda x: x.norm().expand(len(x)), LatentDPS, {}),
        (guidance, "norms", lambda x: x.norm().expand(len(x)), MPGD, {}),
        (guidance, "norms", lambda x: x.norm().expand(len(x)), FlowChef, {}),
        (guidance, "norms", lambda x: x.norm().expand(len(x)), PSLD, {"rule": "unit"}),
        (guidance, "norms", lambda x: x.norm().expand(len(x)), LatentDPS, {"rule": "residual"}),
        (psld, "smooth_norms", lambda x: x.norm().expand(len(x)), PSLD, {}),
        (flowdps, "smooth_norms", lambda x: x.norm()[None], FlowDPS, {"step_size": 0.5}),
    ],
)
def test_norm_of_the_whole_batch(module, name, wrong, solver_class, options, monkeypatch):
    cell = (solver_class, options, "super_resolution", "autoencoder")
    check_batch_invariance(*cell)
    monkeypatch.setattr(module, name, wrong)
    must_fail(check_batch_invariance, *cell)


@pytest.mark.parametrize("solver_class", [LatentDPS, MPGD])
def test_loss_averaged_over_the_batch(solver_class):
    class Averaged(solver_class):
        def clean_gradient(self, clean, measurement):
            gradient, residual_norm = super().clean_gradient(clean, measurement)
            return gradient / len(clean), residual_norm

    must_fail(check_batch_invariance, Averaged, {"rule": "residual"}, "super_resolution", "identity")
    # A unit step forgets the factor.
    check_batch_invariance(Averaged, {"rule": "unit"}, "super_resolution", "identity")


class Detached:
    """The network's Jacobian taken as the identity."""

    def estimate_with_vjp(self, x, t, label):
        return self.estimate(x, t, label), lambda cotangent: cotangent


@pytest.mark.parametrize("solver_class", [LatentDPS, PSLD])
def test_gradient_not_passed_through_the_network(solver_class):
    class Wrong(Detached, solver_class):
        pass

    check_gradient_directions(solver_class, {}, 0.8, 0.6633)
    must_fail(check_gradient_directions, Wrong, {}, 0.8, 0.6633)
    must_fail(check_derivation, Wrong, {}, "super_resolution", "autoencoder")


def test_mpgd_with_noise_recomputed_from_the_guided_estimate():
    class Wrong(MPGD):
        def step(self, x, t, t_next, measurement, draw):
            clean = super().step(x, t, t_next, measurement, draw).clean
            return Step(interpolate(clean, (x - (1 - t) * clean) / t, t_next), clean)

    check_step_length(MPGD, {}, lambda t_next: 1.0, "identity")
    must_fail(check_step_length, Wrong, {}, lambda t_next: 1.0, "identity")
    must_fail(check_derivation, Wrong, {}, "super_resolution", "identity")


class WrongSign:
    """A network whose velocity points from noise to data."""

    def estimate(self, x, t, label):
        estimate = super().estimate(x, t, label)
        return guidance.Estimate(x, t, -estimate.velocity)

    def estimate_with_vjp(self, x, t, label):
        estimate, vjp = super().estimate_with_vjp(x, t, label)
        return guidance.Estimate(x, t, -estimate.velocity), lambda cotangent: 2 * cotangent - vjp(cotangent)


class WrongClock:
    """A network whose time runs from data to noise."""

    def estimate(self, x, t, label):
        return guidance.Estimate(x, t, super().estimate(x, 1 - t, label).velocity)

    def estimate_with_vjp(self, x, t, label):
        velocity, vjp = self.flow.velocity_with_vjp(x, 1 - t, label, self.guidance_scale)
        return guidance.Estimate(x, t, velocity), lambda cotangent: cotangent - t * vjp(cotangent)


@pytest.mark.parametrize("mistake", [WrongSign, WrongClock])
def test_wrong_sign_or_clock_of_the_velocity(mistake):
    class Wrong(mistake, GuidanceSampler):
        pass

    class WrongDPS(mistake, LatentDPS):
        pass

    must_fail(check_exact_guidance, Wrong)
    must_fail(check_zero_strength, WrongDPS, {"step_size": 0.0}, "identity")
    must_fail(check_derivation, WrongDPS, {}, "super_resolution", "identity")


@pytest.mark.parametrize("solver_class", [LatentDPS, MPGD, FlowChef, FlowDPS, PSLD, LatentDAPS])
def test_guidance_on_three_of_four_channels(solver_class, monkeypatch):
    def combine(velocity, scale):
        if scale == 1.0:
            return velocity
        conditional, unconditional = velocity.chunk(2)
        guided = unconditional + scale * (conditional - unconditional)
        return torch.cat([guided[:, :3], conditional[:, 3:]], 1)

    options = {"learning_rate": 1e-3} if solver_class is LatentDAPS else {}
    cell = (solver_class, options, "super_resolution", "autoencoder")
    check_derivation(*cell)
    monkeypatch.setattr(NetworkFlow, "_combine", staticmethod(combine))
    must_fail(check_derivation, *cell)


def test_daps_with_the_weight_of_the_likelihood_on_the_prior():
    """The released code's factor 2 belongs to the likelihood alone; nor must 1 and 2 be taken for one another."""

    class Swapped(LatentDAPS):
        def langevin(self, clean, sigma, eta, measurement, draw):
            weight = self.options.likelihood_weight
            given, self.options = self.options, self.options.model_copy(update={"likelihood_weight": 1.0})
            theta = super().langevin(clean, sigma / weight**0.5, eta, measurement, draw)
            self.options = given
            return theta

    options = {"steps": 10, "langevin_steps": 20, "ode_steps": 5, "learning_rate": 1e-3, "likelihood_std": 0.1}
    one, two, swapped = (
        daps_moments(solver_class, {**options, "likelihood_weight": weight}, 1.0, 0.3, 1.2)
        for solver_class, weight in ((LatentDAPS, 1.0), (LatentDAPS, 2.0), (Swapped, 2.0))
    )
    assert one != pytest.approx(two, rel=0.01)
    assert swapped != pytest.approx(two, rel=0.01)
    cell = ({"learning_rate": 1e-3, "likelihood_weight": 2.0}, "super_resolution", "identity")
    check_derivation(LatentDAPS, *cell)
    must_fail(check_derivation, Swapped, *cell)


def test_psld_with_its_weights_swapped():
    class Swapped(PSLD):
        def __init__(self, suite, options, device):
            super().__init__(suite, options.model_copy(update={"omega": options.gamma, "gamma": options.omega}), device)

    cell = ({"omega": 1.0, "gamma": 0.1}, "super_resolution", "autoencoder")
    check_derivation(PSLD, *cell)
    must_fail(check_derivation, Swapped, *cell)


@pytest.mark.parametrize("problem", ["inpaint_random", "inpaint_box"])
@pytest.mark.parametrize(
    ("solver_class", "options"),
    [(LatentDPS, {"rule": "residual"}), (MPGD, {"rule": "residual"}), (FlowDPS, {}), (PSLD, {}), (PSLD, {"omega": 0.0})],
)
def test_noise_left_in_the_hole(solver_class, options, problem, monkeypatch):
    """Unit steps and DAPS need the gradient alone, of which a mask's adjoint drops the hole again: they cannot tell."""
    cell = (solver_class, options, problem, "autoencoder")
    check_hole(*cell)
    monkeypatch.setattr(Measurement, "residual", lambda self, images: self.operator.forward(images) - self.y)
    must_fail(check_hole, *cell)
