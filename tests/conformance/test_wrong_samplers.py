"""Samplers that are wrong on purpose: each is found out by the check that is there for it, in a sentence that says why."""

import random

import numpy as np
import pytest
import torch
from pydantic import Field

from vfmbench.conformance.samplers import examine
from vfmbench.conformance.watching import other_global_numbers
from vfmbench.interfaces import Sampler
from vfmbench.measurement import Samples
from vfmbench.metering import Meter
from vfmbench.options import SamplerOptions
from vfmbench.registry import load_suite


@pytest.fixture(scope="module")
def suite():
    return load_suite("digits")


@pytest.fixture(autouse=True)
def seeded():
    """Or two numbers of a global generator may be alike by chance."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)


class Right(Sampler):
    """The flow map's velocity at the pseudo-inverse and noise."""

    class Options(SamplerOptions):
        steps: int = Field(50, ge=1)

    weights = ("flow",)

    def sample(self, measurement, num_samples, noise):
        rows = measurement.repeat(num_samples)
        x = rows.operator.pinv(rows.y) + noise.normal(rows.operator.image_shape, 0)
        for _ in range(self.options.steps):
            x = x - self.backbone.flow.velocity(x, 0.5, rows.label) / self.options.steps
        return self.samples(x, rows, len(measurement))

    def samples(self, x, rows, count):
        return Samples(x.unflatten(0, (count, -1)))


def found(sampler_class, suite):
    task = suite.task("denoise", {})
    return {finding.statement: finding.problem or finding.skipped for finding in examine("mine", sampler_class, suite, task)}


def test_a_right_one_passes_every_check(suite):
    assert set(found(Right, suite).values()) == {""}


class GlobalNumbers(Right):
    def samples(self, x, rows, count):
        return Samples((x + torch.randn_like(x)).unflatten(0, (count, -1)))


class NumpyNumbers(Right):
    def samples(self, x, rows, count):
        return Samples((x + np.random.rand()).unflatten(0, (count, -1)))  # noqa: NPY002


class PythonNumbers(Right):
    def samples(self, x, rows, count):
        return Samples((x + random.random()).unflatten(0, (count, -1)))


class NormalisedOverTheBatch(Right):
    def samples(self, x, rows, count):
        return Samples(((x - x.mean(0)) / x.std()).unflatten(0, (count, -1)))


class NormOfTheWholeBatch(Right):
    def samples(self, x, rows, count):
        return Samples((x - rows.residual(x) / rows.residual(x).norm()).unflatten(0, (count, -1)))


class ByPlaceInTheBatch(Right):
    def samples(self, x, rows, count):
        return Samples((x + 0.1 * torch.arange(len(x))[:, None, None, None]).unflatten(0, (count, -1)))


class CountsItsRows(Right):
    """Keeps the number of rows that it has drawn."""

    drawn = 0

    def samples(self, x, rows, count):
        self.drawn += len(rows)
        return Samples((x + 0.1 * self.drawn).unflatten(0, (count, -1)))


class FlatShape(Right):
    def samples(self, x, rows, count):
        return Samples(x)


class SamplesFirst(Right):
    def samples(self, x, rows, count):
        return Samples(x.unflatten(0, (count, -1)).transpose(0, 1))


class NumpyArray(Right):
    def samples(self, x, rows, count):
        return Samples(x.unflatten(0, (count, -1)).numpy())


class BareTensor(Right):
    def samples(self, x, rows, count):
        return x.unflatten(0, (count, -1))


class DoublePrecision(Right):
    def samples(self, x, rows, count):
        return Samples(x.double().unflatten(0, (count, -1)))


class NotFinite(Right):
    def samples(self, x, rows, count):
        return Samples((x / 0).unflatten(0, (count, -1)))


class WrongEffectiveSamples(Right):
    def samples(self, x, rows, count):
        return Samples(x.unflatten(0, (count, -1)), effective_samples=torch.ones(len(x)))


class WritesToTheMeasurement(Right):
    def sample(self, measurement, num_samples, noise):
        measurement.y.clamp_(-0.5, 0.5)
        return super().sample(measurement, num_samples, noise)


class CountsNothing(Right):
    meter = Meter(torch.device("cpu"))


class OwnNetwork(Right):
    def __init__(self, suite, options, backbone):
        super().__init__(suite, options, backbone)
        self.network = torch.nn.Conv2d(1, 1, 3, padding=1)
        torch.nn.init.dirac_(self.network.weight)

    def samples(self, x, rows, count):
        return Samples(self.network(x).detach().unflatten(0, (count, -1)))


class LooksAtTheTruth(Right):
    def sample(self, measurement, num_samples, noise):
        self.suite.dataset("test").load(measurement.index.tolist())
        return super().sample(measurement, num_samples, noise)


class LoadsInSupports(Right):
    @classmethod
    def supports(cls, task, suite):
        suite.weights.load("flow")
        return True, ""


class BuildsInSupports(Right):
    @classmethod
    def supports(cls, task, suite):
        torch.nn.Linear(1, 1).load_state_dict({"weight": torch.ones(1, 1), "bias": torch.ones(1)})
        return True, ""


class AnswersWithATruthValue(Right):
    @classmethod
    def supports(cls, task, suite):
        return True


class RefusesWithoutReason(Right):
    @classmethod
    def supports(cls, task, suite):
        return False, ""


class WeightsAsText(Right):
    weights = "flow"


class Fails(Right):
    def samples(self, x, rows, count):
        raise IndexError("too few")


REPEAT, SIZE, ORDER = (
    "the same noise gives the same samples",
    "samples do not depend on the batch size",
    "samples do not depend on the order of a batch",
)
BROKEN = "samples do not depend on a broken measurement beside them"
RESULT = "its samples have the right shape, dtype and device, and are finite"
SUPPORTS = "supports() answers without loading weights"
COUNTED = "evaluations of networks are counted"


@pytest.mark.parametrize(
    ("wrong", "statements", "words"),
    [
        (
            GlobalNumbers,
            {REPEAT, SIZE, ORDER, BROKEN},
            "global generator of torch; take the numbers from `noise`",
        ),
        (NumpyNumbers, {REPEAT, SIZE, ORDER, BROKEN}, "global generator of NumPy"),
        (PythonNumbers, {REPEAT, SIZE, ORDER, BROKEN}, "global generator of Python"),
        (NormalisedOverTheBatch, {SIZE, BROKEN}, "between a measurement alone and the same one beside 3 others"),
        (NormOfTheWholeBatch, {SIZE, BROKEN}, "beside a measurement that is not a number"),
        (ByPlaceInTheBatch, {SIZE, ORDER}, "when the measurements of a batch change places"),
        (CountsItsRows, {REPEAT, SIZE, ORDER, BROKEN}, "something that it keeps between calls"),
        (FlatShape, {RESULT}, "its images have the shape [8, 1, 8, 8], not [4, 2, 1, 8, 8]"),
        (SamplesFirst, {RESULT}, "its images have the shape [2, 4, 1, 8, 8], not [4, 2, 1, 8, 8]"),
        (NumpyArray, {RESULT}, "its images are of type numpy.ndarray, not a torch.Tensor"),
        (BareTensor, {RESULT}, "returns a Tensor, not vfmbench.measurement.Samples"),
        (DoublePrecision, {RESULT}, "its images are torch.float64, but the measurement is torch.float32"),
        (NotFinite, {RESULT}, "its images are not finite"),
        (WrongEffectiveSamples, {RESULT}, "its effective_samples have the shape [8], not [4]"),
        (Fails, {RESULT}, "it fails with IndexError: too few"),
        (WritesToTheMeasurement, {"the measurement is left as it is"}, "writes to the measurement's y; work on a copy"),
        (CountsNothing, {COUNTED}, "networks were given 24 rows, but its meter counted 0"),
        (OwnNetwork, {COUNTED}, "networks were given 32 rows, but its meter counted 24"),
        (LooksAtTheTruth, {"it asks for no true images"}, "it asks its suite for the test images"),
        (LoadsInSupports, {SUPPORTS}, "supports() loads weights"),
        (BuildsInSupports, {SUPPORTS}, "supports() loads weights"),
        (AnswersWithATruthValue, {SUPPORTS}, "supports() returns True"),
        (RefusesWithoutReason, {SUPPORTS}, "refuses without a reason"),
        (WeightsAsText, {"its options and weights are declared"}, "its weights are 'flow', not a tuple of names"),
    ],
)
def test_a_wrong_one_is_found_out(suite, wrong, statements, words):
    problems = {statement: problem for statement, problem in found(wrong, suite).items() if problem}
    assert problems.keys() == statements
    assert any(words in problem for problem in problems.values()), problems


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (type("Alone", (), {}), "no class derived from vfmbench.interfaces.Sampler"),
        (lambda *given: None, "no class derived from vfmbench.interfaces.Sampler"),
        (type("Plain", (Right,), {"Options": dict}), "not derived from vfmbench.options.SamplerOptions"),
    ],
)
def test_what_is_no_sampler_at_all(suite, wrong, words):
    (finding,) = examine("mine", wrong, suite, suite.task("denoise", {}))
    assert words in finding.problem


def test_options_that_cannot_be_read_again(suite):
    class Forgetful(Right):
        class Options(SamplerOptions):
            steps: int = Field(2, exclude=True)

    task = suite.task("denoise", {})
    findings = list(examine("mine", Forgetful, suite, task, {"steps": 3}))
    assert [finding.problem for finding in findings if finding.problem] == [
        "its options change when they are written and read again, so that no run could be resumed"
    ]


def test_weights_that_are_not_here_are_a_reason_to_skip(suite):
    class Lacking(Right):
        def sample(self, measurement, num_samples, noise):
            self.backbone.weights.load("no_such_weights")

    findings = list(examine("mine", Lacking, suite, suite.task("denoise", {})))
    assert "'no_such_weights' are not in" in findings[-1].skipped
    assert not any(finding.problem for finding in findings)


def test_global_generators_are_seeded_otherwise_for_a_while():
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    before = states()
    with other_global_numbers() as used:
        assert states() != before
        torch.rand(1)
        random.random()
    assert used == ["torch", "Python"]
    assert states() == before
