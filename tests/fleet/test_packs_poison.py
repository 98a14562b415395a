"""Poison subjects among innocent ones: the rounds that it takes to be rid of them, simulated."""

import random
from collections import defaultdict
from dataclasses import dataclass, field

import pytest

from jaxbooth.fleet.keys import content_key, slug
from jaxbooth.fleet.packs import Candidate, Pack, form_packs
from jaxbooth.fleet.strikes import Strike, is_hopeless

SIZES = (1, 4, 16, 64)
SUBJECTS = [Candidate(f"subject-{index:03}", content_key({"number": index})) for index in range(64)]


@dataclass
class Fleet:
    """A fleet whose packs die of the poison in them, of `kind`, or at random, by a kill of the machine."""

    poison: set[Candidate]
    kind: str = "broken"
    kill: float = 0.0
    dice: random.Random = field(default_factory=lambda: random.Random(0))
    done: set[Candidate] = field(default_factory=set)
    failed: set[Candidate] = field(default_factory=set)
    strikes: dict[str, list[Strike]] = field(default_factory=lambda: defaultdict(list))
    rounds: int = 0
    runs: int = 0
    rows: int = 0  # places that were computed, the measure of cost

    def finish(self, sizes=SIZES, subjects=SUBJECTS) -> "Fleet":
        while missing := set(subjects) - self.done - self.failed:
            assert self.rounds < 200, "the fleet never ends"
            self.rounds += 1
            for pack in form_packs(missing, sizes, self.strikes):
                self._run(pack)
        return self

    def _run(self, pack: Pack) -> None:
        self.runs, self.rows = self.runs + 1, self.rows + pack.size
        killed = self.dice.random() < self.kill
        if not killed and not self.poison & set(pack.members):
            self.done |= set(pack.members)
            return
        strike = Strike(len(pack.members), "infra" if killed else self.kind, 1, "", "", 0.0, "host")
        for member in pack.members:
            strikes = self.strikes[slug(member.name, member.key)]
            strikes.append(strike)
            if is_hopeless(strikes):
                self.failed.add(member)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(("kind", "rounds"), [("broken", 9), ("infra", 18), ("data", 7)])
def test_poison_is_alone_after_a_few_rounds_and_the_innocent_all_complete(number, kind, rounds):
    for seed in range(20):
        poison = set(random.Random(seed).sample(SUBJECTS, number))
        fleet = Fleet(poison, kind).finish()
        assert fleet.failed == poison and fleet.done == set(SUBJECTS) - poison
        assert fleet.rounds <= rounds


def test_the_rounds_grow_with_the_logarithm_of_the_pack():
    rounds = {}
    for doublings in range(0, 9):
        subjects = [Candidate(f"subject-{index}", content_key({"number": index})) for index in range(2**doublings)]
        fleet = Fleet({subjects[-1]}).finish([2**power for power in range(doublings + 1)], subjects)
        rounds[doublings] = fleet.rounds
    assert rounds == {doublings: doublings + 3 - (doublings == 0) for doublings in range(9)}


@pytest.mark.parametrize("kind", ["broken", "infra", "data"])
def test_random_kills_cost_no_innocent_subject(kind):
    for seed in range(40):
        dice = random.Random(seed)
        poison = set(dice.sample(SUBJECTS, seed % 4))
        fleet = Fleet(poison, kind, kill=0.12, dice=dice).finish()
        assert fleet.failed == poison and fleet.done == set(SUBJECTS) - poison


def test_random_kills_alone_seldom_shrink_a_pack():
    alone = sum(Fleet(set(), kill=0.12, dice=random.Random(seed)).finish().runs == 1 for seed in range(400))
    assert alone > 330  # the first run was not killed
    shrunk = [Fleet(set(), kill=0.5, dice=random.Random(seed)).finish() for seed in range(400)]
    assert sum(fleet.runs > fleet.rounds for fleet in shrunk) < 0.5**4 * 400 * 1.5  # four kills in a row
    assert not any(fleet.failed for fleet in shrunk[:100])


@pytest.mark.parametrize("poison", [1, 3])
def test_poison_costs_a_few_times_the_work_of_a_fleet_without_it(poison):
    for seed in range(20):
        fleet = Fleet(set(random.Random(seed).sample(SUBJECTS, poison))).finish()
        assert fleet.rows <= 64 * (2 + 1 + poison)
