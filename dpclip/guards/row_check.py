"""Whether each unit's loss and gradient depend on that unit alone, bit for bit.

At one shape of micro-batch.

The guarantee rests on it: a sum of clipped gradients moves by one clipped gradient only if the
others stay what they are. Whatever couples rows breaks that, in the model (batch statistics), in
the loss (a mean over all tokens, a batch's maximum, contrastive terms), in the loop (another batch
than the one handed out) or in the machine (a kernel that is chosen by who is there). So the loop
takes a few more turns before anything is released, on rows that no sum takes in:

- the same micro-batch with some units kept and all others replaced: the kept ones' losses and
  gradients must be the same bits, and the losses of the kept ones alone must have no gradient at
  all in the others' rows. With the kept ones chosen by each binary digit of their place, and by its
  complement, every unit is kept once while any given other one is not;
- half of the units kept, and what the model makes of the others a thousand times larger, or not a
  number: what only an extreme row brings about, as skipping a batch whose loss is not finite, must
  leave the kept ones alone, too;
- the same units each one place further on, without dropout, which must change nothing either:
  vector kernels treat what is left over at the end in another way. Where it does, the micro-batch
  is filled up to a multiple of their width;
- if random numbers are drawn: one unit in every place, which must not meet the same ones
  everywhere;
- the first of them again, at the end: nothing may be carried from one micro-batch to the next.

But for that, random numbers are the same in each turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from dpclip.errors import InputError
from dpclip.gradient_sum import bits
from dpclip.guards.row_prints import Prints, differ, loud, mixed, stilled, varied
from dpclip.guards.seeding import Dice, seeded
from dpclip.per_sample import FactoredView
from dpclip.sampling.micro_batches import MicroBatch, Packer, Shape, Unit, changed

Extent = Literal["all", "two", "again", "none"]

_REMEDY = (
    "compute each row's loss from that row alone (dpclip.losses has the usual ones), without "
    "statistics of the batch and without random numbers drawn outside of microbatch, and leave the "
    "rows in their order"
)
_COUPLED = f"with the other rows of its batch, so no row is protected: {_REMEDY}"
_KEPT = (
    "although every row is the same as before: something is kept from one batch to the next, or "
    "computed by kernels that are not deterministic (torch.use_deterministic_algorithms(True))"
)
PLACE_MATTERS = (
    "a row's gradient changes with its place in the micro-batch, so that one row more or less "
    "changes the others', or it is computed from rows that were not handed out: use the batch that "
    "batches() yields; if you do, choose another physical batch size (a multiple of 32 suits most "
    "kernels), or another number of threads"
)
RANDOM_PLACE = (
    "a row's gradient does not depend on its place in the micro-batch, which could not be tried, "
    "as random numbers are drawn in evaluation mode, too"
)
_LANES = 32  # float32 numbers in two of the widest vectors, which elementwise kernels take at once
_DRAWS = 12  # in which one decision for all rows should come out both ways
_LOUD = (2.0**10, math.nan)


@dataclass(frozen=True)
class Turn:
    """One turn of the loop for the check's sake.

    Attributes:
        micro: what the loop is handed.
        kept: which units are those of the first turn, bool, [units]; None for a turn that is only
            watched.
        seed: of its random numbers.
        still: whether the model is to draw none (dropout), in evaluation mode.
        moved: by how many places units are moved on.
        loud: what the model's output for the others is multiplied by; 1 leaves it.
        alike: whether one unit has every place.
    """

    micro: MicroBatch
    kept: Tensor | None
    seed: int
    still: bool = False
    moved: int = 0
    loud: float = 1.0
    alike: bool = False

    @property
    def rows(self) -> Tensor:
        """Which rows are those of the first turn, bool, [rows].

        All of them in a turn that is only watched.
        """
        if self.kept is None:
            return torch.ones(self.micro.rows, dtype=torch.bool)
        return self.kept.repeat_interleave(self.micro.rows_each)

    @contextmanager
    def staged(self, model: nn.Module) -> Iterator[Dice]:
        """Set the model, what it returns and the random numbers as this turn wants them.

        Args:
            model: left as it was on exit.
        """
        with (
            stilled(model, self.still),
            loud(model, self.rows, self.loud),
            seeded(self.seed) as dice,
        ):
            yield dice


class RowCheck:
    """The turns of one check, and the verdict on each.

    Args:
        packer: makes micro-batches.
        units: of one shape; they fill a micro-batch, repeated if need be.
        others: further units of that shape, or none.
        probe: begin with micro-batches of one and of two units, which separate rows from
            positions.
        compare: "all" pairs of places and everything else; "two" halves and the place; two halves
            "again", later in a run; or "none".
        digit: of the places, by which two halves are chosen.
        seed: of all randomness.
    """

    def __init__(
        self,
        packer: Packer,
        units: Sequence[Unit],
        others: Sequence[Unit] = (),
        *,
        probe: bool = True,
        compare: Extent = "all",
        digit: int = 0,
        seed: int = 1,
    ) -> None:
        self._packer, self._seed = packer, seed
        self._probe, self._extent, self._digit = probe, compare, digit
        self._room = packer.room(units[0].shape)
        pool = [*units, *others]
        self._units = [pool[place % len(pool)] for place in range(self._room)]
        self._others = [pool[(place + 1) % len(pool)] for place in range(self._room)]
        if len(pool) > self._room:  # rather rows that are not in the micro-batch at all
            self._others = [
                pool[self._room + place % (len(pool) - self._room)] for place in range(self._room)
            ]
        self._first: Prints | None = None
        self._still: Prints | None = None  # without dropout
        self._alike: Tensor | None = None
        self._random = self._drawn = False  # in the loop; while rows were collated
        self._differed = self._heard = False  # what was handed out; what came back
        # and of how many units a micro-batch should be a multiple
        self.place_matters, self.step = False, _LANES
        self.assumption: str | None = None  # what could not be tried

    # --- what the loop is handed ------------------------------------------------------------------

    def turns(self) -> Iterator[Turn]:
        """Give one turn after the other; each is to be judged before the next is asked for."""
        if self._probe:
            for size in {1, min(2, self._room)}:
                yield self._turn(self._composed(self._units[:size], size), None)
        if self._extent == "none":
            return
        everyone = torch.ones(self._room, dtype=torch.bool)
        first = self._composed(self._units, self._room)
        yield self._turn(first, everyone)
        if self.place_matters:
            return
        for kept in self._halves():
            yield self._turn(self._replaced(first, kept), kept)
        if self._extent == "again":
            return
        if self._room > 1:
            yield from self._places(first, everyone)
        if self.place_matters:
            return
        yield self._turn(first, everyone)
        if self._extent == "all" and self._room > 1:
            yield from self._extreme(first)

    def _turn(self, micro: MicroBatch, kept: Tensor | None, **what: bool | float | int) -> Turn:
        return Turn(micro, kept, what.pop("seed", self._seed), **what)  # type: ignore[arg-type]

    def _halves(self) -> Iterator[Tensor]:
        if self._room == 1:
            yield torch.zeros(1, dtype=torch.bool)  # other rows in between
            return
        places, digits = torch.arange(self._room), (self._room - 1).bit_length()
        for digit in range(digits) if self._extent == "all" else [self._digit % digits]:
            kept = (places >> digit) % 2 == 0
            yield kept
            yield ~kept

    def _extreme(self, first: MicroBatch) -> Iterator[Turn]:
        even = torch.arange(self._room) % 2 == 0
        for factor in _LOUD:
            for kept in (even, ~even):
                weights = torch.where(kept.repeat_interleave(first.rows_each), 1.0, 2.0**10)
                yield self._turn(replace(first, weights=first.weights * weights), kept, loud=factor)

    def _places(self, first: MicroBatch, everyone: Tensor) -> Iterator[Turn]:
        if self._random:
            alike = self._composed(self._units[:1] * self._room, self._room)
            for draw in range(_DRAWS if self._extent == "all" else 2):
                yield self._turn(alike, everyone, alike=True, seed=self._seed + draw)
            yield self._turn(first, everyone, still=True)
        by = first.rows_each
        if self._drawn:
            further = replace(
                first, batch=changed(first.batch, lambda t: _rolled(t, first.rows, by))
            )
        else:
            further = self._composed([self._units[-1], *self._units[:-1]], self._room)
        further = replace(further, weights=first.weights.roll(by))
        yield self._turn(further, everyone, still=self._random, moved=1)

    def _replaced(self, first: MicroBatch, kept: Tensor) -> MicroBatch:
        """The kept units beside other ones, whose losses count for nothing."""
        pairs = zip(self._units, self._others, kept.tolist(), strict=True)
        micro = self._composed([ours if keep else other for ours, other, keep in pairs], self._room)
        rows = kept.repeat_interleave(first.rows_each)
        # which rows meet which random numbers is not ours to say: exchange what came out
        if self._drawn:
            micro = replace(micro, batch=mixed(first.batch, micro.batch, rows))
        if differ(micro.batch, first.batch):
            self._differed = True
        else:
            micro = replace(micro, batch=varied(micro.batch, rows))
        return replace(micro, weights=first.weights * rows)

    def _composed(self, units: Sequence[Unit], room: int) -> MicroBatch:
        with seeded(self._seed) as dice:
            micro = self._packer.compose(units, room)
            self._drawn |= dice.thrown()
        return micro

    # --- what came back ---------------------------------------------------------------------------

    @property
    def vacuous(self) -> bool:
        """Whether rows were to be compared, and no others were at hand to try with."""
        return self._first is not None and self._room > 1 and not (self._differed or self._heard)

    def judge(self, turn: Turn, losses: Tensor, view: FactoredView, random: bool) -> None:
        """Compare what a turn gave with the first.

        Args:
            turn: as handed out.
            losses: as handed over, [rows].
            view: of its backward pass.
            random: whether random numbers were drawn.

        Raises:
            InputError: rows depend on one another, on earlier batches, or not on what was handed
                out.
        """
        if turn.kept is None:
            return
        if turn.alike:
            self._judge_draws(losses.detach().cpu().view(turn.micro.units, -1))
            return
        rows = turn.rows
        seen = Prints.of(losses, view, len(rows))
        if self._first is None:
            self._begin(seen, losses, view, random)
        elif turn.moved:
            self._judge_place(turn, seen, random)
        elif turn.still:
            self._still = seen
        else:
            self._judge_rows(turn, seen, self._first, rows)

    def _begin(self, seen: Prints, losses: Tensor, view: FactoredView, random: bool) -> None:
        self._first, self._random = seen, random
        self.step = _step(
            [*view.shapes, tuple(losses.shape)], self._room, 2 * _LANES if view.narrow else _LANES
        )
        self.place_matters = self._room > 1 and self._room % self.step > 0

    def _judge_place(self, turn: Turn, seen: Prints, random: bool) -> None:
        if random:
            self.assumption = RANDOM_PLACE
            return
        base = self._still or self._first
        assert base is not None
        self.place_matters = not seen.equals(base.moved(turn.moved, turn.micro.rows_each))
        self.step = math.lcm(self.step, 2 * _LANES)

    def _judge_draws(self, losses: Tensor) -> None:
        """Judge one unit in every place.

        All alike, and otherwise with other random numbers, means one draw for all.
        """
        same = torch.equal(bits(losses), bits(losses[:1].expand_as(losses)))
        if not same:
            return
        if self._alike is not None and not torch.equal(bits(self._alike), bits(losses)):
            raise InputError(
                "one random number decides for all rows of a micro-batch (dropping a layer, say), "
                "so that rows depend on who shares it: let each row draw its own, or switch it off"
            )
        self._alike = losses

    def _judge_rows(self, turn: Turn, seen: Prints, first: Prints, rows: Tensor) -> None:
        assert turn.kept is not None
        if bool(turn.kept.all()):
            first.compare(seen, rows, turn.kept, _KEPT)
            if self._differed and not self._heard:
                raise InputError(
                    "the losses do not change with the rows that were handed out, so they are not "
                    "those rows' losses: compute them from the batch that batches() yields"
                )
            return
        first.compare(seen, rows, turn.kept, _COUPLED)
        if turn.loud != 1:
            return
        theirs = seen.losses[~rows]
        self._heard |= not torch.equal(bits(theirs), bits(first.losses[~rows])) or not bool(
            theirs.isfinite().all()
        )
        if bool((~rows & ~seen.vanishing & seen.losses.isfinite()).any()):
            raise InputError(
                "the loss of one row has a gradient in other rows of its batch, so that clipping "
                f"by rows bounds nothing: {_REMEDY}"
            )


def turns_until_placed(
    packer: Packer, shape: Shape, new_check: Callable[[], RowCheck]
) -> Generator[tuple[RowCheck, Turn], None, RowCheck]:
    """Take a check's turns, and again with more room, for as long as a unit's place matters.

    Args:
        packer: whose micro-batches of that shape are widened.
        shape: of the units.
        new_check: makes a check for the room that there is.

    Returns:
        the last check.

    Raises:
        InputError: more room does not help.
    """
    while True:
        check = new_check()
        for turn in check.turns():
            yield check, turn
        if not check.place_matters:
            return check
        if not packer.widen(shape, check.step):
            raise InputError(PLACE_MATTERS)


def _rolled(tensor: Tensor, rows: int, by: int) -> Tensor:
    return tensor.roll(by, 0) if tensor.dim() and len(tensor) == rows else tensor


def _step(shapes: Sequence[tuple[int, ...]], units: int, lanes: int) -> int:
    """Of how many units a micro-batch must be a multiple for kernels to leave nothing over.

    Args:
        shapes: of tensors with a row a sample, and more than one element a lane.
        units: of the micro-batch now.
        lanes: elements that a kernel takes at once.
    """
    step = 1
    for size in {math.prod(shape) for shape in shapes}:
        if size > lanes and size % units == 0:
            step = math.lcm(step, lanes // math.gcd(lanes, size // units))
    return step
