"""The sizes of steps, on a machine whose steps take what their tokens cost; no clock is read."""

from __future__ import annotations

import itertools
import random
import weakref
from collections.abc import Iterable, Sequence

import pytest
from infinicore_infer.engine.config import EngineConfig
from infinicore_infer.engine.pace import WINDOW, Lateness, Pace
from infinicore_infer.generate.plan import plan_step
from infinicore_infer.generate.sampling import SamplingParams
from infinicore_infer.generate.sequence import GenerationSequence
from infinicore_infer.native.model import StepResult

# What 16 users who ask at once send: prompts of 185 tokens.
BURST = [185] * 16


def sequence(prompt: int, answer: int = 64) -> GenerationSequence:
    """A request that has computed nothing; one of a single token stands for an answer."""
    params = SamplingParams(max_steps=answer, seed=0)
    return GenerationSequence(
        [1] * prompt, params, dctx=100000, dvoc=9, end_tokens=(), tokenizer=None
    )


class Machine:
    """Steps whose duration is a sum: a fixed part, and parts for every token."""

    def __init__(self, config: EngineConfig, token: float = 0.0011, fixed: float = 0.008) -> None:
        self.pace = Pace(config)
        self.token, self.fixed = token, fixed
        self.active: list[GenerationSequence] = []
        self.now = 0.0
        self.times: dict[GenerationSequence, list[float]] = {}
        self.prompts: list[int] = []  # how many tokens of prompts each step had

    def add(self, requests: Iterable[GenerationSequence]) -> None:
        for request in requests:
            self.active.append(request)
            self.times[request] = []

    def step(self) -> None:
        shares = plan_step(self.active, self.pace.budget(self.active))
        answers = sum(share.count == 1 for share in shares)
        tokens = sum(share.count for share in shares)
        self.prompts.append(tokens - answers)
        seconds = self.fixed + self.token * (tokens + answers)
        self.now += seconds
        self.pace.record(len(shares), tokens, seconds)
        for share in shares:
            for _ in share.sequence.advance(share.count, (), StepResult(5, 0.0)):
                self.times[share.sequence].append(self.now)
        self.active = [request for request in self.active if not request.finished]

    def finish(self) -> None:
        while self.active:
            self.step()

    def gaps(self, request: GenerationSequence) -> list[float]:
        times = self.times[request]
        return [later - sooner for sooner, later in itertools.pairwise(times)]

    def late(self, request: GenerationSequence) -> list[bool]:
        return [gap > 1.2 * 0.12 for gap in self.gaps(request)]


def most_late(late: Sequence[bool]) -> int:
    return max((sum(late[i : i + WINDOW]) for i in range(len(late))), default=0)


def burst(config: EngineConfig, token: float = 0.0011) -> Machine:
    machine = Machine(config, token)
    machine.add(map(sequence, BURST))
    machine.finish()
    return machine


@pytest.mark.parametrize("token", [0.0006, 0.0011, 0.0016])
def test_a_burst_is_read_in_long_steps(token: float) -> None:
    """All users have their first token sooner than in short steps, and nine of ten in time."""
    steady = burst(EngineConfig(step_tokens=512, prompt_seconds=0.12), token)
    machine = burst(EngineConfig(step_tokens=512), token)
    last, before = (max(t[0] for t in m.times.values()) for m in (machine, steady))
    assert last < 0.92 * before and machine.now < steady.now
    least = sum(BURST) * token
    assert least < last < 1.2 * least
    gaps = sorted(gap for request in machine.times for gap in machine.gaps(request))
    assert gaps[len(gaps) * 9 // 10] < 0.12
    assert all(most_late(machine.late(request)) <= 6 for request in machine.times)
    assert not any(any(steady.late(request)) for request in steady.times)


def test_a_single_long_prompt_leaves_answers_steady() -> None:
    machine = Machine(EngineConfig(step_tokens=512))
    machine.add(sequence(185, 200) for _ in range(4))
    while any(request.remaining > 1 for request in machine.active):
        machine.step()
    answers, begin = list(machine.active), len(machine.times[machine.active[0]])
    machine.add([sequence(4000)])
    machine.finish()
    assert max(gap for answer in answers for gap in machine.gaps(answer)[begin:]) < 0.14
    assert max(machine.prompts[-200:]) > 80  # not by starving the prompt


@pytest.mark.parametrize("token", [0.0005, 0.0011])
@pytest.mark.parametrize("seed", range(3))
def test_nine_of_ten_tokens_come_in_time(token: float, seed: int) -> None:
    """Whatever comes, and however much: of any 64 tokens in a row of an answer, six are late."""
    machine, rng = Machine(EngineConfig(step_tokens=512), token), random.Random(seed)
    while len(machine.prompts) < 1500:
        free = 16 - len(machine.active)
        if free and rng.random() < 0.2:
            wanted = [rng.choice([5, 11, 40, 64, 300]) for _ in range(rng.randint(1, free))]
            machine.add(sequence(rng.choice([30, 185, 700, 3000]), answer) for answer in wanted)
        if machine.active:
            machine.step()
    late = {request: most_late(machine.late(request)) for request in machine.times}
    assert all(n <= min(request.limit - 1, WINDOW) // 10 for request, n in late.items())
    assert max(late.values()) >= 5  # the patience is used


def kinds(machine: Machine, tokens: int) -> str:
    """Long (L) and short (s) steps until this many tokens of prompts are computed."""
    text = ""
    for count in machine.prompts:
        if tokens > 0:
            text += "L" if count > 200 else "s"
            tokens -= count
    return text


def test_patience_is_kept_for_the_end_of_a_queue() -> None:
    """Short steps lose most beside many answers, so they come first if there have to be some."""
    config = EngineConfig(step_tokens=512, prompt_seconds=0.4)
    assert kinds(burst(config), sum(BURST)).rstrip("s").endswith("sLLLLLL")
    # Enough for all: at once. Not for a long time: at once too, since it comes back.
    config = EngineConfig(step_tokens=512, prompt_seconds=0.6)
    assert kinds(burst(config), sum(BURST)).startswith("sLLLL")
    machine = Machine(EngineConfig(step_tokens=512))
    machine.add([sequence(20, 500), *(sequence(4000, 500) for _ in range(15))])
    machine.finish()
    text = kinds(machine, 60000)
    assert text[:8] == "sLLLLLLs" and text[1 : WINDOW + 1].count("L") == 6
    assert text[WINDOW + 1 : WINDOW + 7] == "LLLLLL"


def test_the_sizes_of_steps() -> None:
    """What fits into a step of either kind; largest and smallest ones."""
    pace = Pace(EngineConfig(step_tokens=512, step_seconds=0.08, prompt_seconds=0.5))
    assert pace.budget([]) == 128
    pace.record(1, 999, 1.0)
    prompt = sequence(9)
    assert pace.budget([prompt]) == 500
    assert [pace.budget([sequence(count)]) for count in (510, 512, 630)] == [510, 512, 500]

    def beside(answers: int, *prompts: int) -> int:
        return pace.budget([sequence(1) for _ in range(answers)] + [*map(sequence, prompts)])

    # The token of an answer costs as much as two of prompts.
    assert beside(4) == 80 - 4
    assert beside(7, *[9] * 7) == 80 - 7  # the prompts fit into a short step
    assert beside(8, 999) == 80 - 8
    assert beside(8, 500, 500) == 500 - 8
    assert beside(1, *[9] * 63) == 500 - 1
    assert beside(60) == 60 + 16
    for _ in range(40):
        for answers in (0, 1):
            assert beside(answers, 999) <= 512
            pace.record(1, 99999, 1.0)
    assert beside(0, 999) == beside(1, 999) == 512


def test_no_step_is_longer_than_the_options_say() -> None:
    """--prompt-seconds up to --step-seconds: no step is long, with or without answers."""
    pace = Pace(EngineConfig(step_tokens=512, step_seconds=0.2, prompt_seconds=0.1))
    pace.budget([sequence(9)])
    pace.record(1, 999, 1.0)
    assert pace.budget([sequence(900)]) == 200
    assert pace.budget([sequence(1), *map(sequence, BURST)]) == 200 - 1


@pytest.mark.parametrize("fixed", [0.0, 0.01, 0.03])
@pytest.mark.parametrize("answers", [1, 4, 16, 40])
def test_steps_take_the_time_between_tokens(fixed: float, answers: int) -> None:
    """Whatever steps cost besides their tokens, the length of each kind is learnt."""
    pace = Pace(EngineConfig(step_tokens=2000, step_seconds=0.12, prompt_seconds=0.5))
    waiting = [sequence(1, 64) for _ in range(answers)]
    lone, many = [*waiting, sequence(9999)], [*waiting, sequence(9999), sequence(9999)]
    took: dict[bool, list[float]] = {False: [], True: []}
    for i in range(4 * WINDOW):
        tokens = pace.budget(many if i % WINDOW < 6 else lone)
        seconds = fixed + (tokens - answers) / 900 + answers * 0.0014
        pace.record(answers + 1, tokens, seconds)
        took[i % WINDOW < 6].append(seconds)
    # Also the first of a kind after many of the other.
    assert took[False][WINDOW:] == pytest.approx([0.12] * (3 * WINDOW - 4 * 6), rel=0.05)
    assert took[True][12:] == pytest.approx([0.5] * 12, rel=0.05)


def test_answers_that_ended_are_forgotten() -> None:
    lateness, answer = Lateness(), sequence(1)
    lateness.begin()
    lateness.delay([answer])
    assert lateness.patience([answer]) == 5
    gone = weakref.ref(answer)
    del answer
    assert gone() is None
