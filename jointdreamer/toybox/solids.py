"""How the toybox's toys look: each kind and each accessory put together from solids. The front is +x, up is +z."""

from dataclasses import replace

import numpy as np

from jointdreamer.toybox.raycast import BOX, CHECKERED, CONE, CYLINDER, PATCHED, PLAIN, SPHERE, SPOTTED, STRIPED, Solid
from jointdreamer.toybox.world import COLORS, Toy

SURFACES = {"plain": PLAIN, "striped": STRIPED, "spotted": SPOTTED, "checkered": CHECKERED, "patched": PATCHED}
WHITE, BLACK, BEAK = (0.97, 0.97, 0.97), (0.03, 0.03, 0.03), (0.98, 0.58, 0.08)


def solids(toy: Toy) -> list[Solid]:
    """The toy's solids within [-0.95, 0.95]^3, facing +x."""
    return _Builder(toy).build()


class _Builder:
    """Puts a toy together; sizes jitter by some percent with the shape seed."""

    def __init__(self, toy: Toy):
        self.toy = toy
        self.rng = np.random.default_rng(toy.shape_seed)
        self.parts: list[Solid] = []
        self.skin = COLORS[toy.color]
        self.pattern = SURFACES[toy.pattern]
        self.light = _mix(self.skin, WHITE, 0.6)
        self.dark = _mix(self.skin, BLACK, 0.35) if toy.color != "black" else (0.3, 0.3, 0.32)
        # Where clothes go: set by each kind.
        self.head_r, self.head_top = 0.27, 0.46
        self.neck_z, self.neck_r = -0.02, 0.19
        self.body_z, self.body_x, self.body_y = -0.27, 0.22, 0.25
        self.hand = (0.1, -0.36, -0.2)

    def vary(self, amount: float = 0.1) -> float:
        return float(1 + self.rng.uniform(-amount, amount))

    def add(self, shape, center, size, color, tilt=(0.0, 0.0, 0.0), pattern=PLAIN):
        self.parts.append(Solid(shape, tuple(center), tuple(size), tuple(color), tuple(tilt), pattern))

    def pair(self, shape, center, size, color, tilt=(0.0, 0.0, 0.0), pattern=PLAIN):
        """A solid and its mirror image in the plane y = 0."""
        x, y, z = center
        self.add(shape, (x, y, z), size, color, tilt, pattern)
        self.add(shape, (x, -y, z), size, color, (-tilt[0], tilt[1], -tilt[2]), pattern)

    def build(self) -> list[Solid]:
        getattr(self, f"_{self.toy.kind}")()
        if self.toy.accessory != "none":
            getattr(self, f"_{self.toy.accessory}")(COLORS[self.toy.accessory_color])
        scale = 1.2 * self.vary(0.05)  # the whole toy, larger or smaller
        return [replace(p, center=_times(p.center, scale), size=_times(p.size, scale)) for p in self.parts]

    # Parts that several kinds share.
    def eyes(self, x, y, z, radius=0.1):
        radius *= self.vary(0.08)
        self.pair(SPHERE, (x, y, z), (radius * 0.75, radius, radius), WHITE)
        self.pair(SPHERE, (x + radius * 0.62, y * 0.95, z), (radius * 0.35, radius * 0.58, radius * 0.58), BLACK)

    def head(self, z, sizes, color=None):
        sizes = [s * self.vary(0.06) for s in sizes]
        self.add(SPHERE, (0, 0, z), sizes, color or self.skin, pattern=self.pattern)
        self.head_r, self.head_top = sizes[1], z + sizes[2]
        return sizes

    def body(self, z, sizes, shape=SPHERE):
        sizes = [s * self.vary(0.08) for s in sizes]
        self.add(shape, (0, 0, z), sizes, self.skin, pattern=self.pattern)
        self.body_z, (self.body_x, self.body_y) = z, sizes[:2]
        return sizes

    def limbs(self, arm_y=0.28, arm_z=-0.2, leg_y=0.13, leg_z=-0.55, color=None, foot=0.11):
        color = color or self.skin
        swing = self.rng.uniform(0.3, 0.7)
        self.pair(SPHERE, (0.05, arm_y, arm_z), (0.085, 0.08, 0.19), color, (swing, 0, 0), self.pattern)
        self.pair(SPHERE, (0.06, leg_y, leg_z), (foot * 1.35, foot, foot * 0.95), color, pattern=self.pattern)
        self.hand = (0.1, -(arm_y + 0.09), arm_z - 0.12)

    # The kinds.
    def _bear(self):
        self.body(-0.27, (0.23, 0.26, 0.29))
        x, y, z = self.head(0.2, (0.27, 0.3, 0.26))
        self.pair(SPHERE, (0, y * 0.8, 0.2 + z * 0.85), (0.06, 0.11, 0.11), self.dark)
        self.add(SPHERE, (x * 0.85, 0, 0.12), (0.11, 0.12, 0.09), self.light)
        self.add(SPHERE, (x * 0.85 + 0.1, 0, 0.15), (0.04, 0.055, 0.04), BLACK)
        self.eyes(x * 0.82, 0.125, 0.28, 0.085)
        self.add(SPHERE, (0.13, 0, -0.27), (0.14, 0.16, 0.18), self.light)
        self.add(SPHERE, (-0.24, 0, -0.42), (0.08, 0.08, 0.08), self.dark)
        self.limbs()

    def _rabbit(self):
        self.body(-0.3, (0.2, 0.22, 0.27))
        x, _, z = self.head(0.1, (0.23, 0.25, 0.22))
        ear = 0.22 * self.vary(0.15)
        self.pair(SPHERE, (0, 0.1, 0.1 + z + ear * 0.75), (0.05, 0.075, ear), self.skin, (-0.12, 0, 0), self.pattern)
        self.pair(
            SPHERE, (0.035, 0.1, 0.1 + z + ear * 0.75), (0.03, 0.045, ear * 0.75), (0.98, 0.72, 0.78), (-0.12, 0, 0)
        )
        self.eyes(x * 0.8, 0.11, 0.16, 0.085)
        self.add(SPHERE, (x * 0.98, 0, 0.06), (0.04, 0.05, 0.035), (0.95, 0.45, 0.55))
        self.add(BOX, (x * 0.93, 0, -0.035), (0.035, 0.045, 0.05), WHITE)
        self.add(SPHERE, (-0.22, 0, -0.42), (0.1, 0.1, 0.1), WHITE)
        self.limbs(arm_y=0.23, leg_y=0.12, leg_z=-0.56, foot=0.105)
        self.neck_z, self.neck_r, self.head_top = -0.1, 0.16, 0.31

    def _robot(self):
        w = 0.24 * self.vary()
        self.add(BOX, (0, 0, -0.25), (0.17, w, 0.24), self.skin, pattern=self.pattern)
        head = 0.23 * self.vary(0.06)
        self.add(BOX, (0, 0, 0.22), (0.21, head, 0.19), self.skin, pattern=self.pattern)
        self.add(CYLINDER, (0, 0, 0.0), (0.09, 0.09, 0.05), (0.45, 0.45, 0.48))
        self.pair(CYLINDER, (0.2, 0.1, 0.27), (0.085, 0.085, 0.05), WHITE, (0, np.pi / 2, 0))
        self.pair(CYLINDER, (0.24, 0.1, 0.27), (0.045, 0.045, 0.03), BLACK, (0, np.pi / 2, 0))
        self.add(BOX, (0.2, 0, 0.12), (0.03, 0.13, 0.03), BLACK)
        self.add(BOX, (0.165, 0, -0.2), (0.02, 0.13, 0.09), self.light)
        self.add(BOX, (-0.18, 0, -0.22), (0.03, 0.12, 0.12), (0.45, 0.45, 0.48))
        self.add(CYLINDER, (0, 0.14, 0.47), (0.02, 0.02, 0.09), (0.45, 0.45, 0.48))  # one antenna: not symmetric
        self.add(SPHERE, (0, 0.14, 0.58), (0.05, 0.05, 0.05), (0.9, 0.2, 0.15))
        self.pair(BOX, (0, w + 0.075, -0.22), (0.07, 0.06, 0.19), self.dark)
        self.pair(BOX, (0.03, 0.12, -0.57), (0.12, 0.085, 0.1), self.dark)
        self.head_r, self.head_top = head, 0.41
        self.neck_z, self.neck_r = 0.0, 0.17
        self.body_z, self.body_x, self.body_y = -0.25, 0.18, w
        self.hand = (0.1, -(w + 0.09), -0.36)

    def _penguin(self):
        x, y, z = self.body(-0.12, (0.25, 0.28, 0.47))
        self.add(SPHERE, (0.12, 0, -0.2), (0.17, 0.2, 0.33), WHITE)
        self.pair(SPHERE, (0.0, y + 0.01, -0.15), (0.09, 0.045, 0.24), self.dark, (0.3 * self.vary(0.3), 0, 0))
        self.pair(SPHERE, (0.1, 0.12, -0.58), (0.16, 0.1, 0.05), BEAK)
        self.eyes(0.17, 0.1, 0.17, 0.08)
        self.add(CONE, (0.3, 0, 0.08), (0.06, 0.07, 0.11), BEAK, (0, np.pi / 2, 0))
        self.add(CONE, (-0.24, 0, -0.48), (0.07, 0.09, 0.1), self.dark, (0, -np.pi / 2, 0))
        self.head_r, self.head_top = 0.2, -0.12 + z
        self.neck_z, self.neck_r = 0.0, 0.235
        self.body_z, self.body_x, self.body_y = -0.2, x, y
        self.hand = (0.08, -0.36, -0.3)

    def _cat(self):
        self.body(-0.29, (0.2, 0.21, 0.27))
        x, y, z = self.head(0.16, (0.23, 0.29, 0.23))
        self.pair(CONE, (0, y * 0.62, 0.16 + z * 0.98), (0.06, 0.1, 0.13), self.skin, (-0.25, 0, 0), self.pattern)
        self.pair(CONE, (0.04, y * 0.62, 0.16 + z * 0.95), (0.03, 0.06, 0.09), (0.98, 0.72, 0.78), (-0.25, 0, 0))
        self.eyes(x * 0.8, 0.12, 0.22, 0.085)
        self.add(SPHERE, (x * 0.98, 0, 0.12), (0.035, 0.045, 0.03), (0.95, 0.45, 0.55))
        self.pair(BOX, (x * 0.8, 0.19, 0.09), (0.012, 0.12, 0.012), (0.85, 0.85, 0.85), (0.1, 0, 0))
        self.add(SPHERE, (0.11, 0, -0.3), (0.12, 0.13, 0.17), self.light)
        side = 0.1 * self.vary(0.5)
        self.add(CYLINDER, (-0.24, side, -0.28), (0.045, 0.045, 0.22), self.dark, (0.2, -0.3, 0))
        self.limbs(arm_y=0.22, leg_y=0.12, leg_z=-0.56, foot=0.1)

    def _frog(self):
        self.body(-0.3, (0.24, 0.28, 0.24))
        x, y, z = self.head(0.1, (0.27, 0.35, 0.2))
        self.pair(SPHERE, (0.08, 0.19, 0.1 + z * 0.95), (0.13, 0.13, 0.13), self.skin, pattern=self.pattern)
        self.pair(SPHERE, (0.15, 0.19, 0.12 + z * 0.95), (0.085, 0.1, 0.1), WHITE)
        self.pair(SPHERE, (0.22, 0.19, 0.12 + z * 0.95), (0.035, 0.055, 0.055), BLACK)
        self.add(SPHERE, (x * 0.84, 0, 0.03), (0.06, 0.21 * self.vary(), 0.035), (0.75, 0.12, 0.15))
        self.add(SPHERE, (0.13, 0, -0.3), (0.14, 0.19, 0.17), (0.93, 0.93, 0.6))
        self.pair(SPHERE, (0.12, 0.26, -0.56), (0.2, 0.11, 0.07), self.skin, (0, 0, 0.4), self.pattern)
        self.pair(SPHERE, (0.05, 0.3, -0.28), (0.07, 0.07, 0.17), self.skin, (0.5, 0, 0), self.pattern)
        self.neck_z, self.neck_r, self.head_top = -0.1, 0.22, 0.29
        self.hand = (0.1, -0.4, -0.38)

    def _elephant(self):
        self.body(-0.28, (0.25, 0.27, 0.28))
        x, y, _ = self.head(0.2, (0.24, 0.26, 0.25))
        ear = 0.19 * self.vary()
        self.pair(SPHERE, (-0.02, y + ear * 0.6, 0.22), (0.04, ear, ear * 1.15), self.dark, (0, 0, -0.3))
        self.add(CYLINDER, (x + 0.03, 0, 0.06), (0.065, 0.065, 0.12), self.skin, (0, -0.35, 0), self.pattern)
        self.add(CYLINDER, (x + 0.1, 0, -0.13), (0.052, 0.052, 0.1), self.skin, (0, -0.2, 0), self.pattern)
        self.pair(CONE, (x * 0.95, 0.11, 0.03), (0.03, 0.03, 0.09), WHITE, (0, 2.4, 0))
        self.eyes(x * 0.8, 0.12, 0.28, 0.075)
        self.add(CYLINDER, (-0.27, 0, -0.33), (0.02, 0.02, 0.13), self.dark, (0, 0.3, 0))
        self.add(SPHERE, (-0.31, 0, -0.46), (0.045, 0.045, 0.045), BLACK)
        self.limbs(leg_y=0.14, foot=0.12)

    def _owl(self):
        x, y, z = self.body(-0.08, (0.27, 0.31, 0.46))
        self.pair(CONE, (0, 0.17, 0.36), (0.06, 0.09, 0.12), self.skin, (-0.35, 0, 0), self.pattern)
        self.pair(SPHERE, (x * 0.72, 0.125, 0.15), (0.07, 0.14, 0.14), self.light)
        self.eyes(x * 0.9, 0.125, 0.15, 0.095)
        self.add(CONE, (x * 1.05, 0, 0.06), (0.05, 0.05, 0.09), BEAK, (0, 2.3, 0))
        self.add(SPHERE, (0.13, 0, -0.24), (0.17, 0.2, 0.24), self.light)
        self.pair(SPHERE, (-0.04, y, -0.12), (0.15, 0.05, 0.28), self.dark, (0.12 * self.vary(0.5), 0, 0))
        self.pair(SPHERE, (0.12, 0.11, -0.55), (0.1, 0.07, 0.05), BEAK)
        self.head_r, self.head_top = 0.23, -0.1 + z
        self.neck_z, self.neck_r = 0.0, 0.27
        self.body_z, self.body_x, self.body_y = -0.15, x, y
        self.hand = (0.08, -0.38, -0.25)

    def _pig(self):
        self.body(-0.28, (0.27, 0.3, 0.27))
        x, y, z = self.head(0.17, (0.26, 0.3, 0.25))
        self.pair(CONE, (0.06, y * 0.7, 0.17 + z * 0.95), (0.05, 0.1, 0.1), self.dark, (-0.6, 0.5, 0))
        self.add(CYLINDER, (x + 0.02, 0, 0.12), (0.095, 0.13, 0.06), self.light, (0, np.pi / 2, 0))
        self.pair(SPHERE, (x + 0.085, 0.05, 0.12), (0.02, 0.025, 0.04), BLACK)
        self.eyes(x * 0.78, 0.14, 0.27, 0.08)
        self.add(SPHERE, (-0.28, 0, -0.27), (0.06, 0.04, 0.07), self.dark, (0, 0, 0.5))
        self.add(SPHERE, (-0.32, 0.05, -0.2), (0.04, 0.05, 0.04), self.dark)
        self.limbs(color=self.skin, foot=0.1)

    def _ghost(self):
        r = 0.29 * self.vary()
        self.add(SPHERE, (0, 0, 0.17), (r, r, r), self.skin, pattern=self.pattern)
        self.add(CYLINDER, (0, 0, -0.16), (r, r, 0.33), self.skin, pattern=self.pattern)
        for k in range(6):
            a = np.pi * (k + 0.5) / 3
            self.add(
                SPHERE,
                (r * 0.72 * np.cos(a), r * 0.72 * np.sin(a), -0.5),
                (0.1, 0.1, 0.09),
                self.skin,
                pattern=self.pattern,
            )
        self.eyes(r * 0.85, 0.12, 0.2, 0.095)
        self.add(SPHERE, (r * 0.95, 0, 0.02), (0.04, 0.065, 0.08), BLACK)
        self.pair(
            SPHERE, (0.05, r + 0.08, -0.1), (0.06, 0.14, 0.06), self.skin, (0.3 * self.vary(0.5), 0, 0), self.pattern
        )
        self.head_r, self.head_top = r * 0.8, 0.15 + r
        self.neck_z, self.neck_r = -0.1, r
        self.body_z, self.body_x, self.body_y = -0.2, r, r
        self.hand = (0.08, -(r + 0.18), -0.1)

    def _dog(self):
        self.body(-0.28, (0.22, 0.22, 0.28))
        x, y, z = self.head(0.17, (0.24, 0.24, 0.23))
        ear = 0.19 * self.vary(0.15)
        self.pair(SPHERE, (0.02, y + 0.03, 0.22 - ear * 0.4), (0.085, 0.045, ear), self.dark, (0.25, 0, 0))
        self.add(SPHERE, (x * 0.95, 0, 0.1), (0.14, 0.1, 0.085), self.light)
        self.add(SPHERE, (x * 0.95 + 0.12, 0, 0.14), (0.045, 0.06, 0.042), BLACK)
        self.add(BOX, (x * 0.95 + 0.06, 0, 0.0), (0.03, 0.045, 0.06), (0.93, 0.35, 0.42))
        self.eyes(x * 0.85, 0.1, 0.25, 0.08)
        self.add(CYLINDER, (-0.28, 0, -0.24), (0.04, 0.04, 0.16), self.dark, (0.0, -0.6 * self.vary(0.3), 0))
        self.limbs(arm_y=0.23, leg_y=0.13, leg_z=-0.56, foot=0.11)

    def _mouse(self):
        self.body(-0.32, (0.2, 0.22, 0.24))
        x, y, z = self.head(0.06, (0.24, 0.23, 0.21))
        ear = 0.19 * self.vary()
        self.pair(SPHERE, (-0.02, y * 0.95, 0.06 + z + ear * 0.45), (0.04, ear, ear), self.skin, pattern=self.pattern)
        self.pair(SPHERE, (0.015, y * 0.95, 0.06 + z + ear * 0.45), (0.025, ear * 0.68, ear * 0.68), (0.98, 0.72, 0.78))
        self.add(CONE, (x + 0.03, 0, 0.01), (0.11, 0.11, 0.13), self.light, (0, np.pi / 2, 0))
        self.add(SPHERE, (x + 0.15, 0, 0.01), (0.045, 0.045, 0.045), (0.95, 0.45, 0.55))
        self.eyes(x * 0.8, 0.1, 0.13, 0.08)
        side = 0.08 * self.vary(0.5)
        self.add(CYLINDER, (-0.33, side, -0.45), (0.022, 0.022, 0.2), (0.95, 0.6, 0.66), (0.2, -1.1, 0))
        self.limbs(arm_y=0.22, leg_y=0.12, leg_z=-0.56, foot=0.1)
        self.neck_z, self.neck_r, self.head_top = -0.13, 0.17, 0.25

    def _duck(self):
        x, y, _ = self.body(-0.3, (0.3, 0.29, 0.25))
        hx, _, hz = self.head(0.16, (0.21, 0.21, 0.22))
        self.add(SPHERE, (hx + 0.07, 0, 0.12), (0.15, 0.15, 0.035), BEAK)
        self.add(SPHERE, (hx + 0.03, 0, 0.075), (0.11, 0.11, 0.025), _mix(BEAK, BLACK, 0.25))
        self.eyes(hx * 0.8, 0.1, 0.24, 0.08)
        self.pair(SPHERE, (-0.04, y, -0.26), (0.2, 0.055, 0.14), self.dark, (0, 0.25 * self.vary(0.4), 0))
        self.add(CONE, (-x - 0.03, 0, -0.16), (0.09, 0.12, 0.14), self.dark, (0, -0.8, 0))
        self.pair(SPHERE, (0.12, 0.13, -0.58), (0.15, 0.1, 0.045), BEAK)
        self.pair(CYLINDER, (0.04, 0.13, -0.53), (0.035, 0.035, 0.07), BEAK)
        self.head_r, self.head_top = 0.21, 0.16 + hz
        self.neck_z, self.neck_r = -0.04, 0.19
        self.hand = (0.1, -0.4, -0.3)

    def _lion(self):
        self.body(-0.29, (0.21, 0.22, 0.27))
        mane = 0.36 * self.vary(0.08)
        self.add(SPHERE, (-0.08, 0, 0.17), (0.21, mane, mane), _mix(self.dark, (0.35, 0.18, 0.06), 0.5))
        x, y, z = self.head(0.17, (0.25, 0.24, 0.23))
        self.pair(SPHERE, (0.08, 0.2, 0.4), (0.05, 0.075, 0.075), self.skin, pattern=self.pattern)
        self.add(SPHERE, (x * 0.9, 0, 0.09), (0.1, 0.11, 0.08), self.light)
        self.add(SPHERE, (x * 0.9 + 0.09, 0, 0.13), (0.035, 0.05, 0.035), BLACK)
        self.eyes(x * 0.85, 0.105, 0.24, 0.08)
        side = 0.1 * self.vary(0.5)
        self.add(CYLINDER, (-0.3, side, -0.38), (0.028, 0.028, 0.17), self.skin, (0.2, -0.7, 0))
        self.add(SPHERE, (-0.42, side - 0.03, -0.25), (0.07, 0.07, 0.08), _mix(self.dark, (0.35, 0.18, 0.06), 0.5))
        self.limbs(arm_y=0.23, leg_y=0.13, leg_z=-0.56, foot=0.11)
        self.head_top, self.neck_z, self.neck_r = 0.47, -0.1, 0.19

    def _alien(self):
        self.body(-0.33, (0.15, 0.16, 0.24))
        x, y, z = self.head(0.13, (0.23, 0.26, 0.3))
        self.eyes(x * 0.8, 0.14, 0.13, 0.075)
        self.add(SPHERE, (x * 0.86, 0, 0.24), (0.06, 0.085, 0.085), WHITE)
        self.add(SPHERE, (x * 0.86 + 0.05, 0, 0.24), (0.03, 0.048, 0.048), BLACK)
        self.add(SPHERE, (x * 0.86, 0, 0.0), (0.03, 0.06, 0.02), BLACK)
        lean = 0.45 * self.vary(0.2)
        self.pair(CYLINDER, (0, 0.15, 0.13 + z + 0.05), (0.018, 0.018, 0.13), self.dark, (-lean, 0, 0))
        self.pair(SPHERE, (0, 0.21, 0.13 + z + 0.18), (0.055, 0.055, 0.055), self.light)
        self.pair(SPHERE, (0.05, 0.19, -0.28), (0.05, 0.05, 0.2), self.skin, (0.5, 0, 0), self.pattern)
        self.pair(CYLINDER, (0, 0.09, -0.54), (0.045, 0.045, 0.09), self.skin, pattern=self.pattern)
        self.pair(SPHERE, (0.05, 0.1, -0.6), (0.12, 0.08, 0.05), self.dark)
        self.neck_z, self.neck_r, self.head_r = -0.14, 0.14, 0.24
        self.hand = (0.1, -0.3, -0.42)

    # What they wear.
    def _hat(self, color):
        z, r = self.head_top - 0.03, max(0.17, self.head_r * 0.75)
        self.add(CYLINDER, (0, 0, z), (r * 1.35, r * 1.35, 0.025), color)
        self.add(CYLINDER, (0, 0, z + 0.13), (r * 0.8, r * 0.8, 0.12), color)
        self.add(CYLINDER, (0, 0, z + 0.045), (r * 0.83, r * 0.83, 0.025), _mix(color, BLACK, 0.6))

    def _crown(self, color):
        z, r = self.head_top - 0.01, max(0.16, self.head_r * 0.68)
        self.add(CYLINDER, (0, 0, z), (r, r, 0.06), color)
        for k in range(6):
            a = np.pi * k / 3
            self.add(CONE, (r * 0.8 * np.cos(a), r * 0.8 * np.sin(a), z + 0.12), (0.055, 0.055, 0.08), color)

    def _scarf(self, color):
        self.add(CYLINDER, (0, 0, self.neck_z), (self.neck_r * 1.2, self.neck_r * 1.2, 0.06), color)
        self.add(BOX, (self.neck_r * 1.12, 0.1, self.neck_z - 0.15), (0.03, 0.06, 0.14), color, (0.1, 0.0, 0))

    def _backpack(self, color):
        x = -self.body_x - 0.1
        self.add(BOX, (x, 0, self.body_z + 0.05), (0.12, 0.19, 0.21), color)
        self.add(BOX, (x - 0.12, 0, self.body_z - 0.03), (0.035, 0.13, 0.09), _mix(color, BLACK, 0.35))
        self.pair(BOX, (self.body_x * 0.55, self.body_y * 0.62, self.body_z + 0.16), (0.1, 0.035, 0.06), color)

    def _cape(self, color):
        self.add(BOX, (-self.body_x - 0.06, 0, self.body_z - 0.06), (0.025, 0.29, 0.33), color, (0, 0.15, 0))
        self.add(CYLINDER, (0, 0, self.neck_z), (self.neck_r * 1.12, self.neck_r * 1.12, 0.04), color)

    def _flag(self, color):
        x, y, z = self.hand  # held on one side: not symmetric
        self.add(CYLINDER, (x, y, z + 0.35), (0.022, 0.022, 0.5), (0.5, 0.35, 0.2))
        self.add(BOX, (x, y - 0.14, z + 0.7), (0.02, 0.14, 0.12), color)

    def _balloon(self, color):
        x, y, z = self.hand
        radius = 0.17 * self.vary()
        self.add(CYLINDER, (x, y - 0.03, z + 0.26), (0.012, 0.012, 0.32), (0.85, 0.85, 0.85))
        self.add(SPHERE, (x, y - 0.03, z + 0.55 + radius), (radius, radius, radius * 1.15), color)

    def _umbrella(self, color):
        x, y, z = self.hand
        self.add(CYLINDER, (x, y - 0.02, z + 0.36), (0.02, 0.02, 0.42), (0.5, 0.35, 0.2))
        self.add(CONE, (x, y - 0.02, z + 0.8), (0.26, 0.26, 0.11 * self.vary()), color)

    def _drum(self, color):
        x, z = self.body_x + 0.13, self.body_z - 0.02
        self.add(CYLINDER, (x, 0, z), (0.15, 0.17, 0.1), color)
        self.add(CYLINDER, (x, 0, z + 0.1), (0.16, 0.18, 0.018), WHITE)
        self.add(CYLINDER, (x, 0, z - 0.1), (0.16, 0.18, 0.018), WHITE)


def _mix(a, b, share):
    return tuple((1 - share) * p + share * q for p, q in zip(a, b, strict=True))


def _times(v, scale):
    return (v[0] * scale, v[1] * scale, v[2] * scale)
