"""The ranks of a run: processes that each render and distil their share of its rigs, on a GPU each.

    torchrun --nproc_per_node 4 train.py prompt="a green bear" cameras.n_rigs=4

Every rank holds the whole scene and does the same steps. They draw from one stream (`generator`), in which all move
alike: what there is one of in a step, the cameras of all rigs, the shading, the cells of an occupancy grid; and what
there is one of for each rig, of which a rank takes its part (`per_rig`). So N ranks compute what one process with all
rigs does, but for the order of sums. Whatever does not know of ranks, a term of one's own say, draws from a stream of
the rank's own, made anew in each step from where the shared one stands. Gradients are averaged in the optimiser's step.
"""

import atexit
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from jointdreamer.errors import UserError

JOIN_MINUTES = 5  # for all ranks to come
STAY_SECONDS = 3  # of the first rank, until the others have asked who says why all end
WAIT_HOURS = 6  # in a collective, for a rank that makes pictures or a mesh: a dead one is noticed at once


class RankLost(UserError):
    """Another rank is gone, so this one cannot go on."""


class Ranks:
    """This process among those of a run: number `index` of `count`. `Ranks.join` makes it; `ALONE` is one process.

    All of them have to call `average`, `averaged`, `mean`, `highest`, `each`, `told`, `gathered` and `share` alike.
    Raises: RankLost where another rank ended.
    """

    def __init__(self, index: int = 0, count: int = 1):
        self.index, self.count = index, count

    joined: "Ranks | None" = None

    @classmethod
    def join(cls, cuda: bool) -> "Ranks":
        """The ranks that torchrun, or whoever sets its variables, has started; waits until all are there.

        Raises: UserError, one line, for variables that make no sense, a port in use, ranks that do not come, and a
        rank without a GPU of its own (cuda: whether each wants one).
        """
        count = _variable("WORLD_SIZE", 1)
        if count == 1:
            return ALONE
        if Ranks.joined is not None:
            return Ranks.joined
        index, local = _variable("RANK", 0), _variable("LOCAL_RANK", 0)
        if not 0 <= index < count:
            raise UserError(f"RANK={index} of WORLD_SIZE={count}: wanted 0 to {count - 1}; start with torchrun")
        if cuda:
            if local >= torch.cuda.device_count():
                raise UserError(
                    f"rank {index} has no GPU: there are {torch.cuda.device_count()} here; wanted torchrun "
                    "--nproc_per_node at most that, or device=cpu"
                )
            torch.cuda.set_device(local)
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        try:
            store, *_ = next(rendezvous("env://", timeout=timedelta(minutes=JOIN_MINUTES)))
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(
                backend, store=store, rank=index, world_size=count, timeout=timedelta(hours=WAIT_HOURS)
            )
        except (RuntimeError, ValueError) as error:
            if "EADDRINUSE" in str(error) or "already in use" in str(error):
                raise UserError(
                    f"port {os.environ.get('MASTER_PORT')} is in use: give another one, torchrun --master_port, or let "
                    "it find one, torchrun --standalone"
                ) from error
            raise UserError(
                f"rank {index} of {count} did not find the others at {where} ({' '.join(str(error).split())[:120]}): "
                "start them together, with torchrun"
            ) from error
        _store.append(store)
        atexit.register(_leave)
        Ranks.joined = cls(index, count)
        return Ranks.joined

    @property
    def first(self) -> bool:
        """Whether this one owns the run folder, the log, the pictures and the checkpoints."""
        return self.index == 0

    def rigs(self, n_rigs: int) -> slice:
        """Which of all rigs are this rank's. Raises UserError, one line, where they cannot be shared evenly."""
        if n_rigs % self.count:
            few = "more ranks than rigs" if n_rigs < self.count else "rigs that ranks cannot share evenly"
            raise UserError(
                f"cameras.n_rigs={n_rigs} on {self.count} ranks: {few}; wanted a multiple, e.g. "
                f"cameras.n_rigs={-(-n_rigs // self.count) * self.count}"
            )
        share = n_rigs // self.count
        return slice(self.index * share, (self.index + 1) * share)

    def generator(self, shared: torch.Generator) -> torch.Generator:
        """What the draws of a step's rigs come from: `shared` itself for one process."""
        return shared if self.count == 1 else RankGenerator(shared, self)

    # Numbers of a step

    @torch.no_grad()
    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Each gradient becomes the mean over the ranks, in one reduction; one that no rank has stays None."""
        if self.count == 1:
            return
        parameters = list(parameters)
        device = parameters[0].device
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
        given = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([has, *(grad.flatten().float() for grad in given)])
        self._reduce(flat)
        missing = any(p.grad is None for p in parameters)  # else nobody waits for the device to say so
        there = flat[: len(has)].tolist() if missing else [1.0] * len(parameters)
        parts = flat[len(has) :].div_(self.count).split([p.numel() for p in parameters])
        for parameter, part, anyone in zip(parameters, parts, there, strict=True):
            if anyone:
                parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def averaged(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars by name: the values are means over the ranks, the gradients those of this rank's share."""
        if self.count == 1 or not losses:
            return dict(losses)
        own = torch.stack([loss.detach().float() for loss in losses.values()])
        change = self.mean(own) - own
        return {name: loss + part.to(loss) for (name, loss), part in zip(losses.items(), change, strict=True)}

    def mean(self, x: Tensor) -> Tensor:
        """The mean over the ranks, without a gradient."""
        if self.count == 1:
            return x.detach()
        total = x.detach().clone()
        self._reduce(total)
        return total / self.count

    def highest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if self.count == 1:
            return number
        found = torch.tensor([number])
        self._reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def each(self, number: int) -> list[int]:
        """The number of each rank."""
        found = torch.zeros(self.count, dtype=torch.long)
        found[self.index] = number
        if self.count > 1:
            self._reduce(found)
        return found.tolist()

    def _reduce(self, x: Tensor, how: Any = dist.ReduceOp.SUM) -> None:
        with _others_there():
            dist.all_reduce(x, how)

    # Words before the first step

    def told(self, value: Any) -> Any:
        """What the first rank says."""
        if self.count == 1:
            return value
        box = [value]
        with _others_there():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """What each rank says, by its number."""
        found: list[Any] = [value] * self.count
        if self.count > 1:
            with _others_there():
                dist.all_gather_object(found, value)
        return found

    def share(self, step: int, parts: Mapping[str, Any]) -> int:
        """Give the first rank's state to all: the step to do next, and what a checkpoint holds."""
        if self.count == 1:
            return step
        stream = io.BytesIO()
        if self.first:
            torch.save({name: _state(part) for name, part in parts.items()}, stream)
        size = torch.tensor([len(stream.getvalue()), step])
        with _others_there():
            dist.broadcast(size, src=0)
            content = torch.empty(int(size[0]), dtype=torch.uint8)
            if self.first:
                content = torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)
            dist.broadcast(content, src=0)
        if not self.first:
            states = torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)
            for name, part in parts.items():
                load = part.set_state if isinstance(part, torch.Generator) else part.load_state_dict
                load(states[name])
        return int(size[1])

    def check_together(self, shared: torch.Generator) -> None:
        """Raise RuntimeError if the ranks have drawn differently from the shared stream."""
        if self.count > 1 and len(set(self.gathered(_digest(shared)))) > 1:
            raise RuntimeError("the ranks' shared random stream has come apart: did one of them draw from it alone?")


ALONE = Ranks()
_store: list[Any] = []  # through which the ranks met


class RankGenerator(torch.Generator):
    """A rank's own stream for one step, and the one that it shares with the others.

    Who draws from it as from any generator gets numbers that no other rank has.
    """

    shared: torch.Generator
    ranks: Ranks

    def __new__(cls, shared: torch.Generator, ranks: Ranks) -> "RankGenerator":
        made = super().__new__(cls, shared.device)  # pyright: ignore[reportCallIssue]
        made.shared, made.ranks = shared, ranks
        made.manual_seed(int.from_bytes(_digest(shared)[:6], "big") + ranks.index)
        return made

    def __init__(self, shared: torch.Generator, ranks: Ranks) -> None:
        pass


def shared(generator: torch.Generator | None) -> torch.Generator | None:
    """The stream from which all ranks draw the same."""
    return generator.shared if isinstance(generator, RankGenerator) else generator


def ranks_of(generator: torch.Generator | None) -> Ranks:
    """The ranks among which a generator's draws are shared."""
    return generator.ranks if isinstance(generator, RankGenerator) else ALONE


def per_rig(draw: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """draw(shape), e.g. of torch.rand, on the generator's device, where the first dimension counts rigs, or what each
    rig has as many of: of what all ranks draw together this rank's part.
    """
    if not isinstance(generator, RankGenerator):
        return draw(tuple(shape), generator=generator, device=generator.device if generator is not None else None)
    count, index = generator.ranks.count, generator.ranks.index
    whole = draw((shape[0] * count, *shape[1:]), generator=generator.shared, device=generator.device)
    return whole[index * shape[0] : (index + 1) * shape[0]]


def may_speak() -> bool:
    """Whether this process is the one of a run's ranks that says why it ended: the first that asks, once joined.

    The first rank keeps the count, so it stays for a moment: others may end for the same reason.
    """
    if _store:
        joined, until = Ranks.joined or ALONE, time.monotonic() + STAY_SECONDS
        try:
            asked = _store[0].add("jointdreamer/said", 1)
            while joined.first and _store[0].add("jointdreamer/said", 0) < joined.count and time.monotonic() < until:
                time.sleep(0.05)
            return asked == 1
        except RuntimeError:  # who counted is gone
            return True
    return os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def _others_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost(
            "another rank of this run has ended, or was killed (out of memory?), so all end: the same command goes on "
            f"from the newest checkpoint ({' '.join(str(error).split())[:100]})"
        ) from error


def _leave() -> None:
    if dist.is_initialized() and dist.get_backend() == "nccl":  # gloo needs no goodbye, and would wait for the others
        dist.destroy_process_group()


def _variable(name: str, default: int) -> int:
    value = os.environ.get(name) or str(default)
    try:
        return int(value)
    except ValueError as error:
        raise UserError(f"{name}={value!r} in the environment: wanted a whole number, as torchrun sets it") from error


def _state(part: Any) -> Any:
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def _digest(generator: torch.Generator) -> bytes:
    return hashlib.sha256(generator.get_state().numpy().tobytes()).digest()
