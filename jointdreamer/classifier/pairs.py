"""Pairs of views for M_CLS: of one object and rightly posed, or not (Appendix A.2).

Which pairs a step sees is a pure function of (seed, step, group), so there is no list of pairs to store, and a resume,
or another number of processes, changes nothing.
"""

import hashlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jointdreamer.classifier.views import Damaged, ViewSource, first_images
from jointdreamer.errors import UserError

log = logging.getLogger(__name__)

TRUE, WRONG_POSE, OTHER_OBJECT = 0, 1, 2  # kinds of a pair; the first is label 1
REFERENCE_IN_FRONT = 0.6  # of the corrections: the view of the object that is nearest to the front


def is_held_out(name: str, percent: float) -> bool:
    """Whether an object is for validation only: by the hash of its name, so on every machine and whatever else there
    is."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < percent / 100 * 2**32


@dataclass(frozen=True)
class Group:
    """N images of a few objects, and P pairs of them: half coherent, half not."""

    rgba: np.ndarray  # (N, R, R, 4) uint8, straight colour
    c2w: np.ndarray  # (N, 4, 4) the images' own cameras
    first: np.ndarray  # (P,) rows of rgba
    second: np.ndarray  # (P,)
    c2w_1: np.ndarray  # (P, 4, 4) the cameras that the classifier is told
    c2w_2: np.ndarray  # (P, 4, 4)
    kind: np.ndarray  # (P,) TRUE, WRONG_POSE or OTHER_OBJECT
    angle: np.ndarray  # (P,) degrees between the directions from which the two images were taken
    object: np.ndarray  # (N,) which of the group's objects each image shows
    ids: list[str]  # the names of those objects

    @property
    def label(self) -> np.ndarray:
        """(P,) float32: 1 coherent, 0 not."""
        return (self.kind == TRUE).astype(np.float32)


class PairSampler:
    """Draws groups of pairs of some objects of a source.

    source, indices: the objects. size: pixels. objects, views: of a group, so it has objects * views images and, since
    every image meets every other of its object, 2 objects views (views - 1) pairs.
    min_angle_deg: a wrong pose turns the second camera by at least this much from the true one.
    wrong_pose_share: of the incoherent pairs; the others show two objects.

    Nothing in a pair's pose tells its label: a wrong pose is the true pose of another view of the same object, all
    poses come from the same pool and are normalised alike. (In the release a wrong pose has another scale than a true
    one, may equal it, and three pairs in four are incoherent.)

    A damaged object is skipped, with one warning, and counted in `damaged`.
    """

    def __init__(
        self,
        source: ViewSource,
        indices: Sequence[int],
        size: int,
        objects: int = 8,
        views: int = 3,
        min_angle_deg: float = 10.0,
        wrong_pose_share: float = 0.5,
        seed: int = 0,
    ):
        if objects < 2 or views < 2:
            raise UserError(f"a group of pairs needs 2 objects of 2 views or more, got {objects} of {views}")
        if not 0 <= wrong_pose_share <= 1:
            raise UserError(f"data.wrong_pose_share={wrong_pose_share:g}: wanted a share from 0 to 1")
        if len(indices) < objects:
            raise UserError(
                f"{source.name}: a group takes {objects} objects, this set has {len(indices)} of {len(source.ids)}; "
                "give more objects, another data.held_out_percent, or fewer training.objects"
            )
        self.source, self.indices, self.size = source, indices, size
        self.objects, self.views = objects, views
        self.min_angle, self.wrong_pose_share, self.seed = np.radians(min_angle_deg), wrong_pose_share, seed
        self.damaged: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def n_pairs(self) -> int:
        return 2 * self.objects * self.views * (self.views - 1)

    def group(self, step: int, number: int) -> tuple[Group, np.random.Generator]:
        """Group `number` of a step, and a generator that goes on from its draws.

        Raises UserError if no usable objects are found.
        """
        rng = np.random.default_rng([self.seed, step, number])
        poses, rgba, chosen, ids = self._draw_objects(rng)
        n, v = self.objects, self.views
        own = np.stack([p[c] for p, c in zip(poses, chosen, strict=True)])  # (n, v, 4, 4)
        rows = np.arange(n * v).reshape(n, v)
        first, second, c2w_1, c2w_2, kind = [], [], [], [], []

        def add(a: tuple[int, int], b: tuple[int, int], told: np.ndarray, what: int) -> None:
            first.append(rows[a])
            second.append(rows[b])
            c2w_1.append(own[a])
            c2w_2.append(told)
            kind.append(what)

        alike = [(o, i, j) for o in range(n) for i in range(v) for j in range(v) if i != j]
        for o, i, j in alike:
            add((o, i), (o, j), own[o, j], TRUE)
        wrong = rng.permutation(len(alike))[: round(self.wrong_pose_share * len(alike))]
        for o, i, j in (alike[k] for k in wrong):
            told = self._wrong_pose(poses[o], chosen[o][i], chosen[o][j], rng)
            if told is not None:  # else two objects stand in, so that the labels stay balanced
                add((o, i), (o, j), told, WRONG_POSE)
        while len(kind) < 2 * len(alike):
            o, other = rng.choice(n, 2, replace=False)
            a, b = (int(o), int(rng.integers(v))), (int(other), int(rng.integers(v)))
            add(a, b, own[b], OTHER_OBJECT)
        index_1, index_2 = np.array(first), np.array(second)
        images_c2w = own.reshape(n * v, 4, 4)
        direction = images_c2w[:, :3, 2]  # backward: from the object to the camera
        cosine = (direction[index_1] * direction[index_2]).sum(-1)
        angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        told = (np.stack(c2w_1), np.stack(c2w_2), np.array(kind), angle)
        group = Group(rgba, images_c2w, index_1, index_2, *told, np.repeat(np.arange(n), v), ids)
        return group, rng

    def _draw_objects(
        self, rng: np.random.Generator
    ) -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray], list[str]]:
        poses, images, chosen, ids, taken = [], [], [], [], set()
        for _ in range(100 * self.objects):
            # both at once: what was learned of damaged objects before must not move the later draws
            position, views_seed = int(rng.integers(len(self.indices))), int(rng.integers(2**31))
            index = int(self.indices[position])
            if index in taken:
                continue
            name = self.source.ids[index]
            try:
                if name in self.damaged:
                    raise Damaged(self.damaged[name])
                of_object = self.source.poses(index)
                if len(of_object) < self.views:
                    raise Damaged(f"it has {len(of_object)} views, wanted {self.views}")
                order = np.random.default_rng(views_seed).permutation(len(of_object)).tolist()
                which, seen = first_images(self.source, index, order, self.views, self.size)
                images.append(seen)
            except Damaged as error:
                self._note(name, str(error))
                continue
            taken.add(index)
            ids.append(name)
            poses.append(of_object)
            chosen.append(np.array(which))
            if len(taken) == self.objects:
                return poses, np.concatenate(images), chosen, ids
        name, why = next(iter(self.damaged.items()), ("", "too few objects"))
        raise UserError(
            f"{self.source.name}: {len(self.damaged)} objects cannot be used and too few are left ({name}: {why})"
        )

    def _note(self, name: str, why: str) -> None:
        with self._lock:
            if name not in self.damaged:
                self.damaged[name] = why
                log.warning(
                    "object %s of %s is skipped: %s (%d so far)", name, self.source.name, why, len(self.damaged)
                )

    def _wrong_pose(self, poses: np.ndarray, i: int, j: int, rng: np.random.Generator) -> np.ndarray | None:
        turned = rotation_angle(poses[j], poses) >= self.min_angle
        turned[[i, j]] = False
        possible = np.flatnonzero(turned)
        return poses[int(rng.choice(possible))] if len(possible) else None


class Correction(NamedTuple):
    """For every image of a group, the true view: what is compared with it, and what is shown instead of it."""

    reference: np.ndarray  # (N,) rows of rgba: another view of the same object
    instead: np.ndarray  # (N,) rows: mostly the reference again, as a face on every side is, or a third view,
    # sometimes a view of any object
    share: np.ndarray  # (N,) float32: by how much the true view already shines through
    blur: np.ndarray  # (N,) radius in widths of the image, mostly 0: a shape can also be missing


def draw_corrections(group: Group, rng: np.random.Generator) -> Correction:
    name, n = group.object, len(group.rgba)
    alike = (name[:, None] == name) & ~np.eye(n, dtype=bool)

    def draw(allowed: np.ndarray) -> np.ndarray:  # (N, N) -> a column of each row
        return np.where(allowed, rng.random((n, n)), -1).argmax(1)

    # The energy is given a view from the front (azimuth 0, along x), so that is what most should be able to tell from
    front = np.where(alike, group.c2w[:, 0, 2], -np.inf).argmax(1)
    reference = np.where(rng.random(n) < REFERENCE_IN_FRONT, front, draw(alike))
    same = np.where(rng.random(n) < 0.5, reference, draw(alike))
    instead = np.where(rng.random(n) < 0.85, same, rng.integers(n, size=n))
    share = np.where(rng.random(n) < 0.5, 0, rng.uniform(0, 0.7, n)).astype(np.float32)
    blur = np.where(rng.random(n) < 0.75, 0, rng.uniform(0, 0.3, n)).astype(np.float32)
    return Correction(reference, instead, share, blur)


def rotation_angle(c2w_1: np.ndarray, c2w_2: np.ndarray) -> np.ndarray:
    """Radians by which camera 2 is turned against camera 1; (..., 4, 4) each, broadcast."""
    trace = (c2w_1[..., :3, :3] * c2w_2[..., :3, :3]).sum((-1, -2))
    return np.arccos(np.clip((trace - 1) / 2, -1, 1))
