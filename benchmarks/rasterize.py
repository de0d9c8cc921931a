"""The rasteriser, backend by backend, beside a plain C loop of the same arithmetic.

    python -m benchmarks.rasterize
    python -m benchmarks.rasterize --resolution 256 --repeats 21

A bumpy sphere of 80,000 faces in 4 views of 512 x 512 pixels: rasterize, interpolate three channels, antialias them,
and all the way back to the vertices. All competitors take turns. The last lines judge issue H: Numba takes at most 1.2
times the C loop, forward and backward.
"""

import argparse
import ctypes
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.command import options, positive, run, table, verdict_lines
from benchmarks.timing import Prepare, milliseconds, paired_ratio, race

FORWARD = ("rasterize", "interpolate", "antialias")
C_LOOP = "C loop"
MOST_OF_C = 1.2
CHANNELS = 3

SOURCE = r"""
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t whole;
#define BANDS 4
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define MIN3(a, b, c) MIN(MIN(a, b), c)
#define MAX3(a, b, c) MAX(MAX(a, b), c)

/* pixels from the image's centre, y down; NaN behind the camera */
static float *project(const float *clip, whole count, whole h, whole w) {
    float *screen = malloc(2 * count * sizeof(float));
    #pragma omp parallel for
    for (whole i = 0; i < count; i++) {
        const float *p = clip + 4 * i;
        screen[2 * i] = p[3] > 1e-6f ? p[0] / p[3] * (w * .5f) : NAN;
        screen[2 * i + 1] = p[3] > 1e-6f ? -(p[1] / p[3]) * (h * .5f) : NAN;
    }
    return screen;
}

void rasterize(const float *clip, const whole *faces, whole m, whole n, whole f, whole h, whole w,
               const float *fx, const float *fy, float *barycentric, float *depth, whole *triangle) {
    float *screen = project(clip, m * n, h, w);
    int (*box)[4] = malloc(m * f * sizeof *box);
    #pragma omp parallel for
    for (whole i = 0; i < m * f; i++) {
        const whole *face = faces + 3 * (i % f);
        const float *a = screen + 2 * (i / f * n + face[0]);
        const float *b = screen + 2 * (i / f * n + face[1]), *c = screen + 2 * (i / f * n + face[2]);
        float mx = w * .5f - .5f, my = h * .5f - .5f, slack = 1 / 64.f;
        if (isnan(a[0] + b[0] + c[0])) { box[i][0] = 0; box[i][1] = -1; continue; }
        box[i][0] = (int)ceilf(MIN(MAX(MIN3(a[1], b[1], c[1]) + my - slack, 0), h));
        box[i][1] = (int)floorf(MAX(MIN(MAX3(a[1], b[1], c[1]) + my + slack, h - 1), -1));
        box[i][2] = (int)ceilf(MIN(MAX(MIN3(a[0], b[0], c[0]) + mx - slack, 0), w));
        box[i][3] = (int)floorf(MAX(MIN(MAX3(a[0], b[0], c[0]) + mx + slack, w - 1), -1));
    }
    #pragma omp parallel for schedule(dynamic)
    for (whole band = 0; band < m * BANDS; band++) {
        whole image = band / BANDS, first = band % BANDS * h / BANDS, end = (band % BANDS + 1) * h / BANDS;
        for (whole p = (image * h + first) * w; p < (image * h + end) * w; p++) {
            depth[p] = INFINITY; triangle[p] = 0; barycentric[2 * p] = barycentric[2 * p + 1] = 0;
        }
        for (whole face = 0; face < f; face++) {
            const int *b = box[image * f + face];
            whole top = b[0] > first ? b[0] : first, bottom = b[1] < end - 1 ? b[1] : end - 1;
            if (top > bottom) continue;
            const float *v0 = clip + 4 * (image * n + faces[3 * face]);
            const float *v1 = clip + 4 * (image * n + faces[3 * face + 1]);
            const float *v2 = clip + 4 * (image * n + faces[3 * face + 2]);
            for (whole y = top; y <= bottom; y++) {
                float q0y = v0[1] - fy[y] * v0[3], q1y = v1[1] - fy[y] * v1[3], q2y = v2[1] - fy[y] * v2[3];
                if (MIN3(q0y, q1y, q2y) > 0 || MAX3(q0y, q1y, q2y) < 0) continue;
                for (whole x = b[2]; x <= b[3]; x++) {
                    float q0x = v0[0] - fx[x] * v0[3], q1x = v1[0] - fx[x] * v1[3], q2x = v2[0] - fx[x] * v2[3];
                    float a0 = q1x * q2y - q1y * q2x, a1 = q2x * q0y - q2y * q0x, a2 = q0x * q1y - q0y * q1x;
                    /* without branches: a third faster */
                    if (!(((a0 >= 0) & (a1 >= 0) & (a2 >= 0)) | ((a0 <= 0) & (a1 <= 0) & (a2 <= 0)))) continue;
                    float area = a0 + a1 + a2;
                    if (area == 0 || !(fabsf(area) < INFINITY)) continue;
                    if (MIN3(q0x, q1x, q2x) > 0 || MAX3(q0x, q1x, q2x) < 0) continue;
                    float z = (v0[2] * a0 + v1[2] * a1 + v2[2] * a2) / (v0[3] * a0 + v1[3] * a1 + v2[3] * a2);
                    whole p = (image * h + y) * w + x;
                    if (z < depth[p]) {
                        depth[p] = z; triangle[p] = face + 1;
                        barycentric[2 * p] = a0 / area; barycentric[2 * p + 1] = a1 / area;
                    }
                }
            }
        }
        for (whole p = (image * h + first) * w; p < (image * h + end) * w; p++) if (!triangle[p]) depth[p] = 0;
    }
    free(screen);
    free(box);
}

void rasterize_backward(const float *clip, const whole *faces, whole m, whole n, whole h, whole w,
                        const float *fx, const float *fy, const float *barycentric, const whole *triangle,
                        const float *grad, float *out) {
    #pragma omp parallel for
    for (whole image = 0; image < m; image++) {
        const float *v = clip + 4 * image * n;
        float *sum = out + 4 * image * n;
        memset(sum, 0, 4 * n * sizeof(float));
        for (whole y = 0; y < h; y++) for (whole x = 0; x < w; x++) {
            whole p = (image * h + y) * w + x;
            if (!triangle[p]) continue;
            const whole *face = faces + 3 * (triangle[p] - 1);
            float qx[3], qy[3];
            for (int k = 0; k < 3; k++) {
                qx[k] = v[4 * face[k]] - fx[x] * v[4 * face[k] + 3];
                qy[k] = v[4 * face[k] + 1] - fy[y] * v[4 * face[k] + 3];
            }
            float area = qx[1] * qy[2] - qy[1] * qx[2] + qx[2] * qy[0] - qy[2] * qx[0] + qx[0] * qy[1] - qy[0] * qx[1];
            float i = 1 / (area + copysignf(1e-6f, area)), g0 = grad[2 * p] * i, g1 = grad[2 * p + 1] * i;
            float g = g0 * barycentric[2 * p] + g1 * barycentric[2 * p + 1];
            float dx[3] = {g * (qy[2] - qy[1]) - g1 * qy[2], g * (qy[0] - qy[2]) + g0 * qy[2],
                           g * (qy[1] - qy[0]) - g0 * qy[1] + g1 * qy[0]};
            float dy[3] = {g * (qx[1] - qx[2]) + g1 * qx[2], g * (qx[2] - qx[0]) - g0 * qx[2],
                           g * (qx[0] - qx[1]) + g0 * qx[1] - g1 * qx[0]};
            for (int k = 0; k < 3; k++) {
                sum[4 * face[k]] += dx[k];
                sum[4 * face[k] + 1] += dy[k];
                sum[4 * face[k] + 3] -= fx[x] * dx[k] + fy[y] * dy[k];
            }
        }
    }
}

void interpolate(const float *attributes, const whole *faces, whole pixels, whole channels,
                 const float *barycentric, const whole *triangle, float *out) {
    #pragma omp parallel for
    for (whole p = 0; p < pixels; p++) {
        float *o = out + p * channels;
        if (!triangle[p]) { memset(o, 0, channels * sizeof(float)); continue; }
        const whole *face = faces + 3 * (triangle[p] - 1);
        float b0 = barycentric[2 * p], b1 = barycentric[2 * p + 1], b2 = 1 - b0 - b1;
        for (whole c = 0; c < channels; c++)
            o[c] = attributes[face[0] * channels + c] * b0 + attributes[face[1] * channels + c] * b1
                 + attributes[face[2] * channels + c] * b2;
    }
}

void interpolate_backward(const float *attributes, const whole *faces, whole m, whole n, whole pixels, whole channels,
                          const float *barycentric, const whole *triangle, const float *grad,
                          float *grad_barycentric, float *out) {
    float *sums = calloc(m * n * channels, sizeof(float));
    #pragma omp parallel for
    for (whole image = 0; image < m; image++) {
        float *sum = sums + image * n * channels;
        for (whole p = image * pixels; p < (image + 1) * pixels; p++) {
            float g0 = 0, g1 = 0;
            if (triangle[p]) {
                const whole *face = faces + 3 * (triangle[p] - 1);
                float b0 = barycentric[2 * p], b1 = barycentric[2 * p + 1], b2 = 1 - b0 - b1;
                const float *a0 = attributes + face[0] * channels, *a1 = attributes + face[1] * channels;
                const float *a2 = attributes + face[2] * channels;
                float *s0 = sum + face[0] * channels, *s1 = sum + face[1] * channels, *s2 = sum + face[2] * channels;
                for (whole c = 0; c < channels; c++) {
                    float g = grad[p * channels + c];
                    g0 += g * (a0[c] - a2[c]); g1 += g * (a1[c] - a2[c]);
                    s0[c] += b0 * g; s1[c] += b1 * g; s2[c] += b2 * g;
                }
            }
            grad_barycentric[2 * p] = g0; grad_barycentric[2 * p + 1] = g1;
        }
    }
    #pragma omp parallel for
    for (whole i = 0; i < n * channels; i++) {
        float total = 0;
        for (whole image = 0; image < m; image++) total += sums[image * n * channels + i];
        out[i] = total;
    }
    free(sums);
}

static float cross(const float *o, const float *a, const float *b) {
    return (a[0] - o[0]) * (b[1] - o[1]) - (a[1] - o[1]) * (b[0] - o[0]);
}

static unsigned char outline(const float *screen, const whole *face, const whole *opposite) {
    const float *v[3] = {screen + 2 * face[0], screen + 2 * face[1], screen + 2 * face[2]};
    int inside = cross(v[0], v[1], v[2]) < 0;
    unsigned char bits = 0;
    for (int k = 0; k < 3; k++) {
        const float *wing = screen + 2 * opposite[k];
        if (opposite[k] < 0 || isnan(wing[0]) || (cross(wing, v[(k + 1) % 3], v[(k + 2) % 3]) < 0) == inside)
            bits |= 1 << k;
    }
    return bits;
}

/* Returns how many crossings there are: of pairs[i], edges[2 i], alphas[i]. */
whole antialias(const float *clip, const whole *faces, const whole *opposite, whole m, whole n, whole f, whole h,
                whole w, whole channels, const float *depth, const whole *triangle, const float *color, float *out,
                whole *pairs, whole *edges, float *alphas) {
    float *screen = project(clip, m * n, h, w);
    unsigned char *known = malloc(m * f);
    whole *found = malloc(m * sizeof(whole)), total = 0;
    memset(known, 255, m * f);
    #pragma omp parallel for
    for (whole image = 0; image < m; image++) {
        const float *points = screen + 2 * image * n;
        whole count = image * h * w * 2;
        for (whole y = 0; y < h; y++) for (whole x = 0; x < w; x++) for (int down = 0; down < 2; down++) {
            if (down ? y + 1 == h : x + 1 == w) continue;
            whole p = (image * h + y) * w + x, q = p + (down ? w : 1);
            if (triangle[p] == triangle[q]) continue;
            int swap = !triangle[p] || (triangle[q] && depth[q] <= depth[p]);
            whole number = triangle[swap ? q : p] - 1;
            const whole *face = faces + 3 * number;
            unsigned char *bits = known + image * f + number;
            if (*bits == 255) *bits = outline(points, face, opposite + 3 * number);
            if (!*bits) continue;
            float centre[2] = {x + (swap && !down) + .5f - w * .5f, y + (swap && down) + .5f - h * .5f};
            float sign = swap ? -1 : 1, best = -INFINITY;
            int edge = -1, upright = 0;
            for (int k = 0; k < 3; k++) {
                const float *a = points + 2 * face[(k + 1) % 3], *b = points + 2 * face[(k + 2) % 3];
                float x1 = a[down] - centre[down], x2 = b[down] - centre[down];
                float y1 = a[!down] - centre[!down], y2 = b[!down] - centre[!down];
                if ((y1 < 0) == (y2 < 0)) continue;
                float dx = x2 - x1, dy = y2 - y1, d = sign * (x1 * dy - y1 * dx) / dy;
                if (d > best) { best = d; edge = k; upright = fabsf(dy) >= fabsf(dx); }
            }
            if (edge < 0 || !upright || !(*bits >> edge & 1) || !(best > -1 / 16.f && best < 17 / 16.f)) continue;
            pairs[count] = 2 * p + down;
            edges[2 * count] = image * n + face[(edge + 1) % 3];
            edges[2 * count + 1] = image * n + face[(edge + 2) % 3];
            alphas[count++] = sign * (.5f - MIN(MAX(best, 0), 1));
        }
        found[image] = count - image * h * w * 2;
    }
    for (whole image = 0; image < m; image++) {
        memmove(pairs + total, pairs + image * h * w * 2, found[image] * sizeof(whole));
        memmove(edges + 2 * total, edges + image * h * w * 4, 2 * found[image] * sizeof(whole));
        memmove(alphas + total, alphas + image * h * w * 2, found[image] * sizeof(float));
        total += found[image];
    }
    memcpy(out, color, m * h * w * channels * sizeof(float));
    for (whole i = 0; i < total; i++) {
        whole p = pairs[i] / 2, q = p + (pairs[i] % 2 ? w : 1), to = alphas[i] > 0 ? p : q;
        for (whole c = 0; c < channels; c++)
            out[to * channels + c] += alphas[i] * (color[q * channels + c] - color[p * channels + c]);
    }
    free(screen);
    free(known);
    free(found);
    return total;
}

void antialias_backward(const float *clip, whole m, whole n, whole h, whole w, whole channels, const float *color,
                        whole count, const whole *pairs, const whole *edges, const float *alphas, const float *grad,
                        float *grad_color, float *out) {
    memcpy(grad_color, grad, m * h * w * channels * sizeof(float));
    memset(out, 0, 4 * m * n * sizeof(float));
    for (whole i = 0; i < count; i++) {
        whole p = pairs[i] / 2, down = pairs[i] % 2, q = p + (down ? w : 1), to = alphas[i] > 0 ? p : q;
        float slope = 0;
        for (whole c = 0; c < channels; c++) {
            float g = grad[to * channels + c];
            slope -= g * (color[q * channels + c] - color[p * channels + c]);
            grad_color[p * channels + c] -= alphas[i] * g;
            grad_color[q * channels + c] += alphas[i] * g;
        }
        if (!(fabsf(alphas[i]) < .5f)) continue;
        float half[2] = {w * .5f, h * -.5f}, at[2] = {p % w + .5f - w * .5f, p / w % h + .5f - h * .5f}, u[2], v[2];
        for (int k = 0; k < 2; k++) {
            const float *corner = clip + 4 * edges[2 * i + k];
            u[k] = corner[down] / corner[3] * half[down] - at[down];
            v[k] = corner[!down] / corner[3] * half[!down] - at[!down];
        }
        float dy = v[1] - v[0], crossing = (u[0] * v[1] - v[0] * u[1]) / dy;
        slope /= dy + copysignf(1e-3f, dy);
        for (int k = 0; k < 2; k++) {
            float s = k ? -slope : slope, d[2];
            const float *corner = clip + 4 * edges[2 * i + k];
            float *sum = out + 4 * edges[2 * i + k];
            d[down] = s * v[!k] / corner[3] * half[down];
            d[!down] = s * (crossing - u[!k]) / corner[3] * half[!down];
            sum[0] += d[0];
            sum[1] += d[1];
            sum[3] -= (corner[0] * d[0] + corner[1] * d[1]) / corner[3];
        }
    }
}
"""


class Scene(NamedTuple):
    """What is drawn: faces (F, 3) of vertices, their clip coordinates (M, N, 4) and attributes (N, K)."""

    clip: Any
    attributes: Any
    faces: Any
    opposite: Any
    resolution: tuple[int, int]
    grad: Any  # (M, H, W, K) of the result


def main() -> int:
    parser = options("rasterize", __doc__, repeats=11)
    parser.add_argument("--resolution", type=positive, default=None, help="pixels along each side (512)")
    parser.add_argument("--views", type=positive, default=4)
    parser.add_argument("--faces", type=positive, default=None, help="about so many (80000)")
    return run("rasterize", parser, measure)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    args.resolution = args.resolution or (48 if args.quick else 512)
    args.faces = args.faces or (1000 if args.quick else 80_000)
    scene = bumpy_sphere(args.resolution, args.views, args.faces, args.device)
    steps, left_out = competitors(scene, args.device)
    check_same(steps)
    times = {
        operation: {name: milliseconds(s) for name, s in race(by_name, args.repeats, args.device, args.clock).items()}
        for operation, by_name in operations(steps).items()
    }
    seconds = race({name: whole(step) for name, step in steps.items()}, args.repeats, args.device, args.clock)
    times["forward + backward"] = {name: milliseconds(s) for name, s in seconds.items()}
    ratios = {a: {b: paired_ratio(seconds[a], seconds[b]) for b in seconds if b != a} for a in seconds}
    covered = float((steps["torch"].forward()["triangle"] > 0).float().mean())
    sizes = {"faces": len(scene.faces), "vertices": len(scene.attributes), "covered": covered}
    print(f"\n{args.views} views of {args.resolution}^2 pixels, {len(scene.faces)} faces: median ms (best)")
    print(show(times, left_out))
    verdicts = judge(ratios)
    print("\n" + verdict_lines(verdicts, args.quick))
    return {"scene": sizes, "times": times, "ratios": ratios, "left_out": left_out, "verdicts": verdicts}


def bumpy_sphere(resolution: int, n_views: int, n_faces: int, device: str) -> Scene:
    """Meridians and circles of latitude, with bumps deep enough to hide each other, seen by cameras all around."""
    import torch

    from jointdreamer.scenes.mesh.raster import opposite_vertices

    circles = max(3, round(math.sqrt(n_faces / 4)))
    around = 2 * circles
    polar = torch.linspace(0, math.pi, circles + 1)[:, None]
    azimuth = torch.arange(around)[None] * (2 * math.pi / around)
    radius = 0.62 + 0.08 * torch.sin(9 * polar) * torch.sin(7 * azimuth)
    directions = polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos().expand(-1, around)
    points = (radius[..., None] * torch.stack(directions, dim=-1)).reshape(-1, 3)
    row, column = torch.meshgrid(torch.arange(circles), torch.arange(around), indexing="ij")
    a, b = row * around + column, row * around + (column + 1) % around
    faces = torch.stack([torch.stack([a, a + around, b], -1), torch.stack([b, a + around, b + around], -1)], 2)
    faces = faces.reshape(-1, 3)
    generator = torch.Generator().manual_seed(0)
    points = points + 1e-3 * torch.randn(points.shape, generator=generator)
    views = []
    for angle in torch.arange(n_views) * (2 * math.pi / n_views) + 0.3:
        away = 2.0 - points @ torch.stack([angle.cos(), angle.sin(), torch.tensor(0.0)])
        right = points @ torch.stack([-angle.sin(), angle.cos(), torch.tensor(0.0)])
        views.append(torch.stack([2.4 * right, 2.4 * points[:, 2], 1.02 * away - 0.2, away], dim=-1))
    grad = torch.randn(n_views, resolution, resolution, CHANNELS, generator=generator)
    clip, points, faces, grad = (x.to(device) for x in (torch.stack(views), points, faces, grad))
    return Scene(clip, points, faces, opposite_vertices(faces), (resolution, resolution), grad)


class Step(NamedTuple):
    """A competitor's operations: each takes what those before it gave, by name, and gives its own."""

    rasterize: Callable[[], dict[str, Any]]
    interpolate: Callable[[dict[str, Any]], dict[str, Any]]
    antialias: Callable[[dict[str, Any]], dict[str, Any]]
    backward: Callable[[dict[str, Any]], dict[str, Any]]

    def forward(self) -> dict[str, Any]:
        found = self.rasterize()
        found |= self.interpolate(found)
        return found | self.antialias(found)


def operations(steps: dict[str, Step]) -> dict[str, dict[str, Prepare]]:
    """operation -> competitor -> what `race` wants: what it starts from is made untimed."""

    def of(step: Step, operation: str) -> Prepare:
        def ready() -> Callable[[], Any]:
            if operation == "rasterize":
                return step.rasterize
            before = step.rasterize()
            if operation == "interpolate":
                return lambda: step.interpolate(before)
            before |= step.interpolate(before)
            if operation == "antialias":
                return lambda: step.antialias(before)
            before |= step.antialias(before)
            return lambda: step.backward(before)

        return ready

    return {name: {who: of(step, name) for who, step in steps.items()} for name in (*FORWARD, "backward")}


def whole(step: Step) -> Prepare:
    return lambda: lambda: step.backward(step.forward())


def competitors(scene: Scene, device: str) -> tuple[dict[str, Step], dict[str, str]]:
    """Backends that run on the device, with the C loop on a CPU; and why others are left out."""
    from jointdreamer.errors import UserError, one_line
    from jointdreamer.kernels import enabled
    from jointdreamer.scenes.mesh.raster import BACKENDS, backend_for

    found, left_out = {}, {}
    for backend in BACKENDS[1:]:
        try:
            backend_for(backend, scene.clip)
            if backend == "numba" and not enabled():
                raise UserError("compiled kernels are off")
            found[backend] = torch_step(scene, backend)
        except UserError as error:
            left_out[backend] = one_line(error)
    if device == "cpu":
        from benchmarks import c_loop

        library = c_loop.library(SOURCE)
        if library is None:
            left_out[C_LOOP] = "no cc with OpenMP here"
        else:
            found[C_LOOP] = c_step(scene, library)
    return found, left_out


def torch_step(scene: Scene, backend: str) -> Step:
    """The product's own functions."""
    import torch

    from jointdreamer.scenes.mesh.raster import antialias, interpolate, rasterize

    def draw() -> dict[str, Any]:
        clip, attributes = (x.detach().requires_grad_() for x in (scene.clip, scene.attributes))
        raster = rasterize(clip, scene.faces, scene.resolution, backend)
        return {"clip": clip, "attributes": attributes, "raster": raster, "triangle": raster.triangle}

    def backward(of: dict[str, Any]) -> dict[str, Any]:
        grads = torch.autograd.grad(of["image"], (of["clip"], of["attributes"]), scene.grad)
        return dict(zip(("grad_clip", "grad_attributes"), grads, strict=True))

    return Step(
        draw,
        lambda of: {"color": interpolate(of["attributes"], of["raster"], scene.faces, backend)},
        lambda of: {"image": antialias(of["color"], of["raster"], of["clip"], scene.faces, scene.opposite, backend)},
        backward,
    )


def c_step(scene: Scene, library: ctypes.CDLL) -> Step:
    """The C loop: memory is asked for in the time, as the others do."""
    import torch

    from benchmarks import c_loop
    from jointdreamer.kernels.raster import centres

    (m, n, _), (h, w), f = scene.clip.shape, scene.resolution, len(scene.faces)
    fx, fy = centres(w, torch.float32), -centres(h, torch.float32)
    library.antialias.restype = ctypes.c_int64

    def call(name: str, *arguments: Any) -> int:
        c_loop.use_torch_threads(library)
        passed = [
            ctypes.c_void_p(x.data_ptr()) if isinstance(x, torch.Tensor) else ctypes.c_int64(x) for x in arguments
        ]
        return getattr(library, name)(*passed)

    def draw() -> dict[str, Any]:
        out = torch.empty(m, h, w, 2), torch.empty(m, h, w), torch.empty(m, h, w, dtype=torch.int64)
        call("rasterize", scene.clip, scene.faces, m, n, f, h, w, fx, fy, *out)
        return dict(zip(("barycentric", "depth", "triangle"), out, strict=True))

    def interpolate(of: dict[str, Any]) -> dict[str, Any]:
        color = torch.empty(m, h, w, CHANNELS)
        pixels = of["barycentric"], of["triangle"]
        call("interpolate", scene.attributes, scene.faces, m * h * w, CHANNELS, *pixels, color)
        return {"color": color}

    def antialias(of: dict[str, Any]) -> dict[str, Any]:
        room = 2 * m * h * w
        image, pairs, edges, alphas = (
            torch.empty_like(of["color"]), torch.empty(room, dtype=torch.int64),
            torch.empty(2 * room, dtype=torch.int64), torch.empty(room),
        )  # fmt: skip
        sizes = m, n, f, h, w, CHANNELS
        count = call("antialias", scene.clip, scene.faces, scene.opposite, *sizes, of["depth"], of["triangle"],
                     of["color"], image, pairs, edges, alphas)  # fmt: skip
        return {"image": image, "crossings": (count, pairs, edges, alphas)}

    def backward(of: dict[str, Any]) -> dict[str, Any]:
        grad_color, grad_clip = torch.empty_like(of["color"]), torch.empty_like(scene.clip)
        call("antialias_backward", scene.clip, m, n, h, w, CHANNELS, of["color"], *of["crossings"], scene.grad,
             grad_color, grad_clip)  # fmt: skip
        grad_barycentric, grad_attributes = torch.empty_like(of["barycentric"]), torch.empty_like(scene.attributes)
        pixels = of["barycentric"], of["triangle"]
        call("interpolate_backward", scene.attributes, scene.faces, m, n, h * w, CHANNELS, *pixels, grad_color,
             grad_barycentric, grad_attributes)  # fmt: skip
        inside = torch.empty_like(scene.clip)
        call("rasterize_backward", scene.clip, scene.faces, m, n, h, w, fx, fy, *pixels, grad_barycentric, inside)
        return {"grad_clip": grad_clip.add_(inside), "grad_attributes": grad_attributes}

    return Step(draw, interpolate, antialias, backward)


def check_same(steps: dict[str, Step]) -> None:
    """A fast wrong loop is no competitor: RuntimeError where results differ from torch's.

    Loosely: the C compiler fuses multiplications and additions, and a pixel on an edge may fall to either side.
    """
    reference = None
    for name, step in steps.items():
        found = step.forward()
        found |= step.backward(found)
        reference = reference or found
        for key in ("triangle", "image", "grad_clip", "grad_attributes"):
            one, other = reference[key].detach().double(), found[key].detach().double()
            if key == "triangle":
                differ = float((one != other).double().mean())
            else:
                differ = float((one - other).norm() / one.norm())
            if not differ < (1e-3 if key == "triangle" else 0.05):
                raise RuntimeError(f"backend {name} disagrees in: {key}")


def show(times: dict[str, Any], left_out: dict[str, str]) -> str:
    names = list(times["forward + backward"])
    rows = [
        [operation, *(f"{by_name[name]['median_ms']:.1f} ({by_name[name]['best_ms']:.1f})" for name in names)]
        for operation, by_name in times.items()
    ]
    return "\n".join([table(["", *names], rows), *(f"{name}: left out, {why}" for name, why in left_out.items())])


def judge(ratios: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """The claim of issue H, forward + backward."""
    if "numba" not in ratios or C_LOOP not in ratios:
        return [{"holds": None, "claim": "no Numba or no C loop to compare on this device"}]
    ratio = ratios["numba"][C_LOOP]
    torch = f"torch {ratios['torch']['numba']:.1f} times numba"
    claim = f"numba takes {ratio:.2f} times the C loop (wanted: at most {MOST_OF_C}), {torch}"
    return [{"holds": ratio <= MOST_OF_C, "claim": claim, "ratio": ratio}]


if __name__ == "__main__":
    sys.exit(main())
