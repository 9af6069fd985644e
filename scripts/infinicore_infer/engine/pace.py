"""How many tokens a step may have, from how long the steps before it took."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from infinicore_infer.engine.config import EngineConfig
from infinicore_infer.generate.sequence import GenerationSequence

# Fewest tokens of a step besides one per answer: matrix products need some to be efficient.
_MIN_PREFILL = 16
# Size of the first step, which tells how fast the machine is.
_FIRST_STEP = 128
# What the token of an answer costs, in tokens of prompts: it also needs the head, and reads keys
# and values that no other row of the step shares.
_DECODE_COST = 2
# A step may be so much longer if it thereby ends the only prompt: another short step would cost as
# much as the rest.
_STRETCH = 1.25
# Of so many tokens of an answer in a row, one in ten may come late.
WINDOW = 64
_ONE_LATE_IN = 10


class Lateness:
    """Counts the long steps that each answer had to wait for.

    Of any 64 steps in a row, an answer waits for six long ones at most, and for fewer if it cannot
    become that long: so nine of ten tokens come in time, whatever comes in between.
    """

    def __init__(self) -> None:
        self._step = 0
        # The latest long steps of each answer in progress.
        self._late: WeakKeyDictionary[GenerationSequence, deque[int]] = WeakKeyDictionary()

    def begin(self) -> None:
        """Begin a step."""
        self._step += 1

    def patience(self, answers: Sequence[GenerationSequence]) -> int:
        """Return how many long steps from now on all answers have patience for."""
        return min(self._patience(answer) for answer in answers)

    def _patience(self, answer: GenerationSequence) -> int:
        recent = sum(step > self._step - WINDOW for step in self._late.get(answer, ()))
        between = min(answer.limit - 1, WINDOW)  # its first token is not waited for like this
        return max(0, between // _ONE_LATE_IN - recent)

    def delay(self, answers: Sequence[GenerationSequence]) -> None:
        """Note that the step is long."""
        for answer in answers:
            steps = self._late.setdefault(answer, deque(maxlen=WINDOW // _ONE_LATE_IN))
            steps.append(self._step)


class Pace:
    """Chooses the size of steps, and learns the machine's speed.

    An answer in progress gets one token per step, so steps are as long as the time between tokens
    may be, whatever the number of requests: prompts are computed in the room that answers leave.
    That makes a queue of prompts slow, since every step computes a token of each answer besides and
    reads all weights. So while two prompts or more are computed, steps may be long, as far as the
    answers have patience. For a single prompt they stay short: all others would wait for one.
    While only prompts are computed, no answer waits for the end of a step, so it may be long, too.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._lateness = Lateness()
        self._long = False  # the step that is computed
        # Prompt tokens per second of short and of long steps, which have more of them for the same
        # weights. 0: none was computed yet.
        self._speeds = [0.0, 0.0]

    def budget(self, active: Sequence[GenerationSequence]) -> int:
        """Return how many tokens to compute in the next step."""
        answers = [sequence for sequence in active if sequence.remaining == 1]
        prompts = [sequence.remaining for sequence in active if sequence.remaining > 1]
        most = max(self._config.step_tokens - len(answers), _MIN_PREFILL)
        short, long = (min(most, self._room(kind, len(answers))) for kind in (False, True))
        self._lateness.begin()
        if not answers:
            self._long = True
        elif len(prompts) > 1 and short < min(long, sum(prompts)):
            self._long = self._worth_waiting(answers, sum(prompts), short, long)
        else:
            self._long = False
        if self._long:
            self._lateness.delay(answers)
        room = long if self._long else short
        if len(active) == 1 and room < active[0].remaining <= min(most, room * _STRETCH):
            room = active[0].remaining
        return len(answers) + room

    def _worth_waiting(
        self, answers: Sequence[GenerationSequence], tokens: int, short: int, long: int
    ) -> bool:
        """Return whether a long step should come now, and not later or never.

        Long steps gain most where there are many answers, which is at the end of a queue of
        prompts. So short ones come first where patience is too little for all, unless it is back
        before the rest is done.

        Args:
            answers: Those that would wait.
            tokens: What is left of the prompts.
            short: How many tokens of them a short step computes.
            long: The same of a long one.
        """
        patience = self._lateness.patience(answers)
        rest = (tokens - patience * long) / short
        return patience > 0 and (rest <= 0 or rest >= WINDOW)

    def _room(self, long: bool, answers: int) -> int:
        """Return how many tokens of prompts fit into a step besides these answers' tokens."""
        speed = self._speeds[long] or self._speeds[not long]
        if not speed:
            return _FIRST_STEP
        seconds = self._config.step_seconds
        if long:
            seconds = max(seconds, self._config.prompt_seconds)
        return max(int(speed * seconds) - _DECODE_COST * answers, _MIN_PREFILL)

    def record(self, parts: int, tokens: int, seconds: float) -> None:
        """Learn how long the step took.

        Args:
            parts: Sequences in the step, most of them with one token each.
            tokens: Tokens of all of them.
            seconds: Its duration.
        """
        if tokens > parts + _MIN_PREFILL:
            speed = (tokens + (_DECODE_COST - 1) * parts) / max(seconds, 1e-9)
            old = self._speeds[self._long] or speed
            self._speeds[self._long] = 0.7 * old + 0.3 * speed
