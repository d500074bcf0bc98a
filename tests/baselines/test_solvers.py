"""Every solver and every option of it, step by step, against derivations for one image."""

import pytest

from vfmbench.baselines.flowchef import FlowChef
from vfmbench.baselines.flowdps import FlowDPS
from vfmbench.baselines.latent_daps import LatentDAPS
from vfmbench.baselines.latent_dps import LatentDPS
from vfmbench.baselines.mpgd import MPGD
from vfmbench.baselines.psld import PSLD
from vfmbench.baselines.unguided import Unguided

from .checks import check_batch_invariance, check_derivation, check_hole, check_zero_strength
from .toys import LINEAR, PROBLEMS

VARIANTS = {
    "unguided": (Unguided, {}),
    "dps": (LatentDPS, {"step_size": 0.7}),
    "dps-residual": (LatentDPS, {"step_size": 0.3, "rule": "residual"}),
    "mpgd": (MPGD, {"step_size": 0.7}),
    "mpgd-clean": (MPGD, {"step_size": 0.7, "scaling": "clean"}),
    "mpgd-residual": (MPGD, {"step_size": 3.0, "rule": "residual"}),
    "flowchef": (FlowChef, {"step_size": 0.7}),
    "flowchef-sign": (FlowChef, {"step_size": 0.02, "rule": "sign"}),
    "flowchef-three": (FlowChef, {"step_size": 0.4, "inner_steps": 3}),
    "flowchef-not-last": (FlowChef, {"guide_last": False}),
    "flowdps": (FlowDPS, {"step_size": 0.5}),
    "flowdps-once": (FlowDPS, {"step_size": 2.0, "inner_steps": 1}),
    "flowdps-stochastic": (FlowDPS, {"step_size": 0.5, "stochastic": True}),
    "daps": (LatentDAPS, {"learning_rate": 1e-3}),
    "daps-weight": (LatentDAPS, {"learning_rate": 1e-3, "likelihood_weight": 2.0, "decay": 0.5}),
    # A weight at which some entries are clipped.
    "daps-clip": (LatentDAPS, {"learning_rate": 1e-4, "likelihood_weight": 100.0, "clip": True}),
    "daps-own-std": (LatentDAPS, {"learning_rate": 1e-3, "likelihood_std": None}),
    "daps-levels": (LatentDAPS, {"learning_rate": 1e-3, "sigma_max": 3.0, "ode_sigma_min": 0.01, "ode_steps": 4}),
}
LINEAR_VARIANTS = {
    "psld": (PSLD, {}),
    "psld-weights": (PSLD, {"omega": 0.3, "gamma": 0.7, "step_size": 0.5}),
    "psld-unit": (PSLD, {"rule": "unit", "gamma": 1.0}),
}
# Step sizes from the largest curvature, which a power iteration finds only roughly: there is nothing to derive them from.
AUTOMATIC = {"daps-automatic": (LatentDAPS, {})}
ALL = {**VARIANTS, **LINEAR_VARIANTS, **AUTOMATIC}
DEFAULTS = ["dps", "mpgd", "flowchef", "flowdps", "psld", "daps"]
CODECS = ("identity", "autoencoder")


def cells(variants, problems):
    """Every variant that can solve a problem, on it."""
    return [
        pytest.param(*ALL[variant], problem, id=f"{variant}-{problem}")
        for variant in variants
        for problem in problems
        if variant not in LINEAR_VARIANTS or problem in LINEAR
    ]


# Every option where measurements are smaller than images and where they have holes, the defaults everywhere.
CELLS = [
    *cells({**VARIANTS, **LINEAR_VARIANTS}, ["super_resolution", "inpaint_box"]),
    *cells(DEFAULTS, sorted(set(PROBLEMS) - {"super_resolution", "inpaint_box"})),
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("solver_class", "options", "problem"), CELLS)
def test_a_step_equals_the_derivation_for_one_image(solver_class, options, problem, codec):
    check_derivation(solver_class, options, problem, codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("problem", "back_projection"),
    # Conjugate gradients, which invert a motion blur, stop early and are no matrix to compare with.
    [
        (problem, how)
        for problem in LINEAR
        for how in ("adjoint", "to_image", "pinv")
        if (problem, how) != ("motion_deblur", "pinv")
    ],
)
def test_psld_glues_with_any_back_projection(problem, back_projection, codec):
    check_derivation(PSLD, {"gamma": 1.0, "back_projection": back_projection}, problem, codec)


@pytest.mark.parametrize(
    "options", [{"guidance_scale": 1.0}, {"guidance_scale": 0.0}, {"guidance_scale": 3.5}, {"label": "null"}]
)
@pytest.mark.parametrize("variant", ["unguided", *DEFAULTS])
def test_a_step_equals_the_derivation_for_any_guidance_scale(variant, options):
    solver_class, defaults = ALL[variant]
    check_derivation(solver_class, {**defaults, **options}, "gaussian_deblur", "autoencoder")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("solver_class", "options", "problem"), [*CELLS, *cells(["daps-automatic"], PROBLEMS)])
def test_samples_are_the_same_alone_and_in_a_batch(solver_class, options, problem, codec):
    check_batch_invariance(solver_class, options, problem, codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("problem", ["inpaint_random", "inpaint_box"])
@pytest.mark.parametrize("variant", ALL)
def test_noise_in_the_hole_changes_nothing(variant, problem, codec):
    check_hole(*ALL[variant], problem, codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("guidance", [{}, {"guidance_scale": 1.0}, {"label": "null"}])
@pytest.mark.parametrize(
    ("solver_class", "options"),
    [
        (LatentDPS, {"step_size": 0.0}),
        (LatentDPS, {"step_size": 0.0, "rule": "residual"}),
        (MPGD, {"step_size": 0.0}),
        (MPGD, {"step_size": 0.0, "scaling": "clean"}),
        (FlowChef, {"step_size": 0.0, "inner_steps": 2}),
        (PSLD, {"omega": 0.0, "gamma": 0.0}),
        (PSLD, {"step_size": 0.0, "rule": "unit"}),
        (FlowDPS, {"step_size": 0.0}),
        (Unguided, {}),
    ],
)
def test_zero_strength_is_the_unguided_sample(solver_class, options, guidance, codec):
    check_zero_strength(solver_class, {**options, **guidance}, codec)
