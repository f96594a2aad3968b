import json

import numpy as np
import pytest

from mlops_assets.gate import GateError, simulation, stress
from mlops_assets.gate.plan import exceeds
from mlops_assets.gate.simulation import World, audit, chance, least_gains

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["certified", "efficient"])
def test_the_least_gains_are_where_the_rule_turns(method):
    rule = {"level": 0.99, "method": method}
    differing = np.arange(0, 120)
    least = least_gains(differing, 1_000, 0.01, **rule)

    for number, least_of_it in zip(differing, least, strict=True):
        gains = np.arange(number + 1)
        found = exceeds(gains, number - gains, np.full_like(gains, 1_000), 0.01, **rule)
        assert (found == (gains >= least_of_it)).all()


@pytest.mark.parametrize("method", ["certified", "efficient"])
def test_the_summed_chance_is_the_drawn_share(method):
    world = World(rows=800, disagreement=0.15, margin=0.0, truth=0.03)
    exact = chance(world, level=0.95, method=method)
    gains, losses, _ = np.random.default_rng(0).multinomial(800, [0.09, 0.06, 0.85], 20_000).T
    drawn = exceeds(gains, losses, np.full(20_000, 800), 0.0, level=0.95, method=method).mean()

    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000))


def test_the_named_challengers_are_promoted_as_often_as_promised():
    assert chance(simulation.NAMED, level=simulation.NAMED_RELIABILITY, method="efficient") >= 0.35
    assert chance(stress.BETTER, level=1 - 0.05 / 200, method="efficient") >= 0.8


@pytest.fixture
def few_worlds(monkeypatch):
    monkeypatch.setattr(simulation, "ROWS", (500,))
    monkeypatch.setattr(simulation, "DISAGREEMENTS", (0.05, 0.1))
    monkeypatch.setattr(simulation, "MARGINS", (0.0, 0.02))


def test_an_audit_finds_the_promises_kept(few_worlds):
    told = []
    found = audit(500, progress=lambda done, total: told.append((done, total)))

    assert found.holds
    assert [finding.holds for finding in found.findings] == [True] * 9
    assert told == [(number, len(told)) for number in range(1, len(told) + 1)]
    boundary = [cell for cell in found.cells if cell.exact is not None]
    assert {cell.world.truth - cell.world.margin for cell in boundary} == {0.0}
    assert {cell.method for cell in boundary} == {"certified", "efficient"}
    drawn = [cell for cell in found.cells if cell.world.disagreement and cell.drawn is not None]
    paired = {(cell.world, cell.method): cell for cell in drawn}
    world = World(500, 0.05, 0.0, 0.01)
    assert paired[world, "efficient"].drawn > paired[world, "efficient"].unpaired
    assert paired[world, "efficient"].larger > 0.8
    assert paired[World(500, 0.05, 0.0, 0.0), "efficient"].larger > 0.4, "noise is promoted by new >= old"
    stored = json.loads(json.dumps(found.to_dict()))
    assert (stored["holds"], len(stored["cells"])) == (True, len(found.cells))


def test_the_same_seed_draws_the_same(few_worlds):
    assert audit(100).cells == audit(100).cells


def test_an_audit_finds_a_rule_that_promotes_too_much(few_worlds, monkeypatch):
    def lax(gains, losses, rows, margin, *, level, method):
        return exceeds(gains, losses, rows, margin, level=1 - 2 * (1 - level), method=method)

    monkeypatch.setattr(simulation, "exceeds", lax)
    found = audit(500)

    assert not found.holds
    failed = [finding.text.split(":")[0] for finding in found.findings if not finding.holds]
    assert failed.count("efficient") == 2, failed


def test_an_audit_finds_a_rule_that_promotes_nothing(few_worlds, monkeypatch):
    monkeypatch.setattr(simulation, "exceeds", lambda gains, *_, **__: np.zeros(len(gains), dtype=bool))
    (broken,) = [finding for finding in audit(500).findings if not finding.holds]

    assert broken.text.startswith("power: 0.000 promoted")


def test_too_few_draws_are_refused():
    with pytest.raises(GateError, match="50 simulations"):
        audit(50)
    with pytest.raises(GateError, match="50 sequences of 200"):
        stress.stress(200, 50)


def test_noise_is_no_better_and_no_worse_than_the_champion():
    random = np.random.default_rng(5)
    estimates = np.concatenate([stress._noise(25, random, challengers=20)[:, -2:] for _ in range(4)])

    spread = np.sqrt(0.08 / stress.ROWS)
    assert abs(estimates.mean()) < 5 * spread / np.sqrt(100)
    assert estimates[:, 0].std() == pytest.approx(spread, rel=0.3)
    assert np.corrcoef(estimates.T)[0, 1] > 0.05, "a test set that flatters one flatters others"


def test_a_stress_finds_the_promises_kept():
    found = stress.stress(100, 200)

    assert found.holds, found.findings
    named = {(one.name, one.method, one.adaptivity): one for one in found.sequences}
    assert named["decay, without it", "efficient", "none"].share > 0.5
    assert named["adversary", "efficient", "none"].share > 0.1
    assert named["adversary", "efficient", "full"].share == 0
    assert json.loads(json.dumps(found.to_dict()))["holds"]


def test_a_stress_finds_looks_that_are_not_paid_for(monkeypatch):
    monkeypatch.setattr(stress.Budget, "share", property(lambda budget: 1 - budget.reliability))
    stress._rule.cache_clear()
    failed = [finding.text.split(":")[0] for finding in stress.stress(100, 100).findings if not finding.holds]
    stress._rule.cache_clear()

    assert {"noise, certified", "noise, efficient"} <= set(failed)
